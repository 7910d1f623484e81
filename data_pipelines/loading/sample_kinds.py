"""How a sample of each batch type lies in an episode, and how it is read.

    GFDMBatch   `Clips`, with latents `LatentClips`
    GIDMBatch   `Pairs`
    JointBatch  `Windows`, with features `FeatureWindows`

Reading is a pure function of (place, instruction, random generator). It works in two steps, so that
the small ones of a whole batch can come first: images empty the processor's caches, and small work
between them takes four times as long. No jax, so that worker processes only need numpy. What
differs between data sets is in the config of each, which has checked all numbers.
"""

from __future__ import annotations

import abc
import bisect
import dataclasses
import enum
import functools
import itertools
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from data_pipelines import episodes, normalization, pixels
from data_pipelines.latents import cache as cache_lib
from data_pipelines.loading import config as config_lib
from defi_jax import batch as batch_lib
from defi_jax import errors

Arrays = dict[str, np.ndarray]
Read = Callable[[], Arrays]


class Still(Exception):
    """A frame pair shows no motion; no error, another pair is read instead."""


class Actions(enum.Enum):
    """How a kind takes actions.

    UNUSED: not at all.
    OWN: where an episode has any; each data set is normalised by its own statistics.
    SHARED: of every episode; those of all data sets mean the same and are normalised as one.
    """

    UNUSED = enum.auto()
    OWN = enum.auto()
    SHARED = enum.auto()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a sample lies.

    Attributes:
        component: name of its component of the mixture.
        source: the component's episodes.
        episode: number within the source.
        sample: number within the episode.
        row: number among all samples of the component's split; -1 where it is streamed.
    """

    component: str
    source: episodes.EpisodeSource
    episode: int
    sample: int
    row: int = -1

    @property
    def meta(self) -> episodes.EpisodeMeta:
        """What is known of the episode."""
        return self.source.meta(self.episode)

    def __str__(self) -> str:
        return f"{self.source.episode_ids[self.episode]}#{self.sample}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleKind(abc.ABC):
    """How samples of one batch type are read from one data set.

    Attributes:
        stage: name of the batch type in fingerprints.
        actions: how actions are taken.
        has_fixed_text: whether a sample has the same paraphrase whenever it is drawn.
        config: values of the data set.
        normalizer: normalizer of its actions.
        train: draw cameras and augmentations.
    """

    stage: ClassVar[str]
    actions: ClassVar[Actions]
    has_fixed_text: ClassVar[bool] = False

    config: config_lib.DataConfig
    normalizer: normalization.Normalizer
    train: bool

    @abc.abstractmethod
    def num_samples(self, lengths: np.ndarray) -> np.ndarray:
        """Returns int64, the number of samples of episodes of these lengths."""

    @abc.abstractmethod
    def begin(self, place: Place, instruction: str, rng: np.random.Generator) -> Read:
        """Draws and reads all but the pixels of a sample.

        Returns:
            What decodes the frames and returns the arrays.

        Raises:
            DataError, OSError: it is damaged; also when they are decoded.
            Still: when they are decoded: it is a pair without motion, and not wanted.
        """

    @functools.cached_property
    def prepare(self) -> pixels.Prepare:
        """What pixels go through."""
        return pixels.Prepare(
            size=self.config.image_size,
            augment=self.config.augment and self.train,
            correlated=self.config.correlated_augment,
        )

    def can_use(self, source: episodes.EpisodeSource) -> np.ndarray:
        """Returns bool[len(source)], whether each episode has the cameras and actions it takes."""
        present = [source.has_camera(name) for name in self.config.cameras]
        if self.actions is Actions.SHARED:
            return np.all([*present, source.has_actions], axis=0)
        return np.any(present, axis=0)

    def _camera(self, meta: episodes.EpisodeMeta, rng: np.random.Generator) -> str:
        """Returns one camera that the episode has: a drawn one in training, else the first."""
        names = self.config.cameras
        pairs = zip(names, self.config.camera_weights or (1.0,) * len(names), strict=True)
        present = {name: weight for name, weight in pairs if name in meta.cameras}
        shares = list(itertools.accumulate(present.values()))
        number = bisect.bisect(shares, rng.random() * shares[-1])
        return list(present)[number if self.train else 0]


def kind_of(spec: batch_lib.Batch) -> type[SampleKind]:
    """Returns the kind of an abstract batch's samples."""
    if isinstance(spec, batch_lib.GFDMBatch):
        return Clips if spec.latents is None else LatentClips
    if isinstance(spec, batch_lib.GIDMBatch):
        return Pairs
    return Windows if spec.features is None else FeatureWindows


class Clips(SampleKind):
    """Video clips: `video` uint8[T, H, W, 3] (Step1_GFDM/video_dataset/dataset_mix.py:121-158).

    With data.frame_stride s > 0 there is a clip for every s-th start, and indices past the end
    repeat the last frame; 7 frames with T=3, s=2:

        [0, 2, 4], [2, 4, 6], [4, 6, 6], [6, 6, 6]

    With 0 the episode is one clip, spread evenly from the first to the last frame: [0, 3, 6].
    """

    stage = "gfdm"
    actions = Actions.UNUSED

    def num_samples(self, lengths: np.ndarray) -> np.ndarray:
        """See `SampleKind`."""
        stride, most = self.config.frame_stride, self.config.max_frames
        counts = -(-lengths // stride) if stride else np.ones_like(lengths)
        return np.where(lengths <= most, counts, 0) if most else counts

    def frames(self, length: int, sample: int) -> np.ndarray:
        """Returns int64[T], the frames of clip number `sample` of an episode."""
        count, stride = self.config.num_frames, self.config.frame_stride
        if stride == 0:
            return np.linspace(0, length - 1, count).astype(np.int64)
        return np.minimum(stride * (sample + np.arange(count)), length - 1)

    def begin(self, place: Place, instruction: str, rng: np.random.Generator) -> Read:
        """See `SampleKind`."""
        camera, indices = self._clip(place, rng)
        encoded = place.source.fetch(place.episode, camera, indices)
        return lambda: {"video": self.prepare(encoded, rng)}

    def _clip(self, place: Place, rng: np.random.Generator) -> tuple[str, np.ndarray]:
        """Returns camera and frames, the same ones for the same draws."""
        meta = place.meta
        return self._camera(meta, rng), self.frames(meta.length, place.sample)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentClips(Clips):
    """The clips of `Clips` from a latent cache: `latents` [T, h, w, c], `text_features` [L, D]."""

    cache: cache_lib.LatentCache

    def begin(self, place: Place, instruction: str, rng: np.random.Generator) -> Read:
        """See `SampleKind`."""
        camera, indices = self._clip(place, rng)
        return lambda: {
            "latents": self.cache.frames(place.meta.episode_id, camera, indices),
            "text_features": self.cache.text(instruction),
        }


class Pairs(SampleKind):
    """Frame pairs: `frames` uint8[2, H, W, 3], `action` float32[A], `action_mask` bool[].

    A pair is (t, t + k), k drawn for each sample and cut off at the last frame; its action is the
    mean of those that lead from one frame to the other. Every t but the last starts a pair, so that
    none shows one frame twice. 5 frames with data.pair_offset (3, 3):

        [0, 3], [1, 4], [2, 4], [3, 4]

    Deviation: officially the last frame pairs with itself, as with data.pair_include_last, and k is
    drawn once per run, as with data.pair_draw="run"
    (Step2_GIDM/datasets/rlds/traj_transforms.py:13-44, dataset.py:359-367).
    """

    stage = "gidm"
    actions = Actions.OWN

    def num_samples(self, lengths: np.ndarray) -> np.ndarray:
        """See `SampleKind`."""
        return lengths if self.config.pair_include_last else lengths - 1

    def frames(self, length: int, sample: int, rng: np.random.Generator) -> np.ndarray:
        """Returns int64[2], the frames of the pair that starts at frame `sample`."""
        low, high = self.config.pair_offset
        return np.array([sample, min(sample + int(rng.integers(low, high + 1)), length - 1)])

    def begin(self, place: Place, instruction: str, rng: np.random.Generator) -> Read:
        """See `SampleKind`."""
        meta = place.meta
        camera = self._camera(meta, rng)
        pair = self.frames(meta.length, place.sample, rng)
        encoded = place.source.fetch(place.episode, camera, pair)
        arrays = self._action(place, pair)

        def read() -> Arrays:
            draws = self.prepare.draws(rng)
            frames = self.prepare.cut(encoded, draws)
            self._check_motion(frames)
            return {"frames": self.prepare.recolour(frames, draws), **arrays}

        return read

    def _action(self, place: Place, pair: np.ndarray) -> Arrays:
        """Returns `action`, that at the frame where both are the same, and `action_mask`."""
        source, i, width = place.source, place.episode, self.config.action_dim
        actions = source.actions(i) if source.has_actions[i] else None
        if actions is None or actions.shape[1] != width:
            return {"action": np.zeros(width, np.float32), "action_mask": np.array(False)}
        first, second = (int(t) for t in pair)
        between = self.normalizer.apply(actions[first : max(second, first + 1)])
        return {"action": between.mean(axis=0, dtype=np.float32), "action_mask": np.array(True)}

    def _check_motion(self, frames: np.ndarray) -> None:
        if not self.config.drop_still:
            return
        first, second = frames.astype(np.int16)
        motion = np.abs(second - first).mean()
        if motion < self.config.drop_still:
            raise Still(f"the frames differ by {motion:.2f} grey levels")


class Windows(SampleKind):
    """Observations of all cameras at every data.window_stride-th frame, and what follows.

    `images` uint8[cams, H, W, 3], `actions` float32[S, A] normalised, `action_mask` bool[S]: zeros
    and False past the episode's end.
    """

    stage = "joint"
    actions = Actions.SHARED

    def num_samples(self, lengths: np.ndarray) -> np.ndarray:
        """See `SampleKind`."""
        return -(-lengths // self.config.window_stride)

    def begin(self, place: Place, instruction: str, rng: np.random.Generator) -> Read:
        """See `SampleKind`."""
        t = place.sample * self.config.window_stride
        arrays = self._actions(place, t)
        encoded = [place.source.fetch(place.episode, name, [t]) for name in self.config.cameras]

        def read() -> Arrays:
            images = [self.prepare(frame, rng)[0] for frame in encoded]
            return {"images": np.stack(images), **arrays}

        return read

    def _actions(self, place: Place, t: int) -> Arrays:
        """Returns `actions` and `action_mask` from frame t on."""
        meta = place.meta
        stored = episodes.recorded_actions(place.source.actions(place.episode), meta.metadata)
        assert stored is not None, "`can_use` leaves episodes without actions out"
        horizon, width = self.config.action_horizon, self.config.action_dim
        if stored.shape[1] != width:
            raise errors.DataError(
                f"actions have {stored.shape[1]} dimensions, data.action_dim is {width}",
                f"episode {meta.episode_id!r}",
                "convert embodiments separately",
            )
        following = stored[t : t + horizon]
        actions = np.zeros((horizon, width), np.float32)
        actions[: len(following)] = self.normalizer.apply(following)
        return {"actions": actions, "action_mask": np.arange(horizon) < len(following)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureWindows(Windows):
    """The windows of `Windows`, in the place of images the `features` of each, computed before.

    Attributes:
        features: a sample's row -> its features; None before they are known.
    """

    has_fixed_text = True

    features: Callable[[int], np.ndarray] | None = None

    @property
    def with_images(self) -> Windows:
        """The same windows with their images and texts."""
        return _FixedWindows(config=self.config, normalizer=self.normalizer, train=self.train)

    def begin(self, place: Place, instruction: str, rng: np.random.Generator) -> Read:
        """See `SampleKind`."""
        arrays = self._actions(place, place.sample * self.config.window_stride)
        own = self.features
        return lambda: arrays if own is None else arrays | {"features": own(place.row)}


class _FixedWindows(Windows):
    """Windows whose features are kept: each has one text for ever."""

    has_fixed_text = True
