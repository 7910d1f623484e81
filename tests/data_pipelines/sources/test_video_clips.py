import fractions
from typing import Any

import av
import numpy as np
import pytest

from data_pipelines import episodes
from data_pipelines.formats import image as image_lib
from data_pipelines.formats import video
from data_pipelines.sources import base, video_clips
from defi_jax import errors

HEIGHT, WIDTH = 32, 48


def _write(path, times, rate: int = 10, first_pts: int = 0, *, is_mov: bool = False):
    """A video whose frame at time t, in units of 1 / rate seconds, has brightness 4 t."""
    with av.open(str(path), "w", format="mov" if is_mov else "matroska") as output:
        stream = output.add_stream("png" if is_mov else "ffv1", rate=rate)  # lossless
        stream.height, stream.width = HEIGHT, WIDTH  # pyright: ignore
        stream.pix_fmt = "rgb24" if is_mov else "yuv444p"  # pyright: ignore
        for time in times:
            image = np.full((HEIGHT, WIDTH, 3), 4 * time, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = first_pts + time
            output.mux(stream.encode(frame))  # pyright: ignore
        output.mux(stream.encode(None))  # pyright: ignore
    return path


def _read(path, options=None, **clip) -> Any:
    described = video_clips.Clip(
        item="x", episode_id="e", videos={"static": path}, instructions=("push",), **clip
    )
    how = video_clips.Reading(name="s", options=options or video_clips.ClipOptions())
    (found,) = how.source([described], video_clips.read_clip, {}).read()
    return found


def _times(clip) -> list[int]:
    """When the kept frames were shown, by their brightness."""
    assert isinstance(clip, episodes.Episode), clip
    images = [image_lib.decode_image(frame) for frame in clip.frames["static"]]
    return [round(image.mean() / 4) for image in images]


@pytest.mark.parametrize(
    ("times", "expected", "rate", "is_uneven"),
    [
        ([0, 1, 2, 3, 7, 8], [0, 2, 3, 3, 4, 5], 5 / 8, True),
        ([0, 0.1, 0.2, 0.3], [0, 1, 2, 3], 10, False),
        ([0, 0.083, 0.167, 0.25], [0, 1, 2, 3], 12, False),  # rounded to milliseconds
        ([0, 2, 4], [0, 1, 2], 0.5, False),  # the container claims 10
        ([0, 5, 4], [0, 1, 2], 10, False),  # times that go back say nothing
        ([3], [0], 10, False),
    ],
)
def test_frames_are_placed_evenly_by_their_times(times, expected, rate, is_uneven):
    claimed = 12 if rate == 12 else 10
    found = video_clips.place_evenly(times, claimed)
    assert found == (expected, pytest.approx(rate), is_uneven)


def test_uneven_video_plays_at_its_true_speed(tmp_path):
    clip = _read(_write(tmp_path / "vfr.mkv", [0, 1, 2, 3, 7, 8, 14, 15]))
    # Eight frames in 1.5 s: one each 2.14 units.
    assert _times(clip) == [0, 2, 3, 7, 8, 8, 14, 15]
    assert clip.fps == pytest.approx(7 / 1.5) and clip.metadata["uneven_times"] is True


def test_times_that_no_camera_has_are_rejected(tmp_path):
    reject = _read(_write(tmp_path / "wild.mkv", [0, 1, 2, 3, 60]))
    assert isinstance(reject, episodes.Reject)
    assert "0.6667 Hz on average, 10 Hz is usual" in reject.reason


def test_sample_fps_takes_the_nearest_frames_by_time(tmp_path):
    path = _write(tmp_path / "a.mkv", range(30), first_pts=4)
    clip = _read(path, video_clips.ClipOptions(sample_fps=3))
    assert clip.fps == 3 and _times(clip) == [0, 3, 7, 10, 13, 17, 20, 23, 27]
    uneven = _write(tmp_path / "b.mkv", [0, 1, 2, 9, 10, 21])
    assert _times(_read(uneven, video_clips.ClipOptions(sample_fps=2))) == [0, 2, 10, 10, 21]


def test_sampling_faster_than_the_video_is_rejected(tmp_path):
    reject = _read(_write(tmp_path / "a.mkv", range(5)), video_clips.ClipOptions(sample_fps=20))
    assert isinstance(reject, episodes.Reject) and "plays at 10 Hz, slower" in reject.reason


def test_a_window_in_seconds_and_its_frames(tmp_path):
    path = _write(tmp_path / "a.mkv", range(40))
    clip = _read(path, window=video_clips.Window(start=1.2, end=1.5))
    assert _times(clip) == [12, 13, 14, 15] and clip.metadata["window_seconds"] == [1.2, 1.5]
    sampled = _read(
        path,
        video_clips.ClipOptions(sample_fps=5, every=2, max_frames=2),
        window=video_clips.Window(start=1.0, end=3.0),
    )
    assert _times(sampled) == [10, 14] and sampled.fps == 2.5


def test_a_window_outside_and_another_rate_are_rejected(tmp_path):
    path = _write(tmp_path / "a.mkv", range(10))
    outside = _read(path, window=video_clips.Window(start=7, end=9))
    assert "video ends at 1 s, its annotation at 9 s" in outside.reason
    between = _read(
        _write(tmp_path / "b.mkv", [0, 1, 30]), window=video_clips.Window(start=1, end=2)
    )
    assert "no frame in this window" in between.reason
    other = _read(path, window=video_clips.Window(start=0, end=0.5, rate=30))
    assert "plays at 10 Hz, its annotation counts frames at 30" in other.reason


def test_square_crop_and_png(tmp_path):
    path = _write(tmp_path / "a.mkv", range(3))
    options = video_clips.ClipOptions(square_crop=True, image_format="png", shorter_side=16)
    clip = _read(path, options)
    assert clip.frames["static"][0].startswith(b"\x89PNG")
    assert image_lib.image_size(clip.frames["static"][0]) == (16, 16)
    assert clip.metadata["frame_size"] == (16, 16) and clip.metadata["video_size"] == (32, 48)


def test_a_film_is_no_clip(tmp_path, monkeypatch):
    monkeypatch.setattr(video_clips, "MAX_FRAMES", 5)
    path = _write(tmp_path / "a.mkv", range(8))
    assert "more than 5 frames" in _read(path).reason
    assert len(_times(_read(path, video_clips.ClipOptions(max_frames=4)))) == 4


@pytest.mark.parametrize("options", [{"every": 2}, {"sample_fps": 5}])
def test_frames_with_actions_are_never_left_out(tmp_path, options):
    path = _write(tmp_path / "a.mkv", range(8))
    with pytest.raises(errors.UserError, match="tear frames and actions apart"):
        _read(path, video_clips.ClipOptions(**options), actions=np.zeros((8, 2), np.float32))


def test_frames_with_actions_stay_one_to_one_in_uneven_videos(tmp_path):
    path = _write(tmp_path / "a.mkv", [0, 1, 2, 9, 10])
    clip = _read(path, num_frames=5, actions=np.zeros((5, 2), np.float32))
    assert _times(clip) == [0, 1, 2, 9, 10]


def test_two_rates_contradict():
    with pytest.raises(errors.UserError, match="two rates"):
        video_clips.ClipOptions(fps=5, sample_fps=5)


def _source(tmp_path, count: int, names=None):
    clips = [
        video_clips.Clip(
            item=f"clip {i}",
            episode_id=names[i] if names else f"e{i}",
            videos={"static": tmp_path / f"{i}.mkv"},
            instructions=("push",),
        )
        for i in range(count)
    ]
    workers = base.Workers(count=2, seconds=30)
    how = video_clips.Reading(name="s", embodiment="human", workers=workers)
    return how.source(clips, video_clips.read_clip, {})


def test_worker_processes_give_the_same_in_order_and_skip_what_is_bad(tmp_path):
    for i in range(5):
        _write(tmp_path / f"{i}.mkv", range(i + 2))
    (tmp_path / "2.mkv").write_bytes(b"not a video")
    found: list[Any] = list(_source(tmp_path, 5).read(skip={"e1"}))
    assert [getattr(r, "episode_id", "reject") for r in found] == ["e0", "reject", "e3", "e4"]
    assert found[1].item == "clip 2" and _times(found[3]) == list(range(6))


def test_an_id_that_is_there_twice_is_rejected(tmp_path):
    source = _source(tmp_path, 2, names=["same", "same"])
    first = next(iter(source.read()))
    assert isinstance(first, episodes.Reject) and "'same' is there already" in first.reason
    assert source.total == 2


def test_rejects_hold_text_that_every_file_can():
    assert episodes.Reject("caf\udce9.mp4", "bad").item == "caf\\udce9.mp4"


def test_digest_follows_the_file(tmp_path):
    path = _write(tmp_path / "a.mkv", range(3))
    before = video_clips.file_sha256(path)
    _write(path, range(4))
    assert video_clips.file_sha256(path) != before
    with video.open_video(path) as opened:
        assert len(list(opened.frames())) == 4


def test_a_frame_without_duration_is_never_shown(tmp_path):
    path = _write(tmp_path / "a.mov", [0, 1, 2, 12, 13, 14], is_mov=True)
    data = path.read_bytes()
    table = data.index(b"stts") + 12  # pairs of a count and a duration, uint32
    longest = max(range(table, table + 24, 8), key=lambda i: int.from_bytes(data[i + 4 : i + 8]))
    path.write_bytes(data[: longest + 4] + bytes(4) + data[longest + 8 :])
    clip = _read(path)
    assert clip.length == 5 and clip.fps == pytest.approx(10)
    assert _times(clip) == [0, 1, 12, 13, 14]


def test_what_was_done_to_a_clip_is_kept_with_it(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = fractions.Fraction(4, 3)
        stream.set_display_rotation(90)
        for _ in range(3):
            image = np.zeros((32, 48, 3), np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
    clip = _read(tmp_path / "a.mp4")
    assert clip.metadata["conversions"] == ["aspect ratio corrected", "turned upright"]
    assert clip.metadata["frame_size"] == (64, 32) and clip.metadata["video_size"] == (32, 48)


@pytest.mark.parametrize(("end", "is_refused"), [(0.9, False), (1.05, False), (1.2, True)])
def test_a_window_beyond_the_end_is_refused(tmp_path, end, is_refused):
    path = _write(tmp_path / "a.mkv", range(10))
    found = _read(path, window=video_clips.Window(start=0.5, end=end))
    if is_refused:
        assert "video ends at 1 s, its annotation at 1.2 s" in found.reason
    else:
        assert _times(found) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("name", "value"),
    [("every", 0), ("sample_fps", -1.0), ("fps", float("nan")), ("max_frames", 0)],
)
def test_options_that_are_not_positive_are_refused(name, value):
    with pytest.raises(errors.UserError, match=rf"not positive: --{name}"):
        video_clips.ClipOptions(**{name: value})
