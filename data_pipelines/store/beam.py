"""Conversion through Apache Beam, for data sets that one machine does not convert in time.

    python launch/data.py convert --source=rlds --input=... --output=STORE --runner=direct

A source is cut into parts; each worker opens the source itself, reads one part at a time and writes
it as a shard of the store, by the same code as a plain conversion. The store has the same
fingerprint, its records the same bytes; only their distribution over files differs. A killed
pipeline goes on where it stopped: published parts are not decoded again.

Input and output must be paths that the starter and all workers see (RLDS may lie in a bucket). Beam
is not among our requirements, because it wants older packages: see requirements-beam.txt.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from data_pipelines import episodes, files
from data_pipelines.sources import base
from data_pipelines.store import shards
from data_pipelines.store import writer as store_writer
from defi_jax import errors

ITEMS_PER_PART = 256  # as a plain conversion's shards; what a worker that dies does again

_RUNNERS = {"direct": "DirectRunner", "dataflow": "DataflowRunner", "spark": "SparkRunner"}
_RUNNERS |= {"flink": "FlinkRunner"}
_OPENED: dict[str, base.Source] = {}  # of this worker process, by the run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker must know; picklable.

    Attributes:
        run: a name of this run.
        open_source: opens the source, in the starter as in each worker.
        output: the store.
        parts: into how many the source is cut.
        known: ids that are in the store by other means.
    """

    run: str
    open_source: Callable[[], base.Source]
    output: str
    parts: int
    known: frozenset[str]


def copy(
    source: base.Source,
    output: pathlib.Path,
    *,
    open_source: Callable[[], base.Source],
    runner: str,
    flags: Sequence[str] = (),
    items_per_part: int = ITEMS_PER_PART,
) -> list[episodes.Reject]:
    """Writes the episodes that a store lacks; see `convert.Copy`.

    Args:
        source: what `open_source` opens.
        output: the store's directory.
        open_source: picklable; called once in each worker process.
        runner: "direct", "dataflow", "spark", "flink", or a Beam runner's own name.
        flags: flags of Beam and the runner, such as "--region=...".
        items_per_part: items that a worker reads at a time; RLDS files stay whole.

    Raises:
        UserError: Beam is not installed, or the source cannot be cut.
        DataError: the source is damaged as a whole.
    """
    beam, options = _import_beam(), [f"--runner={_RUNNERS.get(runner, runner)}", *flags]
    if not hasattr(source, "part"):
        raise errors.UserError(
            f"source {source.name} cannot be cut into parts", "--runner", "convert it without"
        )
    job = Job(
        run=uuid.uuid4().hex,
        open_source=open_source,
        output=str(output.resolve()),
        parts=max(1, -(-source.total // items_per_part)),
        known=frozenset(_other_ids(output)),
    )
    with beam.Pipeline(argv=options) as pipeline:
        numbers = pipeline | "parts" >> beam.Create(range(job.parts)) | beam.Reshuffle()
        numbers | "convert" >> beam.Map(convert_part, job)
    return _gather(output, job, source)


def convert_part(number: int, job: Job) -> int:
    """Writes one part of a source as a shard, and beside it what gave no episode.

    Returns:
        The number of episodes written now.

    Raises:
        UserError: another worker writes this part.
        DataError: see `copy`.
    """
    output, name = pathlib.Path(job.output), _shard(number)
    if job.run not in _OPENED:
        _OPENED.clear()
        _OPENED[job.run] = job.open_source()
    part = _OPENED[job.run].part(number, job.parts)  # pyright: ignore[reportAttributeAccessIssue]
    with files.alone(output, f".{name}.lock"):
        known = job.known | _ids(output.glob(f"episodes-{name}-*{shards.INDEX_SUFFIX}"))
        rejects, count = [], 0
        with store_writer.EpisodeWriter(
            output, source=part.name, shard=name, known=known
        ) as writer:
            for found in part.read(skip=known):
                if isinstance(found, episodes.Reject):
                    rejects.append(dataclasses.asdict(found))
                else:
                    writer.write(found)
                    count += 1
        content = {"rejects": rejects, "damaged": getattr(part, "damaged", 0)}
        _write_json(_report(output, job, number), content)
    logging.info("part %d of %d: %d episodes", number, job.parts, count)
    return count


def _gather(output: pathlib.Path, job: Job, source: base.Source) -> list[episodes.Reject]:
    """Returns the rejects of all parts, in the source's order, and clears up."""
    rejects, damaged = [], 0
    for number in range(job.parts):
        path = _report(output, job, number)
        content = json.loads(path.read_text(encoding="utf-8"))
        rejects += [episodes.Reject(**reject) for reject in content["rejects"]]
        damaged += content["damaged"]
    for path in [*output.glob(".b[0-9]*.json"), *output.glob(".b[0-9]*.lock")]:
        path.unlink()
    allowed = getattr(source, "max_damaged", None)
    if allowed is not None and damaged > allowed:
        raise errors.DataError(
            f"{damaged} records are damaged, {allowed} are allowed",
            source.name,
            "download the files again, or allow more by --max_damaged",
        )
    return rejects


def _shard(number: int) -> str:
    return f"b{number:05d}"


def _report(output: pathlib.Path, job: Job, number: int) -> pathlib.Path:
    return output / f".{_shard(number)}.{job.run}.json"


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(path)


def _other_ids(output: pathlib.Path) -> set[str]:
    """Returns the ids of shards that a plain conversion wrote."""
    indexes = shards.find_indexes(output)
    return _ids(path for path in indexes if not re.match(r"episodes-b\d{5}-", path.name))


def _ids(indexes: Iterable[pathlib.Path]) -> set[str]:
    return {line["episode_id"] for path in indexes for line in shards.read_index(path)[1]}


def _import_beam() -> Any:
    try:
        import apache_beam  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise errors.UserError(
            f"Apache Beam is not installed ({error})",
            "--runner",
            "use an environment of requirements-beam.txt, as `make test-beam` makes one",
        ) from error
    return apache_beam
