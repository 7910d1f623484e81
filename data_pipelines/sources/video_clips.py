"""From a described clip (video files, texts, maybe actions) to an episode: shared by video sources.

Frames are decoded once, shrunk and stored as JPEG, so that training never opens a video file.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipelines import episodes, media
from data_pipelines.sources import base
from data_pipelines.transforms import action
from defi_jax import errors


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """How clips are stored.

    Attributes:
        shorter_side: frames are shrunk until their shorter side has at most this many pixels.
        every: every n-th frame is kept.
        max_frames: kept frames a clip at most, from its beginning; None for all.
        jpeg_quality: of the stored frames, 1 to 100.
        fps: rate to record instead of the container's, before `every`; None trusts the container.
    """

    shorter_side: int = 256
    every: int = 1
    max_frames: int | None = None
    jpeg_quality: int = 95
    fps: float | None = None


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip before its pixels are read.

    Attributes:
        item: what a reject names.
        episode_id: see `episodes.Episode`, as the fields of the same name.
        videos: camera -> video file.
        instructions: texts, the canonical one first.
        num_frames: what the annotation promises; None when it says nothing.
        actions: float32[num_frames, A] or None.
        states: float32[num_frames, P] or None.
        metadata: kept with the episode.
    """

    item: str
    episode_id: str
    videos: Mapping[str, pathlib.Path]
    instructions: tuple[str, ...]
    num_frames: int | None = None
    actions: np.ndarray | None = None
    states: np.ndarray | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


# Who acts in a clip of which nobody said so; hands leave no action vectors.
_HUMAN, _ROBOT = "human", "robot"


def read_clip(
    clip: Clip, *, source: str, embodiment: str, options: ClipOptions
) -> episodes.Episode | base.Reject:
    """Decodes a clip; whatever is wrong with it becomes a reject, so that the others go on.

    An `embodiment` of "" becomes "robot" where the clip has actions, and else "human".

    Raises:
        UserError: frames of a clip with actions or states are to be left out.
    """
    if options.every > 1 and (clip.actions is not None or clip.states is not None):
        raise errors.UserError(
            f"every={options.every} would tear frames and actions apart", clip.item, "use every=1"
        )
    try:
        frames, rates, digests = {}, [], {}
        for camera, path in clip.videos.items():
            decoded = _read_video(path, clip, options)
            rates.append((options.fps or decoded.fps * options.every) / options.every)
            frames[camera] = [media.encode_jpeg(x, options.jpeg_quality) for x in decoded.frames]
            digests[camera] = hashlib.sha256(path.read_bytes()).hexdigest()
        length = len(next(iter(frames.values())))
        metadata = dict(clip.metadata)
        if length != clip.num_frames and action.LAST_IS_PADDING in metadata:
            metadata[action.LAST_IS_PADDING] = False  # it was cut off
        return episodes.Episode(
            episode_id=clip.episode_id,
            source=source,
            embodiment=embodiment or (_HUMAN if clip.actions is None else _ROBOT),
            instructions=clip.instructions,
            frames=frames,
            actions=_first(clip.actions, length),
            states=_first(clip.states, length),
            fps=rates[0],
            metadata={**metadata, "video_sha256": digests, "every": options.every},
        )
    except errors.DataError as error:
        return base.Reject(clip.item, str(error))


def _read_video(path: pathlib.Path, clip: Clip, options: ClipOptions) -> media.VideoClip:
    decoded = media.read_video(
        path,
        max_frames=options.max_frames,
        every=options.every,
        shorter_side=options.shorter_side,
    )
    if clip.num_frames is not None:
        expected = -(-clip.num_frames // options.every)
        expected = min(expected, options.max_frames or expected)
        if len(decoded.frames) != expected:
            raise errors.DataError(
                f"video gives {len(decoded.frames)} frames, its annotation {expected}",
                str(path),
                "replace the video or its annotation",
            )
    return decoded


def _first(column: np.ndarray | None, length: int) -> np.ndarray | None:
    return None if column is None else column[:length]


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
