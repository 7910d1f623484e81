import io
import struct
import zlib

import av
import numpy as np
import PIL.Image
import pytest

from data_pipelines import media
from defi_jax import errors

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


def _png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


def test_png_round_trip_is_exact():
    image = _picture()
    np.testing.assert_array_equal(media.decode_image(media.encode_png(image)), image)


def test_jpeg_round_trip_is_close():
    image = _picture()
    decoded = media.decode_image(media.encode_jpeg(image))
    assert decoded.shape == image.shape and decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - image).mean() < 2


def test_image_size_reads_the_header_of_both_kinds():
    image = _picture()
    assert media.image_size(media.encode_png(image)) == (HEIGHT, WIDTH)
    assert media.image_size(media.encode_jpeg(image)) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("encode", [media.encode_jpeg, media.encode_png])
def test_truncated_image_names_the_item(encode):
    data = encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    with pytest.raises(errors.DataError, match="episode 7"):
        media.decode_image(data[: len(data) // 2], where="episode 7")


def test_jpeg_with_garbage_in_the_middle_is_refused():
    data = bytearray(
        media.encode_jpeg(np.random.default_rng(0).integers(0, 255, (64, 64, 3), "u1"))
    )
    middle = len(data) // 2
    data[middle : middle + 4] = b"\xff\xd9\xff\xd9"  # an end marker long before the end
    with pytest.raises(errors.DataError, match="damaged JPEG"):
        media.decode_image(bytes(data))


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a" + bytes(20), b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]
)
def test_other_bytes_are_refused(data):
    with pytest.raises(errors.DataError):
        media.decode_image(data)


def test_forged_png_size_is_refused_before_allocation():
    with pytest.raises(errors.DataError, match="20000 x 20000"):
        media.decode_image(_png_header(20000, 20000))


@pytest.mark.parametrize("missing", [1, 12, 20, 100])
def test_png_that_is_cut_short_is_refused(missing):
    data = media.encode_png(np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8))
    with pytest.raises(errors.DataError, match=r"damaged PNG .cut short.: frame 3"):
        media.decode_image(data[:-missing], where="frame 3")


def test_png_with_a_flipped_bit_is_refused():
    data = bytearray(media.encode_png(np.zeros((32, 48, 3), np.uint8)))
    data[-16] ^= 1  # checksum of the pixels
    with pytest.raises(errors.DataError, match=r"damaged PNG .checksum of chunk"):
        media.decode_image(bytes(data))


def test_sixteen_bit_png_is_refused():
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.zeros((8, 8), np.uint16)).save(buffer, format="PNG")
    with pytest.raises(errors.DataError, match="8-bit"):
        media.decode_image(buffer.getvalue())


def test_resize_averages_when_it_shrinks():
    checker = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    small = media.resize(np.repeat(checker[..., None].astype(np.uint8), 3, -1), (8, 8))
    assert small.shape == (8, 8, 3)
    assert np.abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 3  # aliasing would give 0 or 255


def test_resize_shorter_side_keeps_aspect_and_never_enlarges():
    assert media.resize_shorter_side(_picture(height=48, width=96), 24).shape == (24, 48, 3)
    assert media.resize_shorter_side(_picture(), 480).shape == (HEIGHT, WIDTH, 3)


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
    assert media.video_format(path) == expected
    clip = media.read_video(path)
    assert len(clip.frames) == 10 and clip.fps == pytest.approx(10, rel=0.01)
    assert np.abs(clip.frames[3].astype(int) - _picture(3)).mean() < 12


def test_write_then_read_video_keeps_frames_and_rate(tmp_path):
    path = tmp_path / "out.mp4"
    media.write_video(path, [_picture(i) for i in range(7)], fps=12.5)
    clip = media.read_video(path)
    assert len(clip.frames) == 7 and clip.fps == pytest.approx(12.5)
    assert np.abs(clip.frames[6].astype(int) - _picture(6)).mean() < 6
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


def test_write_video_pads_odd_sizes(tmp_path):
    media.write_video(tmp_path / "odd.mp4", [_picture(height=33, width=47)] * 2, fps=5)
    assert media.read_video(tmp_path / "odd.mp4").frames[0].shape == (34, 48, 3)


def test_every_and_max_frames_and_shorter_side(tmp_path):
    media.write_video(tmp_path / "a.mp4", [_picture(i) for i in range(20)], fps=20)
    clip = media.read_video(tmp_path / "a.mp4", every=4, max_frames=3, shorter_side=24)
    assert len(clip.frames) == 3 and clip.fps == pytest.approx(5)
    assert clip.frames[0].shape == (24, 32, 3)
    whole = media.read_video(tmp_path / "a.mp4", shorter_side=24).frames
    np.testing.assert_array_equal(clip.frames, [whole[0], whole[4], whole[8]])
    assert np.any(whole[8] != whole[2])


@pytest.mark.parametrize("name", ["list.mp4", "list.webm"])
def test_disguised_playlist_is_refused(tmp_path, name):
    media.write_video(tmp_path / "secret.mp4", [_picture()] * 3, fps=5)
    (tmp_path / name).write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(errors.DataError, match=r"not an mp4"):
        media.read_video(tmp_path / name)


def test_container_format_is_forced(tmp_path, monkeypatch):
    media.write_video(tmp_path / "a.mp4", [_picture()] * 3, fps=5)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    monkeypatch.setattr(media, "video_format", lambda path: "mp4")  # the first barrier fell
    with pytest.raises(errors.DataError, match="damaged video"):
        media.read_video(tmp_path / "list.mp4")


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
        media.read_video(tmp_path / "cut")


def test_truncated_faststart_video_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, HEIGHT, WIDTH, 3), np.uint8)
    media.write_video(tmp_path / "whole.mp4", noise, fps=5)
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(errors.DataError, match="cut short"):
        media.read_video(tmp_path / "cut.mp4")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x1a\x45\xdf\xa3" + bytes(100)])
def test_files_that_are_no_video_are_refused(tmp_path, data):
    (tmp_path / "x.mp4").write_bytes(data)
    with pytest.raises(errors.DataError, match=r"x\.mp4"):
        media.read_video(tmp_path / "x.mp4")


def test_audio_only_file_is_refused(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        output.mux(stream.encode(silence))
        output.mux(stream.encode(None))
    with pytest.raises(errors.DataError, match="no video stream"):
        media.read_video(tmp_path / "sound.mp4")


def test_clip_larger_than_the_limit_is_refused(tmp_path, monkeypatch):
    media.write_video(tmp_path / "a.mp4", [_picture()] * 5, fps=5)
    monkeypatch.setattr(media, "MAX_CLIP_BYTES", 3 * HEIGHT * WIDTH * 3)
    with pytest.raises(errors.DataError, match="limit the frames"):
        media.read_video(tmp_path / "a.mp4")
    assert len(media.read_video(tmp_path / "a.mp4", max_frames=3).frames) == 3


def test_contact_sheet_places_images_and_labels():
    images = [_picture(0), _picture(10, 24, 32), _picture(20)]
    sheet = media.contact_sheet(images, ["öffne die Schublade", "b", "c"], columns=2)
    np.testing.assert_array_equal(sheet[4 : 4 + HEIGHT, 4 : 4 + WIDTH], images[0])
    label = sheet[4 + HEIGHT : 4 + HEIGHT + 14, 4 : 4 + WIDTH]
    assert label.max() > 150  # some text was drawn
    with pytest.raises(ValueError, match="labels"):
        media.contact_sheet(images, ["one"])
