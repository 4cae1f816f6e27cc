"""`predict_video`: what is found frame by frame, in a video of the same size and frame rate."""

import numpy as np
import pytest

from keras_densepred.data.video_files import VideoError, VideoFrames
from keras_densepred.files import OutputError
from keras_densepred.saved.videos import predict_frames
from tests.data.videos import read_video, write_video
from tests.saved.stand_ins import Squares, halves, opened, picture

pytestmark = pytest.mark.backend_free

MOVING = [picture(48, 64, (4 + 2 * i, 8, 24 + 2 * i, 30)) for i in range(11)]


def test_a_moving_object_is_followed_and_drawn(tmp_path):
    video = write_video(tmp_path / "film.mp4", MOVING, frame_rate=12.5)
    rows = opened(Squares()).predict_video(video, tmp_path / "found.mp4")
    assert [row["frame"] for row in rows] == list(range(11))
    np.testing.assert_allclose([row["time"] for row in rows], np.arange(11) / 12.5, atol=1e-3)
    for i, row in enumerate(rows):
        assert row["name"] == "dog" and row["score"] > 0.5
        np.testing.assert_allclose(row["box"], (4 + 2 * i, 8, 24 + 2 * i, 30), atol=2)
    frames, rate = read_video(tmp_path / "found.mp4")
    assert len(frames) == 11 and rate == pytest.approx(12.5)
    for frame, before in zip(frames, MOVING, strict=True):
        assert frame.shape == (48, 64, 3)
        # Boxes and names are coloured, and the film is not.
        assert np.ptp(frame.astype(int), axis=2).max() > 60 > np.ptp(before, axis=2).max()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mp4", "found.mp4"]


def test_frames_are_read_a_batch_at_a_time(tmp_path):
    frames = VideoFrames(write_video(tmp_path / "film.mp4", MOVING))
    read = []

    class Noting(Squares):
        def predict_on_batch(self, images):
            shapes.append((len(images), len(read)))
            return super().predict_on_batch(images)

    class Counted:
        def __iter__(self):
            for frame in frames:
                read.append(frame.number)
                yield frame

    shapes = []
    found = predict_frames(opened(Noting()), Counted(), score=0.5, batch_size=4)
    assert [frame.number for frame, _ in found] == list(range(11))
    assert shapes == [(4, 4), (4, 8), (4, 11)]  # the last one filled up: no other shape


def test_pieces_find_what_the_whole_frame_does(tmp_path):
    boxes = [(50, 10, 70, 30), (150, 100, 170, 130)]
    video = write_video(tmp_path / "film.mp4", [picture(150, 200, *boxes)] * 2)
    rows = opened(Squares()).predict_video(video, tmp_path / "found.mp4", tile=64, overlap=0.5)
    assert [row["frame"] for row in rows] == [0, 0, 1, 1]
    found = sorted(row["box"] for row in rows if row["frame"] == 1)
    np.testing.assert_allclose(found, boxes, atol=2)


def test_label_maps_and_classes(tmp_path):
    video = write_video(tmp_path / "film.mp4", [picture(32, 64, (0, 0, 64, 32))] * 3)
    rows = opened(halves("segmentation"), "segmentation").predict_video(video, tmp_path / "s.mp4")
    assert rows[2]["frame"] == 2 and rows[2]["shares"] == pytest.approx({"cat": 0.5, "dog": 0.5})
    frames, _ = read_video(tmp_path / "s.mp4")
    left, right = frames[2][:, 4:28].mean((0, 1)), frames[2][:, 36:60].mean((0, 1))
    assert frames[2].shape == (32, 64, 3) and np.abs(left - right).max() > 60
    model = opened(halves("classification"), "classification", crop_ratio=1.0)
    rows = model.predict_video(video, tmp_path / "c.mp4")
    assert [row["name"] for row in rows] == ["dog"] * 3
    assert rows[0]["probability"] == pytest.approx(0.75)
    assert read_video(tmp_path / "c.mp4")[0][0].min() < 100  # the name, on white


def test_nothing_is_half_written(tmp_path):
    video = write_video(tmp_path / "film.mp4", MOVING)
    (tmp_path / "found.mp4").write_bytes(b"mine")

    class Failing(Squares):
        def predict_on_batch(self, images):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        opened(Failing()).predict_video(video, tmp_path / "found.mp4")
    assert (tmp_path / "found.mp4").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mp4", "found.mp4"]
    with pytest.raises(OutputError, match="which is read"):
        opened(Squares()).predict_video(video, video)


def test_broken_videos(tmp_path):
    (tmp_path / "text.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"text\.mp4 is damaged"):
        opened(Squares()).predict_video(tmp_path / "text.mp4", tmp_path / "found.mp4")
    noise = list(np.random.default_rng(0).integers(0, 120, (20, 48, 64, 3), np.uint8))
    whole = write_video(tmp_path / "a.avi", noise, codec="MJPG").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=r"cut\.avi is damaged after"):
        opened(Squares()).predict_video(tmp_path / "cut.avi", tmp_path / "found.mp4")
    assert 5 < len(read_video(tmp_path / "found.mp4")[0]) < 15
