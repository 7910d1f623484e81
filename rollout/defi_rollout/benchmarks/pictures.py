"""Frames into files that browsers show: PNG, animated GIF or WebP, and H.264 in mp4.

The one encoder of these kinds in the repository. PyAV and Pillow are optional for the client, so
each function imports what it needs and raises ImportError where that is not installed.
"""

import fractions
import io
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

_MP4_CODECS = ("libx264", "mpeg4")  # the first that PyAV was built with
_BT709, _LIMITED_RANGE = 1, 1  # of ITU-T H.273, and as FFmpeg counts


def encode_png(image: np.ndarray) -> bytes:
    """Encodes uint8[H, W, 3], lossless."""
    return encode_animation([image], 1.0, "PNG")


def encode_animation(
    frames: Iterable[np.ndarray], fps: float, kind: str = "GIF", **options: Any
) -> bytes:
    """Encodes frames that play for ever, or a single one as a picture.

    Args:
        frames: uint8[H, W, 3] each, of one size; at least one.
        kind: Pillow's name of the format.
        options: options of Pillow's writer, for example `quality`.
    """
    from PIL import Image

    first, *others = (Image.fromarray(np.asarray(frame)) for frame in frames)
    if others:
        milliseconds = round(1000 / fps)
        options |= {"save_all": True, "append_images": others, "duration": milliseconds, "loop": 0}
    buffer = io.BytesIO()
    first.save(buffer, kind, **options)
    return buffer.getvalue()


def encode_mp4(frames: Iterable[np.ndarray], fps: float) -> bytes:
    """Encodes H.264 in mp4, the combination that every browser plays, in the colours of BT.709.

    Args:
        frames: uint8[H, W, 3] each, of one size; at least one. Odd sizes gain one repeated row or
            column, because the codec halves the chroma.

    Raises:
        ImportError: PyAV is not installed, or without an encoder.
        ValueError: there are no frames.
    """
    import av

    codec = next((name for name in _MP4_CODECS if name in av.codecs_available), None)
    if codec is None:
        raise ImportError("no mp4 encoder in this PyAV")
    padded = _padded(frames)
    first = next(padded, None)
    if first is None:
        raise ValueError("a video needs at least one frame")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"crf": "18"} if codec == "libx264" else {}
        rate = fractions.Fraction(fps).limit_denominator(1001)
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv420p"
        stream.codec_context.thread_count = 1  # callers share the cores
        stream.codec_context.colorspace = stream.codec_context.color_primaries = _BT709
        stream.codec_context.color_trc = _BT709
        stream.codec_context.color_range = _LIMITED_RANGE
        for image in itertools.chain([first], padded):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _padded(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for image in frames:
        height, width = image.shape[:2]
        pad = ((0, height % 2), (0, width % 2), (0, 0))
        yield np.ascontiguousarray(np.pad(image, pad, mode="edge"))
