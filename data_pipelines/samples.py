"""Samples of the three objectives: where they lie in the episodes, and how one is read.

Everything here is a pure function of (seed, index): sample `index` of the stream is the same in any
process, thread or run. No jax, so that worker processes only need numpy.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from data_pipelines import episodes, latents, statistics
from data_pipelines.transforms import action, frame, text, trajectory
from defi_jax import errors

MAX_ATTEMPTS = 16  # replacements for one bad sample before giving up

Arrays = dict[str, np.ndarray]


class Reader(Protocol):
    """How an objective reads a sample of an episode."""

    @property
    def needs_actions(self) -> bool:
        """Whether it takes only episodes that have actions."""
        ...

    def num_samples(self, lengths: np.ndarray) -> np.ndarray:
        """Returns int64, the number of samples of episodes of these lengths."""
        ...

    def has_cameras(self, source: episodes.EpisodeSource) -> np.ndarray:
        """Returns bool[len(source)], whether each episode has the cameras it takes."""
        ...

    def __call__(
        self, source: episodes.EpisodeSource, i: int, sample: int, rng: np.random.Generator
    ) -> Arrays:
        """Returns the arrays of sample number `sample` of episode `i`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cameras:
    """One camera a sample, drawn among those of `names` that the episode has.

    Attributes:
        names: in order of preference.
        draw: whether to draw; otherwise the first one.
    """

    names: tuple[str, ...]
    draw: bool

    def __call__(self, meta: episodes.EpisodeMeta, rng: np.random.Generator) -> str:
        """Returns the camera."""
        present = [name for name in self.names if name in meta.cameras]
        number = int(rng.integers(len(present)))
        return present[number if self.draw else 0]

    def present(self, source: episodes.EpisodeSource) -> np.ndarray:
        """Returns bool[len(source)], whether each episode has one of them."""
        return np.any([source.has_camera(name) for name in self.names], axis=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ClipReader:
    """What the two readers of clips share: the same draws give the same clips."""

    clip: trajectory.Clip
    cameras: Cameras
    needs_actions: bool = False

    def num_samples(self, lengths: np.ndarray) -> np.ndarray:
        """See `Reader`."""
        return self.clip.num_samples(lengths)

    def has_cameras(self, source: episodes.EpisodeSource) -> np.ndarray:
        """See `Reader`."""
        return self.cameras.present(source)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GFDMReader(_ClipReader):
    """Video clips: `video` uint8[T, H, W, 3]."""

    prepare: frame.Prepare

    def __call__(
        self, source: episodes.EpisodeSource, i: int, sample: int, rng: np.random.Generator
    ) -> Arrays:
        """See `Reader`."""
        meta = source.meta(i)
        camera = self.cameras(meta, rng)
        frames = source.frames(i, camera, self.clip(meta.length, sample))
        return {"video": self.prepare(frames, rng)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedGFDMReader(_ClipReader):
    """The clips of `GFDMReader` as their latents in a cache: `latents` [T, h, w, c]."""

    def __call__(
        self, source: episodes.EpisodeSource, i: int, sample: int, rng: np.random.Generator
    ) -> Arrays:
        """See `Reader`."""
        assert isinstance(source, latents.EncodedSource)
        meta = source.meta(i)
        camera = self.cameras(meta, rng)
        return {"latents": source.latents(i, camera, self.clip(meta.length, sample))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GIDMReader:
    """Frame pairs: `frames` uint8[2, H, W, 3], `action` float32[A], `action_mask` bool[]."""

    pair: trajectory.FramePair
    cameras: Cameras
    prepare: frame.Prepare
    normalizer: statistics.Normalizer
    action_dim: int
    needs_actions: bool = False

    def num_samples(self, lengths: np.ndarray) -> np.ndarray:
        """See `Reader`."""
        return self.pair.num_samples(lengths)

    def has_cameras(self, source: episodes.EpisodeSource) -> np.ndarray:
        """See `Reader`."""
        return self.cameras.present(source)

    def __call__(
        self, source: episodes.EpisodeSource, i: int, sample: int, rng: np.random.Generator
    ) -> Arrays:
        """See `Reader`."""
        meta = source.meta(i)
        camera = self.cameras(meta, rng)
        pair = self.pair(meta.length, sample, rng)
        frames = source.frames(i, camera, pair)
        actions = source.actions(i) if meta.has_actions else None
        known = actions is not None and actions.shape[1] == self.action_dim
        mean = np.zeros(self.action_dim, np.float32)
        if actions is not None and known:
            first, second = (int(t) for t in pair)
            between = self.normalizer.apply(actions[first : second + 1])
            mean = action.MeanBetween()(between, 0, second - first)
        return {
            "frames": self.prepare(frames, rng),
            "action": mean,
            "action_mask": np.array(known),
        }


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
    normalizer: statistics.Normalizer
    with_images: bool = True
    needs_actions: bool = True

    def num_samples(self, lengths: np.ndarray) -> np.ndarray:
        """See `Reader`."""
        return self.window.num_samples(lengths)

    def has_cameras(self, source: episodes.EpisodeSource) -> np.ndarray:
        """See `Reader`."""
        return np.all([source.has_camera(name) for name in self.cameras], axis=0)

    def __call__(
        self, source: episodes.EpisodeSource, i: int, sample: int, rng: np.random.Generator
    ) -> Arrays:
        """See `Reader`."""
        meta = source.meta(i)
        t = self.window(meta.length, sample)
        stored = source.actions(i)
        assert stored is not None, "`needs_actions` leaves episodes without actions out"
        following = action.recorded(stored, meta.metadata)[t : t + self.chunk.horizon]
        actions, mask = self.chunk(self.normalizer.apply(following), 0)
        arrays = {"actions": actions, "action_mask": mask}
        if not self.with_images:
            return arrays
        images = [self.prepare(source.frames(i, name, [t]), rng)[0] for name in self.cameras]
        return {"images": np.stack(images), **arrays}


def make_reader(
    config: Any,
    objective_name: str,
    normalizer: statistics.Normalizer,
    *,
    train: bool,
    with_images: bool,
) -> Reader:
    """Returns how an objective reads a sample.

    Args:
        config: the `data` section.
        objective_name: "gfdm", "gidm" or "joint".
        normalizer: of actions.
        train: draw cameras and augmentations.
        with_images: False where features or latents come instead.

    Raises:
        UserError: the numbers of a clip, pair, window or chunk are impossible.
    """
    make = {"gfdm": _gfdm_reader, "gidm": _gidm_reader, "joint": _joint_reader}[objective_name]
    prepare = frame.prepare(config.image_size, augment=config.augment and train)
    try:
        return make(config, prepare, normalizer, train, with_images)
    except ValueError as error:
        raise errors.UserError(str(error), "--config.data", "change these numbers") from error


def _gfdm_reader(config, prepare, normalizer, train, with_images) -> Reader:
    del normalizer
    clip = trajectory.Clip(num_frames=config.num_frames, stride=config.frame_stride)
    cameras = Cameras(names=tuple(config.cameras), draw=train)
    if not with_images:
        return EncodedGFDMReader(clip=clip, cameras=cameras)
    return GFDMReader(clip=clip, cameras=cameras, prepare=prepare)


def _gidm_reader(config, prepare, normalizer, train, with_images) -> Reader:
    del with_images
    low, high = config.pair_offset
    return GIDMReader(
        pair=trajectory.FramePair(min_offset=low, max_offset=high),
        cameras=Cameras(names=tuple(config.cameras), draw=train),
        prepare=prepare,
        normalizer=normalizer,
        action_dim=config.action_dim,
    )


def _joint_reader(config, prepare, normalizer, train, with_images) -> Reader:
    del train
    return JointReader(
        window=trajectory.Window(stride=config.window_stride),
        chunk=action.Chunk(horizon=config.action_horizon),
        cameras=tuple(config.cameras),
        prepare=prepare,
        normalizer=normalizer,
        with_images=with_images,
    )


class Table:
    """Samples of one source in a row: sample number -> episode and number within the episode.

    episodes [4, 7] with 3 and 2 samples: 0..2 are episode 4's, 3..4 episode 7's

    Args:
        episode_numbers: int64[n].
        counts: int64[n], samples of each.
    """

    def __init__(self, episode_numbers: np.ndarray, counts: np.ndarray):
        self._episodes = episode_numbers[counts > 0]
        self._ends = np.cumsum(counts[counts > 0])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def episodes(self) -> np.ndarray:
        """int64, numbers of the episodes that have samples."""
        return self._episodes

    def __call__(self, sample: int) -> tuple[int, int]:
        """Returns the episode's number and the sample's number within it."""
        row = int(np.searchsorted(self._ends, sample, side="right"))
        start = int(self._ends[row - 1]) if row else 0
        return int(self._episodes[row]), sample - start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One component of a mixture with its samples.

    Attributes:
        name: of the component.
        weight: relative share of the samples.
        source: the episodes.
        table: the samples of the split.
    """

    name: str
    weight: float
    source: episodes.EpisodeSource
    table: Table

    def start_digests(self) -> list[str]:
        """Returns the digests that the simulator's episodes carry in their metadata, sorted."""
        metadata = (self.source.meta(int(i)).metadata for i in self.table.episodes)
        return sorted({entry["start_digest"] for entry in metadata if "start_digest" in entry})


@dataclasses.dataclass(frozen=True)
class Bad:
    """A sample that could not be read.

    Attributes:
        part: name of the component.
        record: which episode and sample.
        reason: message of the error.
    """

    part: str
    record: str
    reason: str


def is_held_out(episode_id: str, percent: float) -> bool:
    """Whether the episode belongs to the held-out split, by a hash of its id alone."""
    return zlib.crc32(episode_id.encode()) % 100 < percent


def order(parts: Sequence[Part], seed: int) -> grain.MapDataset:
    """Returns the endless order of samples: index -> (part, sample number).

    Every part is shuffled as a whole, anew in each epoch, and contains each of its samples once an
    epoch; parts are interleaved by weight in a fixed pattern.
    """
    streams = []
    for number, part in enumerate(parts):
        own_seed = zlib.crc32(f"{seed}/{part.name}".encode())
        stream = grain.MapDataset.range(len(part.table)).shuffle(seed=own_seed).repeat()
        streams.append(stream.map(_Tag(number)))
    return grain.MapDataset.mix(streams, weights=[part.weight for part in parts])


@dataclasses.dataclass(frozen=True)
class _Tag:
    """Pairs a sample number with its part's."""

    number: int

    def __call__(self, sample: int) -> tuple[int, int]:
        return self.number, int(sample)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches:
    """This process's share of each global batch, random access; picklable.

    Global batch k holds the samples [k G, (k + 1) G) of the order, whatever the number of
    processes; process p of P takes the p-th of P equal blocks.

    Attributes:
        parts: of the mixture.
        reader: of the objective.
        choose: of the instruction.
        tokenize: of the instructions of a batch.
        seed: of order and draws.
        global_batch: G, samples of all processes.
        process_index: p.
        process_count: P, divides G.
        fixed_text: whether a sample has the same paraphrase whenever it is drawn.
        features: (part, sample) -> what is added to the arrays as `features`; None for none.
        text_features: (source, instruction) -> what is added as `text_features`; None for none.
        first: batch number that index 0 stands for.
    """

    parts: tuple[Part, ...]
    reader: Reader
    choose: text.ChooseParaphrase
    tokenize: text.Tokenize
    seed: int
    global_batch: int
    process_index: int
    process_count: int
    fixed_text: bool = False
    features: Callable[[int, int], np.ndarray] | None = None
    text_features: Callable[[episodes.EpisodeSource, str], np.ndarray] | None = None
    first: int = 0
    _order: Any = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "_order", order(self.parts, self.seed))

    def __len__(self) -> int:
        return 1 << 40  # endless; grain wants a number

    @property
    def local_batch(self) -> int:
        """Samples of this process."""
        return self.global_batch // self.process_count

    def starting_at(self, batch: int) -> Batches:
        """Returns the same batches with index 0 at number `batch`."""
        return dataclasses.replace(self, first=batch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `arrays` [B, ...], `text` by role and `bad`, a list of what was replaced."""
        start = (self.first + index) * self.global_batch + self.process_index * self.local_batch
        bad: list[Bad] = []
        read = [self._sample(number, bad) for number in range(start, start + self.local_batch)]
        arrays = {name: np.stack([sample[name] for sample, _ in read]) for name in read[0][0]}
        tokens = self.tokenize([instruction for _, instruction in read])
        return {"arrays": arrays, "text": tokens, "bad": bad}

    def _sample(self, index: int, bad: list[Bad]) -> tuple[Arrays, str]:
        """Reads one sample; a bad one is replaced by another of its part, drawn from the index.

        Raises:
            DataError: so many replacements were bad that the part must be.
        """
        part_number, sample = self._order[index]
        part = self.parts[part_number]
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.default_rng((self.seed, index, attempt))
            if attempt:
                sample = int(rng.integers(len(part.table)))
            i, within = part.table(sample)
            try:
                instruction = self._instruction(part, sample, rng)
                arrays = self.reader(part.source, i, within, rng)
                if self.features is not None:
                    arrays["features"] = self.features(part_number, sample)
                if self.text_features is not None:
                    arrays["text_features"] = self.text_features(part.source, instruction)
                return arrays, instruction
            except (errors.DataError, OSError) as error:
                record = f"{part.source.episode_ids[i]}#{within}"
                bad.append(Bad(part.name, record, str(error)))
        records = ", ".join(entry.record for entry in bad[-MAX_ATTEMPTS:])
        raise errors.DataError(
            f"{MAX_ATTEMPTS} samples in a row are damaged ({records}; last: {bad[-1].reason})",
            f"data set {part.name!r}",
            "check it with `python launch/data.py validate` and convert again",
        )

    def _instruction(self, part: Part, sample: int, rng: np.random.Generator) -> str:
        if self.fixed_text:
            return fixed_instruction(part, sample, self.choose, self.seed)
        return self.choose(part.source.meta(part.table(sample)[0]).instructions, rng)


def fixed_instruction(part: Part, sample: int, choose: text.ChooseParaphrase, seed: int) -> str:
    """Returns the paraphrase of a sample that follows from seed, part and sample alone."""
    rng = np.random.default_rng((seed, zlib.crc32(part.name.encode()), sample))
    return choose(part.source.meta(part.table(sample)[0]).instructions, rng)


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of the data section that change what a sample is, for the fingerprint."""
    keys = (
        "image_size", "cameras", "num_frames", "frame_stride", "pair_offset", "action_horizon",
        "action_dim", "window_stride", "augment", "holdout_percent",
    )  # fmt: skip
    values = {key: config[key] for key in keys}
    return {key: list(v) if isinstance(v, tuple | list) else v for key, v in values.items()}
