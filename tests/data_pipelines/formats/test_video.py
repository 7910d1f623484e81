import av
import numpy as np
import PIL.Image
import psutil
import pytest

from data_pipelines.formats import containers, video
from defi_jax import errors
from tests.fixtures import films

HEIGHT, WIDTH = 48, 64


def _picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth picture with a bright square, so that codecs keep it nearly unchanged."""
    ramp = np.linspace(0, 200, width, dtype=np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (height, width, 3)).copy()
    image[8:16, 4 + seed : 12 + seed] = (255, 40, 40)
    return image


def _write_clip(path, codec: str, container: str, frames: list[np.ndarray], fps: int = 10):
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))


def _read(path, **window) -> tuple[list[np.ndarray], float]:
    with video.open_video(path) as opened:
        return [frame.image() for frame in opened.frames(**window)], opened.rate


@pytest.mark.parametrize(
    ("codec", "container", "expected"),
    [
        ("libx264", "mp4", "mp4"),
        ("mpeg4", "mov", "mp4"),
        ("libvpx", "webm", "matroska"),
        ("mpeg4", "matroska", "matroska"),
        ("mpeg4", "avi", "avi"),
    ],
)
def test_video_containers_are_told_by_content(tmp_path, codec, container, expected):
    path = tmp_path / "clip.dat"  # the name says nothing
    _write_clip(path, codec, container, [_picture(i) for i in range(10)])
    assert containers.find_format(path) == expected
    frames, rate = _read(path)
    assert len(frames) == 10 and rate == pytest.approx(10, rel=0.01)
    assert np.abs(frames[3].astype(int) - _picture(3)).mean() < 12


def test_write_then_read_video_keeps_frames_and_rate(tmp_path):
    path = tmp_path / "out.mp4"
    films.write_video(path, [_picture(i) for i in range(7)], fps=12.5)
    frames, rate = _read(path)
    assert len(frames) == 7 and rate == pytest.approx(12.5)
    assert np.abs(frames[6].astype(int) - _picture(6)).mean() < 6
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


def test_write_video_pads_odd_sizes(tmp_path):
    films.write_video(tmp_path / "odd.mp4", [_picture(height=33, width=47)] * 2, fps=5)
    assert _read(tmp_path / "odd.mp4")[0][0].shape == (34, 48, 3)


@pytest.mark.parametrize(
    ("codec", "container"), [("libx264", "mp4"), ("libvpx", "webm"), ("mpeg4", "avi")]
)
def test_a_window_holds_the_same_frames_as_the_whole(tmp_path, codec, container):
    path = tmp_path / "clip"
    _write_clip(path, codec, container, [_picture(i) for i in range(40)])
    whole, _ = _read(path)
    for start, end in ((0, 3), (13, 17), (38, 39)):
        part, _ = _read(path, start=start / 10, end=end / 10)
        assert len(part) == end - start + 1
        np.testing.assert_array_equal(part, whole[start : end + 1])
    assert not _read(path, start=7.0, end=8.0)[0]


def test_times_are_those_of_the_container(tmp_path):
    times = [0, 1, 2, 3, 10, 11]
    with av.open(str(tmp_path / "vfr.mkv"), "w", format="matroska") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for time in times:
            frame = av.VideoFrame.from_ndarray(_picture(time), format="rgb24")
            frame.pts = time + 5  # a recording that does not begin at 0
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with video.open_video(tmp_path / "vfr.mkv") as opened:
        found = [frame.time for frame in opened.frames()]
    np.testing.assert_allclose(found, np.array(times) / 10, atol=2e-3)


def test_a_damaged_frame_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (10, HEIGHT, WIDTH, 3), np.uint8)
    _write_clip(tmp_path / "whole.mp4", "libx264", "mp4", list(noise))
    data = bytearray((tmp_path / "whole.mp4").read_bytes())
    for start in range(len(data) // 2, len(data) - 1500, 500):  # some flips give valid pictures
        data[start] ^= 0x31
    (tmp_path / "bad.mp4").write_bytes(data)
    with pytest.raises(errors.DataError, match=r"is damaged: .*bad\.mp4"):
        _read(tmp_path / "bad.mp4")


@pytest.mark.parametrize("name", ["list.mp4", "list.webm"])
def test_disguised_playlist_is_refused(tmp_path, name):
    films.write_video(tmp_path / "secret.mp4", [_picture()] * 3, fps=5)
    (tmp_path / name).write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(errors.DataError, match=r"not an mp4"):
        _read(tmp_path / name)


def test_container_format_is_forced(tmp_path, monkeypatch):
    films.write_video(tmp_path / "a.mp4", [_picture()] * 3, fps=5)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    monkeypatch.setattr(containers, "find_format", lambda path: "mp4")  # the first barrier fell
    with pytest.raises(errors.DataError, match="damaged video"):
        _read(tmp_path / "list.mp4")


@pytest.mark.parametrize(
    ("codec", "container"), [("libx264", "mp4"), ("libvpx", "webm"), ("mpeg4", "avi")]
)
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_truncated_video_is_refused(tmp_path, codec, container, part):
    path = tmp_path / "whole"
    noise = np.random.default_rng(0).integers(0, 255, (20, HEIGHT, WIDTH, 3), np.uint8)
    _write_clip(path, codec, container, list(noise))
    data = path.read_bytes()
    (tmp_path / "cut").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(errors.DataError, match="cut short"):
        _read(tmp_path / "cut")


def test_truncated_faststart_video_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, HEIGHT, WIDTH, 3), np.uint8)
    films.write_video(tmp_path / "whole.mp4", noise, fps=5)
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(errors.DataError, match="cut short"):
        _read(tmp_path / "cut.mp4")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x1a\x45\xdf\xa3" + bytes(100)])
def test_files_that_are_no_video_are_refused(tmp_path, data):
    (tmp_path / "x.mp4").write_bytes(data)
    with pytest.raises(errors.DataError, match=r"x\.mp4"):
        _read(tmp_path / "x.mp4")


def test_audio_only_file_is_refused(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        output.mux(stream.encode(silence))
        output.mux(stream.encode(None))
    with pytest.raises(errors.DataError, match="no video stream"):
        _read(tmp_path / "sound.mp4")


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"OggS" + bytes(30), r"Ogg file \(ogv\)"),
        (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), "ASF"),
        (b"\x00\x00\x01\xba\x44\x00", "MPEG program stream"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIF"),
        (b"\x00\x00\x00\x18ftypavif\x00\x00\x00\x00mif1avif", "AVIF"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8X", "WebP"),
        (b"RIFF\x10\x00\x00\x00WAVEfmt ", "sound"),
        (b"#EXTM3U\n#EXT-X-VERSION:3", "HLS playlist"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (bytes(2048), "file of zeros"),
        (b"\x47" + bytes(187) + b"\x48" + bytes(187), "starts with b'G"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path, head, kind):
    (tmp_path / "clip.mp4").write_bytes(head)
    with pytest.raises(errors.DataError, match=f"not an mp4, .* but .*{kind}.*; convert it"):
        _read(tmp_path / "clip.mp4")


def _write_gif(path, frames):
    images = [PIL.Image.fromarray(frame) for frame in frames]
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=100)


def _write_m2ts(path, frames):
    """Packets of a camcorder's file begin with a time code of four bytes."""
    _write_clip(path, "libx264", "mpegts", frames)
    data = path.read_bytes()
    packets = [data[start : start + 188] for start in range(0, len(data), 188)]
    path.write_bytes(b"".join(b"\0\0\0\0" + packet for packet in packets))


WRITERS = {
    "mpegts": lambda path, frames: _write_clip(path, "libx264", "mpegts", frames),
    "m2ts": _write_m2ts,
    "gif": _write_gif,
    "flv": lambda path, frames: _write_clip(path, "flv", "flv", frames),
    "3gp": lambda path, frames: _write_clip(path, "mpeg4", "3gp", frames),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_streams_and_animations_are_read(tmp_path, kind):
    pictures = [_picture(i) for i in range(12)]
    WRITERS[kind](tmp_path / "clip", pictures)
    frames, rate = _read(tmp_path / "clip")
    assert len(frames) == 12 and rate == pytest.approx(10, rel=0.01)
    assert np.abs(frames[5].astype(int) - pictures[5]).mean() < 12
    part, _ = _read(tmp_path / "clip", start=0.4, end=0.6)
    np.testing.assert_array_equal(part, frames[4:7])


@pytest.mark.parametrize("kind", WRITERS)
def test_streams_and_animations_cut_short_are_refused(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 255, (10, HEIGHT, WIDTH, 3), np.uint8)
    WRITERS[kind](tmp_path / "whole", list(noise))
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) * 2 // 3 + 1])
    with pytest.raises(errors.DataError, match="cut short"):
        _read(tmp_path / "cut")


def test_frames_that_are_kept_hold_no_threads(tmp_path):
    films.write_video(tmp_path / "a.mp4", [np.full((32, 48, 3), 90, np.uint8)] * 20, fps=10)
    before = psutil.Process().num_threads()
    with video.open_video(tmp_path / "a.mp4") as opened:
        kept = [(frame, frame.image()) for frame in opened.frames()]
        assert len(kept) == 20 and psutil.Process().num_threads() < before + 10


def test_a_frame_of_absurd_size_is_damage(tmp_path):
    films.write_video(tmp_path / "a.mp4", [_picture()] * 3, fps=5)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    table = data.index(b"stsz")
    data[table + 16] = 0x37  # bytes of the first frame, a gigabyte
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(errors.DataError, match=r"damaged video.*a\.mp4"):
        _read(tmp_path / "a.mp4")


@pytest.mark.parametrize("entry", [0, 5, 16])
def test_frames_that_a_damaged_index_hides_are_missed(tmp_path, entry):
    films.write_video(tmp_path / "a.mp4", [_picture(i) for i in range(20)], fps=5)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    data[data.index(b"stsz") + 16 + 4 * entry] = 0x7F  # a size at which FFmpeg stops, silently
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(errors.DataError, match=r"video ends at .* its index says 4 s: .*a\.mp4"):
        _read(tmp_path / "a.mp4")
