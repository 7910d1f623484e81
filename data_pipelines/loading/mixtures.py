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
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from data_pipelines import episodes, normalization
from data_pipelines.loading import config as config_lib
from data_pipelines.loading import named_mixtures
from data_pipelines.open_x import registry
from data_pipelines.sources import rlds_directory, synthetic
from data_pipelines.store import reader, shards
from defi_jax import embodiment, errors


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


def open_stores(config: config_lib.DataConfig) -> list[Component]:
    """Opens the sources of the mixture that a config names, in the order of its text.

    Raises:
        UserError: stores are absent; all of them are named, and what there is instead.
    """
    text, root = config.mixture, config.root
    alone = bool(root and text) and _is_store(pathlib.Path(root) / text)
    mixture = named_mixtures.Mixture(weights={text: 1.0}) if alone else parse(text)
    directories = {name: pathlib.Path(root) / name for name in mixture.weights}
    directories.pop(synthetic.NAME, None)
    if directories and not root:
        raise errors.UserError(
            f"the mixture names stores ({', '.join(directories)}) but data.root is empty",
            f"data.mixture={text!r}",
            "give --config.data.root=DIR, or try --config.data.mixture=synthetic",
        )
    absent = [name for name, directory in directories.items() if not _is_store(directory)]
    if absent:
        raise _absent_error(absent, root)
    components = []
    for name, weight in mixture.weights.items():
        directory = directories.get(name)
        source: Any = _made_up(config) if directory is None else reader.EpisodeStore(directory)
        if mixture.by_size:
            weight *= int(source.lengths.sum())
        components.append(Component(name=name, weight=weight, source=source, directory=directory))
    return components


def _made_up(config: config_lib.DataConfig) -> synthetic.SyntheticSource:
    return synthetic.SyntheticSource(image_size=config.image_size, action_dim=config.action_dim)


def find_records(root: str, name: str) -> epath.Path | None:
    """Returns the RLDS directory of a dataset: <root>/<name>, or root itself of that name."""
    places = [epath.Path(root) / name]
    places += [epath.Path(root)] if epath.Path(root).name == name else []
    return next((place for place in places if rlds_directory.is_dataset(place)), None)


def _absent_error(absent: Sequence[str], root: str) -> errors.UserError:
    """Says which of these names have nothing, or only RLDS files, and what there is."""
    where, convert = f"data.root={root}", "python launch/data.py convert --source=rlds"
    missing = [name for name in absent if find_records(root, name) is None]
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


def check_actions(components: Sequence[Component], where: str) -> None:
    """Checks that the actions of all datasets and robots of the components mean the same.

    Raises:
        UserError: they do not, see `embodiment.check_mix`; or nothing is known of some, and these
            are not the only ones, of one dataset and robot.
    """
    known, unknown = {}, {}
    for name, meta in _kinds(components).items():
        convention = registry.convention_of(meta)
        if convention is None:
            unknown[name] = (meta.source, meta.embodiment)
        else:
            known[name] = convention
    embodiment.check_mix(known, where)
    if len(set(unknown.values())) > (0 if known else 1):
        raise errors.UserError(
            f"nothing is known of what the actions of {', '.join(unknown)} mean"
            + (f", and those of {', '.join(known)} are known" if known else ""),
            where,
            "train joint on each alone, take the others as action-free video (convert "
            "--strip_actions), or describe the robots in defi_jax/embodiment.py",
        )
    for name in unknown:
        logging.warning("%s: nothing is known of what its actions mean", name)


def check_robot(components: Sequence[Component], robot: str) -> None:
    """Checks that the components' actions are those of a robot; see `embodiment.check_robot`."""
    for name, meta in _kinds(components).items():
        convention = registry.convention_of(meta)
        if convention is not None:
            embodiment.check_robot(robot, convention, name)


def _kinds(components: Sequence[Component]) -> dict[str, episodes.EpisodeMeta]:
    """Returns an episode of each dataset and robot that the components have actions of, by name."""
    found = {}
    for component in components:
        source = component.source
        metas = (source.meta(int(i)) for i in np.flatnonzero(source.has_actions))
        pairs = {(meta.source, meta.embodiment): meta for meta in metas}
        for (dataset, robot), meta in sorted(pairs.items()):
            is_alone = len(pairs) == 1
            name = component.name if is_alone else f"{component.name} ({dataset}, {robot})"
            found[name] = meta
    return found


def _is_store(directory: pathlib.Path) -> bool:
    pattern = f"episodes-*{shards.INDEX_SUFFIX}"
    return directory.is_dir() and next(directory.glob(pattern), None) is not None


def _subdirectories(root: epath.Path) -> list[epath.Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
