"""Files for any number of images, and for images of any size: what works, and what is refused."""

import keras
import numpy as np
import onnx
import pytest

from tests.export import zoo
from tests.export.runtimes import FORMATS, SUPPORTED, assert_gives_what_predict_gives, write
from tests.export.two_stage import CLASSES
from tests.export.yolo import BACKEND, SIZE
from tests.hosts import needs_keras_cv

BY_FORMAT = [format for format in SUPPORTED if format != "litert"]
ANY_NUMBER = [(1, *SIZE, 3), (3, *SIZE, 3)]
ANY_SIZE = [(2, 96, 128, 3), (1, 64, 64, 3)]
# Models whose files take images of any size, by the backend that writes them.
SIZES_OPEN = {
    "torch": (
        "deeplab",
        "deeplab_keras_hub",
        "deeplab_keras_cv",
        "upernet",
        "classifier",
        "cednet",
    ),
    "tensorflow": (
        *("faster", "mask", "cascade", "cascade_mask", "grid", "yolo", "yolo_v8", "dense"),
        *("reppoints", "retinanet", "detr", "mask2former_segmenter"),
        *("deeplab", "deeplab_keras_cv", "upernet", "classifier", "cednet", "own"),
    ),
    "jax": ("classifier", "cednet", "detr"),
}[BACKEND]
# OpenVINO 2026.4.1 gets the sizes of the up-sampled logits wrong.
NOT_READ = {("deeplab", "openvino"), ("deeplab_keras_cv", "openvino")}
# An open size has an open number beside it: where one is quick, the other is slow.
QUICK_NUMBERS, QUICK_SIZES = {
    "torch": (set(), {("cednet", "torch")}),
    "tensorflow": (set(), {("dense", "saved_model"), ("own", "onnx")}),
    "jax": ({("dense", "saved_model")}, set()),
}[BACKEND]


def images(shape):
    return np.random.default_rng(0).uniform(size=shape).astype("float32")


def axes_of(value):
    return value.type.tensor_type.shape.dim


def cells(names, quick, formats=BY_FORMAT):
    """Every model in every format, slow ones marked.

    OpenVINO reads ONNX's files, which PyTorch takes half a minute to write for an R-CNN: one will
    do.
    """
    return [
        pytest.param(
            name,
            format,
            id=f"{name}-{format}",
            marks=[
                *([needs_keras_cv] if name in zoo.NEEDS_KERAS_CV else []),
                *([] if (name, format) in quick else [pytest.mark.slow]),
            ],
        )
        for name in names
        for format in formats
        if format != "openvino" or name not in CLASSES or name == "mask" or BACKEND != "torch"
    ]


@pytest.mark.parametrize("name,format", cells(zoo.ZOO, QUICK_NUMBERS))
def test_any_number_of_images(name, format, tmp_path):
    if (name, format) == ("centres", "openvino"):
        pytest.skip("refused for any number")
    model = zoo.model(name)
    path = write(model, format, tmp_path, SIZE, None)
    for shape in ANY_NUMBER:
        assert_gives_what_predict_gives(model, format, path, images(shape))


@pytest.mark.parametrize("name,format", cells(SIZES_OPEN, QUICK_SIZES))
def test_any_size(name, format, tmp_path):
    model = zoo.model(name)
    if BACKEND == "tensorflow" and (name, format) in NOT_READ:
        with pytest.raises(ValueError, match=r"give one .*\) or try KERAS_BACKEND=torch"):
            write(model, format, tmp_path, None, None)
        assert not list(tmp_path.iterdir())
        return
    path = write(model, format, tmp_path, None, None)
    for shape in (*ANY_NUMBER[:1], *ANY_SIZE):
        assert_gives_what_predict_gives(model, format, path, images(shape))
    if format == "onnx":
        graph = onnx.load(path).graph
        names = [axis.dim_param or axis.dim_value for axis in axes_of(graph.input[0])]
        assert names == ["batch", "height", "width", 3]
        assert {axes_of(output)[0].dim_param for output in graph.output} == {"batch"}


@pytest.mark.parametrize(
    "name,format",
    cells([name for name in zoo.ZOO if name not in SIZES_OPEN], QUICK_SIZES, BY_FORMAT[:1]),
)
def test_where_no_size_can_be_open_a_sentence_says_so(name, format, tmp_path):
    sentence = r"any size: give one size \(`image_size`, without --dynamic-size\)"
    with pytest.raises(ValueError, match=sentence):
        write(zoo.model(name), format, tmp_path, None, 1)
    assert not list(tmp_path.iterdir())


def test_the_network_of_one_size_says_which(tmp_path):
    model = zoo.fixed_size()
    with pytest.raises(ValueError, match=r"built for images of 64x96 pixels"):
        FORMATS[BY_FORMAT[0]][0](model, tmp_path / "model", None)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(BACKEND != "torch", reason="about PyTorch's programs")
def test_a_program_for_even_multiples_alone_is_refused(tmp_path):
    images = keras.Input((None, None, 3))
    coarse = keras.layers.MaxPooling2D(64)(images)  # 96 rows have one there, and come back as 64
    model = keras.Model(images, images + keras.layers.UpSampling2D(64)(coarse))
    with pytest.raises(ValueError, match=r"From torch this .* any size"):
        FORMATS["torch"][0](model, tmp_path / "model.pt2", None)
    assert not list(tmp_path.iterdir())
