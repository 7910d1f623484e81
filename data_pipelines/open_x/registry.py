"""Dataset name (the `name` in its dataset_info.json) -> how it is read.

Every file in `datasets/` counts: adding a dataset is adding a file there.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping

from data_pipelines import episodes
from data_pipelines.open_x import base, datasets
from defi_jax import cli, embodiment, errors


@functools.cache
def standards() -> Mapping[str, base.Standard]:
    """Returns all of them, by name in alphabetic order."""
    found: dict[str, base.Standard] = {}
    for module_info in pkgutil.iter_modules(datasets.__path__, f"{datasets.__name__}."):
        own = importlib.import_module(module_info.name).STANDARDS
        twice = found.keys() & own.keys()
        if twice:
            raise ValueError(f"{module_info.name} defines again: {', '.join(sorted(twice))}")
        found |= own
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
