"""What every detector promises (`models.Detector`), and every pair of detector and backbone.

A new detector joins by one line in `DETECTORS`; backbone families are those of `families.py`.
"""

import functools
import json

import keras
import keras_hub
import numpy as np
import pytest

from keras_densepred import backbones, models, necks
from keras_densepred.models.class_axis import copy_weights
from tests.contracts.detection import confident, numpy_weights, same_draws, targets, targets_of
from tests.contracts.families import FAMILIES, norms_apart, small_backbone
from tests.hosts import available
from tests.models.conftest import ToyPyramid

BACKEND = keras.config.backend()
# XLA takes TensorFlow three times as long to compile as these few steps to run without it.
COMPILE = {"jit_compile": False} if BACKEND == "tensorflow" else {}
RCNN = dict(head_width=8, samples=8, num_proposals=12, rpn_width=8, max_detections=5)
HEADS = dict(head_width=8, head_depth=1)
DETR = dict(num_queries=10, width=32, num_heads=2, num_points=2, feed_forward_width=16)
# No dropout: on PyTorch it draws from a global state.
DETR |= dict(encoder_layers=2, decoder_layers=2, dropout=0.0)
MASK2FORMER = dict(width=32, num_queries=8, encoder_layers=1, decoder_layers=2, num_heads=2)
MASK2FORMER |= dict(encoder_hidden=16, decoder_hidden=16, num_points=48)
MASK2FORMER |= dict(max_detections=5, mask_size=28)
DETECTORS = {
    "retinanet": lambda *args, **options: models.RetinaNet(*args, **HEADS, **options),
    "retinanet_hub": lambda *args, **options: models.RetinaNetKerasHub(*args, **HEADS, **options),
    "retinanet_cv": lambda *args, **options: models.RetinaNetKerasCV(*args, **HEADS, **options),
    "reppoints": lambda *args, **options: models.RepPoints(*args, **HEADS, **options),
    "dense": lambda *args, **options: models.TaskAlignedDetector(*args, **HEADS, **options),
    "yolov3": lambda *args, **options: models.YOLOv3Detector(*args, neck="prn", **options),
    "yolov8_cv": lambda *args, **options: models.YOLOV8KerasCV(*args, fpn_depth=1, **options),
    "faster": lambda *args, **options: models.FasterRCNN(*args, **RCNN, **options),
    "mask": lambda *args, **options: models.MaskRCNN(*args, mask_convs=1, **RCNN, **options),
    "cascade": lambda *args, **options: models.CascadeRCNN(*args, **RCNN, **options),
    "cascade_mask": lambda *args, **options: models.CascadeMaskRCNN(
        *args, mask_convs=1, **RCNN, **options
    ),
    "grid": lambda *args, **options: models.GridRCNN(
        *args, grid_convs=1, grid_width=4, grid_samples=6, **RCNN, **options
    ),
    "detr": lambda *args, **options: models.DeformableDETR(*args, **DETR, **options),
    "detr_mixed": lambda *args, **options: models.DeformableDETR(
        *args, query_selection="mixed", **DETR, **options
    ),
    "mask2former": lambda *args, **options: models.Mask2Former(*args, **MASK2FORMER, **options),
    "mask2former_centres": lambda *args, **options: models.Mask2Former(
        *args, query_selection="centres", **MASK2FORMER, **options
    ),
}
DETECTORS = available(DETECTORS)
# Levels of different width, as in the published networks, where the small ones have one width.
CSP_STAGES = tuple(
    backbones.CSPStage(1, width=width, bottleneck=4, parts=(width, width), out=width, down=down)
    for width, down in ((8, None), (8, 8), (16, 8), (24, 16))
)
UNEQUAL = {"cspnet": {"stages": CSP_STAGES}, "cednet": {"widths": (8, 16, 24)}}
UNEQUAL["convnext"] = {"widths": (8, 16, 24, 32)}
PYRAMIDS = ("bicsnet", "bicsnet_lite", "own", "detection_pyramid", "feature_pyramid")
NECKS = {
    "detection_pyramid": lambda: backbones.DetectionPyramid(small_backbone("cednet"), width=8),
    "feature_pyramid": lambda: backbones.FeaturePyramid(small_backbone("resnet"), width=8),
}
IMAGES = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")


def one_network_elsewhere(names, first):
    """All on PyTorch; JAX and TensorFlow take a minute to compile some, so there one, and slow."""
    compiled = pytest.mark.slow_on("jax", "tensorflow")
    return [name if name == first else pytest.param(name, marks=compiled) for name in names]


@pytest.fixture(scope="module", params=one_network_elsewhere(DETECTORS, "retinanet"))
def trained_once(request):
    keras.utils.set_random_seed(0)
    model = DETECTORS[request.param](ToyPyramid(), 3)
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), **COMPILE)
    return request.param, model, numpy_weights(model)


@pytest.fixture
def model(trained_once):
    """One model for the tests, as it started: what JAX has compiled stays compiled."""
    _, model, start = trained_once
    model.set_weights(start)
    model.reset_metrics()
    return model


@pytest.fixture
def make(trained_once):
    return DETECTORS[trained_once[0]]


def test_is_a_detector(model):
    assert isinstance(model, models.Detector) and isinstance(model, keras.Model)
    assert model.task == "detection" and model.num_classes == 3
    assert keras.saving.get_registered_name(type(model)).startswith("keras_densepred>")
    documented = type(model).__doc__
    assert documented and "backbone" in documented


def test_one_step_trains_all_parts(model):
    before = numpy_weights(model)
    logs = model.train_on_batch(IMAGES, targets_of(model), return_dict=True)
    names = [tracker.name for tracker in model.loss_trackers]
    assert list(logs) == ["loss", *names] or set(logs) == {"loss", *names}
    assert all(np.isfinite(value) for value in logs.values()), logs
    assert logs["loss"] == pytest.approx(sum(logs[name] for name in names), rel=1e-4)
    after = numpy_weights(model)
    assert all(np.isfinite(weight).all() for weight in after)
    assert any((old != new).any() for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", ["padding", "no_rows"])
def test_images_without_objects_teach_background(model, kind):
    y = targets_of(model, kind)
    logs = model.train_on_batch(IMAGES, y, return_dict=True)
    assert np.isfinite(list(logs.values())).all() and logs["loss"] > 0
    of_objects = [name for name in logs if any(kind in name for kind in ("box", "mask", "grid"))]
    assert all(logs[name] == 0 for name in of_objects)
    assert all(np.isfinite(weight).all() for weight in numpy_weights(model))


def test_detections_are_padded(model):
    confident(model)
    found = model.predict(IMAGES, batch_size=2, verbose=0)
    count = found["labels"].shape[1]
    shapes = {
        "boxes": (2, count, 4),
        "labels": (2, count),
        "confidence": (2, count),
        "num_detections": (2,),
    }
    if "masks" in model.target_keys:
        shapes["masks"] = (2, count, 28, 28)
    assert {key: value.shape for key, value in found.items()} == shapes
    assert model.with_masks == ("masks" in found)  # by which `evaluate` reads them
    used = np.arange(count) < found["num_detections"][:, None]
    assert used.any()
    assert ((found["labels"] >= 0) == used).all() and (found["labels"] < 3).all()
    for key in ("boxes", "labels", "confidence"):
        assert (found[key][~used] == -1).all()
    assert np.isfinite(found["boxes"]).all()
    assert (np.diff(np.where(used, found["confidence"], -1), axis=1) <= 0).all()


def test_save_and_load_with_optimizer_and_compile(model, tmp_path):
    model.train_on_batch(IMAGES, targets_of(model))
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    assert type(copy) is type(model)
    assert json.dumps(copy.get_config()) == json.dumps(model.get_config())
    for ours, theirs in zip(numpy_weights(model), numpy_weights(copy), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert copy.compiled and type(copy.optimizer) is type(model.optimizer)
    assert int(copy.optimizer.iterations) == int(model.optimizer.iterations) > 0
    for ours, theirs in zip(model.optimizer.variables, copy.optimizer.variables, strict=True):
        ours, theirs = (keras.ops.convert_to_numpy(x) for x in (ours, theirs))
        np.testing.assert_array_equal(ours, theirs)
    model.reset_metrics()
    same_draws(model, copy)
    logs, again = (m.train_on_batch(IMAGES, targets_of(m), return_dict=True) for m in (model, copy))
    for name, value in logs.items():
        assert again[name] == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_config_round_trip(model):
    config = json.loads(json.dumps(model.get_config()))
    copy = type(model).from_config(config)
    assert json.dumps(copy.get_config()) == json.dumps(model.get_config())
    assert [w.shape for w in copy.weights] == [w.shape for w in model.weights]


def test_box_formats_change_numbers_only(model, make):
    confident(model)
    other = make(model.backbone, 3, bounding_box_format="rel_yxyx")
    other.set_weights(model.get_weights())
    other.compile("sgd", **COMPILE)
    y = targets_of(model)
    relative = {**y, "boxes": y["boxes"][..., [1, 0, 3, 2]] / np.float32(64)}
    same_draws(model, other)
    logs = model.test_on_batch(IMAGES, y, return_dict=True)
    for name, value in other.test_on_batch(IMAGES, relative, return_dict=True).items():
        assert value == pytest.approx(logs[name], rel=1e-3, abs=1e-5)
    found, expected = other.predict_on_batch(IMAGES), model.predict_on_batch(IMAGES)
    used = expected["labels"] >= 0
    np.testing.assert_array_equal(found["num_detections"], expected["num_detections"])
    assert (found["boxes"][~used] == -1).all()
    np.testing.assert_allclose(
        found["boxes"][used][:, [1, 0, 3, 2]] * 64, expected["boxes"][used], atol=1e-2
    )


def test_another_decoder_decodes(model):
    if not isinstance(model, models.DenseDetector):
        pytest.skip("no decoder to exchange")
    confident(model)
    before, decoder = model.predict_on_batch(IMAGES), model.prediction_decoder
    config = {**decoder.get_config(), "name": "fewer", "max_detections": 2}
    model.prediction_decoder = type(decoder).from_config(config)
    assert model.prediction_decoder.name == "fewer"
    after = model.predict_on_batch(IMAGES)
    assert before["labels"].shape[1] > 2 == after["labels"].shape[1]
    model.prediction_decoder = decoder


def test_refusals_are_one_sentence(model, make):
    name = type(model).__name__
    for arguments in ({"loss": "mse"}, {"metrics": ["accuracy"]}):
        with pytest.raises(ValueError, match=f"^{name} takes no `loss` and no `metrics`"):
            model.compile("sgd", **arguments)
    with pytest.raises(ValueError, match=f"^{name} weights its samples itself"):
        model.compute_loss(IMAGES, targets_of(model), {}, sample_weight=np.ones(2))
    with pytest.raises(ValueError, match=r"^The targets hold \['boxes'\]; fit on \(images, "):
        model.compute_loss(IMAGES, {"boxes": targets()["boxes"]}, {})
    with pytest.raises(ValueError, match="num_classes"):
        make(ToyPyramid(), 0)
    images = keras.Input((64, 64, 3))
    with pytest.raises(ValueError, match=r"give `keras_densepred\.HostBackbone\(backbone\)`"):
        make(keras.Model(images, keras.layers.Conv2D(2, 3)(images)), 3)
    first = backbones.ResNetBackbone(
        (1, 1, 1, 1), 2, data_format="channels_first", image_shape=(3, None, None)
    )
    with pytest.raises(ValueError, match="is channels_first"):
        make(first, 3)


def test_mixed_precision(make):
    model = make(ToyPyramid(dtype="mixed_bfloat16"), 3)
    model.compile(keras.optimizers.SGD(1e-3), **COMPILE)
    logs = model.train_on_batch(IMAGES, targets_of(model), return_dict=True)
    assert np.isfinite(list(logs.values())).all(), logs
    found = model.predict_on_batch(IMAGES)
    assert found["boxes"].dtype == found["confidence"].dtype == np.float32
    assert {weight.dtype for weight in model.trainable_weights} == {"float32"}


def test_necks_are_put_on_what_is_no_pyramid(make):
    pyramid, backbone = ToyPyramid(), ToyPyramid(ready=False)
    assert pyramid.is_pyramid and not backbone.is_pyramid
    assert make(pyramid, 3).backbone is pyramid
    model = make(backbone, 3)
    assert model.plain_backbone is backbone
    if model.backbone is not backbone:  # YOLO's necks take any widths
        widths = {x.shape[-1] for x in model.backbone.output.values()}
        assert len(widths) == 1


def test_keras_hubs_backbones_are_taken():
    """KerasHub's contract has no `is_pyramid`: they get a neck."""
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64, 64, 128],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
    )
    assert isinstance(
        models.RetinaNet(backbone, 3, **HEADS).backbone, keras_hub.models.RetinaNetBackbone
    )
    assert isinstance(models.FasterRCNN(backbone, 3, **RCNN).backbone, backbones.FeaturePyramid)


# === Pairs ===


@functools.cache
def built_backbone(family):
    neck = NECKS.get(family)
    backbone = neck() if neck else small_backbone(family, **UNEQUAL.get(family, {}))
    return backbone, backbone.get_weights()


def backbone_of(family):
    """One for all detectors, for building takes seconds, as if none had trained it yet."""
    backbone, weights = built_backbone(family)
    backbone.set_weights(weights)
    return backbone


# Norms that are there on demand.
NORMED = dict(faster=dict(head_convs=1, head_norm=True), retinanet=dict(head_norm=True))


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("name", "neck"), [*((n, None) for n in DETECTORS), *((n, necks.BiFPN) for n in NORMED)]
)
def test_batch_norms_are_shared_as_those_of_the_backbone(name, neck):
    """On several devices a model trains as on one only if all of them are."""

    def make(backbone):
        below = backbone if neck is None else neck(backbone, width=8, repeats=1)
        return DETECTORS[name](below, num_classes=3, **NORMED.get(name, {}))

    assert not norms_apart(make)


@pytest.mark.backend_free
def test_every_family_is_paired():
    ours = (f for f in backbones.backbone_families() if f.__module__.startswith("keras_densepred."))
    assert {backbone_class for backbone_class, _ in FAMILIES.values()} >= set(ours)


def pairs():
    """All of them; fast are two detectors of each family, by turns, so that all detectors occur."""
    families, detectors = sorted((*FAMILIES, *NECKS)), sorted(DETECTORS)
    half = len(detectors) // 2
    assert len(families) >= len(detectors) - half
    for row, family in enumerate(families):
        for column, detector in enumerate(detectors):
            fast = (column - row) % len(detectors) in (0, half)
            yield pytest.param(family, detector, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize(("family", "detector"), list(pairs()))
@pytest.mark.slow_on("jax", "tensorflow")
def test_every_pair_trains(family, detector):
    """One step with a finite loss and finite gradients, on 64 pixels."""
    keras.utils.set_random_seed(0)
    backbone = backbone_of(family)
    assert backbone.is_pyramid == (family in PYRAMIDS)
    model = DETECTORS[detector](backbone, 3)
    plain = isinstance(backbone, (backbones.DetectionPyramid, backbones.FeaturePyramid))
    assert model.plain_backbone is (backbone.backbone if plain else backbone)
    model.compile(keras.optimizers.SGD(1e-4), **COMPILE)
    logs = model.train_on_batch(IMAGES, targets_of(model), return_dict=True)
    assert np.isfinite(list(logs.values())).all(), logs
    assert all(np.isfinite(weight).all() for weight in numpy_weights(model))


@pytest.mark.backend_free
@pytest.mark.parametrize("name", DETECTORS)
def test_a_model_that_was_never_compiled_is_saved(name, tmp_path):
    model = DETECTORS[name](ToyPyramid(ready=False), num_classes=3)
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").compiled == model.compiled


@pytest.mark.backend_free
@pytest.mark.parametrize("name", DETECTORS)
def test_weights_go_to_other_classes_by_name(name):
    make = DETECTORS[name]
    old, new = (make(ToyPyramid(ready=False), num_classes=count) for count in (3, 4))
    rng = np.random.default_rng(0)
    for model in (old, new):
        for weight in model.weights:
            if "seed_generator" not in weight.path:
                weight.assign(rng.uniform(size=weight.shape))
    ours = [w for w in new.weights if "seed_generator" not in w.path]
    theirs = [w for w in old.weights if "seed_generator" not in w.path]
    axes = new.class_axes()
    different = {w.path for w, o in zip(ours, theirs, strict=True) if w.shape != o.shape}
    assert different == set(axes)  # no weight with classes is left out
    before = {w.path: keras.ops.convert_to_numpy(w) for w in ours}
    copied = copy_weights(new, old, ("cat", "new", "dog", "eel"), ("dog", "eel", "cat"))
    assert copied.known == ("cat", "dog", "eel") and copied.fresh == ("new",)
    for weight, other in zip(ours, theirs, strict=True):
        value, source = (keras.ops.convert_to_numpy(w) for w in (weight, other))
        axis = axes.get(weight.path)
        if axis is None:
            np.testing.assert_array_equal(value, source)
            continue
        split = lambda x, axis=axis: x.reshape(*x.shape[:-1], axis.groups, -1)  # noqa: E731
        value, source, fresh = split(value), split(source), split(before[weight.path])
        place = lambda label, axis=axis: slice(  # noqa: E731
            axis.before + label * axis.each, axis.before + (label + 1) * axis.each
        )
        for label, from_label in ((0, 2), (2, 0), (3, 1)):
            np.testing.assert_array_equal(value[..., place(label)], source[..., place(from_label)])
        np.testing.assert_array_equal(value[..., place(1)], fresh[..., place(1)])
        np.testing.assert_array_equal(value[..., : axis.before], source[..., : axis.before])
        if axis.after:
            np.testing.assert_array_equal(value[..., -axis.after :], source[..., -axis.after :])
    other_layers = make(ToyPyramid(ready=False, filters=4), num_classes=3)
    kept = [keras.ops.convert_to_numpy(w) for w in ours]
    with pytest.raises(ValueError, match="has other layers than this"):
        copy_weights(new, other_layers, ("a", "b", "c", "d"), ("a", "b", "c"))
    for weight, value in zip(ours, kept, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), value)
