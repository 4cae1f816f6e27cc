"""What the TPU compiler's figures are made into, and one compilation where it is installed."""

import csv
import importlib.util
import subprocess
import sys
import types

import keras
import numpy as np
import pytest

from tools import tpu_check
from tools.compiled import chips, program

PROGRAM = """
HloModule jit_step
%fused (p: f32[8]) -> f32[8] {
ENTRY %main {
  %all-reduce.1 = f32[128,3]{1,0:T(8,128)} all-reduce(%p0), replica_groups={{0,1,2,3}}
  %all-reduce-start.2 = (bf16[64]{0:T(256)}, f32[]) all-reduce-start(%p1, %p2), channel_id=2
  %all-reduce-done.2 = (bf16[64]{0:T(256)}, f32[]) all-reduce-done(%all-reduce-start.2)
  %all-gather-start.3 = (f32[4], f32[16]) all-gather-start(%p3), dimensions={0}
  %permute.4 = (f32[4], f32[4], u32[], u32[]) collective-permute-start(%p3)
  %add.5 = f32[4] add(%p3, %all-reduce.1)
}
"""


@pytest.mark.backend_free
def test_collectives_of_a_program():
    assert program.collectives(PROGRAM) == [
        ("all-reduce", 128 * 3 * 4),
        ("all-reduce", 64 * 2 + 4),
        ("all-gather", 16 * 4),
        ("collective-permute", 4 * 4),
    ]


@pytest.mark.backend_free
def test_cycles_that_the_compiler_expects():
    """Of what the program runs: a fusion once, a loop's body as often as it runs."""
    text = """
HloModule jit_step
%fused (p.1: f32[8]) -> f32[8] {
  ROOT %copy.1 = f32[8] copy(%p.1), backend_config={"estimated_cycles":"1000"}
}
%body.2 (p.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = f32[8] fusion(%p.2), calls=%fused, backend_config={"estimated_cycles":"7","x":[]}
}
%condition.2 (p.3: (s32[], f32[8])) -> pred[] {
  ROOT %less = pred[] compare(%p.3, %p.3), backend_config={"estimated_cycles":"1"}
}
ENTRY %main.3 (x.1: f32[8]) -> f32[8] {
  %b = f32[8] fusion(%x.1), calls=%fused, backend_config={"estimated_cycles":"30"}
  %c = (s32[], f32[8]) while(%b), condition=%condition.2, body=%body.2, \
backend_config={"known_trip_count":{"n":"5"}}
  ROOT %d = f32[8] copy(%c), backend_config={"estimated_cycles":"400"}
}
"""
    assert program.estimated_cycles(text) == 30 + 5 * (7 + 1) + 400
    assert program.estimated_cycles("HloModule jit_step") == 0


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "text,found",
    [
        ("%0 = stablehlo.add %a, %b : tensor<4x8xf32>", []),
        ("%0 = stablehlo.add %a, %b : tensor<4x8xf64>", ["float64"]),
        ("%0 = stablehlo.add %a, %b : tensor<f64>", ["float64"]),
        ("%0 = stablehlo.add %a, %b : tensor<4x?x8xf32>", ["dynamic shapes"]),
        ("stablehlo.custom_call @xla_ffi_python_cpu_callback(%a)", ["host callbacks"]),
        ("stablehlo.custom_call @Sharding(%a) : tensor<8xf32>", []),
    ],
)
def test_what_a_tpu_does_not_like(text, found):
    assert program.misfits(text) == found


@pytest.mark.backend_free
def test_memory_that_a_refused_program_wants():
    refusal = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
    )
    assert program.memory_wanted(refusal) == 20.5 * 2**30
    refusal = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (16.90G) exceeds available HBM (15.75G)."
    )
    assert program.memory_wanted(refusal) == 16.9 * 2**30
    assert program.memory_wanted("INTERNAL: something else") is None


@pytest.mark.backend_free
def test_every_chip_has_peaks_and_a_source():
    for chip in chips.CHIPS.values():
        assert 100e12 < chip.flops < 1e15
        assert 15e9 < chip.memory < 200e9
        assert chip.exchange < chip.bandwidth < chip.flops / 100
        assert "arXiv:" in chip.source or chip.source.startswith("https://")


@pytest.mark.backend_free
def test_roofline_of_each_part():
    chip = chips.Chip(flops=100.0, memory=1.0, bandwidth=10.0, exchange=5.0, source="")
    least = chips.roofline(chip, 4, 200.0, 10.0, [("all-reduce", 10), ("all-gather", 20)])
    assert (least.compute, least.memory, least.exchange) == (2.0, 1.0, (15 + 15) / 5)
    assert (least.bound, least.seconds) == ("exchange", 6.0)
    alone = chips.roofline(chip, 1, 200.0, 10.0, [("all-reduce", 10)])
    assert (alone.exchange, alone.bound) == (0.0, "compute")


@pytest.mark.backend_free
def test_slices():
    assert chips.parse_topology("v5e:2x4") == (chips.CHIPS["v5e"], 8)
    assert chips.parse_topology("v4:2x2x1") == (chips.CHIPS["v4"], 4)


@pytest.mark.backend_free
@pytest.mark.parametrize("text", ["v5e", "v5e:", "v5e:2x", "h100:8", "v5e:axb"])
def test_slices_that_there_are_not(text):
    with pytest.raises(ValueError, match=f"--topology {text} is no slice known here: give a chip"):
        chips.parse_topology(text)


@pytest.mark.backend_free
@pytest.mark.parametrize("slice,config", [("v4:2x2x1", "megacore"), ("v5e:2x4", "default")])
def test_a_chip_is_one_device(slice, config, monkeypatch):
    """The two cores of a v4 were two, each beside the peaks of both."""
    seen = {"devices": [object()] * chips.parse_topology(slice)[1]}

    def get_topology_desc(**given):
        seen.update(given)
        return types.SimpleNamespace(devices=seen["devices"])

    topologies = types.SimpleNamespace(get_topology_desc=get_topology_desc)
    monkeypatch.setattr(tpu_check, "require", lambda name, extra: topologies)
    assert tpu_check.devices_of(slice) is seen["devices"]
    assert (seen["topology_name"], seen["chip_config_name"]) == (slice, config)
    seen["devices"] = seen["devices"] * 2
    with pytest.raises(ValueError, match=f"{slice} has . chips, .* sees .* devices"):
        tpu_check.devices_of(slice)


def refusal(command, capsys):
    assert tpu_check.main(command.split()) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.backend_free
def test_a_compiler_that_is_not_installed(capsys, monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    monkeypatch.setitem(sys.modules, "libtpu", None)
    error = refusal("coco_retinanet --topology v5e:2x4", capsys)
    assert 'pip install ".[tpu-check]"' in error


@pytest.mark.backend_free
def test_another_backend(capsys, monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    assert "set KERAS_BACKEND=jax" in refusal("coco_retinanet --topology v5e:2x4", capsys)


@pytest.mark.backend_free
def test_a_slice_is_refused_before_anything_is_built(capsys, monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    assert "--topology v9:1 is no slice" in refusal("coco_retinanet --topology v9:1", capsys)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "command,message",
    [
        ("--topology v5e:2x2", "Give a recipe, or --depthwise"),
        ("coco_yolo --depthwise 8 --topology v5e:2x2", "Give a recipe, or --depthwise"),
        ("--depthwise 8 --topology v5e:2x2 --rematerialize", "takes no --rematerialize"),
    ],
)
def test_what_is_to_be_compiled(command, message, capsys, monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    assert message in refusal(command, capsys)


@pytest.mark.backend_free
def test_rows_that_are_there_are_left_out(tmp_path):
    flags = "coco_yolo --topology v5e:2x4 v4:2x2x1 --batch-size 8 --table x.csv"
    arguments, rest = tpu_check.parse(flags.split())
    assert rest == ["--batch-size", "8"]
    row = {"recipe": "coco_yolo", "flags": "--batch-size 8", "topology": "v5e:2x4", "step": "train"}
    row["effort"] = "full"
    assert tpu_check.missing_rows(arguments, rest, [row]) == [
        ("v5e:2x4", "predict"),
        ("v4:2x2x1", "train"),
        ("v4:2x2x1", "predict"),
    ]
    other = {**row, "flags": "--batch-size 16"}
    assert len(tpu_check.missing_rows(arguments, rest, [other])) == 4
    hasty = {**row, "effort": "quick"}
    assert len(tpu_check.missing_rows(arguments, rest, [hasty])) == 4
    arguments.quick = True
    assert len(tpu_check.missing_rows(arguments, rest, [hasty])) == 3
    assert len(tpu_check.missing_rows(arguments, rest, [row])) == 3


class Lowered:
    """A lowered step whose program is known, or refused."""

    def __init__(self, error=None):
        self.error = error

    def compile(self, options):
        self.options = options
        if self.error:
            raise self.error
        sizes = dict.fromkeys(("argument", "output", "alias", "temp", "generated_code"), 2**30)
        return types.SimpleNamespace(
            memory_analysis=lambda: types.SimpleNamespace(
                **{f"{name}_size_in_bytes": size for name, size in sizes.items()}
            ),
            cost_analysis=lambda: {"flops": 197e9, "bytes accessed": 8.19e9},
            as_text=lambda: PROGRAM,
        )


@pytest.mark.backend_free
def test_a_row_of_a_program():
    row = tpu_check.compiled(Lowered(), chips.CHIPS["v5e"], 8, images=32)
    assert (row["fits"], row["gib"], row["chip_gib"]) == ("yes", "3.00", "14.9")
    assert (row["compute_ms"], row["memory_ms"], row["bound"]) == ("1.00", "10.00", "memory")
    assert (row["images_per_s_at_most"], row["collectives"], row["fault"]) == ("3200", 4, "")


@pytest.mark.backend_free
def test_a_program_that_was_compiled_in_haste_says_nothing_of_time():
    fast, hasty = Lowered(), Lowered()
    full = tpu_check.compiled(fast, chips.CHIPS["v5e"], 8, images=32)
    quick = tpu_check.compiled(hasty, chips.CHIPS["v5e"], 8, images=32, quick=True)
    assert fast.options is None
    assert hasty.options == {"exec_time_optimization_effort": -1.0}
    assert list(quick) == list(full)
    other = {name for name in full if full[name] != quick[name]} - {"compile_s"}
    assert other == {*tpu_check.OF_A_FAST_PROGRAM, "effort"}
    assert not any(quick[name] for name in tpu_check.OF_A_FAST_PROGRAM)


@pytest.mark.backend_free
def test_rows_of_refused_programs():
    large = tpu_check.compiled(
        Lowered(RuntimeError("Used 20.5G of 15.75G hbm.")), chips.CHIPS["v5e"], 8, 32
    )
    assert (large["fits"], large["gib"], large["fault"]) == ("no", "20.50", "")
    broken = tpu_check.compiled(Lowered(RuntimeError("No such op.")), chips.CHIPS["v5e"], 8, 32)
    assert (broken["fits"], broken["gib"], broken["fault"]) == ("no", "", "No such op.")
    fitting = tpu_check.compiled(Lowered(), chips.CHIPS["v5e"], 8, 32)
    assert list(large) == list(broken) == list(fitting)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="about JAX")
def test_a_step_is_the_same_program_without_its_devices():
    """Lowered for devices that hold nothing, with the replicas that layers ask for."""
    import jax

    from keras_densepred.runtime.devices import jax_runs_on_cpu
    from keras_densepred.runtime.replicas import devices_of_a_replica
    from tools.compiled.steps import lower_predict_step, lower_train_step, with_rows

    seen = []

    class Watch(keras.layers.Layer):
        def call(self, inputs):
            seen.append((devices_of_a_replica(), jax_runs_on_cpu()))
            return inputs

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), Watch()])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    batch = (np.zeros((2, 3), "float32"), np.zeros((2, 2), "float32"))
    model._symbolic_build(data_batch=batch)
    before = [np.array(weight) for weight in model.get_weights()]
    seen.clear()
    train = lower_train_step(model, with_rows(batch, 8), jax.devices()[:1])
    assert seen[-1] == (1, True)
    assert "tensor<8x3xf32>" in train.as_text()
    assert "all-reduce" not in train.compile().as_text()
    assert lower_predict_step(model, with_rows(batch[0], 4), jax.devices()[:1]).compile()
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.slow
@pytest.mark.skipif(keras.config.backend() != "jax", reason="about JAX")
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler")
def test_a_recipe_compiles_for_a_slice(tmp_path):
    table = tmp_path / "rows.csv"
    command = [sys.executable, tpu_check.__file__, "imagenet_pretrain", "--table", str(table)]
    command += ["--topology", "v5e:2x2", "--only", "predict", "--preset", "cednet_next_pico"]
    command += ["--image-size", "64", "--batch-size", "8"]
    subprocess.run(command, check=True, capture_output=True)
    (row,) = csv.DictReader(table.open())
    assert (row["fits"], row["chips"], row["images"], row["image_size"]) == (
        "yes",
        "4",
        "8",
        "64x64",
    )
    assert (row["misfits"], row["fault"]) == ("", "")
    assert float(row["gflop"]) > 0 and float(row["traffic_gb"]) > 0
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert again.stdout == f"All rows are in {table}.\n"
