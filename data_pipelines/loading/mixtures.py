"""Mixtures: which episode sources are trained on, in which shares.

"synthetic"                 made up on the fly, no files
"bridge"                    the episode store <root>/bridge
"bridge:0.7,sthv2:0.3"      two stores; 70 % of the samples come from the first
"a,b"                       two stores in equal shares, whatever their sizes
"octo_rtx"                  a name of `named_mixtures`; a store of that name goes first
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from data_pipelines import episodes, normalization
from data_pipelines.loading import config as config_lib
from data_pipelines.loading import named_mixtures
from data_pipelines.sources import rlds_directory, synthetic
from data_pipelines.store import reader, shards
from defi_jax import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """One source of a mixture.

    Attributes:
        name: name of the store.
        source: the episodes.
        directory: where its statistics are kept; None for sources without files.
        weight: share of the samples, relative to the other components'.
    """

    name: str
    source: episodes.EpisodeSource
    directory: pathlib.Path | None
    weight: float = 1.0

    def num_steps(self) -> int:
        """Returns the number of frames of all episodes."""
        return int(self.source.lengths.sum())

    def fingerprint(self) -> str:
        """Returns a digest of all content."""
        return self.source.fingerprint()

    def statistics(self) -> dict[str, normalization.Statistics]:
        """Returns the statistics of its columns, kept beside the store."""
        return normalization.cached(self.source, self.directory)


def parse(text: str) -> named_mixtures.Mixture:
    """Returns the weights of the stores, in the order of the text.

    Raises:
        UserError: the text is empty, a weight is not a positive number, or a name comes twice.
    """
    where = f"data.mixture={text!r}"
    fix = "write store[:weight],store[:weight] or synthetic"
    if text in named_mixtures.NAMED:
        return named_mixtures.NAMED[text]
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
    return named_mixtures.Mixture(weights=weights, by_size=False)


def open_components(
    config: config_lib.DataConfig,
    open_records: Callable[[config_lib.DataConfig, str, epath.Path], Component] | None = None,
) -> list[Component]:
    """Opens the sources of the mixture that a config names, in the order of its text.

    Args:
        config: the data section.
        open_records: opens the RLDS directory of a data set of this name; used where every name of
            the mixture has one. None to take stores alone.

    Raises:
        UserError: stores are absent; all of them are named, and what there is instead.
    """
    text, root = config.mixture, config.root
    alone = bool(root and text) and _is_store(pathlib.Path(root) / text)
    mixture = named_mixtures.Mixture(weights={text: 1.0}) if alone else parse(text)
    names = list(mixture.weights)
    records = {} if open_records is None or not root else find_records(root, names)
    if open_records is not None and len(records) == len(names):
        opened = [open_records(config, name, records[name]) for name in names]
        counts_steps = mixture.by_size and len(names) > 1
    else:
        opened = _open_stores(config, names)
        counts_steps = mixture.by_size
    return [
        dataclasses.replace(
            one, weight=mixture.weights[one.name] * (one.num_steps() if counts_steps else 1)
        )
        for one in opened
    ]


def find_records(root: str, names: Sequence[str]) -> dict[str, epath.Path]:
    """Returns RLDS directories: <root>/<name>, or root itself of that name."""
    top, found = epath.Path(root), {}
    for name in names:
        places = [top / name, *([top] if top.name == name else [])]
        place = next((place for place in places if rlds_directory.is_dataset(place)), None)
        if place is not None:
            found[name] = place
    return found


def _open_stores(config: config_lib.DataConfig, names: Sequence[str]) -> list[Component]:
    """Opens episode stores, and the source that makes synthetic episodes up."""
    directories = {name: pathlib.Path(config.root) / name for name in names}
    directories.pop(synthetic.NAME, None)
    if directories and not config.root:
        raise errors.UserError(
            f"the mixture names stores ({', '.join(directories)}) but data.root is empty",
            f"data.mixture={config.mixture!r}",
            "give --config.data.root=DIR, or try --config.data.mixture=synthetic",
        )
    absent = [name for name, directory in directories.items() if not _is_store(directory)]
    if absent:
        raise _absent_error(absent, config.root)
    components = []
    for name in names:
        directory = directories.get(name)
        source: Any = (
            synthetic.SyntheticSource(image_size=config.image_size, action_dim=config.action_dim)
            if directory is None
            else reader.EpisodeStore(directory)
        )
        components.append(Component(name=name, source=source, directory=directory))
    return components


def _absent_error(absent: Sequence[str], root: str) -> errors.UserError:
    """Says which of these names have nothing, or only RLDS files, and what there is."""
    where, convert = f"data.root={root}", "python launch/data.py convert --source=rlds"
    found_records = find_records(root, absent)
    missing = [name for name in absent if name not in found_records]
    if not missing:
        return errors.UserError(
            f"{', '.join(absent)}: RLDS files, and the other names of the mixture are none; it is "
            "streamed as a whole or read from stores as a whole",
            where,
            f"write stores of them: `{convert}`",
        )
    below = _subdirectories(epath.Path(root))
    found = [path.name for path in below if _is_store(pathlib.Path(path))]
    records = [path.name for path in below if rlds_directory.is_dataset(path)]
    streamed = f"; as RLDS files: {', '.join(records)}" if records else ""
    return errors.UserError(
        f"no episode store or RLDS directory named {', '.join(missing)}",
        where,
        f"available: {', '.join([*found, synthetic.NAME])}{streamed}; "
        "write stores with `python launch/data.py convert`",
    )


def _is_store(directory: pathlib.Path) -> bool:
    pattern = f"episodes-*{shards.INDEX_SUFFIX}"
    return directory.is_dir() and next(directory.glob(pattern), None) is not None


def _subdirectories(root: epath.Path) -> list[epath.Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
