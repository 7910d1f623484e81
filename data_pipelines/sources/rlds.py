"""RLDS datasets as TFDS writes them, in TFRecord or ArrayRecord files, without TensorFlow.

One record is one episode: an Example whose lists hold a field of all steps, end to end, named
`steps/<field>`. `rlds_directory` says how to cut them and how many records each shard must hold.
Images stay the JPEG or PNG bytes they are; only requested fields are unpacked, which is three times
as fast as TFDS's own decoding.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from absl import logging
from etils import epath

from data_pipelines import episodes, files
from data_pipelines.formats import array_records, tfrecord
from data_pipelines.open_x import base as standardize_base
from data_pipelines.open_x import columns, exported
from data_pipelines.open_x import episode as episode_builder
from data_pipelines.sources import base, rlds_directory, rlds_record, rlds_standard
from data_pipelines.sources import workers as workers_lib
from defi_jax import errors

Result = TypeVar("Result")

_CHUNK_BYTES = 16 << 20  # of records that a worker reads at once
_REMOTE_CHUNK_BYTES = 128 << 20  # likewise from a bucket, where passing over records costs as much
_IN_THIS_PROCESS = base.Workers()
_SALVAGE = {
    "tfrecord": tfrecord.salvage_records,
    "array_record": array_records.salvage_records,
}


def read_shard(shard: rlds_directory.Shard, *, start: int = 0) -> Iterator[bytes]:
    """Yields the records of a shard from number `start` on and then checks their number.

    Raises:
        DataError: a record is damaged, or the number is not the one of `dataset_info.json`.
    """
    for record in salvage_shard(shard, start=start):
        if isinstance(record, errors.DataError):
            raise record
        yield record


def salvage_shard(
    shard: rlds_directory.Shard, *, start: int = 0
) -> Iterator[bytes | errors.DataError]:
    """Yields each record from number `start` on, and in the place of a lost one what is wrong.

    Raises:
        DataError: the file holds more than `dataset_info.json` says.
    """
    count, lost = start, None
    try:
        for record in _SALVAGE[shard.file_format](shard.path, start=start):
            count += 1
            yield record
    except errors.DataError as error:
        lost = error
    if lost is None and count != shard.num_records:
        at_most = "at most " if start and count == start else ""
        lost = errors.DataError(
            f"holds {at_most}{count} records, dataset_info.json says {shard.num_records}",
            shard.path,
            "download this file again",
        )
    if lost is None:
        return
    if count >= shard.num_records:
        raise lost
    yield lost
    for index in range(count + 1, shard.num_records):
        what = f"{lost.what} ({lost.where})"
        yield errors.DataError(what, f"{shard.path} record {index}", lost.fix)


@dataclass(frozen=True)
class _Chunk:
    """Records `start` to `stop` of a shard, of which some are wanted."""

    shard: rlds_directory.Shard
    start: int
    stop: int
    wanted: frozenset[int]


class RldsSource:
    """Standardised episodes of an RLDS directory; see `base.Source`.

    The converter and the stream both open a directory here. What `export` wrote is known by its
    metadata and comes back as it was.

    Args:
        directory: the version folder, or the folder above.
        options: what of it is read, and how.
        name: name of the dataset, whose standardisation applies; None for the folder's name or,
            where nothing is known of that, the name in `dataset_info.json`.
        workers: how records are read; the episodes and their order do not depend on it.
        max_damaged: damaged records that `read` may yield as rejects; None for any number.

    Raises:
        UserError: no standardisation for this dataset.
        DataError: a field has another kind or shape, or in the first episode other values, than
            the standardisation was written for.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        options: rlds_directory.RldsOptions = rlds_directory.DEFAULTS,
        *,
        name: str | None = None,
        workers: base.Workers = _IN_THIS_PROCESS,
        max_damaged: int | None = 0,
    ):
        self._workers, self._options = workers, options
        self.max_damaged, self.damaged = max_damaged, 0
        self.info = rlds_directory.load_info(directory, options)
        self.total = sum(shard.num_records for shard in self.info.shards)
        self.name = name or rlds_standard.choose_name(self.info, options)
        rlds_standard.check_fields(self.info, self.standard)
        self._check_first()
        splits = ", ".join(self.info.splits)
        logging.info("%s %s: %d of %s", self.name, self.info.version, self.total, splits)
        for what in self.info.left_out:
            logging.warning("%s: left out %s", self.name, what)
        for doubt in self.standard.doubts:
            logging.warning("%s: doubtful %s", self.name, doubt)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the standardisation, whose functions may stand outside of a package."""
        return {key: value for key, value in self.__dict__.items() if key != "standard"}

    @functools.cached_property
    def standard(self) -> standardize_base.Standard:
        """How its episodes are read."""
        return rlds_standard.find(self.info, self.name, self._options)

    def part(self, number: int, parts: int) -> RldsSource:
        """Returns the part of this number; shards stay whole, so that parts may be empty."""
        other, count = copy.copy(self), len(self.info.shards)
        found = self.info.shards[number * count // parts : (number + 1) * count // parts]
        other.info = dataclasses.replace(self.info, shards=found)
        other.total = sum(shard.num_records for shard in found)
        return other

    @functools.cached_property
    def recipe(self) -> Mapping[str, Any]:
        """What decides the episodes: the digest of the files, the version of the standard."""
        directory = self.info.directory
        paths = [directory / "dataset_info.json", directory / "features.json"]
        paths += [shard.path for shard in self.info.shards]
        own = rlds_standard.own_file_text(self.name, self._options)
        return {
            "kind": "rlds",
            "version": self.info.version,
            "splits": self.info.splits,
            "files": files.digest_files(directory, paths),
            "standard": self.standard.recipe,
            **({"own_file": files.digest(own)} if own else {}),
            **({"left_out": list(self.info.left_out)} if self.info.left_out else {}),
        }

    def read(self, skip: Collection[str] = frozenset()) -> base.Results:
        """Yields episodes; see `base.Source.read`."""
        yield from self.map(_as_it_is, workers=self._workers, skip=skip)

    def map(
        self,
        function: Callable[[episodes.Episode], Result],
        *,
        workers: base.Workers,
        skip: Collection[str] = frozenset(),
    ) -> Iterator[Result | episodes.Reject]:
        """Yields a function's result for each episode, in the order of `read`.

        It is picklable, and called in the process that reads the record.

        Raises:
            DataError: a file is damaged, or more than `max_damaged` records are.
        """
        self.damaged = 0
        chunks = [chunk for shard in self.info.shards for chunk in self._chunks(shard, skip)]
        results = workers_lib.run(
            functools.partial(self._read_chunk, function),
            chunks,
            # Starting them takes a second.
            dataclasses.replace(workers, count=min(workers.count, len(chunks) // 4)),
        )
        for chunk, result in results:
            if isinstance(result, workers_lib.Failure):
                where = f"{chunk.shard.path} from record {chunk.start}"
                raise errors.DataError(f"records cannot be read ({result.reason})", where)
            found, error = result
            for one in found:
                if isinstance(one, errors.DataError):
                    self.damaged += 1
                    if self.max_damaged is not None and self.damaged > self.max_damaged:
                        raise one
                    one = episodes.Reject(one.where, one.what)
                yield one
            if error is not None:
                raise error

    def _chunks(self, shard: rlds_directory.Shard, skip: Collection[str]) -> Iterator[_Chunk]:
        """Cuts a shard into runs of records, without those that hold nothing new."""
        mean_bytes = shard.path.stat().length / max(1, shard.num_records)
        chunk_bytes = _REMOTE_CHUNK_BYTES if "://" in str(shard.path) else _CHUNK_BYTES
        size = max(1, int(chunk_bytes / max(1, mean_bytes)))
        for start in range(0, max(1, shard.num_records), size):
            places = range(start, min(start + size, shard.num_records))
            wanted = [index for index in places if self.episode_id(shard, index) not in skip]
            if wanted or not places:
                yield _Chunk(shard, start, places.stop, frozenset(wanted))

    def _read_chunk(
        self, function: Callable[[episodes.Episode], Any], chunk: _Chunk
    ) -> tuple[list[Any], errors.DataError | None]:
        """Reads the wanted records; at a shard's end checks their number."""
        found = []
        is_last = chunk.stop >= chunk.shard.num_records
        records = enumerate(salvage_shard(chunk.shard, start=chunk.start), chunk.start)
        try:
            for index, record in records:
                if index in chunk.wanted:
                    episode = self.try_episode(chunk.shard, index, record)
                    is_episode = isinstance(episode, episodes.Episode)
                    found.append(function(episode) if is_episode else episode)
                if index + 1 == chunk.stop and not is_last:
                    break
        except errors.DataError as error:
            return found, error
        return found, None

    def episode_id(self, shard: rlds_directory.Shard, index: int) -> str:
        """Returns the id of an episode: its record's place, as some datasets share metadata."""
        return f"{self.name}/{shard.split}/{shard.index:05d}/{index:05d}"

    def try_episode(
        self, shard: rlds_directory.Shard, index: int, record: bytes | errors.DataError
    ) -> episodes.Episode | episodes.Reject | errors.DataError:
        """Returns the standardised episode of what `salvage_shard` yields, or why there is none.

        A record that is lost or does not fit the dataset's description is an error, not raised.
        """
        try:
            is_lost = isinstance(record, errors.DataError)
            return record if is_lost else self._episode(shard, index, record)
        except errors.DataError as error:
            return error

    def _episode(
        self, shard: rlds_directory.Shard, index: int, record: bytes
    ) -> episodes.Episode | episodes.Reject:
        where = f"{shard.path} record {index}"
        features = tfrecord.parse_example(record, where=where)
        try:
            metadata = self._metadata(features)
        except (ValueError, TypeError, IndexError, zlib.error) as error:
            return episodes.Reject(where, f"a field of the episode does not fit ({error})")
        standard = self.standard
        if not standard.control_hz:
            fps = metadata[rlds_standard.fps_field(self.info)]
            standard = dataclasses.replace(standard, control_hz=float(fps))
        found = episode_builder.build(
            standard,
            rlds_record.RawSteps(features, self.info, where),
            episode_id=self.episode_id(shard, index),
            source=self.name,
            metadata=metadata,
            where=where,
        )
        if isinstance(found, episodes.Reject) or not exported.is_export(self.info.episode_fields):
            return found
        return exported.restore(found, where)

    def _check_first(self) -> None:
        """Raises DataError where the first episode's values are not in their documented range."""
        shard = self.info.shards[0]
        try:
            record = next(read_shard(shard))
            features = tfrecord.parse_example(record, where=str(shard.path))
            self.standard.standardize(rlds_record.RawSteps(features, self.info, str(shard.path)))
        except columns.SurpriseError as error:
            raise errors.DataError(
                str(error), f"{shard.path} record 0", rlds_standard.ADAPT
            ) from error
        except (ValueError, StopIteration, errors.DataError):
            return  # `read` says what is wrong with it

    def _metadata(self, features: Mapping[str, tfrecord.Value]) -> dict[str, Any]:
        """Scalars and texts that describe the whole episode."""
        values = {}
        for name, field in self.info.episode_fields.items():
            if field.kind not in ("tensor", "text") or field.shape != () or name not in features:
                continue
            value = rlds_record.unpack(features[name], field)[0]
            is_text = isinstance(value, bytes)
            values[name] = value.decode(errors="replace") if is_text else value.item()
        return values


def _as_it_is(episode: episodes.Episode) -> episodes.Episode:
    return episode
