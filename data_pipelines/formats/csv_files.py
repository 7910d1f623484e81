"""Tables that people write by hand or export from a spreadsheet.

Columns are found by name in the first line, whatever their order and case; a byte order mark and
spaces around a cell are removed; the delimiter is comma, semicolon or tab, whichever the first line
has most.
"""

from __future__ import annotations

import csv
import io
import itertools
import pathlib
from collections.abc import Iterator, Sequence

from defi_jax import errors

SUFFIXES = (".csv", ".tsv")
_DELIMITERS = ",;\t"
_SHOWN = 12  # columns named by an error


def read_header(path: pathlib.Path) -> list[str]:
    """Returns the names of the columns, in lower case; [] where the file is no table."""
    if path.suffix.lower() not in SUFFIXES:
        return []
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return _parse_header(file.readline())[0]


def read_text(path: pathlib.Path) -> str:
    """Reads what people wrote; bytes that are not UTF-8 become lone surrogates.

    Raises:
        OSError, ValueError: it cannot be read, or is of another encoding altogether.
    """
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    if "\0" in text:
        raise ValueError("not UTF-8 but perhaps UTF-16")
    return text


def read_rows(
    path: pathlib.Path, columns: Sequence[str], *, what: str, fix: str
) -> Iterator[dict[str, str]]:
    """Yields the named cells of each row that is not empty, without those that it is too short for.

    The table must have these columns, given in lower case; errors call it `what`, "caption file".

    Raises:
        DataError: unreadable, damaged, or without one of the columns.
    """
    kinds = (OSError, ValueError, csv.Error)
    with errors.DataError.instead_of(kinds, f"{what} cannot be used", path, fix):
        text = read_text(path)
        header, delimiter = _parse_header(io.StringIO(text, newline=None).readline())
        missing = [name for name in columns if name not in header]
        if missing:
            found = ", ".join(header[:_SHOWN]) + (", ..." if len(header) > _SHOWN else "")
            raise ValueError(f"without column {', '.join(missing)}; it has: {found}")
        twice = [name for name in columns if header.count(name) > 1]
        if twice:
            raise ValueError(f"several columns {', '.join(twice)}")
        places = [header.index(name) for name in columns]
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        for row in itertools.islice(rows, 1, None):
            if any(cell.strip() for cell in row[len(header) :]):
                raise ValueError(
                    f"line {rows.line_num} has {len(row)} cells for {len(header)} columns: "
                    f"put texts that hold {delimiter!r} in quotes"
                )
            if any(cell.strip() for cell in row):
                named = zip(columns, places, strict=True)
                yield {name: row[place].strip() for name, place in named if place < len(row)}
                if text.count('"') % 2 and any("\n" in cell for cell in row):
                    raise ValueError(f"a quote before line {rows.line_num} is not closed")


def _parse_header(line: str) -> tuple[list[str], str]:
    """Returns the columns' names and the delimiter."""
    delimiter = max(_DELIMITERS, key=line.count)
    cells = next(csv.reader([line.strip()], delimiter=delimiter, skipinitialspace=True), [])
    return [cell.strip().lower() for cell in cells], delimiter
