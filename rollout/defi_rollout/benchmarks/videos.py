"""Films of episodes: mp4 where PyAV can encode it, else an animated GIF.

Legend: T frames, H W image size.
"""

import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

DIRECTORY = "videos"
MIN_SIDE = 256  # small frames are enlarged to at least this many pixels, for human eyes
_CODECS = ("libx264", "mpeg4")


def write_video(
    output: pathlib.Path, stem: str, frames: Sequence[np.ndarray], fps: float
) -> str | None:
    """Writes uint8 [H, W, 3] frames to `output`/videos/`stem`.mp4 (or .gif).

    Returns:
        The path relative to `output`; None without frames or without an encoder.
    """
    if not frames:
        return None
    directory = output / DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    for suffix, encode in ((".mp4", _encode_mp4), (".gif", _encode_gif)):
        path = directory / f"{stem}{suffix}"
        try:
            encode(path, [np.ascontiguousarray(frame) for frame in frames], fps)
        except ImportError:
            continue
        return f"{DIRECTORY}/{path.name}"
    logging.warning("no video of %s: neither av nor pillow is installed", stem)
    return None


def _encode_mp4(path: pathlib.Path, frames: Sequence[np.ndarray], fps: float) -> None:
    import av

    codec = next((name for name in _CODECS if name in av.codecs_available), None)
    if codec is None:
        raise ImportError("no mp4 encoder in this PyAV")
    height, width = _display_size(frames[0])
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=round(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # workers own a share of the cores
        for image in frames:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(width=width, height=height, interpolation="BICUBIC")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _encode_gif(path: pathlib.Path, frames: Sequence[np.ndarray], fps: float) -> None:
    from PIL import Image

    height, width = _display_size(frames[0])
    images = [Image.fromarray(frame).resize((width, height)) for frame in frames]
    milliseconds = round(1000 / fps)
    images[0].save(path, save_all=True, append_images=images[1:], duration=milliseconds, loop=0)


def _display_size(frame: np.ndarray) -> tuple[int, int]:
    """Height and width of the video: a multiple of the frame's, even as yuv420p demands."""
    factor = -(-MIN_SIDE // min(frame.shape[:2]))
    height, width = (side * factor for side in frame.shape[:2])
    return height + height % 2, width + width % 2
