"""The table of models: rows of the papers, their status, the site's copy of it."""

import csv
import dataclasses
import io
from pathlib import Path

import pytest

from keras_densepred.analysis.model_table import counting, render
from keras_densepred.analysis.model_table.families import FAMILIES, registered_backbones
from keras_densepred.analysis.model_table.figures import Row
from keras_densepred.backbones import backbone_families
from tests.contracts.families import OwnBackbone
from tools import model_table

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).parents[2]
CSV = ROOT / "keras_densepred" / "cli" / "model_table.csv"


def test_the_page_of_presets_has_the_table_of_the_csv():
    text = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    table = text.split("<!-- model_table:begin -->\n\n")[1].split("\n<!-- model_table:end -->")[0]
    assert table == render.as_markdown(render.read_csv(CSV))


def test_the_csv_has_every_row_and_no_unexplained_one():
    counts = render.read_csv(CSV)
    expected = [
        (family, row.preset, row.head, "x".join(map(str, row.image_size)))
        for family, row in counting.table_rows(FAMILIES)
    ]
    found = [(c.family, c.preset.split(" / ")[0], c.head, c.image_size) for c in counts]
    assert found == expected
    statuses = {"agrees", "known difference", "not built", "ours"}
    assert {c.status for c in counts} == statuses
    assert all(c.reason for c in counts if c.status in ("known difference", "not built"))
    presets = {
        name
        for backbone_class in backbone_families()
        if backbone_class.__module__.startswith("keras_densepred.")  # tests register more
        for name in backbone_class.architecture_presets()
    }
    assert {c.preset.split(" / ")[0] for c in counts if c.status != "not built"} == presets


@pytest.mark.parametrize(
    "preset,head",
    [
        ("bicsnet_lite0", "RetinaNet"),
        ("bicsnet_48", "ImageNet"),
        ("cednet_next_pico", "backbone"),
        ("csp_dark_pico", "backbone"),
    ],
)
def test_rows_of_the_csv_counted_anew(preset, head):
    family, row = next(
        (family, row)
        for family, row in counting.table_rows(FAMILIES)
        if (row.preset, row.head) == (preset, head)
    )
    assert counting.count(family, row) in render.read_csv(CSV)


@pytest.mark.slow
def test_all_rows_of_the_csv_counted_anew():
    rows = counting.table_rows(FAMILIES)
    assert [counting.count(*row) for row in rows] == render.read_csv(CSV)


def test_networks_made_for_dense_prediction_fuse_early_and_fpns_late():
    """CEDNet's argument, in our measure of it."""
    counts = render.read_csv(CSV)
    percent = {(c.preset.split(" / ")[0], c.head): c.fusion_percent for c in counts}
    assert percent["cednet_next_tiny", "RetinaNet"] == "32.6"
    assert percent["cednet_next_small", "RetinaNet"] == "24.8"
    assert percent["bicsnet_48", "RetinaNet"] == "36.0"
    assert percent["resnet50", "Faster R-CNN"] == "90.5"
    assert percent["peleenet", "PRN"] == "95.2"
    assert percent["peleenet", "ImageNet"] == "none"
    assert percent["ResNet-10", "ImageNet"] == ""  # not built


def test_cspnets_networks_say_where_they_are_from():
    counts = [c for c in render.read_csv(CSV) if c.family == "cspnet" and c.paper_multiply_adds]
    assert {c.basis for c in counts if c.status == "not built"} == {""}
    counts = [c for c in counts if c.status != "not built"]
    assert {c.basis for c in counts} == {"FIRM", "DECODED", "CALIBRATED"}
    assert all(c.status == "agrees" for c in counts if c.basis == "FIRM")
    firm = {(c.preset, c.head): render._multiply_adds_cell(c) for c in counts if c.basis == "FIRM"}
    assert firm["csp_peleenet", "ImageNet"] == "0.888 BF"
    assert firm["csp_darknet_53", "ImageNet"] == "13.07 BF"
    assert firm["csp_peleenet", "PRN-3l"] == "4.586 BF"


def test_layers_of_models_as_text_csv_and_picture(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ["--layers", "csp_densenet_b_ref", "--image-size", "64"]
    assert model_table.main([*arguments, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == {
        "model": "csp_densenet_b_ref",
        "layer": "stem1_conv",
        "output": "32x32x32",
        "bflops": f"{2 * 32 * 32 * 32 * 27 / 1e9:.4f}",
        "cio_millions": f"{(64 * 64 * 3 + 32**3) / 1e6:.4f}",
    }
    assert rows[-1]["layer"] == "end_conv" and rows[-1]["output"] == "2x2x512"
    assert model_table.main([*arguments, "--head", "ImageNet"]) == 0
    text = capsys.readouterr().out
    assert "head_logits" in text and "highest BFLOPs of a layer: 0.0" in text
    picture = tmp_path / "layers.png"
    assert model_table.main([*arguments, "--output", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [picture]
    for wrong, message in (
        (["--layers", "cspnet"], "no built-in preset 'cspnet'"),
        ([*arguments, "--head", "PRN4"], "csp_densenet_b_ref has no head 'PRN4': choose one of"),
    ):
        assert model_table.main(wrong) == 1
        assert message in capsys.readouterr().err


def test_bicsnet_is_as_near_to_the_paper_as_promised():
    """ImageNet parameters within 0.3 %; ImageNet's and RetinaNet-48's FLOPs within 1 %."""
    counts = [c for c in render.read_csv(CSV) if c.family == "bicsnet"]
    imagenet = [c for c in counts if c.head == "ImageNet"]
    retinanet = [c for c in counts if c.head == "RetinaNet" and "_48" in c.preset]
    assert len(imagenet) == len(retinanet) == 3
    assert all(abs(float(c.parameters_percent)) <= 0.3 for c in imagenet)
    assert all(abs(float(c.multiply_adds_percent)) <= 1 for c in imagenet + retinanet)


@pytest.mark.parametrize(
    "paper,ours,agrees",
    [
        ("34", 33.55, True),  # rounds to 34
        ("34", 32.9, False),
        ("5.7", 5.655, True),
        ("5.7", 5.64, False),  # 1.05 % off
        ("293.8", 291.0, True),  # within 1 %
    ],
)
def test_agreement_is_rounding_or_one_percent(paper, ours, agrees):
    assert counting._agrees(paper, ours) == agrees


def test_a_difference_without_a_reason_is_called_one():
    row = Row("cednet_next_pico", "backbone", (64, 64), "1.0", "5.7")
    assert counting.count("cednet", row).status == "differs"
    assert counting.count("cednet", dataclasses.replace(row, reason="x")).status == (
        "known difference"
    )


def test_formats_and_families(capsys, tmp_path):
    arguments = ["--from-csv", str(CSV), "--family", "bicsnet", "--format"]
    assert model_table.main([*arguments, "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["family"] for row in rows} == {"bicsnet"}
    assert model_table.main([*arguments, "text"]) == 0
    text = capsys.readouterr().out
    assert "bicsnet_140" in text and "(1) 22.5M" in text and "cednet" not in text
    output = tmp_path / "table.md"
    assert model_table.main([*arguments, "markdown", "--output", str(output)]) == 0
    assert output.read_text().startswith("| preset | head, input |")
    assert list(tmp_path.iterdir()) == [output]


def test_a_foreign_csv_is_refused_in_one_sentence(capsys, tmp_path):
    foreign = tmp_path / "other.csv"
    foreign.write_text("a,b\n1,2\n")
    assert model_table.main(["--from-csv", str(foreign)]) == 1
    assert "other.csv has other columns than this tool writes" in capsys.readouterr().err


def test_a_users_own_family_is_counted_alone():
    families = registered_backbones()
    assert families["OwnBackbone"] == [OwnBackbone]
    ((family, row),) = counting.table_rows(["OwnBackbone"])
    count = counting.count(family, row)
    assert (count.preset, count.head, count.status) == ("own_small", "backbone", "ours")
    assert int(count.parameters) == OwnBackbone.from_preset("own_small").count_params()
