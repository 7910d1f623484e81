"""Training straight from RLDS files, on disk or in a bucket, without conversion.

`make_loader` streams where <data.root>/<name> (or data.root itself, when it has that name) is an
RLDS directory for every name of the mixture, and else makes the loader of converted stores. The
same standardisation, readers and decoders run in both, so a sample has the same pixels, actions
and text. What differs:

- Order: shards are shuffled, and samples are drawn from a pool of `data.stream_mib` MiB of encoded
  episodes; a store is shuffled as a whole.
- Resume: a restored run goes on at its record positions. Samples that were in the pool are lost
  for that epoch, so the batches are not those of a run that was never stopped.
- Statistics and mixtures weighted by size need all records once; the result is kept in the user's
  cache directory.
- Damage: a damaged record is passed over in every epoch, and counts as one damaged sample. Where a
  record's length is damaged, all records behind it in the file are.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import itertools
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from absl import logging
from etils import epath

from data_pipelines import episodes, normalization
from data_pipelines.loading import batches as batches_lib
from data_pipelines.loading import components as components_lib
from data_pipelines.loading import loader, mixtures, named_mixtures, sample_kinds, sampling_rules
from data_pipelines.sources import rlds
from data_pipelines.streaming import pool as pool_lib
from data_pipelines.streaming import scan
from data_pipelines.transforms import text
from defi_jax import batch as batch_lib
from defi_jax import errors

FIRST_MIB = 64  # pool of `StreamLoader.first`
_DRAW = batches_lib.MAX_CANDIDATES  # of the pool; smaller numbers are attempts to read
STORE_ONLY = "convert the dataset (`python launch/data.py convert --source=rlds`) and train from it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedComponent(mixtures.Component):
    """A streamed dataset of a mixture; `source` is its first episode alone."""

    dataset: rlds.RldsSource

    def statistics(self) -> dict[str, normalization.Statistics]:
        """Returns the statistics of all episodes; reads everything once."""
        return scan.scan(self.dataset).statistics


def make_loader(
    data_config: Any, objective_name: str, batch_spec: batch_lib.Batch, **options: Any
) -> loader.Loader:
    """Returns a `StreamLoader` for RLDS directories, and else `loader.make_loader`.

    Args:
        data_config: the `data` section.
        objective_name: see `loader.make_loader`.
        batch_spec: see `loader.make_loader`.
        **options: see `loader.make_loader`.

    Raises:
        UserError, DataError: see `loader.make_loader`.
    """
    directories = find_directories(data_config.mixture, data_config.root)
    if not directories:
        return loader.make_loader(data_config, objective_name, batch_spec, **options)
    return _make_stream_loader(data_config, objective_name, batch_spec, directories, **options)


def find_directories(mixture: str, root: str) -> dict[str, epath.Path]:
    """Returns name -> RLDS directory of a mixture; nothing where not every name has one."""
    if not root or not mixture:
        return {}
    found = {name: mixtures.find_records(root, name) for name in mixtures.parse(mixture).weights}
    present = {name: directory for name, directory in found.items() if directory is not None}
    return present if len(present) == len(found) else {}


def _make_stream_loader(
    config: Any,
    objective_name: str,
    batch_spec: batch_lib.Batch,
    directories: Mapping[str, epath.Path],
    *,
    tokenizers: Mapping[str, text.Tokenizer],
    split: str,
    seed: int,
    global_batch: int,
    process_index: int,
    process_count: int,
) -> StreamLoader:
    loader.check_request(split, global_batch, process_count)
    if isinstance(batch_spec, batch_lib.GFDMBatch) and batch_spec.latents is not None:
        raise errors.UserError("latents of streamed data", "data.latents", STORE_ONLY)
    components = _open(mixtures.parse(config.mixture), directories)
    if objective_name == "joint":
        mixtures.check_actions(components, f"data.mixture={config.mixture!r}")
    opened = components_lib.prepare(
        config,
        objective_name,
        components,
        sampling_rules.by_component(config, components, seed),
        train=split == "train",
        with_images=True,
    )
    for component in components:
        components_lib.has_needs(component, opened.readers[component.name])
    batches = StreamBatches(
        components=tuple(components),
        readers=opened.readers,
        choose=text.ChooseParaphrase(draw=split == "train"),
        tokenize=text.Tokenize(by_role=tokenizers),
        split=split,
        holdout_percent=config.holdout_percent,
        max_bytes=config.stream_mib << 20,
        threads=max(config.workers, loader.READ_AHEAD),
        seed=seed,
        global_batch=global_batch,
        process_index=process_index,
        process_count=process_count,
    )
    batches = _in_split(batches)
    pipeline = {
        **opened.describe(config),
        "streamed": True,
        "split": split,
        "objective": objective_name,
        "sources": [[c.name, c.weight, scan.digest(c.dataset)] for c in components],
        "seed": seed,
        "global_batch": global_batch,
        "tokenizers": batches.tokenize.describe(),
    }
    logging.warning(
        "streaming %s: a restored run goes on at its record positions, which is not exact; %s "
        "to resume exactly",
        ", ".join(directories),
        STORE_ONLY,
    )
    return StreamLoader(cast(Any, batches), objective_name, batch_spec, pipeline, opened, config)


def _open(
    mixture: named_mixtures.Mixture, directories: Mapping[str, epath.Path]
) -> list[StreamedComponent]:
    components = []
    for name, weight in mixture.weights.items():
        dataset = rlds.RldsSource(directories[name], max_damaged=None)
        if mixture.by_size and len(mixture.weights) > 1:
            weight *= scan.scan(dataset).steps
        component = StreamedComponent(
            name=name, weight=weight, source=_first(dataset), directory=None, dataset=dataset
        )
        components.append(component)
    return components


def _in_split(batches: StreamBatches) -> StreamBatches:
    """Leaves the datasets out that have no record in the split.

    Raises:
        UserError: none has; or one has none to train on.
    """
    kept = [
        component
        for component in batches.components
        if any(
            batches.accepts(component.dataset.episode_id(shard, index))
            for shard in component.dataset.info.shards
            for index in range(shard.num_records)
        )
    ]
    absent = [component.name for component in batches.components if component not in kept]
    if not kept or (absent and batches.split == "train"):
        raise errors.UserError(
            f"no episode of {', '.join(absent)} is in split {batches.split}",
            f"data.holdout_percent={batches.holdout_percent}",
            "change it, or set eval_batches=0",
        )
    return dataclasses.replace(batches, components=tuple(kept))


def _first(dataset: rlds.RldsSource) -> pool_lib.EpisodeView:
    """Returns the first usable episode, which stands for the others' cameras and actions.

    Raises:
        DataError: there is none.
    """
    for episode in dataset.read():
        if not isinstance(episode, episodes.Reject):
            return pool_lib.EpisodeView(episode)
    raise errors.DataError("no episode can be used", f"dataset {dataset.name}")


# ---- batches ----


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamBatches:
    """What decides the batches of one process.

    Attributes:
        components: of the mixture.
        readers: of each component, by name.
        choose: of the instruction.
        tokenize: of the instructions of a batch.
        split: "train" or "eval".
        holdout_percent: of the episodes, which are the "eval" split.
        max_bytes: of all pools together.
        threads: that decode.
        seed: of order and draws.
        global_batch: samples of all processes.
        process_index: this process.
        process_count: divides `global_batch`.
        first: number of the batch that comes next.
        positions: where each component's stream begins, by name; from the start where absent.
    """

    components: tuple[StreamedComponent, ...]
    readers: Mapping[str, sample_kinds.Reader]
    choose: text.ChooseParaphrase
    tokenize: text.Tokenize
    split: str
    holdout_percent: float
    max_bytes: int
    threads: int
    seed: int
    global_batch: int
    process_index: int
    process_count: int
    first: int = 0
    positions: Mapping[str, pool_lib.Position] = dataclasses.field(default_factory=dict)

    @property
    def local_batch(self) -> int:
        """Samples of this process."""
        return self.global_batch // self.process_count

    def accepts(self, episode_id: str) -> bool:
        """Whether an episode belongs to the split."""
        held_out = batches_lib.is_held_out(episode_id, self.holdout_percent)
        return held_out == (self.split == "eval")

    def starting_at(self, batch: int) -> StreamBatches:
        """Returns the same batches with number `batch` next."""
        return dataclasses.replace(self, first=batch)


@dataclasses.dataclass(frozen=True)
class Draw:
    """A sample that was drawn.

    Attributes:
        index: of the sample in the run.
        component: its number.
        view: the episode.
        sample: number within the episode.
    """

    index: int
    component: int
    view: pool_lib.EpisodeView
    sample: int


class _Stream:
    """Endless iterator over raw batches (`samples.Batches`), each with the positions after it."""

    def __init__(self, batches: StreamBatches):
        self.batches = batches
        self._replaced = batches_lib.Replaced()
        self._threads = concurrent.futures.ThreadPoolExecutor(batches.threads)
        weights = np.array([component.weight for component in batches.components], np.float64)
        self._shares = weights / weights.sum()
        self._pools = [
            self._pool(component, share)
            for component, share in zip(batches.components, self._shares, strict=True)
        ]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        own = self.batches
        number = own.first
        while True:
            start = number * own.global_batch + own.process_index * own.local_batch
            drawn = [self._draw(index) for index in range(start, start + own.local_batch)]
            read = [self._good(*pair) for pair in zip(drawn, self._read(drawn), strict=True)]
            replaced, self._replaced = self._replaced, batches_lib.Replaced()
            yield {
                "arrays": {
                    name: np.stack([arrays[name] for arrays, _ in read]) for name in read[0][0]
                },
                "text": own.tokenize([instruction for _, instruction in read]),
                "replaced": replaced,
                "positions": {
                    component.name: pool.position
                    for component, pool in zip(own.components, self._pools, strict=True)
                },
            }
            number += 1

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _pool(self, component: StreamedComponent, share: float) -> pool_lib.Pool:
        own = self.batches
        return pool_lib.Pool(
            component.dataset,
            pool_lib.Records(
                component.dataset,
                accept=own.accepts,
                seed=own.seed,
                process_index=own.process_index,
                process_count=own.process_count,
            ),
            start=own.positions.get(component.name, pool_lib.Position(0, 0)),
            count_samples=functools.partial(_count_samples, own.readers[component.name]),
            max_bytes=int(own.max_bytes * share),
            cameras=own.readers[component.name].camera_names,
            report=lambda reject: self._replaced.bad.append(
                batches_lib.Bad(component.name, reject.item, reject.reason)
            ),
        )

    def _draw(self, index: int) -> Draw:
        rng = np.random.default_rng((self.batches.seed, index, _DRAW))
        number = int(rng.choice(len(self._pools), p=self._shares))
        return Draw(index, number, *self._pools[number].draw(rng))

    def _read(self, drawn: Sequence[Draw]) -> Iterator[tuple[batches_lib.Arrays, str] | Exception]:
        return self._threads.map(self._try, drawn)

    def _try(self, draw: Draw, attempt: int = 0) -> tuple[batches_lib.Arrays, str] | Exception:
        own, view = self.batches, draw.view
        rng = np.random.default_rng((own.seed, draw.index, attempt))  # as from a store
        try:
            instruction = own.choose(view.meta(0).instructions, rng)
            reader = own.readers[own.components[draw.component].name]
            return reader(view, 0, draw.sample, rng)(), instruction
        except batches_lib.REPLACEABLE as reason:
            return reason

    def _good(
        self, draw: Draw, result: tuple[batches_lib.Arrays, str] | Exception
    ) -> tuple[batches_lib.Arrays, str]:
        """Returns the sample, or the next good one of its component.

        Raises:
            DataError: see `samples.Candidates`.
        """
        number = draw.component
        candidates = batches_lib.Candidates(self.batches.components[number].name, self._replaced)
        for attempt in itertools.count(1):
            if not isinstance(result, Exception):
                return result
            candidates.reject(f"{draw.view.episode_ids[0]}#{draw.sample}", result)
            rng = np.random.default_rng((self.batches.seed, draw.index, attempt))
            draw = Draw(draw.index, number, *self._pools[number].draw(rng))
            result = self._try(draw, attempt)
        raise AssertionError("candidates end")


def _count_samples(reader: sample_kinds.Reader, view: pool_lib.EpisodeView) -> int:
    usable = reader.has_cameras(view)[0] and (view.has_actions[0] or not reader.needs_actions)
    return int(reader.num_samples(view.lengths)[0]) if usable else 0


class _Ahead:
    """Runs a stream in a thread, some batches ahead; `positions` are those of the last one out."""

    def __init__(self, stream: _Stream, positions: Mapping[str, pool_lib.Position]):
        self.positions = dict(positions)
        self._stream = stream
        self._ready: queue.Queue[Any] = queue.Queue(loader.READ_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="stream")
        self._thread.start()

    def __next__(self) -> dict[str, Any]:
        raw = self._ready.get()
        if isinstance(raw, BaseException):
            self._ready.put_nowait(raw)  # the thread has ended: the next call must not wait for it
            raise raw
        self.positions = raw["positions"]
        return raw

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._stream.close()

    def _run(self) -> None:
        try:
            for raw in self._stream:
                if not self._put(raw):
                    return
        except Exception as error:  # raised again where batches are taken
            self._put(error)

    def _put(self, item: Any) -> bool:
        """Waits for a place; returns False once closed."""
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


# ---- the loader ----


class StreamLoader(loader.Loader):
    """A `loader.Loader` of streams; see the module's docstring for what differs."""

    batches: StreamBatches
    _iterator: _Ahead | None

    def first(self, num_batches: int) -> Iterator[batch_lib.Batch]:
        """See `loader.Loader.first`."""
        fresh = dataclasses.replace(self.batches, first=0, positions={}, max_bytes=FIRST_MIB << 20)
        stream = _Stream(fresh)
        try:
            for _, raw in zip(range(num_batches), stream, strict=False):
                yield self._batch(raw)
        finally:
            stream.close()

    @property
    def num_samples(self) -> int:
        """Unknown before all is read.

        Raises:
            UserError: always.
        """
        raise errors.UserError(
            "features of streamed data cannot be kept",
            "cache_features",
            f"give --config.cache_features=False, or {STORE_ONLY}",
        )

    def state(self) -> dict[str, Any]:
        """Returns the positions, those of all processes together, small and JSON-able."""
        positions = self.batches.positions if self._iterator is None else self._iterator.positions
        count = self.batches.process_count
        own = {name: [p.epoch, p.record * count] for name, p in positions.items()}
        return super().state() | {"positions": own}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues at the record positions of `state`, which is not exact.

        Raises:
            UserError: the state is of another pipeline; names what differs.
        """
        super().restore(state)
        count = self.batches.process_count
        positions = {
            name: pool_lib.Position(epoch, record // count)
            for name, (epoch, record) in state["positions"].items()
        }
        self.batches = dataclasses.replace(self.batches, positions=positions)
        logging.warning("restored record positions %s; this is not exact", state["positions"])

    def close(self) -> None:
        """Stops the threads; the next batch starts them again at the record positions."""
        positions = self.batches.positions if self._iterator is None else self._iterator.positions
        super().close()
        self.batches = dataclasses.replace(self.batches, positions=positions)

    def describe(self) -> list[dict[str, Any]]:
        """Returns what each dataset contributes; numbers are of the files, 0 where unknown."""
        return [
            {
                "name": component.name,
                "weight": component.weight,
                "episodes": component.dataset.total,
                "frames": scan.known_steps(component.dataset),
                "samples": 0,
                "episodes_with_actions": component.dataset.total
                * int(component.source.has_actions[0]),
                "start_digests": [],
                "rules": dataclasses.asdict(self.rules[component.name]),
            }
            for component in self.batches.components
        ]

    def _start(self) -> _Ahead:
        return _Ahead(_Stream(self.batches), self.batches.positions)
