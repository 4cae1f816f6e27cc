"""`predict` on videos, alone and beside pictures."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from keras_densepred import data
from keras_densepred.cli import main, predict
from tests.data.videos import read_video, write_video
from tests.saved.stand_ins import Squares, halves, opened, picture

pytestmark = pytest.mark.backend_free

MOVING = [picture(48, 64, (4 + 2 * i, 8, 24 + 2 * i, 30)) for i in range(10)]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Predicts with a stand-in into `out`; returns the exit code."""

    def run(model, *arguments):
        monkeypatch.setattr(predict, "open_chosen_model", lambda options: model)
        command = ["predict", "stand_in", *map(str, arguments), "--output", str(tmp_path / "out")]
        return main(command)

    return run


def files(folder):
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(name.as_posix() for name in names if not name.name.startswith("."))


def test_objects_of_a_video_are_drawn_and_written_down_with_their_times(run, tmp_path, capsys):
    video = write_video(tmp_path / "film.mp4", MOVING, frame_rate=12.5)
    Image.fromarray(MOVING[0]).save(tmp_path / "photo.png")
    out = tmp_path / "out"
    assert run(opened(Squares()), video, tmp_path / "photo.png", "--batch-size", "4") == 0
    assert "1 image, 1 video" in capsys.readouterr().out
    assert files(out) == ["detections.json", "pictures/photo.png", "videos/film.mp4"]
    frames, rate = read_video(out / "videos" / "film.mp4")
    assert len(frames) == 10 and rate == pytest.approx(12.5) and frames[0].shape == (48, 64, 3)
    of_photo, *results = json.loads((out / "detections.json").read_text())
    assert of_photo["image_id"] == 1 and "frame" not in of_photo
    assert [result["image_id"] for result in results] == list(range(2, 12))
    for number, result in enumerate(results):
        assert result["file_name"] == str(video) and result["category_id"] == 7
        assert result["frame"] == number and result["time"] == pytest.approx(number / 12.5)
        assert result["bbox"] == pytest.approx([4 + 2 * number, 8, 20, 22], abs=2)


def test_masks_pieces_and_crops_of_a_video(run, tmp_path):
    video = write_video(tmp_path / "film.mp4", MOVING[:2])
    assert run(opened(Squares(masks=True)), video, "--save-crops") == 0
    out = tmp_path / "out"
    results = json.loads((out / "detections.json").read_text())
    assert [result["segmentation"]["size"] for result in results] == [[48, 64]] * 2
    crops = [f"crops/dog/film/{number:06d}_1.png" for number in range(2)]
    assert files(out) == [*crops, "detections.json", "videos/film.mp4"]
    before = [result["bbox"] for result in results]
    assert run(opened(Squares()), video, "--tile", "64") == 0  # each frame fits into a piece
    assert files(out) == ["detections.json", "videos/film.mp4"]
    results = json.loads((out / "detections.json").read_text())
    np.testing.assert_allclose([result["bbox"] for result in results], before, atol=1e-3)


def test_label_maps_of_a_video(run, tmp_path):
    video = write_video(tmp_path / "film.avi", MOVING[:2], codec="MJPG")
    assert run(opened(halves("segmentation"), "segmentation"), video) == 0
    out = tmp_path / "out"
    masks = [f"masks/film/{number:06d}.png" for number in range(2)]
    assert files(out) == [*masks, "videos/film.mp4", "videos/film_legend.png"]
    mask = data.load_mask(out / masks[1])
    assert mask.shape == (48, 64) and (mask[:, :31] == 0).all() and (mask[:, 33:] == 1).all()


def test_classes_of_a_video(run, tmp_path):
    video = write_video(tmp_path / "film.mp4", MOVING[:2])
    Image.fromarray(MOVING[0]).save(tmp_path / "photo.png")
    model = opened(halves("classification"), "classification", crop_ratio=1.0)
    assert run(model, tmp_path / "photo.png", video) == 0
    with (tmp_path / "out" / "classes.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["rank"] == "1"]
    assert [(row["frame"], row["time"]) for row in rows] == [("", ""), ("0", "0.0"), ("1", "0.1")]
    assert {row["class"] for row in rows} == {"dog"}
    assert read_video(tmp_path / "out" / "videos" / "film.mp4")[1] == pytest.approx(10)


def test_a_broken_video_is_named_and_the_others_are_done(run, tmp_path, capsys):
    write_video(tmp_path / "good.mp4", MOVING[:2])
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    assert run(opened(Squares()), tmp_path / "bad.mp4", tmp_path / "good.mp4") == 1
    error = capsys.readouterr().err
    assert "bad.mp4 is damaged, or no video" in error and error.count("\n") == 1
    assert files(tmp_path / "out") == ["detections.json", "videos/good.mp4"]
    assert run(opened(Squares()), tmp_path / "bad.mp4") == 1
    printed = capsys.readouterr().out.replace("\n", "")  # the console breaks lines
    assert "wrote" in printed and "detections.json" in printed and "videos" not in printed
    assert files(tmp_path / "out") == ["detections.json"]


def test_a_run_that_fails_leaves_no_video_and_no_folder(run, tmp_path):
    class Failing(Squares):
        def predict_on_batch(self, images):
            raise RuntimeError("out of memory")

    assert run(opened(Failing()), write_video(tmp_path / "film.mp4", MOVING)) == 1
    assert not (tmp_path / "out").exists()
