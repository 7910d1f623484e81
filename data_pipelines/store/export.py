"""From an episode store to a TFDS dataset of RLDS's form, without TensorFlow.

`tfds.load(name, data_dir=DIR)`, `tfds.data_source` (array_record), dlimp, Octo's loader and
`sources.rlds` read it; `rlds_writer` says what it holds. Actions and states are the standardised
ones: whoever reads the export must not standardise them again.

The directory appears as a whole or not at all: it grows under a temporary name beside its place.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
from typing import Any

import tensorflow_datasets as tfds
import tqdm
from etils import epath
from tensorflow_datasets.core import dataset_info, naming, splits

from data_pipelines import files
from data_pipelines.store import reader
from data_pipelines.tfds_builders import rlds_writer
from defi_jax import errors

VERSION = "1.0.0"

_NAME = re.compile(r"[a-z][a-z0-9_]*")  # as TFDS allows


def export_tfds(
    store: reader.EpisodeStore,
    output: str | os.PathLike,
    *,
    name: str,
    file_format: str = "tfrecord",
    progress: bool = True,
    shard_bytes: int = rlds_writer.SHARD_BYTES,
) -> dict[str, Any]:
    """Writes all episodes of a store as the split "train" of a TFDS dataset.

    Args:
        output: TFDS's data_dir; the dataset becomes the directory `name` in it.
        file_format: one of `rlds_writer.FILE_FORMATS`.
        shard_bytes: a file is closed when it holds this many.

    Returns:
        `directory, episodes, frames, shards, bytes`.

    Raises:
        UserError: TFDS does not allow the name, the dataset exists or cannot be written, or
            episodes differ in cameras, actions or states.
        DataError: a record is damaged.
    """
    target = pathlib.Path(output) / name / VERSION
    _check_name(name, target)
    _check_uniform(store)
    partial = target.with_name(f".writing-{VERSION}")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed run
    files.make_directory(partial)
    template = naming.ShardedFileTemplate(
        data_dir=epath.Path(partial), dataset_name=name, split="train", filetype_suffix=file_format
    )
    writer = rlds_writer.SplitFiles(template, shard_bytes=shard_bytes)
    try:
        schema, features = rlds_writer.Schema(), None
        for i in tqdm.trange(len(store), desc="export", unit="ep", disable=not progress):
            episode = store.episode(i)
            schema.add(episode)
            features = features or schema.features()
            writer.write(rlds_writer.serialize(features, rlds_writer.example(episode)))
        split = writer.finish()
        _write_info(name, store, partial, schema, split)
        partial.rename(target)
    except BaseException:
        writer.close()
        shutil.rmtree(partial, ignore_errors=True)
        for directory in (target.parent, pathlib.Path(output)):
            with contextlib.suppress(OSError):  # it holds something
                directory.rmdir()
        raise
    return {
        "directory": str(target),
        "episodes": len(store),
        "frames": int(store.lengths.sum()),
        "shards": split.num_shards,
        "bytes": int(split.num_bytes),
    }


def _check_name(name: str, target: pathlib.Path) -> None:
    """Raises UserError where TFDS does not allow the name or the dataset exists."""
    if not _NAME.fullmatch(name):
        raise errors.UserError(
            f"TFDS does not allow the name {name!r}",
            "--name",
            "give lower-case letters, digits and underscores, a letter first",
        )
    if target.exists():
        raise errors.UserError(
            "dataset exists already", str(target), "delete it, or choose another --output or --name"
        )


def _write_info(
    name: str,
    store: reader.EpisodeStore,
    directory: pathlib.Path,
    schema: rlds_writer.Schema,
    split: tfds.core.SplitInfo,
) -> None:
    """Writes dataset_info.json and features.json."""
    identity = dataset_info.DatasetIdentity(
        name=name,
        version=tfds.core.Version(VERSION),
        data_dir=str(directory),
        module_name="",
        release_notes={VERSION: "Exported."},
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=(
            f"Episodes of the store {store.fingerprint()}, exported by DeFI-JAX. Actions and "
            "states are standardised: do not apply a dataset's own standardisation again."
        ),
        features=schema.features(),
    )
    info.set_file_format(split.filename_template.filetype_suffix)
    info.set_splits(splits.SplitDict([split]))
    info.write_to_directory(directory)


def _check_uniform(store: reader.EpisodeStore) -> None:
    """Raises UserError unless all episodes have the same fields, as a TFDS dataset must."""
    kinds: dict[tuple, str] = {}
    for i in range(len(store)):
        meta = store.meta(i)
        kinds.setdefault((meta.cameras, meta.has_actions, meta.has_states), meta.episode_id)
    if len(kinds) > 1:
        found = "; ".join(
            f"{episode_id!r} has cameras {', '.join(cameras)}, "
            f"{'with' if actions else 'without'} actions, {'with' if states else 'without'} states"
            for (cameras, actions, states), episode_id in kinds.items()
        )
        raise errors.UserError(
            f"episodes differ in their fields: {found}",
            str(store.directory),
            "convert them into stores of their own and export each",
        )
