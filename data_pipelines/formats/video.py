"""Video files: frames with their times, as a player shows them; H.264 into mp4.

The container is told by its bytes, see `containers`, and then forced, because FFmpeg otherwise
opens playlists that point at other local files. Damage is a `DataError`: FFmpeg
plays a cut file up to the cut and conceals flipped bits, so declared lengths are checked first and
a frame that the decoder marks as damaged is refused. (About half of all single flipped bits give
another valid picture: only a digest of the file would find those.)

Times are seconds from the video's first frame, as the container says; never a frame's number
divided by a rate, because people's cameras and screen recorders skip frames.
"""

from __future__ import annotations

import contextlib
import fractions
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import av
import av.container
import av.error
import numpy as np

from data_pipelines.formats import containers
from data_pipelines.formats import image as image_lib

# Their index leads to a frame before the wanted time; other containers are decoded from the start.
_SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")


@dataclass(frozen=True)
class Frame:
    """One decoded frame, not yet converted to pixels.

    Attributes:
        time: seconds from the video's first frame.
        raw: as the decoder gave it.
    """

    time: float
    raw: av.VideoFrame

    def image(self) -> np.ndarray:
        """Returns uint8[H, W, 3], RGB, upright."""
        image = self.raw.to_ndarray(format="rgb24")
        # `rotation` is the counter-clockwise turn, in degrees, that shows the frame upright.
        turns = self.raw.rotation // 90 if self.raw.rotation % 90 == 0 else 0
        return np.rot90(image, turns)


class Video:
    """An open video file; made by `open_video`.

    Attributes:
        rate: mean frames per second, as the container says.
        size: (height, width) as stored, before any rotation.
    """

    def __init__(self, container: av.container.InputContainer, path: pathlib.Path):
        self._path, self._container = path, container
        self._stream = _video_stream(container, path)
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not rate:
            raise containers.damaged("video without a frame rate", path)
        self.rate = float(rate)
        self._tick = float(self._stream.time_base or fractions.Fraction(1, 90_000))  # seconds
        self.size = (self._stream.codec_context.height, self._stream.codec_context.width)

    def frames(self, start: float | None = None, end: float | None = None) -> Iterator[Frame]:
        """Decodes once, in order; call it only once.

        Args:
            start: skip to the frame nearest to this time, seconds; None begins at the first.
            end: stop after the frame nearest to this time, seconds; None reads to the end.
        """
        half = 0.5 / self.rate
        if start is not None and start > half and self._container.format.name in _SEEKABLE:
            offset = int((start - half) / self._tick)
            self._container.seek(self._first_pts + offset, stream=self._stream)
        last_size = None
        for index, raw in enumerate(self._container.decode(self._stream)):
            image_lib.check_image_size(raw.height, raw.width, str(self._path))
            if raw.is_corrupt:
                raise containers.damaged(f"frame {index} of those read is damaged", self._path)
            if last_size not in (None, (raw.height, raw.width)):
                raise containers.damaged("frame size changes within the video", self._path)
            last_size = (raw.height, raw.width)
            time = self._time(raw, index)
            if start is not None and time <= start - half:
                continue
            if end is not None and time > end + half:
                return
            yield Frame(time, raw)

    @property
    def seconds(self) -> float | None:
        """How long the container says that the pictures last; None where it does not say."""
        if self._stream.duration:
            return self._stream.duration * self._tick
        duration = self._container.duration
        return duration / av.time_base if duration else None

    @property
    def _first_pts(self) -> int:
        return self._stream.start_time or 0

    def _time(self, raw: av.VideoFrame, index: int) -> float:
        pts = raw.dts if raw.pts is None else raw.pts
        if pts is None:
            return index / self.rate
        return (pts - self._first_pts) * self._tick


@contextlib.contextmanager
def open_video(path: str | os.PathLike) -> Iterator[Video]:
    """Opens a video; decoding errors within the block become `DataError` as well.

    Raises:
        DataError: unreadable, truncated, damaged, without pictures or of changing frame size.
    """
    path = pathlib.Path(path)
    container_format = containers.find_format(path)
    try:
        # An open file, not a path: FFmpeg then cannot follow protocols or references.
        with path.open("rb") as file, av.open(file, mode="r", format=container_format) as container:
            yield Video(container, path)
    except MemoryError:
        raise  # a limit of the process, no damage
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise containers.damaged(f"damaged video ({error})", path) from error


def _video_stream(container: av.container.InputContainer, path: pathlib.Path) -> av.VideoStream:
    stream = container.streams.best("video")  # not the cover picture, where there is one
    if not isinstance(stream, av.VideoStream):
        raise containers.damaged("file holds no video stream", path)
    if stream.codec_context is None:
        raise containers.damaged("video codec is not supported", path)
    image_lib.check_image_size(stream.codec_context.height, stream.codec_context.width, str(path))
    stream.thread_count = 1  # clips are decoded in parallel, by processes
    return stream


# ---- writing ----


def write_video(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float) -> None:
    """Writes H.264 in mp4, the combination that every browser plays; replaces `path` at once.

    Args:
        path: file to write; its directory exists.
        frames: uint8[H, W, 3] each, of one size. Odd sizes gain one repeated row or column, because
            the codec halves the chroma.
        fps: frames per second.

    Raises:
        ValueError: there are no frames.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError("write_video needs at least one frame")
    height, width = (side + side % 2 for side in first.shape[:2])

    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _encode_h264(partial, itertools.chain([first], frames), (height, width), fps)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _encode_h264(
    path: pathlib.Path, frames: Iterable[np.ndarray], size: tuple[int, int], fps: float
) -> None:
    height, width = size
    rate = fractions.Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in frames:
            pad = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
            frame = av.VideoFrame.from_ndarray(np.pad(image, pad, mode="edge"), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
