"""What is inside one checkpoint step: items of plain arrays, JSON documents, and their proofs.

A train state is split into the items `params`, `frozen`, `ema_params` and `train` (everything
else), nested dicts of ordinary arrays, so that a reader needs neither the optimizer nor the mesh.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from defi_jax import errors, partition, tensor_files
from defi_jax.array_typing import Params
from defi_jax.checkpoints import digests, storage, train_state
from defi_jax.models import params as params_lib

SCHEMA_VERSION = 1
COMMIT_MARKER = "commit_success.txt"

_ARRAY_ITEMS = ("params", "frozen", "ema_params", "train")


def to_items(state: train_state.TrainState) -> dict[str, Params]:
    """Splits a state, concrete or abstract, into items of nested dicts; empty ones are left out."""
    flat: dict[str, dict[str, Any]] = {name: {} for name in _ARRAY_ITEMS}
    for path, leaf in _state_leaves(state):
        item, _, rest = path.partition("/")
        if item in _ARRAY_ITEMS:
            flat[item][rest] = _as_plain(leaf)
        else:
            flat["train"][path] = _as_plain(leaf)
    return {name: params_lib.unflatten(leaves) for name, leaves in flat.items() if leaves}


def from_items(
    items: Mapping[str, Params], abstract: train_state.TrainState
) -> train_state.TrainState:
    """Inverse of `to_items`, given a state of the same structure."""
    flat, leaves = flat_items(items), []
    for path, like in _state_leaves(abstract):
        leaf = flat[path if path in flat else f"train/{path}"]
        leaves.append(jax.random.wrap_key_data(leaf) if _is_key(like) else leaf)
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _state_leaves(state: train_state.TrainState) -> Iterator[tuple[str, Any]]:
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(state):
        yield partition.path_string(key_path), leaf


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # pyright: ignore[reportPrivateImportUsage]


def _as_plain(leaf: Any) -> Any:
    """Keys become their uint32 words: every item holds ordinary arrays only."""
    if not _is_key(leaf):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        words = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=leaf.sharding)
    return jax.random.key_data(leaf)


def flat_items(items: Mapping[str, Params]) -> dict[str, Any]:
    """Returns the leaves of all items by "item/a/b"."""
    return params_lib.flatten(dict(items))


def verified_documents(path: epath.Path, may_lack: str = "") -> dict[str, Any]:
    """Returns the JSON items of a step after checking its files and the documents' digests.

    Files called `may_lack` may be missing.
    """
    try:
        problems = digests.file_damage(path, may_lack)
    except Exception as error:  # libraries of storage have no common type
        raise unreadable(path, "a file is not readable", error) from error
    if problems:
        raise damaged(path, "; ".join(problems[:5]))
    return read_documents(path)


def damage(path: epath.Path, may_lack: str = "") -> str:
    """Says what is wrong with a step, "" if nothing is.

    Changed and missing files are named where file digests were written, which is nearly always;
    else every array is read and the leaves are named whose digest differs.
    """
    try:
        documents = verified_documents(path, may_lack)
        if not digests.digests_path(path).exists():
            leaves = documents["integrity"]["leaves"]
            read_items(path, dict.fromkeys(leaf.split("/")[0] for leaf in leaves), leaves)
    except errors.DataError as error:
        return error.what
    return ""


def read_documents(path: epath.Path) -> dict[str, Any]:
    """Returns the JSON items of a step after checking their own digests."""
    documents = {}
    for name in ("integrity", "metadata", "data"):
        try:
            documents[name] = json.loads((path / name / "metadata").read_text())
        except Exception as error:  # libraries of storage have no common type
            raise unreadable(path, f"{name}/metadata is not readable", error) from error
    try:
        expected = documents["integrity"]["documents"]
        changed = [n for n in expected if digests.json_digest(documents[n]) != expected[n]]
        schema = documents["metadata"]["schema_version"]
    except (AttributeError, KeyError, TypeError) as error:
        raise damaged(path, "integrity/metadata is not readable") from error
    if changed:
        raise damaged(path, f"{changed[0]}/metadata has changed")
    if schema != SCHEMA_VERSION:
        raise errors.UserError(
            f"checkpoint schema {schema}, not {SCHEMA_VERSION}",
            str(path),
            "use the version of this code that wrote it",
        )
    return documents


def check_fits(path: epath.Path, saved: Mapping[str, Any], items: Mapping[str, Params]) -> None:
    """Raises UserError listing the leaves that model and checkpoint don't share."""
    leaves = flat_items(items)
    problems = tensor_files.differences(
        {name: f"{facts['dtype']}{facts['shape']}" for name, facts in saved.items()},
        {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()},
    )
    if problems:
        raise errors.UserError(
            f"the checkpoint is of another model ({errors.listed(problems, 10)})",
            str(path),
            "use the config it was made with, another --workdir, or --overwrite",
        )


def check_leaves(path: epath.Path, saved: Mapping[str, Any], trees: Mapping[str, Params]) -> None:
    """Raises DataError unless every restored leaf has the digest it was saved with."""
    changed = digests.changed_leaves(flat_items(trees), saved)
    if changed:
        raise damaged(path, f"values of {', '.join(changed[:5])} have changed")


def read_items(path: epath.Path, names: Iterable[str], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Reads some items of a step as numpy arrays; DataError where they are not as saved."""
    items = {name: _read_item(path, name, saved) for name in names}
    check_leaves(path, {leaf: saved[leaf] for leaf in saved if leaf.split("/")[0] in items}, items)
    return items


def _read_item(path: epath.Path, name: str, leaves: Mapping[str, Any]) -> Params:
    prefix = f"{name}/"
    names = [leaf.removeprefix(prefix) for leaf in leaves if leaf.startswith(prefix)]
    target = params_lib.unflatten(dict.fromkeys(names, 0))
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        try:
            return reader.restore(
                path / name, args=ocp.args.PyTreeRestore(item=target, restore_args=as_numpy)
            )
        except Exception as error:  # the library has no common type for unreadable data
            raise unreadable(path, f"{name} is not readable", error) from error


def unreadable(path: epath.Path, what: str, error: Exception) -> errors.UserError:
    """Returns the error for a step that can't be read: it is damaged, unless the storage fails."""
    if storage.has_failed(error):
        return storage.failure(path, error)
    return damaged(path, f"{what} ({one_line(error)})")


def damaged(path: epath.Path, what: str) -> errors.DataError:
    """Returns the error for a damaged step."""
    return errors.DataError(
        f"damaged checkpoint: {what}", str(path), "use another step or a copy of this one"
    )


def one_line(error: Exception) -> str:
    """Returns the start of an error's text, without line breaks."""
    return " ".join(str(error).split())[:200]
