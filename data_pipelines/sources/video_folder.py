"""The videos below a folder, as captions and annotations name them."""

from __future__ import annotations

import collections
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterator

# Files of these names are expected to have a caption, those that cannot be read included.
_IS_VIDEO = re.compile(
    r"\.(mp4|m4v|mov|qt|3gp|3g2|webm|mkv|avi|flv|f4v|m?ts|m2ts|gif|ogv|wmv|asf|mpe?g|vob|mxf|webp|heic"
    r"|avif)",
    re.IGNORECASE,
)


class VideoFolder:
    """The videos below a directory, found by relative path, name or name without suffix.

    Names are compared in Unicode's composed form, because file systems and editors differ in it.
    Files and folders whose name begins with a dot are no part of the data set.

    Attributes:
        paths: paths of all files with a video's suffix, sorted.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory
        names = {path: path.relative_to(directory).as_posix() for path in _walk(directory)}
        files = sorted(path for path, name in names.items() if not re.search(r"(^|/)\.", name))
        self.paths = [p for p in files if _IS_VIDEO.fullmatch(p.suffix) and p.is_file()]
        by_name, by_stem, by_path = (collections.defaultdict(list) for _ in range(3))
        for path in files:  # whatever the suffix: what a caption names is there
            by_name[compose(path.name)].append(path)
            by_path[compose(names[path])].append(path)
        for path in self.paths:
            by_stem[compose(path.stem)].append(path)
        # A path decides where names do not, and a whole name before one without suffix.
        self._found = by_stem | by_name | by_path

    def find(self, name: str) -> list[pathlib.Path]:
        """Returns the videos of this name."""
        relative = compose(name).removeprefix("./")
        if relative in self._found:
            return self._found[relative]
        path = self._directory / relative  # through a link into a folder that is listed already
        is_inside = ".." not in path.parts and not os.path.isabs(relative)
        return [path] if is_inside and os.path.isfile(path) else []


def _walk(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields what lies below, folders included; links are followed, into each folder once."""
    seen = set()
    for folder, below, names in os.walk(directory, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort()
        yield from (pathlib.Path(folder, name) for name in (*below, *names))


def compose(name: str) -> str:
    """Returns a file's name in Unicode's normal form C, with slashes between folders."""
    return unicodedata.normalize("NFC", name.strip().replace("\\", "/"))
