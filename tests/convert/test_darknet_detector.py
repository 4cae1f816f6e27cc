"""Darknet's detectors whole: weights, configuration, names; and a real file where there is one."""

import json
import struct
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from keras_densepred import backbones, metrics, models, saved
from keras_densepred.convert import darknet
from keras_densepred.export import export_onnx
from tools import convert_weights
from tools.darknet_detector import load_detector

REAL = Path(__file__).parents[3] / "shared" / "data"
ANCHORS = "10,14,  23,27,  37,58,  81,82,  135,169,  344,319"


def conv(filters, size, norm=True):
    lines = ["[convolutional]", *(["batch_normalize=1"] if norm else []), f"filters={filters}"]
    lines += [f"size={size}", "stride=1", "pad=1", f"activation={'leaky' if norm else 'linear'}"]
    return "\n".join(lines)


def prn_cfg(classes=2, first=16):
    """yolov3-tiny-prn.cfg, written from its table of layers."""
    yolo = f"[yolo]\nmask={{}}\nanchors={ANCHORS}\nclasses={classes}\nnum=6\nignore_thresh=.7"
    out = 3 * (5 + classes)
    parts = ["[net]\n# Testing\nwidth=416\nheight=416", conv(first, 3)]
    for filters in (32, 64, 128, 256, 512):
        parts += ["[maxpool]\nsize=2\nstride=2", conv(filters, 3)]
    parts += ["[maxpool]\nsize=2\nstride=1", conv(512, 3), "[shortcut]\nfrom=-3"]
    parts += [conv(256, 1), conv(256, 3), "[shortcut]\nfrom=-2", conv(out, 1, norm=False)]
    parts += [yolo.format("3,4,5"), "[route]\nlayers=-4", conv(128, 1), "[upsample]\nstride=2"]
    parts += ["[shortcut]\nfrom=8", conv(128, 3), "[shortcut]\nfrom=-3", "[shortcut]\nfrom=8"]
    parts += [conv(out, 1, norm=False), yolo.format("1,2,3")]
    return "\n\n".join(parts) + "\n"


@pytest.fixture
def prn(tmp_path):
    """A folder as Darknet's users have it: weights, configuration and names."""
    path = tmp_path / "mine.weights"
    model = models.YOLOv3Detector(backbones.load_backbone("yolov3_tiny_prn"), 2, neck="prn")
    numbers = np.random.default_rng(0).uniform(0.01, 0.1, model.count_params()).astype("<f4")
    path.write_bytes(struct.pack("<3iQ", 0, 2, 5, 1) + numbers.tobytes())
    path.with_suffix(".cfg").write_text(prn_cfg())
    (tmp_path / "mine.names").write_text("red cell\nwhite cell\n")
    return path


@pytest.mark.backend_free
def test_counts_are_those_of_the_published_files():
    tiny = models.YOLOv3Detector(backbones.load_backbone("yolov3_tiny"), 80, neck="tiny")
    assert tiny.count_params() == 8_858_734
    panet = models.YOLOv3Detector(backbones.load_backbone("csp_resnext_50"), 80, neck="panet_spp")
    assert panet.count_params() == 57_030_845


@pytest.mark.backend_free
def test_from_a_darknet_folder_to_predictions(prn, tmp_path, capsys):
    output = tmp_path / "converted"
    flags = ["darknet", str(prn), "--preset", "yolov3_tiny_prn", "--detector", "prn"]
    assert convert_weights.main([*flags, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "2 classes, 416 px (like its configuration)" in said
    model = saved.open_model(str(output))
    assert model.class_names == ("red cell", "white cell")
    assert model.model.masks == {"P4": (1, 2, 3), "P5": (3, 4, 5)}
    pictures = np.random.default_rng(1).uniform(size=(1, 64, 64, 3)).astype("float32")
    found = model.model.predict_on_batch(pictures)
    assert found["boxes"].shape[-1] == 4
    export_onnx(model.model, tmp_path / "mine.onnx", image_size=64)
    assert (tmp_path / "mine.onnx").stat().st_size > 1_000_000
    assert convert_weights.main([*flags, "--output", str(output)]) == 1
    assert str(output) in capsys.readouterr().err


@pytest.mark.backend_free
def test_a_configuration_of_another_network_is_found_out(prn):
    cfg = prn.with_suffix(".cfg")
    cfg.write_text(prn_cfg(first=24))
    with pytest.raises(ValueError, match=r"line 6: convolution 0 .* \(filters 24 there, 16 here\)"):
        load_detector(prn, "yolov3_tiny_prn", "prn")
    cfg.write_text(prn_cfg().replace("activation=leaky", "activation=linear", 1))
    with pytest.raises(ValueError, match="activation linear there, nonlinear here"):
        load_detector(prn, "yolov3_tiny_prn", "prn")
    cfg.write_text(prn_cfg() + conv(8, 1))
    with pytest.raises(ValueError, match="has 14 convolutions, YOLOv3Detector has 13"):
        load_detector(prn, "yolov3_tiny_prn", "prn")
    cfg.write_text("width = 3")
    with pytest.raises(ValueError, match="line 1, is no line of a Darknet configuration"):
        load_detector(prn, "yolov3_tiny_prn", "prn")
    with pytest.raises(ValueError, match=r"There is no file .*none\.cfg"):
        load_detector(prn, "yolov3_tiny_prn", "prn", cfg="none.cfg")


@pytest.mark.backend_free
def test_names_belong_to_the_network(prn, tmp_path):
    names = tmp_path / "mine.names"
    names.write_text("a\nb\nc\n")
    with pytest.raises(ValueError, match="has 3 names, and the network 2 classes"):
        load_detector(prn, "yolov3_tiny_prn", "prn")
    for text, reason in (("a\n\nb\n", "line 2 is empty"), ("a\na\n", "has 'a' twice")):
        names.write_text(text)
        with pytest.raises(ValueError, match=reason):
            darknet.read_names(names)
    names.unlink()
    assert load_detector(prn, "yolov3_tiny_prn", "prn").class_names == ("class 1", "class 2")


needs_real_file = pytest.mark.skipif(
    not (REAL / "real_weights").is_dir(), reason="needs the real Darknet file"
)


@pytest.fixture(scope="module")
def real():
    # What COCO's evaluation counts: nearly all boxes, 100 of each class.
    decoder = models.NonMaxSuppression(
        "xyxy",
        from_logits=False,
        iou_threshold=0.45,
        confidence_threshold=0.005,
        max_detections=400,
    )
    path = REAL / "real_weights" / "yolov3-tiny.weights"
    return load_detector(path, "yolov3_tiny", "tiny", prediction_decoder=decoder)


@pytest.mark.slow
@needs_real_file
def test_raw_outputs_are_those_of_opencv(real):
    assert real.is_checked and real.class_names[3] == "motorcycle" and real.category_ids[-1] == 90
    with np.load(REAL / "real_weights" / "opencv_outputs.npz") as expected:
        for name in {key.split("/")[0] for key in expected.files}:
            images = expected[f"{name}/input_u8"][None].astype("float32") / 255
            outputs = real.model(images, training=False)
            for level, stride in (("P4", 16), ("P5", 32)):
                ours = keras.ops.convert_to_numpy(outputs[level])
                theirs = expected[f"{name}/stride{stride}"]
                np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, atol=1e-3)


def letterboxed(image, side=416):
    """Bilinear without smoothing, centred on grey 127, as OpenCV's users do; scale and corner."""
    height, width = image.shape[:2]
    scale = min(side / height, side / width)
    size = round(height * scale), round(width * scale)
    for axis in (0, 1):
        length = image.shape[axis]
        place = (np.arange(size[axis]) + 0.5) * length / size[axis] - 0.5
        low = np.floor(place).astype(int)
        share = np.expand_dims(place - low, (1, 2) if axis == 0 else (0, 2))
        low, high = np.clip(low, 0, length - 1), np.clip(low + 1, 0, length - 1)
        image = np.take(image, low, axis) * (1 - share) + np.take(image, high, axis) * share
    top, left = ((side - length) // 2 for length in size)
    canvas = np.full((side, side, 3), 127, np.float32)
    canvas[top : top + size[0], left : left + size[1]] = np.round(image)
    return canvas / 255, scale, (left, top)


@pytest.mark.slow
@needs_real_file
def test_average_precision_is_that_of_opencv(real):
    model = real.model
    folder = REAL / "coco_cc"
    results = []
    truth = json.loads((folder / "annotations" / "instances_train.json").read_text())
    for image in truth["images"]:
        file = folder / "images" / "train" / image["file_name"]
        pixels = np.asarray(Image.open(file).convert("RGB"))
        canvas, scale, corner = letterboxed(pixels)
        found = model.predict_on_batch(canvas[None])
        count = int(found["num_detections"][0])
        boxes = (found["boxes"][0, :count] - [*corner, *corner]) / scale
        limits = [pixels.shape[1], pixels.shape[0]] * 2
        boxes = np.clip(boxes, 0, limits)
        for box, label, score in zip(
            boxes, found["labels"][0, :count], found["confidence"][0, :count], strict=True
        ):
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": real.category_ids[int(label)],
                    "bbox": [float(x) for x in (*box[:2], *(box[2:] - box[:2]))],
                    "score": float(score),
                }
            )
    summary = metrics.coco_average_precision(truth, results)
    assert summary["AP"] == pytest.approx(0.121, abs=0.003)
    assert summary["AP50"] == pytest.approx(0.262, abs=0.003)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "flags,sentence",
    [
        (["--preset", "csp_peleenet", "--detector", "prn"], "no files of Darknet's for a CSPDense"),
        (["--preset", "yolov3_tiny_prn"], "add --detector prn"),
    ],
)
def test_what_darknet_has_no_file_of_is_refused(prn, capsys, flags, sentence):
    prn.with_suffix(".cfg").unlink()
    (prn.parent / "mine.names").unlink()
    assert convert_weights.main(["darknet", str(prn), *flags]) == 1
    error = capsys.readouterr().err
    assert sentence in error and "AttributeError" not in error
