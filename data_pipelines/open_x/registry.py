"""Dataset name (of its folder, or in its dataset_info.json) -> how it is read.

Every file in `datasets/` counts: adding a dataset is adding a file there. A file of your own,
outside of the package, counts once it is named (`--standardization`, `data.standardization`).
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import pathlib
import pkgutil
import sys
from collections.abc import Mapping

from data_pipelines import episodes
from data_pipelines.open_x import base, datasets
from defi_jax import cli, embodiment, errors

_own_files: dict[str, Mapping[str, base.Standard]] = {}  # by path, of this process


def standards(own_file: str | None = None) -> Mapping[str, base.Standard]:
    """Returns the package's by name in alphabetic order, and those of files of one's own.

    Args:
        own_file: Python file with a `STANDARDS` like those in `datasets/`, which go before the
            package's; "" for none, None for all files that were named in this process.

    Raises:
        UserError: the file cannot be used.
    """
    if own_file and own_file not in _own_files:
        _own_files[own_file] = _load_file(pathlib.Path(own_file))
    found = dict(_package())
    for path, own in _own_files.items():
        found |= own if own_file in (None, path) else {}
    return dict(sorted(found.items()))


def find(name: str) -> base.Standard:
    """Returns the standardisation of a dataset.

    Raises:
        UserError: there is none.
    """
    known = standards()
    if name not in known:
        raise errors.UserError(
            f"no standardisation for dataset '{name}'",
            "data_pipelines/open_x/datasets",
            f"add one file there, or give --name of a known one; {cli.nearest(name, known)}",
        )
    return known[name]


def convention_of(meta: episodes.EpisodeMeta) -> embodiment.Convention | None:
    """Returns the convention of the dataset or robot of an episode, None for others."""
    standard = standards().get(meta.source)
    if standard is not None:
        return standard.convention
    return embodiment.EMBODIMENTS.get(meta.embodiment)


@functools.cache
def _package() -> Mapping[str, base.Standard]:
    found: dict[str, base.Standard] = {}
    for module_info in pkgutil.iter_modules(datasets.__path__, f"{datasets.__name__}."):
        own = importlib.import_module(module_info.name).STANDARDS
        twice = found.keys() & own.keys()
        if twice:
            raise ValueError(f"{module_info.name} defines again: {', '.join(sorted(twice))}")
        found |= own
    return found


def _load_file(path: pathlib.Path) -> Mapping[str, base.Standard]:
    """Runs a Python file and returns its `STANDARDS`.

    Raises:
        UserError: it is not there, it fails, or has none.
    """
    fix = "write it like docs/open_x.md, 'Adding a dataset'"
    name = f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise errors.UserError("no such standardisation file (.py)", path, fix)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file raises
        what = f"standardisation file cannot be run ({type(error).__name__}: {error})"
        raise errors.UserError(what, path, fix) from error
    found = getattr(module, "STANDARDS", None)
    if not isinstance(found, Mapping) or not found:
        raise errors.UserError("standardisation file has no STANDARDS", path, fix)
    wrong = [key for key, value in found.items() if not isinstance(value, base.Standard)]
    if wrong:
        raise errors.UserError(f"STANDARDS of {', '.join(map(str, wrong))} are no Standard", path)
    return found
