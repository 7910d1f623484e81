"""The data loader: mixture of episode sources -> batches of an objective.

    episodes -> samples of the objective -> shuffled, mixed by weight -> read, replaced if damaged
    -> batch of this process -> worker processes or a read-ahead thread -> `Loader`

Batch k is a pure function of the config, the seed and k. The state is therefore one number, and
resuming is exact with any number of workers, processes or hosts that divides the global batch.

A GFDM batch spec with latents instead of video makes a loader that reads latent caches (`latents`):
the same clips in the same order. A joint batch spec with features instead of images makes a loader
that reads no frames: it takes features by sample from a file (`use_features`), which is computed
from `scan`. A sample's paraphrase is then the same in every epoch.

Keys of the `data` section that are read here:

    root              directory of episode stores; "" for synthetic data
    mixture           "synthetic", "store[:weight],store[:weight]" or a name
    per_dataset       {name: {key: value}}, for the keys marked * where datasets differ (`rules`)
    image_size        pixels of a side
    cameras *         names; GFDM and GIDM draw one a sample among those an episode has (the first
                      one in evaluation), joint takes all of them, in this order
    camera_weights *  of each in that draw; () for equal ones
    num_frames        T of GFDM clips
    frame_stride *    control steps between a clip's frames, and between starts; 0 for one clip an
                      episode, spread over it
    max_frames *      longer episodes give no clip; 0 for any length
    pair_offset *     (min, max) control steps between the frames of a GIDM pair, inclusive, or
                      ("dataset",) for the official ones of each dataset, (9, 9) where none is known
    pair_draw         an offset for each "sample", or one for the "run" and dataset
    pair_include_last pair the last frame too, with itself
    drop_still        mean difference of a pair's resized frames, in grey levels, below which
                      another pair of the dataset takes its place; 0 takes all
    action_horizon    S of joint windows
    window_stride     control steps between joint windows
    action_dim        A
    normalization     of actions: none | normal | bounds | bounds_q99
    unnormalized_dims action dimensions that pass unchanged, such as the gripper's
    holdout_percent   of the episodes, by a hash of their id
    augment           crop and colour changes in training, the same for all frames of a sample
    correlated_augment one number drives all of them
    workers           processes that read; 0 reads in a thread of this one. Each takes 2 CPU seconds
                      and 220 MiB to start, as grain imports jax and orbax: on a busy machine the
                      first batch may take minutes
    max_bad_fraction  of the samples read that may be damaged before the run stops
    latents           directory of latent caches, one below it for each store of the mixture
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from data_pipelines.latents import cache
from data_pipelines.loading import batches as batches_lib
from data_pipelines.loading import components as components_lib
from data_pipelines.loading import feature_rows, mixtures, sample_kinds, sampling_rules
from data_pipelines.transforms import text
from defi_jax import batch as batch_lib
from defi_jax import errors

SPLITS = ("train", "eval")
READ_AHEAD = 2  # batches, without worker processes
READ_THREADS = 1  # several wait for the interpreter's lock and cost a third more; take workers
WORKER_AHEAD = 2  # batches each worker process keeps ready
BAD_WINDOW = 10_000  # samples over which max_bad_fraction counts at least
STATE_VERSION = 2


def make_loader(
    data_config: Any,
    objective_name: str,
    batch_spec: batch_lib.Batch,
    *,
    tokenizers: Mapping[str, text.Tokenizer],
    split: str,
    seed: int,
    global_batch: int,
    process_index: int,
    process_count: int,
) -> Loader:
    """Opens the mixture and returns its loader.

    Args:
        data_config: the config's `data` section, see the module's docstring.
        objective_name: "gfdm", "gidm" or "joint".
        batch_spec: abstract batch of the objective, of any batch size; batches are checked.
        tokenizers: by role; "gfdm", "gidm" or for joint "gfdm", "gidm" and "goal".
        split: "train", or "eval" for the held-out episodes without any augmentation.
        seed: of order and draws.
        global_batch: samples of a batch over all processes.
        process_index: this process.
        process_count: number of processes, divides `global_batch`.

    Raises:
        UserError: stores are absent, a number is impossible, or nothing is held out.
        DataError: a store lacks what the objective needs, or is damaged.
    """
    check_request(split, global_batch, process_count)
    opened = _open(data_config, objective_name, batch_spec, split, seed)
    takes_latents = _takes_latents(batch_spec)
    batches = batches_lib.Batches(
        parts=components_lib.divide(opened.components, opened.readers, data_config, split),
        choose=text.ChooseParaphrase(draw=split == "train"),
        tokenize=text.Tokenize(by_role=tokenizers),
        seed=seed,
        global_batch=global_batch,
        process_index=process_index,
        process_count=process_count,
        fixed_text=_takes_features(batch_spec),
        text_features=cache.text_of if takes_latents else None,
    )
    pipeline = {
        **opened.describe(data_config),
        "split": split,
        "objective": objective_name,
        "sources": [[c.name, c.weight, c.source.fingerprint()] for c in opened.components],
        **_order(batches),
        **(_cache_manifests(opened.components) if takes_latents else {}),
    }
    return Loader(batches, objective_name, batch_spec, pipeline, opened, data_config)


def _open(
    config: Any, objective_name: str, batch_spec: batch_lib.Batch, split: str, seed: int
) -> components_lib.Opened:
    """Opens the components of the mixture, with the latents that the spec asks for."""
    components = components_lib.open_components(config)
    if objective_name == "joint":
        mixtures.check_actions(components, f"data.mixture={config.mixture!r}")
    rules = sampling_rules.by_component(config, components, seed)
    takes_latents = _takes_latents(batch_spec)
    if takes_latents:
        components = components_lib.with_latents(components, config.latents, rules)
    return components_lib.prepare(
        config,
        objective_name,
        components,
        rules,
        train=split == "train",
        with_images=not (takes_latents or _takes_features(batch_spec)),
    )


def _cache_manifests(components: Sequence[mixtures.Component]) -> dict[str, Any]:
    return {"latents": [[c.name, cache.cache_of(c.source).manifest] for c in components]}


class Loader:
    """Endless iterator over the host-local numpy batches of an objective.

    Attributes:
        batches: this process's share of each global batch; index 0 is the position to start from.
        normalizer: of the actions; travels into checkpoints and bundles.
        rules: of each component, by name.
        bad_samples: damaged samples that were replaced so far, by component.
        still_pairs: frame pairs without motion that were replaced so far, by component.
    """

    def __init__(
        self,
        batches: batches_lib.Batches,
        objective_name: str,
        batch_spec: batch_lib.Batch,
        pipeline: Mapping[str, Any],
        opened: components_lib.Opened,
        config: Any,
    ):
        self.batches = batches
        self._objective_name = objective_name
        self._spec = batch_lib.with_batch_size(batch_spec, batches.local_batch)
        self._pipeline = {key: _digest(value) for key, value in pipeline.items()}
        self._workers = config.workers
        self._max_bad_fraction = config.max_bad_fraction
        self._iterator: grain.DatasetIterator | None = None
        self._next_batch = 0
        self._bad_records: collections.deque[str] = collections.deque(maxlen=20)
        self.bad_samples: dict[str, int] = {}
        self.still_pairs: dict[str, int] = {}
        self.normalizer, self.rules = opened.normalizer, opened.rules
        self._components = opened.components

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides the batches; not of workers, processes or hosts."""
        return _digest(self._pipeline)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> batch_lib.Batch:
        """Returns the next batch.

        Raises:
            DataError: too many samples are damaged.
        """
        if self._iterator is None:
            self._iterator = self._start()
            self._finalizer = weakref.finalize(self, self._iterator.close)
        raw = next(self._iterator)
        self._next_batch += 1
        self._count(raw["replaced"])
        return self._batch(raw)

    def first(self, num_batches: int) -> Iterator[batch_lib.Batch]:
        """Yields the first batches of the order; neither reads nor changes the state."""
        for number in range(num_batches):
            yield self._batch(self.batches[number])

    @property
    def num_samples(self) -> int:
        """Samples of the split, each once; rows of the file for `use_features`."""
        return sum(len(part.table) for part in self.batches.parts)

    def scan(self, spec: batch_lib.JointBatch) -> Iterator[tuple[batch_lib.Batch, np.ndarray]]:
        """Yields every sample once, by row; neither reads nor changes the state.

        Args:
            spec: abstract batch with images, of the batch size that is wanted.

        Yields:
            A batch, and bool[B]: False for damaged samples and past the end of the last batch.
        """
        own, names = self.batches, ("images", "actions", "action_mask")
        scan = feature_rows.Scan(
            parts=tuple(_with_images(part) for part in own.parts),
            choose=own.choose,
            tokenize=own.tokenize,
            seed=own.seed,
            batch_size=spec.actions.shape[0],
            blank={n: np.zeros(getattr(spec, n).shape[1:], getattr(spec, n).dtype) for n in names},
        )
        options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_AHEAD)
        iterator = iter(grain.MapDataset.source(scan).to_iter_dataset(options))
        try:
            for raw in iterator:
                batch = _assemble(self._objective_name, raw)
                batch_lib.check(batch, spec)
                yield batch, np.array(raw["good"])
        finally:
            iterator.close()

    def check_latents(self, encoder: Mapping[str, Any], rebuild: str) -> None:
        """Checks which encoders made the latent caches that are read.

        Args:
            encoder: facts of the encoders that training has.
            rebuild: command that makes the caches anew, for the message.

        Raises:
            UserError: a cache was made by others; names what differs.
        """
        for part in self.batches.parts:
            cache.cache_of(part.source).check_encoder(encoder, rebuild)

    def check_robot(self, robot: str) -> None:
        """Checks that the actions are those of a robot; see `mixtures.check_robot`."""
        mixtures.check_robot(self._components, robot)

    def use_features(self, path: str | os.PathLike) -> None:
        """Takes the features of the batches from a .npy file with a row a sample, as `scan`."""
        self.close()
        counts = [len(part.table) for part in self.batches.parts]
        rows = feature_rows.FeatureRows(path, counts)
        self.batches = dataclasses.replace(self.batches, features=rows)

    def state(self) -> dict[str, Any]:
        """Returns the position, small and JSON-able."""
        return {
            "version": STATE_VERSION,
            "next_batch": self._next_batch,
            "bad_samples": dict(self.bad_samples),
            "still_pairs": dict(self.still_pairs),
            "pipeline": self._pipeline,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` was taken, in this or another process.

        Raises:
            UserError: the state is of another pipeline; names what differs.
        """
        if state["version"] != STATE_VERSION:
            raise errors.UserError(f"data state of version {state['version']}", "checkpoint")
        theirs = state["pipeline"]
        keys = sorted(self._pipeline.keys() | theirs.keys())
        changed = [k for k in keys if self._pipeline.get(k) != theirs.get(k)]
        if changed:
            raise errors.UserError(
                f"the data pipeline is not the checkpoint's: {', '.join(changed)} changed",
                "data section of the config",
                "restore the old settings and data, or start a new workdir",
            )
        self.close()
        self.batches = self.batches.starting_at(state["next_batch"])
        self._next_batch = state["next_batch"]
        self.bad_samples = dict(state["bad_samples"])
        self.still_pairs = dict(state["still_pairs"])

    def describe(self) -> list[dict[str, Any]]:
        """Returns what each component contributes to this split.

        "start_digests" identifies the start states of simulated episodes, so that an evaluation
        can prove that it starts elsewhere; it is empty for other data.
        """
        return [
            {
                "name": part.name,
                "weight": part.weight,
                "episodes": len(part.table.episodes),
                "frames": int(part.source.lengths[part.table.episodes].sum()),
                "samples": len(part.table),
                "episodes_with_actions": int(part.source.has_actions[part.table.episodes].sum()),
                "start_digests": part.start_digests(),
                "rules": dataclasses.asdict(self.rules[part.name]),
            }
            for part in self.batches.parts
        ]

    def close(self) -> None:
        """Stops threads and worker processes; the next batch starts them again."""
        if self._iterator is not None:
            self._finalizer()
        self._iterator = None
        self.batches = self.batches.starting_at(self._next_batch)

    def _start(self) -> grain.DatasetIterator:
        """Starts reading ahead from the next batch."""
        ahead = READ_AHEAD if self._workers == 0 else 1
        options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=ahead)
        dataset = grain.MapDataset.source(self.batches).to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain's worker processes read absl flags
                flags.FLAGS.mark_as_parsed()
            logging.info("starting %d worker processes; the first batch waits", self._workers)
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self._workers, per_worker_buffer_size=WORKER_AHEAD
                )
            )
        return iter(dataset)

    def _count(self, replaced: batches_lib.Replaced) -> None:
        """Counts replaced samples and stops when too many are damaged."""
        for name, count in replaced.still.items():
            self.still_pairs[name] = self.still_pairs.get(name, 0) + count
        bad = replaced.bad
        for entry in bad:
            logging.warning("replaced sample %s of %s: %s", entry.record, entry.part, entry.reason)
            self.bad_samples[entry.part] = self.bad_samples.get(entry.part, 0) + 1
            self._bad_records.append(f"{entry.part}/{entry.record}")
        read = self._next_batch * self.batches.local_batch
        total = sum(self.bad_samples.values())
        if bad and total > self._max_bad_fraction * max(read, BAD_WINDOW):
            raise errors.DataError(
                f"{total} of {read} samples are damaged, more than data.max_bad_fraction="
                f"{self._max_bad_fraction} (last: {', '.join(self._bad_records)})",
                ", ".join(sorted(self.bad_samples)),
                "check with `python launch/data.py validate` and convert again",
            )

    def _batch(self, raw: Mapping[str, Any]) -> batch_lib.Batch:
        """Returns the objective's batch; checked against the spec."""
        arrays = raw["arrays"]
        if self._workers:  # what they return lives in shared memory that is lost at exit
            arrays = {name: np.array(array) for name, array in arrays.items()}
        batch = _assemble(self._objective_name, {**raw, "arrays": arrays})
        batch_lib.check(batch, self._spec)
        return batch


def _with_images(part: batches_lib.Part) -> batches_lib.Part:
    """The same part of a joint mixture, its frames read."""
    assert isinstance(part.reader, sample_kinds.JointReader)
    return dataclasses.replace(part, reader=dataclasses.replace(part.reader, with_images=True))


def _assemble(objective_name: str, raw: Mapping[str, Any]) -> batch_lib.Batch:
    """Returns the objective's batch of what `samples.Batches` or `samples.Scan` has read."""
    arrays = raw["arrays"]
    tokens = {
        role: batch_lib.TextTokens(ids=np.array(ids), mask=np.array(mask))
        for role, (ids, mask) in raw["text"].items()
    }
    if objective_name == "gfdm":
        return batch_lib.GFDMBatch(text=tokens["gfdm"], **{"video": None, **arrays})
    if objective_name == "gidm":
        return batch_lib.GIDMBatch(text=tokens["gidm"], **arrays)
    return batch_lib.JointBatch(text=tokens, **{"images": None, **arrays})


def check_request(split: str, global_batch: int, process_count: int) -> None:
    """Raises UserError where the batch cannot be divided over the processes."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r}")
    if global_batch % process_count:
        what = f"global_batch {global_batch} is not a multiple of {process_count} processes"
        raise errors.UserError(what, "global_batch", f"give a multiple of {process_count}")


def _order(batches: batches_lib.Batches) -> dict[str, Any]:
    """What decides the batches beside sources and readers; not who reads which part of them."""
    return {
        "seed": batches.seed,
        "global_batch": batches.global_batch,
        "features": batches.fixed_text,
        "tokenizers": batches.tokenize.describe(),
    }


def _takes_features(batch_spec: batch_lib.Batch) -> bool:
    return isinstance(batch_spec, batch_lib.JointBatch) and batch_spec.features is not None


def _takes_latents(batch_spec: batch_lib.Batch) -> bool:
    return isinstance(batch_spec, batch_lib.GFDMBatch) and batch_spec.latents is not None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
