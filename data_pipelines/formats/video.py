"""Video files: frames with their times, as a player shows them.

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
import os
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass

import av
import av.container
import av.error
import numpy as np
from av.stream import Disposition

from data_pipelines.formats import containers, video_display
from data_pipelines.formats import image as image_lib

_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
# Their index leads to a frame before the wanted time; other containers are decoded from the start.
_SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")


@dataclass(frozen=True)
class Frame:
    """One decoded frame, not yet converted to pixels.

    Attributes:
        time: seconds from the video's first frame.
        raw: as the decoder gave it.
        display: how it is shown.
        conversions: what of that changes the picture, in words.
    """

    time: float
    raw: av.VideoFrame
    display: video_display.Display
    conversions: tuple[str, ...]

    def image(self, shorter_side: int | None = None) -> np.ndarray:
        """Returns uint8[H, W, 3], RGB, as a player shows it.

        Args:
            shorter_side: that the caller will shrink it to; the slow conversion of colours is done
                at that size.
        """
        return self.display.image(self.raw, shorter_side)


class Video:
    """An open video file; made by `open_video`.

    Attributes:
        rate: mean frames per second, as the container says.
        size: (height, width) as stored, before any rotation.
    """

    def __init__(self, container: av.container.InputContainer, path: pathlib.Path):
        self._path, self._container = path, container
        self._stream, is_one = _video_stream(container, path)
        self._several = () if is_one else ("one of several video streams",)
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not rate:
            raise containers.damaged("video without a frame rate", path)
        self.rate = float(rate)
        self._is_avi = container.format.name == "avi"
        self._first = self._stream.start_time or 0
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
            self._container.seek(self._first + offset, stream=self._stream)
        last_size = ticks = None
        shown_until = 0
        for index, raw in enumerate(self._container.decode(self._stream)):
            image_lib.check_image_size(raw.height, raw.width, str(self._path))
            if raw.is_corrupt:
                raise containers.damaged(f"frame {index} of those read is damaged", self._path)
            if last_size not in (None, (raw.height, raw.width)):
                raise containers.damaged("frame size changes within the video", self._path)
            last_size = (raw.height, raw.width)
            before, ticks = ticks, self._ticks(raw, ticks)
            if before is not None and ticks < before:
                raise containers.damaged("times of its frames run backwards", self._path)
            time = (ticks - self._first) * self._tick
            shown_until = ticks - self._first + (raw.duration or 0)
            if start is not None and time <= start - half:
                continue
            if end is not None and time > end + half:
                return
            display = video_display.find(raw, self._stream, self._path)
            yield Frame(time, raw, display, (*display.conversions, *self._several))

        # A damaged index of an mp4 hides frames; its duration counts what edit lists leave.
        promised = (self._stream.duration or 0) if "mp4" in self._container.format.name else 0
        if end is None and shown_until * self._tick < promised * self._tick - 2 / self.rate:
            what = f"video ends at {shown_until * self._tick:.4g} s, its index says "
            raise containers.damaged(f"{what}{promised * self._tick:.4g} s", self._path)

    @property
    def seconds(self) -> float | None:
        """How long the container says that the pictures last; None where it does not say."""
        if self._stream.duration:
            return self._stream.duration * self._tick
        duration = self._container.duration
        return duration / av.time_base if duration else None

    def _ticks(self, raw: av.VideoFrame, before: int | None) -> int:
        """Returns a frame's time; avi has none, but counts frames in the order of decoding."""
        ticks = raw.dts if self._is_avi or raw.pts is None else raw.pts
        if ticks is None:  # the last frames of an avi
            step = round(1 / (self.rate * self._tick))
            ticks = self._first if before is None else before + step
        if self._is_avi and before is None:
            self._first = ticks
        return ticks


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
        with (
            path.open("rb") as file,
            # Titles in other encodings than UTF-8 harm nothing.
            av.open(
                file, mode="r", format=container_format, metadata_errors="replace"
            ) as container,
        ):
            yield Video(container, path)
    except BlockingIOError as error:
        raise MemoryError("no memory for the decoder's threads") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise containers.damaged(f"damaged video ({error})", path) from error


def _video_stream(
    container: av.container.InputContainer, path: pathlib.Path
) -> tuple[av.VideoStream, bool]:
    """Returns the stream that a player shows, and whether it is the only one."""
    found = [s for s in container.streams.video if not s.disposition & _PICTURES]
    if not found:
        cover = ", only a cover picture" if container.streams.video else ""
        raise containers.damaged(f"file holds no video stream{cover}", path)
    best = container.streams.best("video")
    stream = best if isinstance(best, av.VideoStream) and best in found else found[0]
    if stream.codec_context is None:
        raise containers.damaged("video codec is not supported", path)
    image_lib.check_image_size(stream.codec_context.height, stream.codec_context.width, str(path))
    stream.thread_count = 1  # clips are decoded in parallel, by processes
    return stream, len(found) == 1
