"""From a described clip (video files, texts, maybe actions) to an episode: shared by video sources.

Frames are decoded once, shrunk and stored as JPEG or PNG, so that training never opens a video.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from data_pipelines import episodes
from data_pipelines.formats import image as image_lib
from data_pipelines.formats import video
from data_pipelines.sources import base
from defi_jax import errors

MAX_FRAMES = 20_000  # of one clip; longer ones are films that somebody forgot to cut
_RATES_DIFFER = 0.01  # relative
_RATES_CONTRADICT = 4.0  # times
_RESAMPLED = "resampled to even times"
_OTHER_VIDEOS = "use the videos that the annotation was made for"


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """How clips are stored.

    Attributes:
        shorter_side: frames are shrunk until their shorter side has at most this many pixels.
        square_crop: keep the centre square of each frame only.
        every: every n-th frame is kept.
        sample_fps: keep the frame nearest to each multiple of 1 / sample_fps seconds, by the
            container's times; None keeps all.
        max_frames: kept frames a clip at most, from its beginning; None for all.
        image_format: format of the stored frames; png keeps pixels exactly.
        jpeg_quality: quality of the stored frames, 1 to 100.
        fps: rate to record instead of the container's, before `every`; None trusts the container.

    Raises:
        UserError: both rates are given: resampling needs true times; or a number is not positive.
    """

    shorter_side: int = 256
    square_crop: bool = False
    every: int = 1
    sample_fps: float | None = None
    max_frames: int | None = None
    image_format: Literal["jpeg", "png"] = "jpeg"
    jpeg_quality: int = 95
    fps: float | None = None

    def __post_init__(self):
        if self.fps and self.sample_fps:
            raise errors.UserError("two rates", "--fps and --sample_fps", "give one of them")
        for name in ("shorter_side", "every", "sample_fps", "max_frames", "jpeg_quality", "fps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise errors.UserError(f"{value} is not positive", f"--{name}", "give a number > 0")

    def check_keeps_frames(self, where: str = "--every, --sample_fps") -> None:
        """Raises UserError unless each frame keeps its action."""
        if self.every > 1 or self.sample_fps is not None:
            what = "leaving out frames would tear frames and actions apart"
            raise errors.UserError(what, where, "use neither every nor sample_fps")

    def encode(self, image: np.ndarray) -> bytes:
        """Crops, shrinks and encodes uint8[H, W, 3]."""
        if self.square_crop:
            side = min(image.shape[:2])
            top, left = ((length - side) // 2 for length in image.shape[:2])
            image = image[top : top + side, left : left + side]
        image = image_lib.resize_shorter_side(image, self.shorter_side)
        if self.image_format == "png":
            return image_lib.encode_png(image)
        return image_lib.encode_jpeg(image, self.jpeg_quality)


@dataclass(frozen=True, kw_only=True)
class Window:
    """The part of a video that is a clip.

    Attributes:
        start: seconds of the first frame.
        end: seconds of the last frame.
        rate: frames a second by which the annotation counts; None where it says seconds.
    """

    start: float
    end: float
    rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip before its pixels are read.

    Attributes:
        item: what a reject names.
        episode_id: see `episodes.Episode`, as the fields of the same name.
        videos: camera -> video file.
        instructions: texts, the canonical one first.
        window: the part of the videos; None for all.
        num_frames: what the annotation promises; None when it says nothing.
        actions: float32[num_frames, A] or None.
        states: float32[num_frames, P] or None.
        metadata: kept with the episode.
    """

    item: str
    episode_id: str
    videos: Mapping[str, pathlib.Path]
    instructions: tuple[str, ...]
    window: Window | None = None
    num_frames: int | None = None
    actions: np.ndarray | None = None
    states: np.ndarray | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_columns(self) -> bool:
        """Whether frames belong to actions or states, one to one."""
        return self.actions is not None or self.states is not None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is read of a dataset, and how.

    Attributes:
        name: name of the dataset; becomes `Episode.source`.
        embodiment: who acts; "" for what the dataset says, and where it says nothing for "robot" if
            there are actions, and "human" if there are none.
        splits: that are read; None for all.
        options: how frames are stored.
        workers: how episodes are read.
    """

    name: str
    embodiment: str = ""
    splits: Collection[str] | None = None
    options: ClipOptions = ClipOptions()
    workers: base.Workers = field(default_factory=base.Workers)

    def source(
        self,
        found: Iterable[base.Item | episodes.Reject],
        read: Callable[..., episodes.Episode],
        recipe: Mapping[str, Any],
        **arguments: Any,
    ) -> base.ItemSource:
        """Makes the source of what was found; `read(item, how=self, **arguments)` reads one."""
        read = functools.partial(read, how=self, **arguments)
        recipe = {**recipe, "frames": asdict(self.options)}
        return base.ItemSource(self.name, found, read, recipe=recipe, workers=self.workers)


@dataclass(frozen=True)
class _Decoded:
    """Frames of one camera: encoded, and their rate.

    Attributes:
        video_size: (height, width) of the file.
        conversions: what was done to show the video as a player does, in words.
    """

    frames: list[bytes]
    fps: float
    video_size: tuple[int, int]
    conversions: set[str]


# Clips and what is unusable, and the beginning of the recipe.
Found = tuple[list[Clip | episodes.Reject], dict[str, Any]]


def read_clip(clip: Clip, *, how: Reading) -> episodes.Episode:
    """Decodes a clip.

    Raises:
        DataError: something is wrong with it.
        UserError: frames of a clip with actions or states are to be left out.
    """
    if clip.has_columns:
        how.options.check_keeps_frames(clip.item)
    decoded = {camera: _decode(path, clip, how.options) for camera, path in clip.videos.items()}
    first = next(iter(decoded.values()))
    length = len(first.frames)
    metadata = {
        **clip.metadata,
        "video_sha256": {camera: file_sha256(path) for camera, path in clip.videos.items()},
        "every": how.options.every,
        "video_size": first.video_size,
        "frame_size": image_lib.image_size(first.frames[0]),
    }
    if clip.window is not None:
        metadata["window_seconds"] = [clip.window.start, clip.window.end]
    conversions = set().union(*(found.conversions for found in decoded.values()))
    if conversions:
        metadata[episodes.CONVERSIONS] = sorted(conversions)
    if _RESAMPLED in conversions:
        metadata["uneven_times"] = True
    if length != clip.num_frames and episodes.LAST_ACTION_IS_PADDING in metadata:
        metadata[episodes.LAST_ACTION_IS_PADDING] = False  # it was cut off
    return episodes.Episode(
        episode_id=clip.episode_id,
        source=how.name,
        embodiment=how.embodiment or ("human" if clip.actions is None else "robot"),
        instructions=clip.instructions,
        frames={camera: found.frames for camera, found in decoded.items()},
        actions=None if clip.actions is None else clip.actions[:length],
        states=None if clip.states is None else clip.states[:length],
        fps=first.fps,
        metadata=metadata,
    )


def inside(directory: pathlib.Path, relative: str) -> pathlib.Path:
    """Joins a path that an annotation names, which must not leave the dataset's directory.

    Raises:
        DataError: it does.
    """
    path = (directory / relative).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise errors.DataError(
            "annotation points outside of the dataset", relative, "correct the annotation"
        )
    return path


def describe_file(path: pathlib.Path) -> dict[str, str]:
    """Returns what a recipe says of an annotation file."""
    return {"file": path.name, "sha256": file_sha256(path)}


def file_sha256(path: pathlib.Path) -> str:
    """Digest of a file; clips of one long video share it."""
    status = path.stat()
    return _sha256(str(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256(path: str, size: int, changed: int) -> str:
    del size, changed  # a part of the key: the file may be replaced
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- frames ----


def _decode(path: pathlib.Path, clip: Clip, options: ClipOptions) -> _Decoded:
    with video.open_video(path) as opened:
        _check_rate(opened.rate, clip, options, path)
        _check_window(opened, clip, path)
        window = clip.window
        found = opened.frames() if window is None else opened.frames(window.start, window.end)
        if options.sample_fps is not None:
            found = _on_grid(found, options.sample_fps)
        most = MAX_FRAMES + 1
        if options.max_frames is not None:
            most = min(most, (options.max_frames - 1) * options.every + 1)
        times, frames, conversions = [], [], set()
        for frame in itertools.islice(found, most):
            times.append(frame.time)
            frames.append(options.encode(frame.image(options.shorter_side)))
            conversions.update(frame.conversions)
        rate, size = options.sample_fps or opened.rate, opened.size
    _check_count(len(frames), clip, options, path)
    if clip.has_columns or clip.num_frames is not None:  # one frame a step, whatever its time
        chosen = list(range(len(frames)))
    else:
        shown = shown_frames(times)
        if len(shown) < len(frames):
            rate *= len(shown) / len(frames)
            times, frames = [times[i] for i in shown], [frames[i] for i in shown]
            conversions.add("without frames that last no time")
        chosen, mean, is_uneven = place_evenly(times, rate)
        if is_uneven:
            _check_mean(times, mean, rate, path)
            conversions.add(_RESAMPLED)
        rate = mean
    fps = (options.fps or rate) / options.every
    chosen = [frames[i] for i in chosen[:: options.every]]
    return _Decoded(chosen, fps, size, conversions)


def _on_grid(frames: Iterator[video.Frame], rate: float) -> Iterator[video.Frame]:
    """Yields, for each multiple of 1 / rate after the first frame, the frame nearest to it."""
    last, start, count = None, 0.0, 0
    for frame in frames:
        if last is None:
            start, last = frame.time, frame
        while start + count / rate <= frame.time:
            wanted = start + count / rate
            nearest = frame if frame.time - wanted <= wanted - last.time else last
            yield replace(nearest, time=wanted)
            count += 1
        last = frame


def shown_frames(times: Sequence[float]) -> list[int]:
    """Returns the indices of frames that last: not those whose successor has the same time."""
    return [i for i, time in enumerate(times) if i + 1 == len(times) or times[i + 1] != time]


def place_evenly(times: Sequence[float], rate: float) -> tuple[list[int], float, bool]:
    """Chooses frames so that they are evenly spaced in time.

    Frames at 0, 1, 2, 3, 7, 8 seconds  ->  [0, 1, 2, 3, 4, 5] would show a jump; instead each of
    the six evenly spaced times 0, 1.6, ... 8 takes its nearest frame: [0, 2, 3, 3, 4, 5].

    Args:
        times: seconds, of each frame.
        rate: what the container says, frames per second.

    Returns:
        Indices into `times`, as many; their true rate; whether the times were uneven, so that a
        frame is more than half an interval away from its place.
    """
    everything = list(range(len(times)))
    found = np.asarray(times, np.float64)
    if len(found) < 2 or not (np.diff(found) > 0).all():
        return everything, rate, False  # nothing to go by
    mean = (len(found) - 1) / (found[-1] - found[0])
    grid = np.linspace(found[0], found[-1], len(found))
    if np.abs(found - grid).max() <= 0.5 / mean:
        # Times are rounded (webm: to milliseconds), the container's rate is exact.
        is_close = abs(rate / mean - 1) * (len(found) - 1) < 1
        return everything, rate if is_close else mean, False
    after = np.clip(np.searchsorted(found, grid), 1, len(found) - 1)
    is_before = grid - found[after - 1] < found[after] - grid
    return np.where(is_before, after - 1, after).tolist(), mean, True


def _check_mean(times: Sequence[float], mean: float, rate: float, path: pathlib.Path) -> None:
    """Refuses uneven frames whose mean rate is far from their container's or their usual one."""
    usual = max(rate, float(1 / np.median(np.diff(times))))
    if usual > mean * _RATES_CONTRADICT or mean > rate * _RATES_CONTRADICT:
        raise errors.DataError(
            f"times of its frames have large gaps or are damaged: {mean:.4g} Hz on average, "
            f"{usual:.4g} Hz is usual",
            str(path),
            "give a rate with --sample_fps, or replace the video",
        )


def _check_rate(rate: float, clip: Clip, options: ClipOptions, path: pathlib.Path) -> None:
    """Refuses a video whose rate contradicts the annotation or cannot give the wished one."""
    wanted = clip.window.rate if clip.window is not None else None
    if wanted is not None and abs(rate / wanted - 1) > _RATES_DIFFER:
        raise errors.DataError(
            f"video plays at {rate:g} Hz, its annotation counts frames at {wanted:g}",
            path,
            _OTHER_VIDEOS,
        )
    if options.sample_fps is not None and options.sample_fps > rate * (1 + _RATES_DIFFER):
        what = f"video plays at {rate:g} Hz, slower than sample_fps {options.sample_fps:g}"
        raise errors.DataError(what, path, "choose a lower sample_fps")


def _check_window(opened: video.Video, clip: Clip, path: pathlib.Path) -> None:
    """Refuses a window that ends more than a frame after the video does."""
    end, seconds = clip.window.end if clip.window else 0.0, opened.seconds
    if seconds is not None and end > seconds + 1 / opened.rate:
        what = f"video ends at {seconds:.4g} s, its annotation at {end:.6g} s"
        raise errors.DataError(what, path, _OTHER_VIDEOS)


def _check_count(count: int, clip: Clip, options: ClipOptions, path: pathlib.Path) -> None:
    if not count:
        what = "has no frame in this window" if clip.window else "has no frame"
        raise errors.DataError(f"video {what}", path, "check the annotation")
    if count > MAX_FRAMES:
        what = f"clip has more than {MAX_FRAMES} frames"
        raise errors.DataError(what, path, "cut it, or use max_frames or sample_fps")
    if clip.num_frames is None or options.sample_fps is not None:
        return
    kept = -(-count // options.every)
    expected = -(-clip.num_frames // options.every)
    expected = min(expected, options.max_frames or expected)
    if kept != expected:
        what = f"video gives {kept} frames, its annotation {expected}"
        raise errors.DataError(what, path, "replace the video or its annotation")
