"""Step folders without a commit marker: unfinished saves, and copies that lost it.

A save is announced by a note beside its step, `<step>.saving`, which goes with the commit. So a
folder without marker is one of four: whole by its digests, then it gets its marker back; not whole
but announced, then it never was and is removed; not whole and older than all steps that stay, then
its deletion was cut short and is finished; or damaged elsewhere, then it is set aside for a human.
Nothing that could be whole is ever deleted.
"""

import hashlib
import json
import logging
import re

from etils import epath

from defi_jax.checkpoints import digests, storage
from defi_jax.checkpoints import format as checkpoint_format

_NOTE_SUFFIX = ".saving"
_STEP = re.compile(r"\d+(\.(incomplete|corrupt|distrusted)\d*)?")


def announce(step_path: epath.Path) -> None:
    """Says that the step is about to be saved."""
    step_path.parent.mkdir(parents=True, exist_ok=True)
    _note(step_path).write_text("")


def acknowledge(step_path: epath.Path) -> None:
    """Takes the announcement back: the step is committed."""
    _note(step_path).unlink(missing_ok=True)


def remove_parts(step_path: epath.Path) -> None:
    """Removes what a failed save left, but for its announcement: its threads may still write."""
    if not (step_path / checkpoint_format.COMMIT_MARKER).exists():
        if step_path.exists():
            step_path.rmtree()
        digests.digests_path(step_path).unlink(missing_ok=True)


def settle(root: epath.Path, keep: int) -> None:
    """Judges every folder without marker, by one process, before anything else looks at them.

    Args:
        root: folder of the steps.
        keep: how many of the latest steps stay; 0 keeps all.
    """
    open_steps = unmarked(root)
    known = {int(name) for name in storage.names(root) if name.isdigit()}
    marked = sorted(known - {int(path.name) for path in open_steps})
    for path in open_steps:
        problem = checkpoint_format.damage(path, may_lack=checkpoint_format.COMMIT_MARKER)
        if not problem:
            logging.warning("%s: every digest agrees; its lost commit marker is restored", path)
            _restore_marker(path)
        elif _note(path).exists():
            logging.warning("%s: an unfinished save is removed (%s)", path, problem)
            remove_parts(path)
            acknowledge(path)
        elif keep and len(marked) >= keep and int(path.name) < marked[-keep]:
            logging.info("%s: its deletion is finished (%s)", path, problem)
            remove_parts(path)
        else:
            kept = _free_name(path, "incomplete")
            logging.warning(
                "%s: no commit marker, %s; kept as %s",
                *(path, problem, kept.name),
            )
            path.rename(kept)
    for name in storage.names(root):
        if name.endswith(_NOTE_SUFFIX):  # of saves that were committed, or never begun
            (root / name).unlink(missing_ok=True)


def unmarked(root: epath.Path) -> list[epath.Path]:
    """Step folders without a commit marker."""
    return [
        child
        for child in (root / name for name in storage.names(root) if name.isdigit())
        if child.is_dir() and not (child / checkpoint_format.COMMIT_MARKER).exists()
    ]


def folders(root: epath.Path) -> list[str]:
    """Names of all folders that are or once were steps, whole or not."""
    found = filter(_STEP.fullmatch, storage.names(root))
    return [name for name in found if not (root / name).is_file()]


def set_apart(step_path: epath.Path, suffix: str) -> None:
    """Renames a step to `<step>.<suffix>`, so that the run can write it again."""
    step_path.rename(_free_name(step_path, suffix))
    digests.digests_path(step_path).unlink(missing_ok=True)


def _restore_marker(path: epath.Path) -> None:
    """Writes the step's own marker last; the items have one each."""
    file_digests, marker = digests.digests_path(path), checkpoint_format.COMMIT_MARKER
    known = json.loads(file_digests.read_text()) if file_digests.exists() else {}
    names = sorted({name for name in known if epath.Path(name).name == marker} - {marker})
    texts = {}
    for name in [*names, marker]:
        if not (path / name).exists():
            # As the library writes it.
            texts[name] = f"Checkpoint commit was successful to {(path / name).parent}"
            known[name] = hashlib.sha256(texts[name].encode()).hexdigest()
    if file_digests.exists():
        digests.write_whole(file_digests, json.dumps(known, indent=1))
    for name, text in texts.items():
        (path / name).write_text(text)
    if not file_digests.exists():
        digests.write_file_digests(path)


def _note(step_path: epath.Path) -> epath.Path:
    return step_path.parent / f"{step_path.name}{_NOTE_SUFFIX}"


def _free_name(path: epath.Path, suffix: str) -> epath.Path:
    target, number = path.parent / f"{path.name}.{suffix}", 2
    while target.exists():
        target, number = path.parent / f"{path.name}.{suffix}{number}", number + 1
    return target
