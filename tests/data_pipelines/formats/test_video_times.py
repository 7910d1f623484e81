"""Which frames a player shows, and when, of containers as editors and recorders write them."""

import av
import numpy as np
import pytest

from data_pipelines.formats import video
from defi_jax import errors

HEIGHT, WIDTH = 32, 48


def _bar(number: int) -> np.ndarray:
    """A picture that shows its number below 11 as a bright bar."""
    image = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
    image[:, : 4 * (number + 1)] = 200
    return image


def _write(path, times, *, container="mp4", codec="libx264", container_options=None, **options):
    """Writes bars 0, 1, ... at the times, tenths of a second."""
    with av.open(str(path), "w", format=container, options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(_bar(number), format="rgb24")
            frame.pts = time
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _read(path, **window) -> tuple[list[int], list[float], set[str]]:
    """Returns the numbers of the frames, their times in seconds, and the conversions."""
    with video.open_video(path) as opened:
        frames = list(opened.frames(**window))
    numbers = [round((f.image()[HEIGHT // 2, :, 0] > 110).sum() / 4) - 1 for f in frames]
    times = [round(frame.time, 3) for frame in frames]
    return numbers, times, {name for frame in frames for name in frame.conversions}


def test_an_edit_list_hides_what_an_editor_cut(tmp_path):
    options = {"use_editlist": "1", "avoid_negative_ts": "disabled"}
    _write(tmp_path / "a", range(-3, 7), container_options=options)
    assert b"elst" in (tmp_path / "a").read_bytes()
    assert _read(tmp_path / "a")[:2] == ([3, 4, 5, 6, 7, 8, 9], [i / 10 for i in range(7)])
    assert _read(tmp_path / "a", start=0.2, end=0.3)[0] == [5, 6]


def test_a_start_offset_is_the_first_frames_time(tmp_path):
    _write(tmp_path / "a", range(7, 17))
    assert _read(tmp_path / "a")[:2] == (list(range(10)), [i / 10 for i in range(10)])


def test_a_fragmented_file_is_read(tmp_path):
    options = {"movflags": "frag_keyframe+empty_moov"}
    _write(tmp_path / "a", range(10), container_options=options, g="4")
    assert _read(tmp_path / "a")[0] == list(range(10))


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "libx264"), ("avi", "libx264"), ("avi", "mpeg4")]
)
def test_frames_that_are_stored_out_of_order_are_in_order(tmp_path, container, codec):
    _write(tmp_path / "a", range(10), container=container, codec=codec, bf="2")
    assert _read(tmp_path / "a")[:2] == (list(range(10)), [i / 10 for i in range(10)])
    assert _read(tmp_path / "a", start=0.3, end=0.5)[0] == [3, 4, 5]


def test_a_recording_that_begins_within_a_group_of_pictures_begins_at_its_key_frame(tmp_path):
    options = {"bf": "3", "x264-params": "open-gop=1:keyint=4:min-keyint=2:scenecut=0"}
    _write(tmp_path / "a", range(10), container="mpegts", **options)
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes()[188 * 6 :])  # after the first tables
    numbers, times, _ = _read(tmp_path / "b")
    assert numbers[0] > 0 and numbers == list(range(numbers[0], 10))
    assert times == [i / 10 for i in range(len(numbers))]


def test_times_that_run_backwards_are_damage(tmp_path):
    options = {"avoid_negative_ts": "disabled"}
    times = range(-3, 7)
    _write(tmp_path / "a.mkv", times, container="matroska", container_options=options)
    with pytest.raises(errors.DataError, match=r"run backwards: .*a\.mkv"):
        _read(tmp_path / "a.mkv")


def _write_with_cover(path, *, film: bool):
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=10) if film else output.add_stream("aac", 16000)
        cover = output.add_stream("mjpeg", rate=10)
        cover.height, cover.width, cover.pix_fmt, cover.disposition = 320, 480, "yuvj420p", 1024
        if film:
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((320, 480, 3), np.uint8), format="rgb24")
        picture = picture.reformat(format="yuvj420p")
        picture.pts = 0
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate, sound.pts = 16000, 0
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(_bar(number), format="rgb24")
            frame.pts = number
            output.mux(stream.encode(frame if film else sound))
            sound.pts += 1024
        output.mux(cover.encode(picture))
        output.mux(stream.encode(None))


def test_a_cover_picture_is_no_video(tmp_path):
    _write_with_cover(tmp_path / "film.mp4", film=True)
    assert _read(tmp_path / "film.mp4") == (list(range(5)), [0, 0.1, 0.2, 0.3, 0.4], set())
    _write_with_cover(tmp_path / "sound.mp4", film=False)
    with pytest.raises(errors.DataError, match=r"no video stream, only a cover picture: .*sound"):
        _read(tmp_path / "sound.mp4")


def test_one_of_several_streams_is_said_to_be_so_and_longer_sound_adds_nothing(tmp_path):
    with av.open(str(tmp_path / "a"), "w", format="mp4") as output:
        streams = [output.add_stream("libx264", rate=10) for _ in range(2)]
        sound = output.add_stream("aac", rate=16000)
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(5):
            for stream, shift in zip(streams, (0, 5), strict=True):
                frame = av.VideoFrame.from_ndarray(_bar(number + shift), format="rgb24")
                frame.pts = number
                output.mux(stream.encode(frame))
        for start in range(0, 32_000, 1024):  # two seconds
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, start
            output.mux(sound.encode(frame))
        for stream in (*streams, sound):
            output.mux(stream.encode(None))
    numbers, _, conversions = _read(tmp_path / "a")
    assert numbers == list(range(5)) and conversions == {"one of several video streams"}


def test_a_title_in_another_encoding_harms_nothing(tmp_path):
    with av.open(str(tmp_path / "a"), "w", format="mp4") as output:
        output.metadata["title"] = "QQQQ"
        stream = output.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(_bar(3), format="rgb24")))
        output.mux(stream.encode(None))
    data = (tmp_path / "a").read_bytes()
    assert b"QQQQ" in data
    (tmp_path / "a").write_bytes(data.replace(b"QQQQ", b"\xe9t\xe9!"))
    assert _read(tmp_path / "a")[0] == [3]
