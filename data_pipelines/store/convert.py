"""From a raw source to an episode store, resumable, with a manifest of what came and what did not.

`manifest.json` in the store is written first with `"complete": false` and last with the counts, so
that an interrupted conversion can be told from a finished one, and one store is never filled from
two sources by mistake. It tells how the data were made: what was chosen by which rule and file
(`recipe`, with digests), how much came of it, and what was rejected and why.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import tqdm

from data_pipelines import episodes, files
from data_pipelines.formats import json_files
from data_pipelines.sources import base
from data_pipelines.store import reader, shards
from data_pipelines.store import writer as store_writer
from defi_jax import errors

MANIFEST = "manifest.json"

Copy = Callable[[base.Source, pathlib.Path], list[episodes.Reject]]


def convert(
    source: base.Source,
    output: str | os.PathLike,
    *,
    origin: Mapping[str, Any],
    progress: bool = True,
    copy: Copy | None = None,
) -> dict[str, Any]:
    """Writes all episodes of a source that the store does not hold yet.

    Args:
        output: the store; created when absent.
        origin: JSON-able description of the input and its options; a store that was begun with
            another one is refused.
        copy: writes the episodes and returns the rejects; None for this process, see `beam`.

    Returns:
        The manifest: `source, origin, recipe, complete, episodes, frames, hours, fps, sizes,
        conversions, rejected, rejected_by_reason, fingerprint`.

    Raises:
        UserError: the store was begun from something else, or another run writes it.
        DataError: the source is damaged as a whole, or gave no episode.
    """
    output = pathlib.Path(output)
    start = {"source": source.name, "origin": dict(origin), "recipe": base.recipe(source)}
    existed = output.exists()
    _check_same_origin(output, start)  # before anything is written there
    files.make_directory(output)
    with files.alone(output):
        try:
            _check_same_origin(output, start)  # no other run changes it any more
            return _fill(source, output, start, copy or functools.partial(_copy, progress=progress))
        except BaseException:
            _remove_empty(output, existed)
            raise


def _fill(
    source: base.Source, output: pathlib.Path, start: Mapping[str, Any], copy: Copy
) -> dict[str, Any]:
    """Writes what is missing; returns the manifest."""
    files.write_json(output / MANIFEST, {**start, "complete": False})
    rejects = copy(source, output)
    if not shards.find_indexes(output):
        first = f"; the first: {rejects[0].item}: {rejects[0].reason}" if rejects else ""
        what = f"source gave no episode ({len(rejects)} rejected{first})"
        raise errors.DataError(what, source.name)
    store = reader.EpisodeStore(output)
    tally = base.Tally()
    for found in (*map(store.meta, range(len(store))), *rejects):
        tally.add(found)
    end = {"complete": True, **tally.to_json(), "fingerprint": store.fingerprint()}
    files.write_json(output / MANIFEST, manifest := {**start, **end})
    return manifest


def summary(
    manifest: Mapping[str, Any], seconds: float, *, shown: int = 5, where: str = MANIFEST
) -> str:
    """Says in a few lines what a conversion gave, and what was left out of it."""
    rejected = manifest["rejected"]
    lines = [
        f"{manifest['source']}: {manifest['episodes']} episodes, {manifest['frames']} frames, "
        f"{len(rejected)} rejected, {seconds:.1f} s"
    ]
    lines += [f"  {note}" for note in manifest["recipe"].get("notes", ())]
    lines += [f"  left out {what}" for what in manifest["recipe"].get("left_out", ())]
    lines += [f"  {count} {what}" for what, count in manifest["conversions"].items()]
    lines += [f"  rejected {reject['item']}: {reject['reason']}" for reject in rejected[:shown]]
    if len(rejected) > shown:
        lines.append(f"  and {len(rejected) - shown} more, see {where}; by reason:")
        reasons = list(manifest["rejected_by_reason"].items())[:shown]
        lines += [f"  {count} {reason}" for reason, count in reasons]
    return "\n".join(lines)


def read_manifest(store: str | os.PathLike) -> dict[str, Any] | None:
    """Returns the manifest of a store, None where it has none.

    Raises:
        DataError: it is damaged.
    """
    path = pathlib.Path(store) / MANIFEST
    if not path.exists():
        return None
    manifest = json_files.load(path, what="manifest", fix="delete it and convert again")
    if not isinstance(manifest, dict):
        raise errors.DataError("manifest is no object", path, "delete it and convert again")
    return manifest


def _copy(source: base.Source, output: pathlib.Path, *, progress: bool) -> list[episodes.Reject]:
    """Writes what the store lacks; returns the rejects."""
    rejects = []
    with store_writer.EpisodeWriter(output, source=source.name) as writer:
        done = writer.done_ids()
        bar = tqdm.tqdm(
            source.read(skip=done),
            total=source.total,
            initial=len(done),
            desc=source.name,
            unit="ep",
            disable=not progress,
        )
        for result in bar:
            if isinstance(result, episodes.Reject):
                rejects.append(result)
            else:
                writer.write(result)
    return rejects


def _check_same_origin(output: pathlib.Path, start: Mapping[str, Any]) -> None:
    manifest = read_manifest(output)
    if manifest is None:
        files.check_no_files(output, MANIFEST)
        return
    differing = [key for key in start if manifest.get(key) != start[key]]
    if differing:
        raise errors.UserError(
            f"output holds a conversion with another {' and '.join(differing)}",
            f"{output / MANIFEST}",
            "choose another --output, or delete this one",
        )


def _remove_empty(output: pathlib.Path, existed: bool) -> None:
    """Leaves no trace of a conversion that published nothing into a new directory."""
    if existed or not output.exists():
        return
    if {path.name for path in output.iterdir()} <= {MANIFEST, files.LOCK}:
        for name in (MANIFEST, files.LOCK):
            (output / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            output.rmdir()
