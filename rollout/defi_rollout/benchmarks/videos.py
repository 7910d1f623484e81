"""Films of episodes: mp4 where PyAV can encode it, else an animated GIF."""

import logging
import pathlib
from collections.abc import Sequence

import numpy as np

from defi_rollout.benchmarks import pictures

DIRECTORY = "videos"
FUTURE = "-future"  # ends the stem of what a video model expected
MIN_SIDE = 256  # small frames are enlarged to at least this many pixels, for human eyes


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
    factor = -(-MIN_SIDE // min(frames[0].shape[:2]))
    large = [frame.repeat(factor, axis=0).repeat(factor, axis=1) for frame in frames]
    for suffix, encode in ((".mp4", pictures.encode_mp4), (".gif", pictures.encode_animation)):
        path = directory / f"{stem}{suffix}"
        try:
            path.write_bytes(encode(large, fps))
        except ImportError:
            continue
        return f"{DIRECTORY}/{path.name}"
    logging.warning("no video of %s: neither av nor pillow is installed", stem)
    return None


def future_of(output: pathlib.Path, video: str) -> str | None:
    """The predicted future beside the film `video`, relative to `output`; None without one."""
    film = pathlib.Path(video)
    for suffix in (".mp4", ".gif"):
        beside = film.with_name(film.stem + FUTURE + suffix)
        if (output / beside).exists():
            return beside.as_posix()
    return None
