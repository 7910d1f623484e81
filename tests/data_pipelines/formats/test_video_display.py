"""What phones, editors and screen recorders write beside the pixels."""

import fractions
import itertools

import av
import numpy as np
import pytest

from data_pipelines.formats import video
from defi_jax import errors

COLOURS = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (128, 128, 128), (20, 20, 20))
SIDE = 32
PATCHES = np.repeat(np.repeat(np.array([COLOURS], np.uint8), SIDE, 0), SIDE, 1)  # side by side
TOLERANCE = 8  # of 255: tone mapping against the standard picture; 10 bits of PQ alone cost 6
SCENE_TOLERANCE = 12  # the same, where the picture's light was stored as that of the scene
BT2020 = np.array(
    [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]  # from BT.709
)


def _write(path, frames, codec="ffv1", container="matroska", tags=None, **stream_attributes):
    """Writes frames that have their pixel format already; `tags` are colours of the stream."""
    with av.open(str(path), "w", format=container) as output:
        options = (
            {"x265-params": "log-level=0:crf=4:pools=none:frame-threads=1:bframes=0"}
            if codec == "libx265"
            else {}
        )
        stream = output.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = frames[0].height, frames[0].width
        stream.pix_fmt = frames[0].format.name
        for name, value in stream_attributes.items():
            setattr(stream.codec_context, name, value)
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for number, frame in enumerate(frames):
            frame.pts = number
            for name, value in (tags or {}).items():
                setattr(frame, name, value)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _pictures(path) -> tuple[list[np.ndarray], set[str]]:
    with video.open_video(path) as opened:
        frames = list(opened.frames())
        return [frame.image() for frame in frames], {c for f in frames for c in f.conversions}


def _patches(image: np.ndarray) -> np.ndarray:
    centres = np.arange(len(COLOURS)) * SIDE + SIDE // 2
    return image[SIDE // 2, centres].astype(int)


def _yuv(rgb: np.ndarray, weights: tuple[float, float], bits: int = 10, full: bool = False):
    """A 4:4:4 frame of R'G'B' in 0..1, with the luma weights of red and blue."""
    red, blue = weights
    luma = rgb @ [red, 1 - red - blue, blue]
    chroma = (rgb[..., 2] - luma) / (2 - 2 * blue), (rgb[..., 0] - luma) / (2 - 2 * red)
    scale = 1 << (bits - 8)
    if full:
        planes = [luma * 255 * scale, *(plane * 255 * scale + 128 * scale for plane in chroma)]
    else:
        planes = [(16 + 219 * luma) * scale, *((128 + 224 * p) * scale for p in chroma)]
    dtype, name = (np.uint8, "yuv444p") if bits == 8 else (np.uint16, f"yuv444p{bits}le")
    frame = av.VideoFrame(rgb.shape[1], rgb.shape[0], name)
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.zeros((rgb.shape[0], plane.line_size // dtype().itemsize), dtype)
        rows[:, : rgb.shape[1]] = np.rint(values)
        plane.update(rows.tobytes())
    return frame


def _hlg(light: np.ndarray, gamma: float = 1.03) -> np.ndarray:
    """The signal of display light, 1 for the reference white; BT.2100, table 5."""
    luminance = light @ [0.2627, 0.6780, 0.0593]
    scene = 0.26496 * light * luminance[..., None] ** (1 / gamma - 1)
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


def _pq(light: np.ndarray) -> np.ndarray:
    """The signal of display light, 1 for 203 cd/m2; BT.2100, table 4."""
    power = (light * 203 / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


TRANSFERS = {
    "HLG": (18, _hlg, TOLERANCE),
    "HLG of scene light": (18, lambda light: _hlg(light, gamma=1), SCENE_TOLERANCE),
    "PQ": (16, _pq, TOLERANCE),
}
CODECS = [("ffv1", "matroska"), ("libx265", "mp4")]


@pytest.mark.parametrize(("codec", "container"), CODECS)
@pytest.mark.parametrize("name", TRANSFERS)
def test_high_dynamic_range_shows_the_colours_of_standard_range(tmp_path, name, codec, container):
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV without {codec}")
    number, encode, tolerance = TRANSFERS[name]
    signal = encode((PATCHES / 255.0) ** 2.4 @ BT2020.T)
    tags = {"color_trc": number, "color_primaries": 9, "colorspace": 9, "color_range": 1}
    frame = _yuv(signal, (0.2627, 0.0593))
    _write(tmp_path / "hdr", [frame] * 2, codec, container, tags)
    images, conversions = _pictures(tmp_path / "hdr")
    assert conversions == {f"tone-mapped from {name[:3].strip()}"}
    np.testing.assert_allclose(_patches(images[1]), COLOURS, atol=tolerance)


def test_highlights_keep_their_order_and_hue(tmp_path):
    light = np.ones((2, 4, 3)) * np.array([0.5, 1.0, 2.0, 4.5])[:, None]
    light[1] *= (1, 0.5, 0.25)
    tags = {"color_trc": 16, "color_primaries": 9, "colorspace": 9, "color_range": 1}
    frame = _yuv(_pq(np.repeat(light, SIDE, 0) @ BT2020.T), (0.2627, 0.0593))
    _write(tmp_path / "hdr", [frame], tags=tags)
    grey, orange = _pictures(tmp_path / "hdr")[0][0][[0, -1]].astype(int)
    assert (np.diff(grey[:, 0]) > 2).all() and 240 <= grey[1, 0] <= 248
    ratios = (orange / orange[:, :1]) ** 2.4
    np.testing.assert_allclose(ratios, [(1, 0.5, 0.25)] * 4, atol=0.02)


def test_a_large_frame_of_high_dynamic_range_is_shrunk_first(tmp_path):
    signal = _hlg((PATCHES / 255.0) ** 2.4 @ BT2020.T)
    tags = {"color_trc": 18, "color_primaries": 9, "colorspace": 9, "color_range": 1}
    _write(tmp_path / "hdr", [_yuv(signal, (0.2627, 0.0593))], tags=tags)
    with video.open_video(tmp_path / "hdr") as opened:
        image = next(opened.frames()).image(shorter_side=16)
    assert image.shape == (16, 16 * len(COLOURS), 3)
    np.testing.assert_allclose(image[8, 8::16], COLOURS, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("primaries", "matrix", "said"),
    [(9, BT2020, "BT.2020"), (12, None, "Display P3")],
)
def test_wide_colours_of_standard_range_are_converted(tmp_path, primaries, matrix, said):
    if matrix is None:  # from BT.709 to Display P3
        matrix = np.array([[0.8225, 0.1775, 0], [0.0332, 0.9668, 0], [0.0171, 0.0724, 0.9105]])
    signal = ((PATCHES / 255.0) ** 2.4 @ matrix.T) ** (1 / 2.4)
    tags = {"color_trc": 1, "color_primaries": primaries, "colorspace": 1, "color_range": 1}
    _write(tmp_path / "wide", [_yuv(signal, (0.2126, 0.0722))], tags=tags)
    images, conversions = _pictures(tmp_path / "wide")
    assert conversions == {f"colours of {said} converted"}
    np.testing.assert_allclose(_patches(images[0]), COLOURS, atol=2)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize(
    ("matrix", "weights"),
    [(1, (0.2126, 0.0722)), (5, (0.299, 0.114)), (6, (0.299, 0.114)), (2, (0.299, 0.114))],
)
def test_matrices_and_ranges_are_undone(tmp_path, matrix, weights, bits, full):
    tags = {"colorspace": matrix, "color_range": 2 if full else 1}
    _write(tmp_path / "a", [_yuv(PATCHES / 255.0, weights, bits, full)], tags=tags)
    images, conversions = _pictures(tmp_path / "a")
    assert not conversions
    np.testing.assert_allclose(_patches(images[0]), COLOURS, atol=3)


def test_a_large_video_without_a_named_matrix_has_that_of_high_definition(tmp_path):
    large = np.pad(PATCHES / 255.0, ((0, 0), (0, 1280 - PATCHES.shape[1]), (0, 0)))
    _write(tmp_path / "a", [_yuv(large, (0.2126, 0.0722), 8)])
    np.testing.assert_allclose(_patches(_pictures(tmp_path / "a")[0][0]), COLOURS, atol=3)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"colorspace": 9}, "BT.2020 video that does not say its transfer function"),
        ({"color_primaries": 9}, "BT.2020 video that does not say its transfer function"),
        ({"color_trc": 8}, "transfer function 8"),
        ({"colorspace": 14, "color_trc": 16}, "colour matrix 14"),
    ],
)
def test_colours_that_are_not_known_are_refused_by_name(tmp_path, tags, said):
    _write(tmp_path / "a.mkv", [_yuv(PATCHES / 255.0, (0.2627, 0.0593))], tags=tags)
    with pytest.raises(errors.DataError, match=rf"{said}.*: .*a\.mkv; convert it to BT\.709"):
        _pictures(tmp_path / "a.mkv")


def _corner() -> np.ndarray:
    """A picture without symmetry, of even sides."""
    image = np.full((32, 48, 3), 30, np.uint8)
    image[:16, :12], image[:16, 12:24], image[16:, :12] = (220, 30, 30), (30, 200, 30), 200
    return image


def _write_turned(path, matrix):
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=10, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.set_display_matrix(matrix)
        for _ in range(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(_corner(), format="rgb24")))
        output.mux(stream.encode(None))


@pytest.mark.parametrize("signs", itertools.product((1, -1), (1, -1)))
@pytest.mark.parametrize("transposed", [False, True])
def test_each_display_matrix_is_undone(tmp_path, transposed, signs):
    one, (first, second) = 1 << 16, signs
    a, b, c, d = (0, first, second, 0) if transposed else (first, 0, 0, second)
    _write_turned(tmp_path / "a", [a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30])
    images, conversions = _pictures(tmp_path / "a")

    source = _corner()
    y, x = np.indices(source.shape[:2])
    to_x, to_y = a * x + c * y, b * x + d * y  # ISO 14496-12, 8.3.2
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    expected = np.empty((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    expected[to_y, to_x] = source
    assert images[0].shape == expected.shape
    assert np.abs(images[0].astype(int) - expected).mean() < 4
    determinant = a * d - b * c
    name = "mirrored" if determinant < 0 else "turned upright"
    assert conversions == (set() if (a, d) == (1, 1) else {name})


def test_an_oblique_display_matrix_is_refused(tmp_path):
    turn = [46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30]
    _write_turned(tmp_path / "a.mp4", turn)
    with pytest.raises(errors.DataError, match=r"no right angle \(-?45 degrees\): .*a\.mp4"):
        _pictures(tmp_path / "a.mp4")


@pytest.mark.parametrize(("ratio", "size"), [((4, 3), (32, 64)), ((1, 2), (64, 48))])
def test_pixels_become_square(tmp_path, ratio, size):
    frame = av.VideoFrame.from_ndarray(_corner(), format="rgb24").reformat(format="yuv420p")
    _write(
        tmp_path / "a",
        [frame],
        "libx264",
        "mp4",
        sample_aspect_ratio=fractions.Fraction(*ratio),
    )
    images, conversions = _pictures(tmp_path / "a")
    assert images[0].shape == (*size, 3) and conversions == {"aspect ratio corrected"}


@pytest.mark.parametrize(
    ("codec", "container", "pixels"),
    [
        ("libx264", "mp4", "yuv444p"),
        ("libx264", "mp4", "gray"),
        ("mjpeg", "avi", "yuvj420p"),
        ("ffv1", "matroska", "gray10le"),
        ("ffv1", "matroska", "yuva420p"),
        ("qtrle", "mov", "argb"),
        ("qtrle", "mov", "rgb24"),
        ("rawvideo", "avi", "bgr24"),
        ("prores_ks", "mov", "yuva444p10le"),
    ],
)
def test_pixel_formats_are_read(tmp_path, codec, container, pixels):
    frame = av.VideoFrame.from_ndarray(PATCHES, format="rgb24")
    range_ = "JPEG" if pixels.startswith("yuvj") else None
    frame = frame.reformat(format=pixels, dst_color_range=range_)
    _write(tmp_path / "a", [frame] * 2, codec, container)
    images, _ = _pictures(tmp_path / "a")
    if pixels.startswith("gray"):
        assert np.ptp(images[1], axis=-1).max() == 0  # without colour
        assert _patches(images[1])[3, 0] == pytest.approx(128, abs=3)
    else:
        np.testing.assert_allclose(_patches(images[1]), COLOURS, atol=9)


def test_interlaced_video_is_refused(tmp_path):
    frame = av.VideoFrame.from_ndarray(_corner(), format="rgb24").reformat(format="yuv420p")
    with av.open(str(tmp_path / "a.mts"), "w", format="mpegts") as output:
        options = {"flags": "+ilme+ildct"}
        stream = output.add_stream("mpeg2video", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for frame.pts in range(5):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(errors.DataError, match=r"interlaced video: .*a\.mts; deinterlace it"):
        _pictures(tmp_path / "a.mts")
