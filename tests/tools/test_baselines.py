"""`tools/baselines`: the PyTorch CEDNet of the benchmark computes what the authors' does."""

import zlib

import numpy as np
import pytest

from keras_densepred import CEDNetBackbone, convert, models
from tests.convert.authors_state import key_list, make_images, make_state

torch = pytest.importorskip("torch")

from tools.baselines import cednet_torch, upernet_torch  # noqa: E402

pytestmark = pytest.mark.backend_free

KINDS = {
    "": cednet_torch.CEDNetClassifier,
    "det_": cednet_torch.CEDNetPyramid,
    "seg_": cednet_torch.CEDNet,
}
SMALLEST = cednet_torch.Variant(32, 1, (32, 64, 96), (1, 1, 1), 2)
CHANNELS_LAST = torch.channels_last


def build(list_name: str):
    """The model of a list of the authors' keys."""
    prefix, variant = list_name.split("next_")
    return KINDS[prefix](variant)


def state_from(keys) -> dict:
    return {key: torch.from_numpy(array) for key, array in make_state(keys).items()}


def loaded(list_name: str, golden):
    model = build(list_name).eval()
    model.load_state_dict(state_from(key_list(golden / "cednet" / "keys" / f"{list_name}.json")))
    return model


def smallest(kind=cednet_torch.CEDNetPyramid, p2_depth=1, **options):
    """A model of few parameters whose weights are no small perturbation of the identity."""
    model = kind(SMALLEST._replace(p2_depth=p2_depth), **options).eval()
    model.load_state_dict(state_from((k, tuple(v.shape)) for k, v in model.state_dict().items()))
    return model


def assert_close(ours, authors, name):
    np.testing.assert_allclose(ours.numpy(), authors, atol=5e-5, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("variant", cednet_torch.VARIANTS)
@pytest.mark.parametrize("prefix", KINDS)
def test_parameters_are_the_authors(prefix, variant, golden):
    list_name = f"{prefix}next_{variant}"
    with torch.device("meta"):
        state = build(list_name).state_dict()
    authors = key_list(golden / "cednet" / "keys" / f"{list_name}.json")
    assert {key: tuple(value.shape) for key, value in state.items()} == dict(authors)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize(
    "name",
    [
        *("next_tiny", "det_next_tiny", "seg_next_tiny"),
        pytest.param("next_tiny_large", marks=pytest.mark.slow),  # the same on larger images
    ],
)
def test_outputs_equal_the_authors(name, memory_format, golden):
    with np.load(golden / "cednet" / f"{name}.npz") as file:
        expected = dict(file)
    if "input" in expected:
        images = expected.pop("input")
    else:
        images = make_images(name, expected.pop("input_shape"))
        assert zlib.crc32(images.tobytes()) == expected.pop("input_crc32")
    model = loaded(name.removesuffix("_large"), golden).to(memory_format=memory_format)
    images = torch.from_numpy(images).to(memory_format=memory_format)

    with torch.no_grad():
        if isinstance(model, cednet_torch.CEDNetClassifier):
            taps = {"stem": model.stem(images), "logits": model(images)}
            taps["c2"], stages = model.forward_stages(images)
            taps["c3_in"] = model.stages[0][-1](taps["c2"])
            for number, maps in enumerate(stages, 1):
                taps |= {f"stage{number}_c{level}": x for level, x in enumerate(maps, 3)}
            # No dropout and no batch norm: training mode only adds the earlier stages' heads.
            for number, logits in enumerate(model.train()(images), 1):
                taps[f"logits_head{number}"] = logits
        else:
            maps = model(images)
            if name.startswith("seg_"):
                # The segmentation code hands on c2..c5, then the C3 of the earlier stages.
                stages = model.forward_stages(images)[1]
                maps = (*maps, stages[1][0], stages[0][0])
            assert all(x.is_contiguous(memory_format=memory_format) for x in maps)
            taps = {f"out{index}": x for index, x in enumerate(maps)}
    assert set(expected) <= set(taps)
    for tap, array in expected.items():
        assert_close(taps[tap], array, f"{name} {tap}")


UPERNET_NAMES = (  # of the baseline, and MMSegmentation's, whose units are a conv and a bn
    ("pools", "decode_head.psp_modules"),
    ("bottleneck", "decode_head.bottleneck"),
    ("laterals", "decode_head.lateral_convs"),
    ("outputs", "decode_head.fpn_convs"),
    ("merge", "decode_head.fpn_bottleneck"),
    ("logits", "decode_head.conv_seg"),
)


def authors_upernet_key(key: str) -> str:
    for own, authors in UPERNET_NAMES:
        if key.startswith(f"{own}."):
            place, part = key.removeprefix(own).rsplit(".", 1)
            if own != "logits":
                place = place[: -len(".0")] + {"0": ".conv", "1": ".bn"}[place[-1]]
            return f"{authors}{place}.{part}"
    return f"backbone.{key}"


def test_upernet_computes_what_ours_computes():
    model = smallest(upernet_torch.CEDNetUperNet, num_classes=7, width=24, p2_depth=3)
    state = {authors_upernet_key(key): value for key, value in model.state_dict().items()}
    variant = model.variant
    backbone = CEDNetBackbone(
        p2_width=variant.p2_width,
        p2_depth=variant.p2_depth,
        widths=variant.widths,
        depths=variant.depths,
        num_stages=variant.num_stages,
    )
    ours = models.UperNet(backbone, 7, width=24, auxiliary=None)
    report = convert.cednet.load_state(ours, {key: value.numpy() for key, value in state.items()})
    assert not report.skipped
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        expected = model(images).permute(0, 2, 3, 1).numpy()
    outputs = ours(images.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(outputs.detach().cpu().numpy(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST])
def test_every_map_keeps_the_memory_format_of_the_images(memory_format):
    model = smallest(drop_path_rate=0.1).train().to(memory_format=memory_format)
    formats = {}

    def record(module, _, output):
        if isinstance(output, torch.Tensor):
            formats[module] = output.is_contiguous(memory_format=memory_format)

    # What follows a permute inside of a block is (B, H, W, C), and the residual a view of it.
    inside = (torch.nn.Linear, torch.nn.LayerNorm, cednet_torch.DropPath, torch.nn.Identity)
    modules = {
        name: module
        for name, module in model.named_modules()
        if not isinstance(module, inside) or isinstance(module, cednet_torch.LayerNorm2d)
    }
    for module in modules.values():
        module.register_forward_hook(record)
    model(torch.randn(2, 3, 128, 256).to(memory_format=memory_format))
    assert len(formats) > 50
    assert [name for name, module in modules.items() if not formats.get(module, True)] == []


def test_drop_path_rises_linearly_and_drops_whole_samples():
    model = cednet_torch.CEDNet("tiny", drop_path_rate=0.1)
    paths = [m.drop_path for m in model.modules() if isinstance(m, cednet_torch.ResidualMLP)]
    rates = [getattr(path, "rate", 0.0) for path in paths]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 27), atol=1e-12)

    path = cednet_torch.DropPath(0.25)
    ones = torch.ones(4000, 2, 3, 1)
    dropped = path.train()(ones)
    per_sample = dropped[:, 0, 0, 0]
    assert torch.equal(dropped, per_sample[:, None, None, None].expand_as(ones))
    assert set(per_sample.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert abs(float((per_sample == 0).float().mean()) - 0.25) < 0.03
    assert torch.equal(path.eval()(ones), ones)


def test_training_reaches_every_parameter():
    model = smallest(cednet_torch.CEDNetClassifier, num_classes=5, drop_path_rate=0.1).train()
    sum(logits.square().mean() for logits in model(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_start_is_the_authors():
    model = cednet_torch.CEDNetClassifier(SMALLEST, num_classes=1000)
    std = {key: float(value.detach().std()) for key, value in model.named_parameters()}
    block = "stages.1.0.encoder.0.0."
    assert std[block + "dwconv.weight"] == pytest.approx(1 / (7 * 32**0.5), rel=0.1)
    assert std[block + "pwconv1.weight"] == pytest.approx(128**-0.5, rel=0.1)
    assert std["final_layers.0.0.weight"] == pytest.approx(2048**-0.5, rel=0.05)
    for key, value in model.named_parameters():
        if key.endswith("bias"):
            assert not value.any(), key
        elif key.endswith("gamma"):
            assert (value == 1e-6).all(), key
        elif value.ndim == 1:
            assert (value == 1).all(), key


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST])
def test_compiled_without_graph_breaks_it_gives_the_same(memory_format):
    images = torch.randn(1, 3, 64, 64).to(memory_format=memory_format)
    model = smallest(drop_path_rate=0.1).to(memory_format=memory_format)
    classifier = smallest(cednet_torch.CEDNetClassifier, num_classes=5)
    classifier = classifier.train().to(memory_format=memory_format)
    with torch.no_grad():
        for ours in (model, classifier):
            compiled = torch.compile(ours, fullgraph=True)
            for one, other in zip(compiled(images), ours(images), strict=True):
                assert_close(one, other.numpy(), type(ours).__name__)
