"""ArrayRecord files as TFDS writes them, record by record, on disk or in a bucket."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from etils import epath

from defi_jax import errors

READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # random access, bounded memory
_REFETCH = "download this file again"


def salvage_records(path: epath.PathLike, *, start: int = 0) -> Iterator[bytes | errors.DataError]:
    """Yields the records of a file, and in the place of a damaged one what is wrong.

    Args:
        path: the file; one in a bucket is copied to the temporary directory while it is read.
        start: number of records to pass over, which are not read.

    Raises:
        DataError: the file is missing, or so damaged that none of its records can be read.
    """
    path = epath.Path(path)
    if not path.exists():
        raise errors.DataError("ArrayRecord file is missing", path, _REFETCH)
    with contextlib.ExitStack() as stack:
        local = path
        if "://" in str(path):
            local = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name
            path.copy(local)
        with errors.DataError.instead_of(
            (RuntimeError, ValueError), "ArrayRecord file cannot be read", path, _REFETCH
        ):
            reader = array_record_module.ArrayRecordReader(str(local), READER_OPTIONS)
            count = reader.num_records()
        for index in range(start, count):
            try:
                yield reader.read(index, index + 1)[0]
            except (RuntimeError, ValueError, IndexError) as error:
                yield errors.DataError(
                    f"damaged record ({error})", f"{path} record {index}", _REFETCH
                )
