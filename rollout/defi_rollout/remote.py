"""A directory in a bucket: `gs://`, or whatever else fsspec opens."""

import os
import pathlib

from defi_rollout import errors

_INSTALL = "pip install 'defi-rollout[gcs]' for gs://, or copy it to this machine"


def is_remote(path: "str | os.PathLike[str]") -> bool:
    """Whether a path is a URL, such as "gs://bucket/run/bundle"."""
    return "://" in os.fspath(path)


class RemoteDirectory:
    """The files of one directory.

    Args:
        url: where it is.

    Raises:
        UserError: no package for this kind of URL; by the methods too, where something is not
            there or cannot be reached.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        with errors.UserError.instead_of(
            (ImportError, ValueError), "cannot open this kind of URL", url, _INSTALL
        ):
            import fsspec.core

            self._files, self._root = fsspec.core.url_to_fs(self.url)

    def names(self) -> "set[str]":
        """Returns the names of its files and folders."""
        with self._reached(""):
            entries = self._files.ls(self._root, detail=False)
        return {entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries}

    def size(self, name: str) -> int:
        """Returns the bytes of a file."""
        with self._reached(name):
            return int(self._files.size(f"{self._root}/{name}"))

    def read(self, name: str, most: int) -> bytes:
        """Returns the content of a file, the first `most` bytes of it."""
        with self._reached(name):
            return self._files.cat_file(f"{self._root}/{name}", start=0, end=most)

    def copy(self, name: str, target: pathlib.Path) -> None:
        """Copies a file to this machine."""
        with self._reached(name):
            self._files.get_file(f"{self._root}/{name}", str(target))

    def _reached(self, name: str):
        """Says the errors of any file system in one way; each has errors of its own."""
        where = f"{self.url}/{name}" if name else self.url
        fix = "check the URL, the network and your rights to read it"
        return errors.UserError.instead_of(Exception, "cannot read", where, fix)
