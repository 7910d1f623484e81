"""One checkpoint step as a whole: what is damaged in it, and a copy of it elsewhere.

Neither needs the mesh, the model or the run that the step is of. Paths are local or in a bucket.
"""

import json

from etils import epath

from defi_jax import errors
from defi_jax.checkpoints import digests
from defi_jax.checkpoints import format as checkpoint_format

_MARKER = checkpoint_format.COMMIT_MARKER


def damage(step_path: epath.Path) -> list[str]:
    """Names all that is wrong with a step, after reading every byte of it.

    Files are compared with the digests that were written after the commit; then the documents and
    every array with those that were taken of the state before it was saved.
    """
    names = set(digests.file_names(step_path))
    found = digests.file_damage(step_path)
    if digests.digests_path(step_path).exists():
        found += [f"{name} has no digest" for name in sorted(names - {*_recorded(step_path)})]
    elif _MARKER not in names:
        found.append(f"{_MARKER} is missing")
    if found:
        return found
    try:
        leaves = checkpoint_format.read_documents(step_path)["integrity"]["leaves"]
        for item in dict.fromkeys(leaf.split("/")[0] for leaf in leaves):
            checkpoint_format.read_items(step_path, [item], leaves)  # one at a time, for memory
    except errors.DataError as error:
        return [error.what]
    return []


def copy_step(source: epath.Path, target: epath.Path) -> int:
    """Copies a step, its commit marker last; goes on with a copy that was interrupted.

    Returns:
        How many files were copied; 0 where the same step is there.

    Raises:
        DataError: the source is damaged, or the target is after copying.
        UserError: the target is something else.
    """
    found = damage(source)
    if found:
        raise checkpoint_format.damaged(source, errors.listed(found, 5))
    wanted = _recorded(source) or digests.file_digests(source)
    _claim(target, wanted)
    present = set(digests.file_names(target)) if target.exists() else set()
    copied = 0
    for name in sorted(wanted, key=lambda name: (name == _MARKER, name)):
        file = target / name
        if name in present and digests.file_digest(file) == wanted[name]:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        if name == _MARKER:
            _check_copy(target, may_lack=_MARKER)
        (source / name).copy(file, overwrite=True)
        copied += 1
    _check_copy(target)
    return copied


def _claim(target: epath.Path, wanted: dict[str, str]) -> None:
    """Writes the digests of what is to be at `target`, or checks that they are there."""
    path = digests.digests_path(target)
    if path.exists() and _recorded(target) == wanted:
        return
    if path.exists() or target.exists():
        raise errors.UserError(
            "the destination holds another checkpoint", str(target), "name another destination"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    digests.write_whole(path, json.dumps(wanted, indent=1))


def _check_copy(target: epath.Path, may_lack: str = "") -> None:
    found = digests.file_damage(target, may_lack)
    if found:
        raise checkpoint_format.damaged(target, errors.listed(found, 5))


def _recorded(step_path: epath.Path) -> dict[str, str]:
    """The digests beside a step; {} where there are none that can be read."""
    path = digests.digests_path(step_path)
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (ValueError, TypeError):
        return {}
