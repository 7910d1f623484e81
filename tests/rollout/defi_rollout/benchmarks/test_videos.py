import numpy as np
import pytest
from defi_rollout.benchmarks import pictures, videos

FRAMES = [np.full((10, 13, 3), 20 * i, np.uint8) for i in range(6)]


def test_mp4_has_every_frame_enlarged(tmp_path):
    av = pytest.importorskip("av")
    name = videos.write_video(tmp_path, "a-0", FRAMES, 10.0)
    assert name == "videos/a-0.mp4"
    with av.open(str(tmp_path / name)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == 6 and min(decoded[0].shape[:2]) >= videos.MIN_SIDE
    assert [round(frame.mean() / 20) for frame in decoded] == [0, 1, 2, 3, 4, 5]


def test_gif_without_an_mp4_encoder(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(pictures, "_MP4_CODECS", ())
    name = videos.write_video(tmp_path, "a-0", FRAMES, 10.0)
    assert name == "videos/a-0.gif"
    assert image.open(tmp_path / name).n_frames == 6


def test_no_frames_no_video(tmp_path):
    assert videos.write_video(tmp_path, "a-0", [], 10.0) is None
