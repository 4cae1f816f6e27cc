"""Times networks against other forms of them, side by side, and appends the result to a CSV file.

    KERAS_BACKEND=jax python tools/benchmark.py --against stock torch
    KERAS_BACKEND=jax python tools/benchmark.py --mode train --batch 4 --against torch
    python tools/benchmark.py --model pyramid --image-size 640 --against torch torch_compiled
    python tools/benchmark.py --model segmenter --image-size 512 --against torch
    python tools/benchmark.py --preset bicsnet_48 --mode forward train --against stock
    python tools/benchmark.py --pipeline
    python tools/benchmark.py --reading --rounds 3
    python tools/benchmark.py --detections
    python tools/benchmark.py --detectors csp_peleenet_efm_sam csp_densenet_b_ref_prn
    python tools/benchmark.py --two-stage
    python tools/benchmark.py --depthwise --batch 64 --precision bfloat16
    python tools/benchmark.py --deformable-attention --rounds 5
    python tools/benchmark.py --deformable-conv --rounds 5

All candidates of a row run in one process by turns, so a busy moment of the machine hits all of
them: trust the ratios more than the milliseconds. Every run prints its table; --output FILE also
appends it to FILE, row by row, with the command, the commit and the versions.

* forward: the classifier's last head, the maps of the backbone or the RetinaNet pyramid, or UperNet
  of 150 classes, as one compiled function (PyTorch: eager), images on the device.
* train: `train_on_batch` of the classifier with the heads of all stages, AdamW.
* optimized: ours by `models.optimize`, forward only.
* stock: the same network of stock Keras layers. torch: CEDNet as a plain `torch.nn` network.
* onnxruntime, openvino: ours as an ONNX file (from TensorFlow and PyTorch), forward only; with
  _int8 with convolutions and products in 8-bit integers. OpenVINO computes in bfloat16 if told so.
* timm: timm's ConvNeXt of the same size by `torch.compile`, with its own operations counted.
* share of peak: floating-point operations of convolutions and dense layers a second, over those of
  the best square matrix product of the same precision measured in the same run.
* --pipeline: JPEG decoding, with large-scale jitter, and the whole input pipelines of detectors at
  1024 px and of classifiers at 224 px, as bytes and as float32, images/s on one core, and with one
  worker process. --reading: opening a COCO and a YOLO tree of 118,000 images and 860,000 boxes,
  beside `json.load` and `os.scandir` of the same.
* --detections: box decoding and non-maximum suppression of 8 images, 76,725 anchors and 80 classes.
* --detectors: CSPNet's detectors (all, or those named), image by image from pixels to boxes: as
  they are, with batch norms folded, and as ONNX files in float32 and in 8-bit integers, in ONNX
  Runtime and in OpenVINO.
* --two-stage: a training step of Mask R-CNN, ResNet-50 and FPN, 512 px, 2 images, beside a step of
  its backbone alone; RoIAlign of 512 boxes beside a gather of the rows that it reads.
* --depthwise: the 7x7 convolutions of CEDNet-NeXt-T's levels in each form that the backend offers.
* --deformable-attention: a layer of Deformable DETR's encoder, 800 x 1280 px, forward and with
  gradients, beside PyTorch's `grid_sample`. --deformable-conv: 3x3 on (1, 100, 168, 128), likewise
  beside the ordinary convolution.
* On an accelerator the peak memory of each candidate is its own device memory.
"""

import argparse
import datetime
import itertools
import os
import shlex
import sys
from pathlib import Path

# JAX would take most of a GPU's memory for itself, and PyTorch runs beside it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Run as a script, the repository's root is not on the path: `tools` itself is.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras

from keras_densepred import backbones, files, training
from tools.rows import append, commit
from tools.timing import (
    candidates,
    class_pipeline,
    deformable_attention,
    deformable_conv,
    depthwise,
    detections,
    detectors,
    measure,
    pipeline,
    reading,
    runtimes,
    two_stage,
)

AGAINST = ("stock", "optimized", "torch", "torch_compiled", "timm", *runtimes.NAMES)
OF_TORCH = frozenset({"torch", "torch_compiled", "timm"})
PEAK_SIZES = (1024, 2048, 4096)
ACCELERATOR_PEAK_SIZES = (4096, 8192)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        check(arguments)
        if arguments.output is not None:
            arguments.output = files.require_new_file(arguments.output, overwrite=True)
        training.keep_freed_memory()
        source = origin(argv)  # before the file that grows makes the working tree a changed one
        for row in measured(arguments):
            if arguments.output is not None:
                append(arguments.output, [{**source, **row}])
        if arguments.output is not None:
            print(f"Appended the rows to {arguments.output}")
    except (ValueError, ImportError) as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 1
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", nargs="+", default=["cednet_next_tiny"])
    parser.add_argument("--model", choices=candidates.MODELS, default="classifier")
    parser.add_argument("--mode", choices=("forward", "train"), nargs="+", default=["forward"])
    parser.add_argument("--image-size", type=int, nargs="+", default=[224], help="in pixels")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="images at once")
    parser.add_argument("--precision", choices=tuple(candidates.POLICIES), default="float32")
    parser.add_argument(
        "--compile",
        choices=tuple(candidates.JIT_COMPILE),
        default="default",
        help="XLA (TensorFlow) or torch.compile: as Keras chooses by default, on, or off",
    )
    parser.add_argument("--against", choices=AGAINST, nargs="+", default=[], help="also time these")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each candidate")
    parser.add_argument("--output", type=Path, help="CSV file to append to")
    parser.add_argument("--pipeline", action="store_true", help="time the input pipeline instead")
    parser.add_argument("--data-dir", type=Path, help="COCO-format folder for --pipeline")
    parser.add_argument("--reading", action="store_true", help="time opening large trees of data")
    parser.add_argument("--detections", action="store_true", help="time box decoding and NMS")
    parser.add_argument(
        "--detectors", nargs="*", metavar="ROW", help="time CSPNet's detectors, or those named"
    )
    parser.add_argument(
        "--two-stage", action="store_true", help="time Mask R-CNN's step beside its backbone's"
    )
    parser.add_argument(
        "--depthwise", action="store_true", help="time each form of the depthwise convolutions"
    )
    parser.add_argument(
        "--deformable-attention", action="store_true", help="time it beside grid_sample"
    )
    parser.add_argument(
        "--deformable-conv", action="store_true", help="time it beside the ordinary convolution"
    )
    return parser.parse_args(argv)


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError, in one sentence, for what cannot be measured."""
    torch_wanted = OF_TORCH & set(arguments.against)
    for preset in arguments.preset:
        name = backbones.built_in_preset(preset)
        if name is None:
            known = ", ".join(backbones.built_in_presets())
            raise ValueError(f"--preset {preset} is unknown; choose from {known}.")
        if torch_wanted and name not in candidates.TORCH_VARIANTS:
            raise ValueError(
                f"--against {' '.join(sorted(torch_wanted))} has no {preset}; choose from "
                f"{', '.join(candidates.TORCH_VARIANTS)}."
            )
    if "train" in arguments.mode and "optimized" in arguments.against:
        raise ValueError("--against optimized predicts only: leave train out of --mode.")
    of_files = set(runtimes.NAMES) & set(arguments.against)
    if of_files and "train" in arguments.mode:
        raise ValueError(
            f"--against {' '.join(sorted(of_files))} predicts only: leave train out of --mode."
        )
    known = {"float32", "bfloat16"} if of_files <= runtimes.OF_ANY_PRECISION else {"float32"}
    if of_files and arguments.precision not in known:
        raise ValueError(
            f"--against {' '.join(sorted(of_files))} computes in {' or '.join(sorted(known))}: "
            f"leave out --precision {arguments.precision}."
        )
    if "train" in arguments.mode and arguments.model != "classifier":
        raise ValueError("--mode train is of the classifier; leave out --model.")
    for name in ("image_size", "batch", "rounds"):
        values = getattr(arguments, name)
        if min(values if isinstance(values, list) else [values]) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be positive.")
    if any(size % 32 for size in arguments.image_size):
        raise ValueError("--image-size must be a multiple of 32.")
    if "timm" in arguments.against and arguments.model != "classifier":
        raise ValueError("--against timm is of the classifier; leave out --model.")


def measured(arguments: argparse.Namespace):
    """Prints and yields one row a candidate."""
    if arguments.pipeline:
        yield from shown(pipeline.measure_pipeline(data_dir=arguments.data_dir))
        yield from shown(class_pipeline.measure_class_pipeline())
        return
    if arguments.reading:
        yield from shown(reading.measure_reading(rounds=arguments.rounds))
        return
    if arguments.detections:
        for row in detections.measure_detections(repeats=arguments.rounds):
            yield from shown([{"backend": keras.config.backend(), **row}])
        return
    if arguments.detectors is not None:
        for row in detectors.measure_detectors(arguments.detectors, arguments.rounds):
            yield from shown([{"backend": keras.config.backend(), **row}])
        return
    if arguments.two_stage:
        rows = two_stage.measure_two_stage(compile=arguments.compile, rounds=arguments.rounds)
        yield from shown([{"backend": keras.config.backend(), **row} for row in rows])
        return
    if arguments.depthwise:
        for batch in arguments.batch:
            for row in depthwise.measure_depthwise(batch, arguments.precision, arguments.rounds):
                yield from shown([{"backend": keras.config.backend(), **row}])
        return
    if arguments.deformable_attention:
        for row in deformable_attention.measure_deformable_attention(arguments.rounds):
            yield from shown([{"backend": keras.config.backend(), **row}])
        return
    if arguments.deformable_conv:
        for row in deformable_conv.measure_deformable_conv(arguments.rounds):
            yield from shown([{"backend": keras.config.backend(), **row}])
        return
    peak = None
    for preset, size, batch, mode in itertools.product(
        arguments.preset, arguments.image_size, arguments.batch, arguments.mode
    ):
        task = candidates.Task(
            backbones.built_in_preset(preset),
            arguments.model,
            mode,
            arguments.precision,
            size,
            batch,
            arguments.compile,
        )
        model, timings = measure_task(task, arguments)
        if peak is None:  # not before: what it frees would hide what the network takes
            peak = matrix_peak(arguments)
            print(f"matrix product peak: {peak:.0f} GFLOP/s in {task.precision}", flush=True)
        yield from shown(task_rows(task, timings, candidates.gflop(model, task), peak))


def matrix_peak(arguments: argparse.Namespace) -> float:
    """GFLOP/s of the best square matrix product of the backend and, where compared, PyTorch."""
    backends = {keras.config.backend()}
    if OF_TORCH & set(arguments.against):
        backends.add("torch")
    on_cpu = candidates.device_name() is None
    return max(
        measure.gflops_of(candidates.matrix_product(backend, arguments.precision, size), size)
        for backend in sorted(backends)
        for size in (PEAK_SIZES if on_cpu else ACCELERATOR_PEAK_SIZES)
    )


def measure_task(
    task: candidates.Task, arguments: argparse.Namespace
) -> tuple[keras.Model, dict[str, measure.Timing]]:
    keras.utils.clear_session()
    model = candidates.keras_model(task)
    calls = {"ours": candidates.ours(model, task)}
    for name in arguments.against:
        if name == "stock":
            calls[name] = candidates.stock(candidates.keras_model(task), task)
        elif name == "optimized":
            calls[name] = candidates.optimized(candidates.keras_model(task), task)
        elif name == "timm":
            calls[name] = candidates.timm_baseline(task)
        elif name in runtimes.NAMES:
            calls[name] = runtimes.network_in(name, task)
        else:
            calls[name] = candidates.torch_baseline(task, compiled=name == "torch_compiled")
    memory_of = None if candidates.device_name() is None else device_memory
    settle = int(not set(runtimes.NAMES).isdisjoint(calls))
    return model, measure.alternate(calls, arguments.rounds, settle=settle, memory_of=memory_of)


def device_memory(candidate: str) -> candidates.DeviceMemory:
    return candidates.DeviceMemory(backend_of(candidate))


def backend_of(candidate: str) -> str:
    if candidate in runtimes.NAMES:
        return candidate.removesuffix("_int8")
    return "torch" if candidate in OF_TORCH else keras.config.backend()


def task_rows(
    task: candidates.Task, timings: dict[str, measure.Timing], gflop: float, peak: float
) -> list[dict]:
    rows = []
    for name, timing in timings.items():
        work = candidates.timm_gflop(task) if name == "timm" else gflop
        rate = work / (timing.ms_median * 1e-3)
        rows.append(
            {
                "preset": task.preset,
                "model": task.model,
                "mode": task.mode,
                "candidate": name,
                "backend": backend_of(name),
                "precision": task.precision,
                "compile": task.compile if name in ("ours", "stock") else name,
                "image_size": task.image_size,
                "batch": task.batch,
                "ms_median": f"{timing.ms_median:.1f}",
                "ms_min": f"{timing.ms_min:.1f}",
                "first_call_s": f"{timing.first_call_s:.1f}",
                "images_per_s": f"{task.batch / timing.ms_median * 1e3:.2f}",
                "peak_memory_mib": memory(name, timing),
                "gflops": f"{rate:.4g}",
                "peak_gflops": f"{peak:.1f}",
                "share_of_peak": f"{rate / peak:.3f}",
                "ours_over_this": f"{timings['ours'].ms_median / timing.ms_median:.3f}",
            }
        )
    return rows


def memory(name: str, timing: measure.Timing) -> str:
    # On a CPU the candidates behind ours live on memory that the earlier ones have freed.
    hidden = name != "ours" and candidates.device_name() is None
    if hidden or timing.peak_memory_mib is None:
        return ""
    return f"{timing.peak_memory_mib:.0f}"


def shown(rows: list[dict]) -> list[dict]:
    rows = [
        {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    ]
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items() if value != ""), flush=True)
    return rows


def origin(argv: list[str] | None) -> dict[str, str]:
    """Where a row comes from: date, commit, machine, versions and command."""
    command = shlex.join(["tools/benchmark.py", *(sys.argv[1:] if argv is None else argv)])
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "device": candidates.device_name() or measure.cpu_model(),
        "versions": candidates.versions(),
        "command": f"KERAS_BACKEND={keras.config.backend()} python {command}",
    }


if __name__ == "__main__":
    sys.exit(main())
