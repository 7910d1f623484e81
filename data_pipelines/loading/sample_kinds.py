"""How each objective reads a sample of an episode.

A reader is a pure function of (episode, sample number, random generator). It works in two steps, so
that the small ones of a whole batch can come first: images empty the processor's caches, and small
work between them takes four times as long. No jax, so that worker processes only need numpy. What
differs between datasets is in their `rules`.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from data_pipelines import episodes, normalization
from data_pipelines.latents import cache
from data_pipelines.loading import sampling_rules
from data_pipelines.transforms import action, frame, trajectory
from defi_jax import errors

Arrays = dict[str, np.ndarray]
Read = Callable[[], Arrays]


class Reader(Protocol):
    """How an objective reads a sample of an episode."""

    @property
    def needs_actions(self) -> bool:
        """Whether it takes only episodes that have actions."""
        ...

    @property
    def camera_names(self) -> tuple[str, ...]:
        """The cameras that it may ask for."""
        ...

    def num_samples(self, lengths: np.ndarray) -> np.ndarray:
        """Returns int64, the number of samples of episodes of these lengths."""
        ...

    def has_cameras(self, source: episodes.EpisodeSource) -> np.ndarray:
        """Returns bool[len(source)], whether each episode has the cameras it takes."""
        ...

    def __call__(
        self, source: episodes.EpisodeSource, i: int, sample: int, rng: np.random.Generator
    ) -> Read:
        """Draws and reads all but the pixels of sample number `sample` of episode `i`.

        Returns:
            What decodes the frames and returns the arrays.

        Raises:
            DataError, OSError: it is damaged; also when they are decoded.
            Still: when they are decoded: it is a pair without motion, and not wanted.
        """
        ...


class Still(Exception):
    """A frame pair shows no motion; no error, another pair is read instead."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cameras:
    """One camera a sample, drawn among those of `names` that the episode has.

    Attributes:
        names: in order of preference.
        weights: of each in the draw; () for equal ones.
        draw: whether to draw; otherwise the first one.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...] = ()
    draw: bool

    def __call__(self, meta: episodes.EpisodeMeta, rng: np.random.Generator) -> str:
        """Returns the camera."""
        weights = self.weights or (1.0,) * len(self.names)
        pairs = zip(self.names, weights, strict=True)
        present = {name: weight for name, weight in pairs if name in meta.cameras}
        shares = list(itertools.accumulate(present.values()))
        number = bisect.bisect(shares, rng.random() * shares[-1])
        return list(present)[number if self.draw else 0]

    def present(self, source: episodes.EpisodeSource) -> np.ndarray:
        """Returns bool[len(source)], whether each episode has one of them."""
        return np.any([source.has_camera(name) for name in self.names], axis=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OneCameraReader:
    """What readers share that draw one camera a sample."""

    cameras: Cameras
    needs_actions: bool = False

    @property
    def camera_names(self) -> tuple[str, ...]:
        """See `Reader`."""
        return self.cameras.names

    def has_cameras(self, source: episodes.EpisodeSource) -> np.ndarray:
        """See `Reader`."""
        return self.cameras.present(source)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ClipReader(_OneCameraReader):
    """What the two readers of clips share: the same draws give the same clips."""

    clip: trajectory.Clip

    def num_samples(self, lengths: np.ndarray) -> np.ndarray:
        """See `Reader`."""
        return self.clip.num_samples(lengths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GFDMReader(_ClipReader):
    """Video clips: `video` uint8[T, H, W, 3]."""

    prepare: frame.Prepare

    def __call__(
        self, source: episodes.EpisodeSource, i: int, sample: int, rng: np.random.Generator
    ) -> Read:
        """See `Reader`."""
        meta = source.meta(i)
        camera = self.cameras(meta, rng)
        frames = source.fetch(i, camera, self.clip(meta.length, sample))
        return lambda: {"video": self.prepare(frames, rng)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedGFDMReader(_ClipReader):
    """The clips of `GFDMReader` as their latents in a cache: `latents` [T, h, w, c]."""

    def __call__(
        self, source: episodes.EpisodeSource, i: int, sample: int, rng: np.random.Generator
    ) -> Read:
        """See `Reader`."""
        assert isinstance(source, cache.EncodedSource)
        meta = source.meta(i)
        camera = self.cameras(meta, rng)
        indices = self.clip(meta.length, sample)
        return lambda: {"latents": source.latents(i, camera, indices)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GIDMReader(_OneCameraReader):
    """Frame pairs: `frames` uint8[2, H, W, 3], `action` float32[A], `action_mask` bool[].

    Attributes:
        min_motion: mean difference of the two frames, in grey levels, below which a pair is
            `Still`; 0 takes all pairs.
    """

    pair: trajectory.FramePair
    prepare: frame.Prepare
    normalizer: normalization.Normalizer
    action_dim: int
    min_motion: float = 0.0

    def num_samples(self, lengths: np.ndarray) -> np.ndarray:
        """See `Reader`."""
        return self.pair.num_samples(lengths)

    def __call__(
        self, source: episodes.EpisodeSource, i: int, sample: int, rng: np.random.Generator
    ) -> Read:
        """See `Reader`.

        Raises:
            Still: the pair shows less than `min_motion`.
        """
        meta = source.meta(i)
        camera = self.cameras(meta, rng)
        pair = self.pair(meta.length, sample, rng)
        encoded = source.fetch(i, camera, pair)
        arrays = self._action(source, i, pair)

        def read() -> Arrays:
            draws = self.prepare.draws(rng)
            frames = self.prepare.cut(encoded, draws)
            self._check_motion(frames)
            return {"frames": self.prepare.recolour(frames, draws), **arrays}

        return read

    def _action(self, source: episodes.EpisodeSource, i: int, pair: np.ndarray) -> Arrays:
        """Returns `action` and `action_mask`."""
        actions = source.actions(i) if source.has_actions[i] else None
        if actions is None or actions.shape[1] != self.action_dim:
            mean = np.zeros(self.action_dim, np.float32)
            return {"action": mean, "action_mask": np.array(False)}
        first, second = (int(t) for t in pair)
        between = self.normalizer.apply(actions[first : second + 1])
        mean = action.MeanBetween()(between, 0, second - first)
        return {"action": mean, "action_mask": np.array(True)}

    def _check_motion(self, frames: np.ndarray) -> None:
        if not self.min_motion:
            return
        first, second = frames.astype(np.int16)
        motion = np.abs(second - first).mean()
        if motion < self.min_motion:
            raise Still(f"the frames differ by {motion:.2f} grey levels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointReader:
    """Observations with the actions that follow.

    `images` uint8[cams, H, W, 3], `actions` float32[S, A] normalised, `action_mask` bool[S].

    Attributes:
        with_images: False leaves `images` out and reads no frame.
    """

    window: trajectory.Window
    chunk: action.Chunk
    cameras: tuple[str, ...]
    prepare: frame.Prepare
    normalizer: normalization.Normalizer
    with_images: bool = True
    needs_actions: bool = True

    @property
    def camera_names(self) -> tuple[str, ...]:
        """See `Reader`."""
        return self.cameras

    def num_samples(self, lengths: np.ndarray) -> np.ndarray:
        """See `Reader`."""
        return self.window.num_samples(lengths)

    def has_cameras(self, source: episodes.EpisodeSource) -> np.ndarray:
        """See `Reader`."""
        return np.all([source.has_camera(name) for name in self.cameras], axis=0)

    def __call__(
        self, source: episodes.EpisodeSource, i: int, sample: int, rng: np.random.Generator
    ) -> Read:
        """See `Reader`."""
        meta = source.meta(i)
        t = self.window(meta.length, sample)
        stored = source.actions(i)
        assert stored is not None, "`needs_actions` leaves episodes without actions out"
        width = len(self.normalizer.mask)
        if stored.shape[1] != width:
            raise errors.DataError(
                f"actions have {stored.shape[1]} dimensions, data.action_dim is {width}",
                f"episode {meta.episode_id!r}",
                "convert embodiments separately",
            )
        following = action.recorded(stored, meta.metadata)[t : t + self.chunk.horizon]
        actions, mask = self.chunk(self.normalizer.apply(following), 0)
        arrays = {"actions": actions, "action_mask": mask}
        if not self.with_images:
            return lambda: arrays

        encoded = [source.fetch(i, name, [t]) for name in self.cameras]

        def read() -> Arrays:
            images = [self.prepare(frame, rng)[0] for frame in encoded]
            return {"images": np.stack(images), **arrays}

        return read


def make_reader(
    config: Any,
    objective_name: str,
    own: sampling_rules.Rules,
    normalizer: normalization.Normalizer,
    *,
    train: bool,
    with_images: bool,
) -> Reader:
    """Returns how an objective reads a sample of a dataset.

    Args:
        config: the `data` section.
        objective_name: "gfdm", "gidm" or "joint".
        own: rules of the dataset.
        normalizer: of actions.
        train: draw cameras and augmentations.
        with_images: False where features or latents come instead.

    Raises:
        UserError: the numbers of a clip, pair, window or chunk are impossible.
    """
    prepare = frame.prepare(
        config.image_size,
        augment=config.augment and train,
        correlated=config.correlated_augment,
    )
    try:
        if objective_name == "gfdm":
            return _gfdm_reader(config, own, prepare, train, with_images)
        if objective_name == "gidm":
            return _gidm_reader(config, own, prepare, train, normalizer)
        return _joint_reader(config, own, prepare, normalizer, with_images)
    except ValueError as error:
        raise errors.UserError(str(error), "--config.data", "change these numbers") from error


def _gfdm_reader(config, own, prepare, train, with_images) -> Reader:
    clip = trajectory.Clip(
        num_frames=config.num_frames, stride=own.frame_stride, max_frames=own.max_frames
    )
    cameras = Cameras(names=own.cameras, weights=own.camera_weights, draw=train)
    if not with_images:
        return EncodedGFDMReader(clip=clip, cameras=cameras)
    return GFDMReader(clip=clip, cameras=cameras, prepare=prepare)


def _gidm_reader(config, own, prepare, train, normalizer) -> Reader:
    low, high = own.pair_offset
    if config.drop_still < 0:
        raise ValueError(f"data.drop_still={config.drop_still} grey levels")
    return GIDMReader(
        pair=trajectory.FramePair(
            min_offset=low, max_offset=high, include_last=config.pair_include_last
        ),
        cameras=Cameras(names=own.cameras, weights=own.camera_weights, draw=train),
        prepare=prepare,
        normalizer=normalizer,
        action_dim=config.action_dim,
        min_motion=config.drop_still,
    )


def _joint_reader(config, own, prepare, normalizer, with_images) -> Reader:
    if len(own.cameras) != len(config.cameras):
        raise ValueError(
            f"joint takes {len(config.cameras)} cameras of every data set, not {own.cameras}"
        )
    return JointReader(
        window=trajectory.Window(stride=config.window_stride),
        chunk=action.Chunk(horizon=config.action_horizon),
        cameras=own.cameras,
        prepare=prepare,
        normalizer=normalizer,
        with_images=with_images,
    )


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of the data section that change what a sample is, beside the `rules`."""
    keys = (
        "image_size",
        "num_frames",
        "pair_include_last",
        "drop_still",
        "action_horizon",
        "action_dim",
        "window_stride",
        "augment",
        "correlated_augment",
        "holdout_percent",
    )
    return {key: config[key] for key in keys}
