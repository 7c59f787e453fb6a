#!/usr/bin/env bash
# Makes the evidence that predictions and runtimes can be trusted, and SDXL's profile, on a machine that does nothing
# else (about an hour and a half on 2 cores): a profile in every runtime at batch 1 and 2 with what they agree in, random
# plans against their predictions in eager and in ONNX Runtime, fresh processes, and SDXL within 20 GB.
# All is of one machine, so it has a folder, a profile and a page of its own. A step whose result is there is left out;
# delete the file to repeat it. The assembly and the allocator are measured there too.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin}
OUT=${OUT:-reports/sd15/trust}

make_if_missing() { # FILE COMMAND…
  [ -e "$1" ] || "${@:2}" -o "$1"
}
profile() { # BACKEND DTYPE BATCH
  make_if_missing "$OUT/runtimes/$1-$2-batch$3.json" \
    "$BIN/asdm-prof" profile sd15 --backend "$1" --dtype "$2" --batch "$3" --time-budget 150
}
has_bf16() { # or torch convolves in bf16 a hundred times slower than in fp32
  "$BIN/python" -c "import torch; raise SystemExit(not torch.ops.mkldnn._is_mkldnn_bf16_supported())"
}

make_if_missing "$OUT/profile.json" "$BIN/asdm-prof" profile sd15
make_if_missing "$OUT/validate.json" "$BIN/asdm-prof" validate sd15 --plans 12 --seed 0 --profile "$OUT/profile.json"
for batch in 1 2; do
  [ $batch = 1 ] || profile eager fp32 $batch
  if has_bf16; then profile eager bf16 $batch; fi
  profile onnxruntime fp32 $batch
  profile openvino fp32 $batch
done
make_if_missing "$OUT/compare.json" "$BIN/asdm-prof" compare "$OUT/profile.json" "$OUT"/runtimes/*.json --budget 0.8
make_if_missing reports/sdxl/profile.json "$BIN/asdm-prof" profile sdxl --time-budget 400
make_if_missing "$OUT/validate-onnxruntime.json" "$BIN/asdm-prof" validate sd15 --plans 12 --seed 0 \
  --profile "$OUT/runtimes/onnxruntime-fp32-batch1.json" --time-budget 40
make_if_missing "$OUT/processes.json" "$BIN/asdm-prof" profile sd15 --processes 3 --time-budget 150
make_if_missing "$OUT/plan.json" "$BIN/asdm-prof" plan --budget 0.8 --profile "$OUT/profile.json" \
  --validation "$OUT/validate.json"
for again in "" -2 -3; do
  make_if_missing "$OUT/bench-clme$again.json" "$BIN/asdm" bench --teacher sd15 --student a_sdm --student a_sdm_clme \
    --time-budget 110
done
make_if_missing "$OUT/allocator.json" "$BIN/python" -m benchmarks.allocator
"$BIN/asdm-prof" report "$OUT/profile.json" -o "$OUT" --format html,csv --force
"$BIN/asdm-prof" report reports/sdxl/profile.json -o reports/sdxl --format html,csv --force
