"""The benchmark's own correctness: the same network on all sides, and rows that are kept."""

import csv

import keras
import numpy as np
import pytest

from keras_densepred import BiCSNetBackbone, CEDNetBackbone, backbones, models
from tests.weights import set_deterministic_weights
from tools import benchmark
from tools.baselines.stock_layers import with_stock_layers
from tools.timing import candidates, detectors, measure, runtimes, two_stage


@pytest.mark.slow_on("jax", "tensorflow")
@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (
            lambda shape: CEDNetBackbone.from_preset("cednet_next_pico", image_shape=shape),
            {"LayerScale", "SizeCheck"},  # which Keras has nothing for
        ),
        # 96 px: the coarse levels' sides do not double, so that what goes up is cut.
        (
            lambda shape: BiCSNetBackbone(
                width_multiplier=0.125, gamma=1.0, output_width=8, image_shape=shape
            ),
            set(),
        ),
    ],
    ids=["cednet", "bicsnet"],
)
def test_stock_layers_are_the_same_network(make, kept):
    backbone = make((96, 96, 3))
    set_deterministic_weights(backbone)
    stock = with_stock_layers(backbone)
    kinds = {type(layer) for layer in stock.layers}
    left = {kind.__name__ for kind in kinds if "keras_densepred" in kind.__module__}
    assert left == kept
    images = np.random.default_rng(0).normal(size=(1, 96, 96, 3)).astype("float32")
    ours, theirs = backbone(images), stock(images)
    for one, other in zip(ours.values(), keras.tree.flatten(theirs), strict=True):
        one, other = keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other)
        scale = max(1.0, np.abs(other).max())
        np.testing.assert_allclose(one / scale, other / scale, atol=5e-5, rtol=1e-4)


@pytest.mark.slow_on("jax", "tensorflow")
@pytest.mark.parametrize("mode", ["forward", "train"])
def test_a_run_is_printed_and_appended(mode, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "PEAK_SIZES", (64,))
    output = tmp_path / "times" / "cpu.csv"
    command = ["--preset", "cednet_next_pico", "--image-size", "32", "--mode", mode]
    others = ["stock", "optimized"] if mode == "forward" else ["stock"]
    command += ["--rounds", "1", "--against", *others, "--output", str(output)]
    assert benchmark.main(command) == 0
    assert "candidate stock" in capsys.readouterr().out
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["candidate"] for row in rows] == ["ours", *others]
    for row in rows:
        assert row["backend"] == keras.config.backend() and row["mode"] == mode
        assert 0 < float(row["ms_min"]) <= float(row["ms_median"])
        assert float(row["gflops"]) > 0
        assert "--preset cednet_next_pico" in row["command"]
    assert float(rows[0]["ours_over_this"]) == 1
    assert [path.name for path in output.parent.iterdir()] == ["cpu.csv"]


@pytest.mark.skipif(
    keras.config.backend() == "jax", reason="a file is written from the other backends"
)
@pytest.mark.slow_on("tensorflow")
@pytest.mark.parametrize(
    "name",
    [
        name if name == "onnxruntime_int8" else pytest.param(name, marks=pytest.mark.slow)
        for name in runtimes.NAMES
    ],
)
def test_files_in_runtimes_compute_what_ours_do(name):
    task = candidates.Task(*("cednet_next_pico", "pyramid", "forward", "float32", 64, 2, "default"))
    keras.utils.set_random_seed(0)
    expected = candidates.keras_model(task)([task.images()])
    keras.utils.set_random_seed(0)
    found = runtimes.network_in(name, task)()
    assert len(found) == len(expected)
    for one, other in zip(expected, found.values(), strict=True):
        one = keras.ops.convert_to_numpy(one)
        assert np.std(one - other) < (0.2 if "int8" in name else 1e-4) * np.std(one)


@pytest.mark.backend_free
def test_rows_are_added_to_a_file_of_the_same_columns_only(tmp_path):
    path = tmp_path / "rows.csv"
    benchmark.append(path, [{"a": "1", "b": "2"}])
    benchmark.append(path, [{"a": "3", "b": "4"}])
    assert path.read_text().split() == ["a,b", "1,2", "3,4"]
    with pytest.raises(ValueError, match=r"rows\.csv has other columns"):
        benchmark.append(path, [{"a": "5"}])
    assert path.read_text().split() == ["a,b", "1,2", "3,4"]


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "command,message",
    [
        ("--preset cednet_huge", "--preset cednet_huge is unknown; choose from"),
        ("--preset cednet_swin_tiny --against torch", "--against torch has no cednet_swin_tiny"),
        ("--mode train --model pyramid", "leave out --model"),
        ("--mode train --against optimized", "leave train out of --mode"),
        ("--mode train --against openvino", "--against openvino predicts only: leave train out"),
        ("--precision float16 --against openvino", "computes in bfloat16 or float32: leave out"),
        ("--precision bfloat16 --against onnxruntime", "onnxruntime computes in float32: leave"),
        ("--batch 0", "--batch must be positive"),
        ("--image-size 100", "multiple of 32"),
        ("--detectors yolov9", "There is no detector yolov9; choose from peleenet_prn"),
    ],
)
def test_faults_are_one_sentence(command, message, capsys):
    assert benchmark.main(command.split()) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.backend_free
def test_candidates_take_turns():
    calls = []
    timings = measure.alternate(
        {name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, warm_up=1
    )
    assert calls == ["a", "a", "b", "b", *"ababab"]
    assert set(timings) == {"a", "b"}


@pytest.mark.backend_free
def test_what_a_candidate_leaves_running_is_not_timed_with_the_next():
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in "ab"}
    measure.alternate(candidates, rounds=2, warm_up=0, settle=1)
    assert calls == ["a", "b", *"aabbaabb"]


@pytest.mark.slow
def test_detectors_are_timed_in_each_form(tmp_path, capsys, monkeypatch):
    def runner_of_a_missing_package(path):
        raise ImportError("run `pip install absent`.")

    monkeypatch.setitem(detectors.RUNTIMES, "absent", runner_of_a_missing_package)
    output = tmp_path / "detectors.csv"
    command = ["--detectors", "csp_densenet_b_ref_prn", "--rounds", "1", "--output", str(output)]
    assert benchmark.main(command) == 0
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    backend = keras.config.backend()
    forms = [("plain", backend), ("folded", backend)]
    if backend != "jax":
        runtimes = ("onnxruntime", "openvino")
        forms += [(kind, runtime) for runtime in runtimes for kind in ("onnx", "onnx_int8")]
    assert [(row["candidate"], row["runtime"]) for row in rows] == forms
    assert all(float(row["images_per_s"]) > 0 for row in rows)
    assert "Without absent: run `pip install absent`." in capsys.readouterr().out


@pytest.mark.slow_on("jax", "tensorflow")
def test_a_two_stage_step_is_timed_beside_its_backbone():
    rows = two_stage.measure_two_stage("bicsnet_lite0", 64, 1, rounds=1, roi_boxes=4)
    rows = {row["what"]: row for row in rows}
    assert list(rows)[:2] == ["backbone step", "mask_rcnn step"] and len(rows) == 6
    for base in ("backbone step", "gather", "gather and gradient"):
        assert rows[base]["times_its_base"] == 1
    ratio = rows["mask_rcnn step"]["ms_median"] / rows["backbone step"]["ms_median"]
    assert rows["mask_rcnn step"]["times_its_base"] == pytest.approx(ratio)


@pytest.mark.backend_free
def test_every_row_of_detectors_names_a_preset_and_a_neck():
    for row in detectors.DETECTORS.values():
        assert backbones.built_in_preset(row.preset) == row.preset
        assert row.neck in {*models.YOLO_NECKS, *models.DENSE_SIZES}
        assert row.image_size % 32 == 0
