"""UPERNET.md, section 4: the paper's FLOPs are those of mmcv's counter."""

import pytest

from keras_densepred.analysis.mmcv_costs import count_as_mmcv
from keras_densepred.analysis.multiply_adds import count_multiply_adds
from keras_densepred.backbones import find_backbone
from keras_densepred.models import UperNet

pytestmark = pytest.mark.backend_free
SHAPE = (512, 2048, 3)


@pytest.mark.parametrize(
    "preset, head, counted, convs_and_linears",
    [
        ("cednet_next_tiny", "uper", 962.387, 961.912),
        pytest.param("cednet_next_small", "uper", 1045.195, 1044.681, marks=pytest.mark.slow),
        pytest.param("cednet_next_base", "uper", 1184.314, 1183.760, marks=pytest.mark.slow),
        pytest.param("cednet_next_tiny", "ced", 518.480, None, marks=pytest.mark.slow),
        pytest.param("cednet_next_small", "ced", 613.692, None, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", "uper", 938.922, 938.485, marks=pytest.mark.slow),
        pytest.param("convnext_small", "uper", 1027.310, 1026.846, marks=pytest.mark.slow),
        pytest.param("convnext_base", "uper", 1169.839, 1169.345, marks=pytest.mark.slow),
    ],
)
def test_the_papers_flops(preset, head, counted, convs_and_linears):
    options = {"final_decoder": True} if head == "ced" else {}
    model = UperNet(find_backbone(preset).build(image_shape=SHAPE, **options), 150, head=head)
    assert round(count_as_mmcv(model) / 1e9, 3) == counted
    if convs_and_linears is not None:
        assert round(count_multiply_adds(model) / 1e9, 3) == convs_and_linears
