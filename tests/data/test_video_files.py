"""Videos frame by frame: times, sizes, and what is said of broken ones."""

import sys

import numpy as np
import pytest

from keras_densepred.data.video_files import VideoError, VideoFrames, VideoWriter, is_video
from keras_densepred.files import OutputError
from tests.data.videos import read_video, write_video

pytestmark = pytest.mark.backend_free

GRAYS = [np.full((48, 64, 3), 20 * shade, np.uint8) for shade in range(12)]
NOISE = list(np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), np.uint8))


def test_frames_come_in_order_with_their_times(tmp_path):
    frames = VideoFrames(write_video(tmp_path / "a.mp4", GRAYS, frame_rate=12.5))
    assert frames.frame_rate == pytest.approx(12.5) and frames.announced == 12
    seen = list(frames)
    assert [frame.number for frame in seen] == list(range(12)) and not frames.fault
    np.testing.assert_allclose([frame.time for frame in seen], np.arange(12) / 12.5, atol=1e-3)
    for frame, gray in zip(seen, GRAYS, strict=True):
        assert frame.image.shape == (48, 64, 3) and abs(frame.image.mean() - gray.mean()) < 8


def test_colours_and_rates_come_back_as_they_were_written(tmp_path):
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 200
    for rate in (30000 / 1001, 5.0):
        with VideoWriter(tmp_path / "red.mp4", rate) as writer:
            for _ in range(4):
                writer.write(red)
        frames = VideoFrames(tmp_path / "red.mp4")
        assert frames.frame_rate == pytest.approx(rate, abs=1e-3)
        assert all(np.abs(f.image.astype(int) - red).max() < 20 for f in frames)
    assert len(read_video(tmp_path / "red.mp4")[0]) == 4


def test_a_broken_or_missing_video_is_named(tmp_path):
    whole = write_video(tmp_path / "a.mp4", GRAYS).read_bytes()
    for name, content in (("cut.mp4", whole[: len(whole) // 2]), ("text.mp4", b"no video")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoError, match=rf"{name} is damaged, or no video .*ffmpeg"):
            VideoFrames(tmp_path / name)
    with pytest.raises(VideoError, match="There is no video"):
        VideoFrames(tmp_path / "none.mp4")


def test_a_video_that_ends_too_early_says_so_behind_its_last_frame(tmp_path):
    whole = write_video(tmp_path / "a.avi", NOISE, codec="MJPG").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    frames = VideoFrames(tmp_path / "cut.avi")
    count = len(list(frames))
    assert 5 < count < 15
    assert f"cut.avi is damaged after {count / 10:.1f} seconds" in frames.fault


def test_opencv_is_asked_for(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", GRAYS)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"`cv2`, which is not installed: run `pip .*\[data\]"):
        VideoFrames(path)


def test_what_cannot_be_written_is_said(tmp_path, monkeypatch):
    with (
        pytest.raises(OutputError, match=r"cannot write a\.nonsense, 64 x 48"),
        VideoWriter(tmp_path / "a.nonsense", 10) as writer,
    ):
        writer.write(GRAYS[0])
    with (
        pytest.raises(OutputError, match=r"b\.mp4 could not be written whole"),
        VideoWriter(tmp_path / "b.mp4", 10) as writer,
    ):
        writer.write(GRAYS[0])
        writer.write(GRAYS[0][:24])  # of another size, which OpenCV drops without a word


def test_videos_are_told_by_their_suffix():
    assert is_video("a/FILM.MOV") and not is_video("a/film.png") and not is_video("mp4")
