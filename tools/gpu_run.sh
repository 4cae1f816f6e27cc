#!/usr/bin/env bash
# What one NVIDIA GPU says about this package, in about ten minutes:
#
#     OUT=results bash tools/gpu_run.sh DATA_DIR [timings|checks]
#     bash tools/gpu_run.sh wheels                       # before, where there is a network: 10 MB
#     DRY=1 OUT=results bash tools/gpu_run.sh DATA_DIR   # every step, tiny, on a CPU
#
# DATA_DIR is a COCO-format folder for the training run of the checks. Needs JAX and PyTorch for
# CUDA, timm, pytest and pytest-xdist, no TensorFlow, and what tools/gpu_wheels.txt lists: installed,
# or in the folder $WHEELS (.whl), from which it is taken. Every step has a time limit and cannot
# take the others down. $OUT gets gpu*.csv (rows of tools/benchmark.py), log.txt, and the run's
# metrics.csv and predictions.png.
set -u
python=${PYTHON:-python3}
data=$(realpath "${1:?give a COCO-format folder, or wheels}")
[[ ${OUT:-} ]] && OUT=$(realpath "$OUT")
cd "$(dirname "$0")/.." || exit
wheels=${WHEELS:-.whl}
if [[ $1 == wheels ]]; then
  platforms=$(printf -- '--platform manylinux%s_x86_64 ' _2_28 _2_27 _2_24 _2_17 2014 1)
  exec $python -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp $platforms -d "$wheels" -r tools/gpu_wheels.txt
fi
if [[ -d $wheels ]]; then
  site=$(mktemp -d)
  $python -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl || exit
  export PYTHONPATH=$site
fi
out=${OUT:?set OUT to a folder for the results}
part=${2:-all}
batch=${BATCH:-128}
dry=${DRY:+20}  # times the limits, which are a GPU's
mkdir -p "$out"
export PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=3 XLA_PYTHON_CLIENT_PREALLOCATE=false MPLBACKEND=Agg
export JAX_COMPILATION_CACHE_DIR=${CACHE:-/tmp/jax_cache}

# step SECONDS BACKEND COMMAND...: into the log. A background job ignores SIGINT unless told otherwise.
step() {
  local limit=$(($1 * ${dry:-1})) backend=$2 start=$SECONDS
  shift 2
  echo "== $backend $*" >>"$out/log.txt"
  KERAS_BACKEND=$backend timeout -s INT -k 10 "$limit" env --default-signal=INT $python "$@" >>"$out/log.txt" 2>&1
  echo "rc $? after $((SECONDS - start)) s of $limit: $backend $*" | tee -a "$out/log.txt"
}

bench="tools/benchmark.py --batch $batch --precision bfloat16"
train="--image-size 512 --precision mixed_bfloat16 --workers 6 --epochs 20"
pytest="-n 4 --dist worksteal --tb=short -v"
if [[ $dry ]]; then
  batch=4
  bench="tools/benchmark.py --batch 2 --image-size 64 --preset cednet_next_pico --rounds 1"
  train="--image-size 64 --batch-size 4 --epochs 1 --steps-per-epoch 2"
  pytest="--collect-only"
fi

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
    step 140 $backend -m pytest -q $pytest -m "not slow" -p no:cacheprovider $tests &
  done
  wait
}

training() {
  local run=$out/run
  step 140 jax recipes/coco_retinanet.py --data-dir "$data" $train --output "$run"
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
