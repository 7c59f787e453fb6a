#!/usr/bin/env bash
# Makes the committed JSON of reports/sd15 anew, on a machine that does nothing else (an hour and a half on 2
# cores): two profiles (the second for the repeatability of the rank), the plan at 0.8, its student and the presets in
# pairs, in eager and in ONNX Runtime, each replacement against the unit that it replaces, with the allocator as it is
# and told to keep memory, and what the place of compiled code does.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin}
OUT=${OUT:-reports/sd15}
"$BIN/asdm-prof" profile sd15 -o "$OUT/profile.json" --force
"$BIN/asdm-prof" profile sd15 -o "$OUT/profile-again.json" --force
"$BIN/asdm-prof" plan --budget 0.8 --profile "$OUT/profile.json" -o "$OUT/plan.json" --force
"$BIN/asdm" build "$OUT/plan.json" -o "$OUT/student" --force
"$BIN/asdm" bench --teacher sd15 --student "$OUT/student" --student a_sdm --time-budget 400 -o "$OUT/bench.json" --force
"$BIN/asdm" bench --teacher sd15 --student a_sdm --student a_sdm_clme --student a_sdm_clme_timestep \
  --time-budget 300 -o "$OUT/bench-clme.json" --force
"$BIN/asdm" bench --teacher sd15 --student a_sdm --time-budget 80 -o "$OUT/bench-a_sdm.json" --force
"$BIN/asdm" bench --teacher sd15 --student a_sdm --student a_sdm_clme --backend onnxruntime --time-budget 120 \
  -o "$OUT/runtimes/bench-onnxruntime.json" --force # 22 GB: a session each
"$BIN/python" -m benchmarks.students "$OUT"/bench*.json "$OUT"/runtimes/bench*.json --readme
"$BIN/python" -m benchmarks.students "$OUT"/bench*.json --pooled a_sdm --readme
"$BIN/python" -m benchmarks.networks -o "$OUT/networks.json" --force
"$BIN/python" -m benchmarks.networks --keep-memory -o "$OUT/networks-kept.json" --force
"$BIN/python" -m benchmarks.placement -o "$OUT/placement.json" --force
"$BIN/asdm-prof" frontier --profile "$OUT/profile.json" --budget 0.8 --best 6 --diverse 6 -o "$OUT/frontier.json" --force
"$BIN/asdm-prof" report "$OUT/profile.json" -o "$OUT" --force
rm -rf "$OUT/student"
