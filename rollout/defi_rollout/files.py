"""Files and directories that appear whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator

from defi_rollout import errors


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a local file at once: a reader, and a second writer, see the old one or the new one.

    Args:
        path: where the file goes.
        content: bytes, or text to be encoded as UTF-8.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_directory(target: pathlib.Path, *, replace: bool = False) -> Iterator[pathlib.Path]:
    """Gives a local directory that becomes `target` when the block succeeds, and vanishes if not.

    `replace` deletes what is at `target` by then.

    Raises:
        UserError: it cannot be made, or something else is there by then.
    """
    what, fix = "output cannot be made", "choose another --output"
    with errors.UserError.instead_of(OSError, what, target, fix):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)  # mkdtemp makes private ones
        if replace and target.exists():
            shutil.rmtree(target)
        with errors.UserError.instead_of(OSError, what, target, fix):
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
