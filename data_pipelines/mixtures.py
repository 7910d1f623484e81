"""Mixtures: which episode sources are trained on, in which shares.

"synthetic"                 made up on the fly, no files
"bridge"                    the episode store <root>/bridge
"bridge:0.7,sthv2:0.3"      two stores; 70 % of the samples come from the first
"a,b"                       two stores in equal shares, whatever their sizes
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from data_pipelines import episode_files, episodes, statistics
from data_pipelines.sources import synthetic
from defi_jax import errors

Named = Mapping[str, Mapping[str, float]]

NAMED: Named = {}  # mixture name -> {store name: share}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """One source of a mixture.

    Attributes:
        name: of the store.
        weight: share of the samples, relative to the other components'.
        source: the episodes.
        directory: where its statistics are kept; None for sources without files.
    """

    name: str
    weight: float
    source: episodes.EpisodeSource
    directory: pathlib.Path | None

    def statistics(self) -> dict[str, statistics.Statistics]:
        """Returns the statistics of its columns, kept beside the store."""
        return statistics.cached(self.source, self.directory)


def parse(text: str, named: Named = NAMED) -> dict[str, float]:
    """Returns store name to weight, in the order of the text.

    Raises:
        UserError: the text is empty, a weight is not a positive number, or a name comes twice.
    """
    where = f"data.mixture={text!r}"
    fix = "write store[:weight],store[:weight] or synthetic"
    if text in named:
        return dict(named[text])
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition(":"))
        try:
            weight = float(number) if ":" in part else 1.0
        except ValueError:
            weight = float("nan")
        if not name or not 0 < weight < float("inf"):
            raise errors.UserError(f"cannot read {part!r} as store[:weight]", where, fix)
        if name in weights:
            raise errors.UserError(f"{name!r} comes twice", where, fix)
        weights[name] = weight
    return weights


def load(
    text: str, root: str, make_synthetic: Callable[[], synthetic.SyntheticSource]
) -> list[Component]:
    """Opens the sources of a mixture.

    Args:
        text: see the module's docstring.
        root: directory of the episode stores.
        make_synthetic: builds the source named "synthetic".

    Returns:
        The components, in the order of the text.

    Raises:
        UserError: stores are absent; all of them are named, and what there is instead.
    """
    weights = parse(text)
    directories = {name: pathlib.Path(root) / name for name in weights if name != synthetic.NAME}
    if directories and not root:
        raise errors.UserError(
            f"the mixture names stores ({', '.join(directories)}) but data.root is empty",
            f"data.mixture={text!r}",
            "give --config.data.root=DIR, or try --config.data.mixture=synthetic",
        )
    absent = [name for name, directory in directories.items() if not _is_store(directory)]
    if absent:
        names = [path.name for path in _subdirectories(pathlib.Path(root)) if _is_store(path)]
        raise errors.UserError(
            f"no episode store named {', '.join(absent)}", f"data.root={root}",
            f"available: {', '.join([*names, synthetic.NAME])}; "
            "write stores with `python launch/data.py convert`",
        )  # fmt: skip
    return [
        Component(
            name=name,
            weight=weight,
            source=_open(directories.get(name), make_synthetic),
            directory=directories.get(name),
        )
        for name, weight in weights.items()
    ]


def _open(directory: Any, make_synthetic: Callable[[], Any]) -> Any:
    """Opens a store, or makes the synthetic source where there is no directory."""
    return make_synthetic() if directory is None else episodes.EpisodeStore(directory)


def _is_store(directory: pathlib.Path) -> bool:
    pattern = f"episodes-*{episode_files.INDEX_SUFFIX}"
    return directory.is_dir() and next(directory.glob(pattern), None) is not None


def _subdirectories(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
