"""Files that appear whole or not at all."""

import os
import pathlib
import uuid


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
