#!/usr/bin/env bash
# What one NVIDIA GPU says about this package, in about ten minutes:
#
#     OUT=results bash tools/gpu_run.sh DATA_DIR [timings|checks]
#
# DATA_DIR is a COCO-format folder for the training run of the checks. Needs the package's requirements with JAX
# and PyTorch for CUDA, timm, pytest and pytest-xdist; no TensorFlow. Every step has a time limit
# and cannot take the others down. $OUT gets gpu*.csv (rows of tools/benchmark.py), log.txt, and
# the run's metrics.csv and predictions.png.
set -u
data=$1
out=${OUT:?set OUT to a folder for the results}
part=${2:-all}
batch=${BATCH:-128}
mkdir -p "$out"
export PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=3 XLA_PYTHON_CLIENT_PREALLOCATE=false MPLBACKEND=Agg
export JAX_COMPILATION_CACHE_DIR=${CACHE:-/tmp/jax_cache}

# step SECONDS BACKEND COMMAND...: into the log. A background job ignores SIGINT unless told otherwise.
step() {
  local limit=$1 backend=$2 start=$SECONDS
  shift 2
  echo "== $backend $*" >>"$out/log.txt"
  KERAS_BACKEND=$backend timeout -s INT -k 10 "$limit" env --default-signal=INT python3 "$@" >>"$out/log.txt" 2>&1
  echo "rc $? after $((SECONDS - start)) s of $limit: $backend $*" | tee -a "$out/log.txt"
}

bench="tools/benchmark.py --batch $batch --precision bfloat16"

timings() {
  # Compilers first, beside each other, into their caches; what is timed later runs alone.
  local once="--rounds 1 --output"
  step 120 jax $bench --mode forward $once "$out/first_1.csv" &
  step 300 jax $bench --mode train $once "$out/first_2.csv" &
  step 120 torch $bench --mode forward --compile on $once "$out/first_3.csv" &
  step 120 torch $bench --mode train --compile on $once "$out/first_4.csv" &
  step 120 torch $bench --mode forward train --against torch_compiled timm $once "$out/first_5.csv" &
  step 120 jax tools/benchmark.py --depthwise --batch $((batch / 2)) --precision bfloat16 \
    $once "$out/first_6.csv" &
  wait
  cat "$out"/first_[1-5].csv >"$out/first_calls.csv"
  rm -f "$out"/first_[1-6].csv
  local gpu="--output $out/gpu.csv"
  step 45 jax $bench --mode forward train --against torch_compiled timm $gpu
  step 45 torch $bench --mode forward train --against torch torch_compiled timm $gpu
  step 45 torch $bench --mode forward train --compile on --against torch_compiled $gpu
  for backend in jax torch; do
    step 30 $backend tools/benchmark.py --depthwise --batch $((batch / 2)) --precision bfloat16 \
      --output "$out/gpu_depthwise.csv"
    step 25 $backend tools/benchmark.py --detections --output "$out/gpu_detections.csv"
  done
  step 30 torch tools/benchmark.py --two-stage --output "$out/gpu_two_stage.csv"
}

# The arithmetic is exact float32 here: TensorFloat-32 would hide faults behind its rounding.
suite() {
  local tests="tests/ops tests/layers tests/models/test_decoding.py tests/backbones/test_cednet.py"
  export CUDA_VISIBLE_DEVICES=0 JAX_DISABLE_MOST_OPTIMIZATIONS=0
  export JAX_DEFAULT_MATMUL_PRECISION=highest NVIDIA_TF32_OVERRIDE=0
  for backend in jax torch; do
    step 140 $backend -m pytest -q -n 4 --dist worksteal -m "not slow" --tb=short \
      -v -p no:cacheprovider $tests &
  done
  wait
}

training() {
  local run=$out/run
  step 140 jax recipes/coco_retinanet.py --data-dir "$data" --image-size 512 \
    --precision mixed_bfloat16 --workers 6 --epochs 20 --output "$run"
  cp "$run"/{metrics.csv,predictions.png} "$out" 2>/dev/null
  rm -rf "$run"
}

[[ $part == checks ]] || timings
if [[ $part != timings ]]; then
  training &
  suite
  wait
fi
grep -aE "passed|failed|^FAILED|^ERROR" "$out/log.txt"
cat "$out"/gpu*.csv
