"""The official video layout of stage 1: one annotation json a clip, videos beside them.

    <directory>/annotation/<split>/<clip>.json
    <directory>/videos/...

Fields read (official loader: Step1_GFDM/video_dataset/dataset_mix.py:110-205): `texts`,
`videos[i].video_path`, `video_length`, and, where present, `state` [n, P] and `action`
[n - 1 or n, A]. There is one action less than frames in the published clips: action t leads from
frame t to t + 1. The last frame then gets a neutral action, zero motion with the gripper as it was,
and the episode's metadata says so. Latents are not read: they depend on an encoder.

The published videos play at 3 frames a second, whatever the robot's rate; give the true one with
`ClipOptions.fps` where it matters.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from data_pipelines import episodes
from data_pipelines.sources import base, video_clips
from data_pipelines.transforms import action
from defi_jax import errors

ANNOTATION = "annotation"
_CAMERAS = ("static", "gripper")  # of CALVIN, the only published data with two


class VideoLayoutSource:
    """Clips of such a directory; see `base.Source`.

    Args:
        directory: that holds `annotation/`.
        name: of the dataset.
        embodiment: robot or "human".
        options: how clips are stored.
        splits: folders of `annotation/` to read; None for all.

    Raises:
        UserError: no such directory, split, or no annotation.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        name: str,
        embodiment: str,
        options: video_clips.ClipOptions,
        splits: Collection[str] | None = None,
    ):
        self._directory = pathlib.Path(directory)
        self.name, self._embodiment, self._options = name, embodiment, options
        self._annotations = _annotations(self._directory, splits)
        self.total = len(self._annotations)

    def read(self, skip: Collection[str] = frozenset()) -> Iterator[episodes.Episode | base.Reject]:
        """Yields clips; see `base.Source.read`."""
        for path in self._annotations:
            episode_id = f"{self.name}/{path.parent.name}/{path.stem}"
            if episode_id in skip:
                continue
            try:
                clip = _load_clip(self._directory, path, episode_id)
            except errors.DataError as error:
                yield base.Reject(str(path), str(error))
                continue
            yield video_clips.read_clip(
                clip, source=self.name, embodiment=self._embodiment, options=self._options
            )


def _annotations(directory: pathlib.Path, splits: Collection[str] | None) -> list[pathlib.Path]:
    root = directory / ANNOTATION
    if not root.is_dir():
        raise errors.UserError("no annotation folder", str(root), "give the folder that holds it")
    known = sorted(path.name for path in root.iterdir() if path.is_dir())
    absent = sorted(set(splits or ()) - set(known))
    if absent:
        raise errors.UserError(
            f"no split {', '.join(absent)}", str(root), f"it has: {', '.join(known) or 'none'}"
        )
    chosen = known if splits is None else splits
    paths = [path for split in chosen for path in sorted((root / split).glob("*.json"))]
    if not paths:
        raise errors.UserError(
            "no annotation json", str(root), "expected annotation/<split>/*.json"
        )
    return paths


def _load_clip(directory: pathlib.Path, path: pathlib.Path, episode_id: str) -> video_clips.Clip:
    try:
        annotation = json.loads(path.read_text(encoding="utf-8"))
        return _parse_clip(directory, path, episode_id, annotation)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise errors.DataError(
            f"annotation cannot be used ({error!r})", str(path), "correct or remove it"
        ) from error


def _parse_clip(
    directory: pathlib.Path, path: pathlib.Path, episode_id: str, annotation: Mapping[str, Any]
) -> video_clips.Clip:
    states = _matrix(annotation.get("state"))
    num_frames = annotation.get("video_length") if states is None else len(states)
    if not isinstance(num_frames, int | None):
        raise ValueError(f"'video_length' is {num_frames!r}")
    actions = _matrix(annotation.get("action"))
    padded = actions is not None and num_frames is not None and len(actions) == num_frames - 1
    if actions is not None and padded:
        actions = np.concatenate([actions, _neutral_action(actions)])
    texts = annotation["texts"]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("'texts' is not a list of texts")
    videos = {
        _CAMERAS[index] if index < len(_CAMERAS) else f"camera{index}": video_clips.inside(
            directory, video["video_path"]
        )
        for index, video in enumerate(annotation["videos"])
    }
    if not videos:
        raise ValueError("it names no video")
    return video_clips.Clip(
        item=str(path),
        episode_id=episode_id,
        videos=videos,
        instructions=tuple(texts) or ("",),
        num_frames=num_frames,
        actions=actions,
        states=states,
        metadata={
            "annotation": str(path.relative_to(directory)),
            "official_episode_id": str(annotation["episode_id"]),
            action.LAST_IS_PADDING: padded,
        },
    )


def _matrix(rows: Any) -> np.ndarray | None:
    """Reads [n, width] numbers, float32; None where the annotation has none."""
    if not rows:
        return None
    matrix = np.asarray(rows, np.float32)
    if matrix.ndim != 2:
        raise ValueError(f"expected rows of numbers, found shape {matrix.shape}")
    return matrix


def _neutral_action(actions: np.ndarray) -> np.ndarray:
    neutral = np.zeros_like(actions[-1:])
    neutral[0, -1] = actions[-1, -1]
    return neutral
