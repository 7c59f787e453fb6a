#!/usr/bin/env bash
# Makes the evidence of reports/sd15 that predictions and runtimes can be trusted, and SDXL's profile, on a machine that
# does nothing else (about an hour and a half on 2 cores): random plans against their predictions in eager and in ONNX
# Runtime, fresh processes, a profile in every runtime at batch 1 and 2 with what they agree in, and SDXL within 20 GB.
# A step whose result is there is left out; delete the file to repeat it.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin}
OUT=${OUT:-reports/sd15}

make_if_missing() { # FILE COMMAND…
  [ -e "$1" ] || "${@:2}" -o "$1"
}
profile() { # BACKEND DTYPE BATCH
  make_if_missing "$OUT/runtimes/$1-$2-batch$3.json" "$BIN/asdm-prof" profile sd15 --backend "$1" --dtype "$2" --batch "$3"
}

make_if_missing "$OUT/validate.json" "$BIN/asdm-prof" validate sd15 --plans 12 --seed 0 --profile "$OUT/profile.json"
for batch in 1 2; do
  profile eager fp32 $batch
  profile eager bf16 $batch
  profile onnxruntime fp32 $batch
  profile openvino fp32 $batch
done
make_if_missing "$OUT/compare.json" "$BIN/asdm-prof" compare "$OUT"/runtimes/*.json --budget 0.8
make_if_missing "$OUT/validate-onnxruntime.json" "$BIN/asdm-prof" validate sd15 --plans 12 --seed 0 \
  --profile "$OUT/runtimes/onnxruntime-fp32-batch1.json"
make_if_missing "$OUT/processes.json" "$BIN/asdm-prof" profile sd15 --processes 3
make_if_missing reports/sdxl/profile.json "$BIN/asdm-prof" profile sdxl --time-budget 600
