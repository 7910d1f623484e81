"""Episodes: the one schema that every source becomes.

Action-free video is an episode without actions, nothing else. `store` keeps episodes on disk.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from defi_jax import errors

# Key of an episode's metadata: what was done to its frames, in words that a manifest counts.
CONVERSIONS = "conversions"
# Likewise, where the source has one action fewer than frames: the last was made up.
LAST_ACTION_IS_PADDING = "last_action_is_padding"

# What `Episode` and `EpisodeMeta` share.
SHARED = ("episode_id", "source", "embodiment", "instructions", "fps", "metadata")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """One demonstration or clip.

    Attributes:
        episode_id: unique within the store, stable between conversions.
        source: data set it came from.
        embodiment: robot or "human".
        instructions: paraphrases, the first is the canonical one; empty text where unlabelled.
        frames: encoded JPEG or PNG images by camera, all cameras equally many (n).
        actions: float32[n, A], action t is executed after frame t; None for action-free video.
        states: float32[n, P] proprioception, or None.
        fps: frames per second of `frames`.
        metadata: JSON-able.
    """

    episode_id: str
    source: str
    embodiment: str
    instructions: tuple[str, ...]
    frames: Mapping[str, Sequence[bytes]]
    actions: np.ndarray | None
    states: np.ndarray | None
    fps: float
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        problems = _problems(self)
        if problems:
            raise errors.DataError(
                "; ".join(problems), f"episode {self.episode_id!r}", "correct or leave it out"
            )

    @property
    def length(self) -> int:
        """Number of frames n."""
        return len(next(iter(self.frames.values())))

    @functools.cached_property
    def meta(self) -> EpisodeMeta:
        """All but frames, actions and states."""
        return EpisodeMeta(
            **{name: getattr(self, name) for name in SHARED},
            cameras=tuple(self.frames),
            length=self.length,
            has_actions=self.actions is not None,
            has_states=self.states is not None,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeMeta:
    """What the index knows of an episode; see `Episode`."""

    episode_id: str
    source: str
    embodiment: str
    instructions: tuple[str, ...]
    cameras: tuple[str, ...]
    length: int
    fps: float
    has_actions: bool
    has_states: bool
    metadata: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Reject:
    """An item that gave no episode.

    Attributes:
        item: the file, or file and record.
        reason: what is wrong with it, one line.
    """

    item: str
    reason: str

    def __post_init__(self):
        for name in ("item", "reason"):  # file names need not be Unicode, manifests are
            text = getattr(self, name).encode(errors="backslashreplace").decode()
            object.__setattr__(self, name, text)


def recorded_actions(actions: np.ndarray | None, metadata: Mapping[str, Any]) -> np.ndarray | None:
    """Returns float32[n or n - 1, A], those that the source has, of float32[n, A]; None of None."""
    is_padded = metadata.get(LAST_ACTION_IS_PADDING)
    return actions[:-1] if is_padded and actions is not None else actions


class EpisodeSource(Protocol):
    """Random access to episodes: `EpisodeStore`, or a source that makes them up.

    Attributes:
        episode_ids: ids of all episodes.
        lengths: int64[len], frames of each episode.
        has_actions: bool[len], whether each episode has actions.
    """

    episode_ids: Sequence[str]
    lengths: np.ndarray
    has_actions: np.ndarray

    def __len__(self) -> int:
        """Returns the number of episodes."""
        return len(self.episode_ids)

    def has_camera(self, camera: str) -> np.ndarray:
        """Returns bool[len], whether each episode has the camera."""
        ...

    def meta(self, i: int) -> EpisodeMeta:
        """Returns what is known of episode `i` without reading it."""
        ...

    def frames(self, i: int, camera: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns uint8[k, H, W, 3], the given frames in the given order."""
        return np.stack(list(self.fetch(i, camera, indices)))

    def fetch(
        self, i: int, camera: str, indices: Sequence[int] | np.ndarray
    ) -> Iterator[np.ndarray]:
        """Reads the given frames now; yields uint8[H, W, 3], each decoded when it is taken."""
        ...

    def actions(self, i: int) -> np.ndarray | None:
        """Returns float32[n, A], or None."""
        ...

    def states(self, i: int) -> np.ndarray | None:
        """Returns float32[n, P], or None."""
        ...

    def fingerprint(self) -> str:
        """Returns a digest of all content."""
        ...


def _problems(episode: Episode) -> list[str]:
    """Returns what contradicts the schema, in words."""
    if not episode.frames:
        return ["no camera"]
    found = []
    lengths = {camera: len(frames) for camera, frames in episode.frames.items()}
    length = next(iter(lengths.values()))
    if len(set(lengths.values())) > 1:
        found.append(f"cameras differ in length {lengths}")
    if length == 0:
        found.append("no frames")
    if not episode.instructions:
        found.append("no instruction (use an empty text for unlabelled video)")
    if not 0 < episode.fps < np.inf:
        found.append(f"fps is {episode.fps}, not positive")
    found += _text_problems(episode)
    for name, column in (("actions", episode.actions), ("states", episode.states)):
        if column is None:
            continue
        if column.ndim != 2 or len(column) != length or column.dtype != np.float32:
            kind = f"{column.dtype}{list(column.shape)}"
            found.append(f"{name} are {kind}, not float32[{length}, width]")
        elif not np.isfinite(column).all():
            row = int(np.flatnonzero(~np.isfinite(column).all(axis=1))[0])
            found.append(f"{name} are not finite at step {row}")
    return found


def _text_problems(episode: Episode) -> Iterator[str]:
    named = {"id": (episode.episode_id,), "source": (episode.source,)}
    named |= {"embodiment": (episode.embodiment,), "cameras": tuple(episode.frames)}
    for name, texts in (named | {"instructions": episode.instructions}).items():
        for text in texts:
            if not isinstance(text, str) or not _is_unicode(text):
                yield f"{name} {text!r} is not UTF-8"
    try:
        text = json.dumps(dict(episode.metadata), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        yield f"metadata cannot be written ({error})"
    else:
        if not _is_unicode(text):
            yield "metadata are not UTF-8"


def _is_unicode(text: str) -> bool:
    return text.encode(errors="ignore").decode() == text
