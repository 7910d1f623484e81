"""Mixtures: which episode sources are trained on, in which shares, and all that they need.

"synthetic"                 made up on the fly, no files
"bridge"                    the episode store <root>/bridge
"bridge:0.7,sthv2:0.3"      two stores; 70 % of the samples come from the first
"a,b"                       two stores in equal shares, whatever their sizes
"octo_rtx"                  a name of `named_mixtures`; a store of that name goes first

    data section -> components -> values of each data set -> normalisers -> sample kinds
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from data_pipelines import episodes, normalization
from data_pipelines.latents import cache
from data_pipelines.loading import config as config_lib
from data_pipelines.loading import meaning, named_mixtures, sample_kinds, splits
from data_pipelines.sources import rlds, rlds_directory, synthetic
from data_pipelines.store import reader, shards
from data_pipelines.streaming import pool, scan
from defi_jax import batch as batch_lib
from defi_jax import cli, errors

STORE_ONLY = "convert the dataset (`python launch/data.py convert --source=rlds`) and train from it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """One source of a mixture.

    Attributes:
        name: name of the store.
        source: the episodes; of a streamed dataset the first one alone.
        directory: where its statistics are kept; None for sources without files.
        weight: share of the samples, relative to the other components'.
    """

    name: str
    source: episodes.EpisodeSource
    directory: pathlib.Path | None = None
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedComponent(Component):
    """A dataset of RLDS files; steps and statistics need all records once."""

    dataset: rlds.RldsSource

    def num_steps(self) -> int:
        """See `Component`."""
        return scan.scan(self.dataset).steps

    def fingerprint(self) -> str:
        """Identifies the dataset's files and how they are standardised."""
        return scan.digest(self.dataset)

    def statistics(self) -> dict[str, normalization.Statistics]:
        """See `Component`."""
        return scan.scan(self.dataset).statistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A mixture that can be read.

    Attributes:
        components: components of the mixture.
        is_streamed: whether they are RLDS files, all of them.
        kinds: how a sample of each is read, by name.
        normalizer: normalizer of the actions of all together.
        fingerprint: what decides the samples, JSON-able.
    """

    components: tuple[Component, ...]
    is_streamed: bool
    kinds: Mapping[str, sample_kinds.SampleKind]
    normalizer: normalization.Normalizer
    fingerprint: Mapping[str, Any]


def prepare(
    config: config_lib.DataConfig, spec: batch_lib.Batch, request: splits.Request
) -> Prepared:
    """Opens the mixture that a config names for batches of a spec.

    Args:
        config: the data section.
        spec: abstract batch, of any batch size.
        request: request of the run.

    Raises:
        UserError: data sets are absent or contradict each other, or the config names unknown ones.
        DataError: a component lacks actions or cameras.
    """
    components = open_components(config, can_stream=True)
    kind = sample_kinds.kind_of(spec)
    datasets = {component.name: component.source.meta(0).source for component in components}
    configs = config.by_dataset(datasets, request.seed)  # and knows standardisations of your own
    if kind.actions is sample_kinds.Actions.SHARED:
        by_name = {component.name: component.source for component in components}
        meaning.check_mix(by_name, f"data.mixture={config.mixture!r}")
    fingerprint = {
        "transforms": config.transforms,
        "rules": {name: own.rules for name, own in configs.items()},
        "objective": kind.stage,
        "sources": [[c.name, c.weight, c.fingerprint()] for c in components],
    }
    extra: dict[str, dict[str, Any]] = {name: {} for name in configs}
    if kind is sample_kinds.LatentClips:
        root = pathlib.Path(config.latents)
        for one in components:
            opened = cache.open_cache(one.source, root / one.name, configs[one.name].cameras)
            extra[one.name] = {"cache": opened}
        fingerprint["latents"] = [[name, own["cache"].manifest] for name, own in extra.items()]
    normalizer, own = _make_normalizers(config, kind.actions, components)
    fingerprint["normalizer"] = normalizer.to_json()
    of_each = {name: one.to_json() for name, one in own.items()}
    if any(values != fingerprint["normalizer"] for values in of_each.values()):
        fingerprint["normalizers"] = of_each
    is_streamed = isinstance(components[0], StreamedComponent)
    fingerprint |= {"streamed": True} if is_streamed else {"features": kind.has_fixed_text}
    kinds = {
        name: kind(config=values, normalizer=own[name], train=request.train, **extra[name])
        for name, values in configs.items()
    }
    for component in components:
        _check_needs(component, kinds[component.name], len(config.cameras))
    return Prepared(
        components=tuple(components),
        is_streamed=is_streamed,
        kinds=kinds,
        normalizer=normalizer,
        fingerprint=fingerprint,
    )


# ---- from names to components ----


def open_components(config: config_lib.DataConfig, *, can_stream: bool = False) -> list[Component]:
    """Opens the sources of the mixture that a config names, in the order of its text.

    Args:
        config: the data section.
        can_stream: whether RLDS directories are streamed where every name of the mixture has one.

    Raises:
        UserError: stores are absent; all of them are named, and what there is instead.
    """
    text, root = config.mixture, config.root
    alone = bool(root and text) and _is_store(pathlib.Path(root) / text)
    mixture = named_mixtures.Mixture(weights={text: 1.0}) if alone else parse(text)
    names = list(mixture.weights)
    records = find_records(root, names) if can_stream and root else {}
    counts_steps = mixture.by_size
    if len(records) == len(names):
        opened = [_open_stream(config, name, records[name]) for name in names]
        counts_steps &= len(names) > 1  # they need all records once
    else:
        opened = _open_stores(config, names)
    return [
        dataclasses.replace(
            one, weight=mixture.weights[one.name] * (one.num_steps() if counts_steps else 1)
        )
        for one in opened
    ]


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


def find_records(root: str, names: Sequence[str]) -> dict[str, epath.Path]:
    """Returns RLDS directories: <root>/<name>, or root itself of that name."""
    top, found = epath.Path(root), {}
    for name in names:
        places = [top / name, *([top] if top.name == name else [])]
        place = next((place for place in places if rlds_directory.is_dataset(place)), None)
        if place is not None:
            found[name] = place
    return found


def _open_stream(
    config: config_lib.DataConfig, name: str, directory: epath.Path
) -> StreamedComponent:
    if config.latents:
        raise errors.UserError("latents of streamed data", "data.latents", STORE_ONLY)
    logging.warning(
        "streaming %s: a restored run goes on at its record positions, which is not exact; %s "
        "to resume exactly",
        name,
        STORE_ONLY,
    )
    dataset = rlds.RldsSource(directory, config.rlds_options(name), max_damaged=None)
    usable = (found for found in dataset.read() if not isinstance(found, episodes.Reject))
    first = next(usable, None)
    if first is None:
        raise errors.DataError("no episode can be used", f"dataset {dataset.name}")
    return StreamedComponent(name=name, source=pool.EpisodeView(first), dataset=dataset)


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
    top = epath.Path(root)
    below = sorted(path for path in top.iterdir() if path.is_dir()) if top.is_dir() else []
    found = [path.name for path in below if _is_store(pathlib.Path(path))]
    records = [path.name for path in below if rlds_directory.is_dataset(path)]
    streamed = f"; as RLDS files: {', '.join(records)}" if records else ""
    known = {*found, *records, *named_mixtures.NAMED, synthetic.NAME}
    near = "".join(cli.nearest(name, known, otherwise="") + " " for name in missing).lstrip()
    return errors.UserError(
        f"no episode store or RLDS directory named {', '.join(missing)}",
        where,
        f"{near}available: {', '.join([*found, synthetic.NAME])}{streamed}; "
        "write stores with `python launch/data.py convert`",
    )


def _is_store(directory: pathlib.Path) -> bool:
    return bool(shards.find_indexes(directory))


# ---- what the components need ----


def _make_normalizers(
    config: config_lib.DataConfig,
    actions: sample_kinds.Actions,
    components: Sequence[Component],
) -> tuple[normalization.Normalizer, dict[str, normalization.Normalizer]]:
    """Returns the actions' normaliser of all components together, and that of each by name.

    Statistics are those of the components that have actions of data.action_dim.

    Raises:
        DataError: shared actions are of another width than data.action_dim.
    """
    mask = tuple(dim not in config.unnormalized_dims for dim in range(config.action_dim))
    used = []
    for component in components if actions is not sample_kinds.Actions.UNUSED else ():
        rows = np.flatnonzero(component.source.has_actions)
        first = component.source.actions(int(rows[0])) if len(rows) else None
        width = None if first is None else first.shape[1]
        if width == config.action_dim:
            used.append(component)
        elif width is not None and actions is sample_kinds.Actions.SHARED:
            raise errors.DataError(
                f"actions have {width} dimensions, data.action_dim is {config.action_dim}",
                f"data set {component.name!r}",
                f"give --config.data.action_dim={width}",
            )
        elif width is not None:
            logging.warning("%s: %d-D actions stay out of the probe", component.name, width)
    if config.normalization == "none" or not used:
        none = normalization.Normalizer(kind="none", statistics=None, mask=mask)
        return none, dict.fromkeys((component.name for component in components), none)

    def make(statistics: normalization.Statistics) -> normalization.Normalizer:
        kind = config.normalization
        return normalization.Normalizer(kind=kind, statistics=statistics, mask=mask)

    columns = {component.name: component.statistics()["actions"] for component in used}
    together = make(normalization.merge(list(columns.values())))
    own = dict.fromkeys((component.name for component in components), together)
    if actions is sample_kinds.Actions.OWN:
        own |= {name: make(column) for name, column in columns.items()}
    return together, own


def _check_needs(component: Component, kind: sample_kinds.SampleKind, num_cameras: int) -> None:
    """Raises DataError where no episode has the actions and cameras that the kind takes."""
    source, where = component.source, f"data set {component.name!r}"
    cameras = kind.config.cameras
    if kind.actions is sample_kinds.Actions.SHARED:
        if len(cameras) != num_cameras:
            raise errors.UserError(
                f"joint takes {num_cameras} cameras of every data set, not {cameras}", where
            )
        if not source.has_actions.any():
            raise errors.DataError(
                "no episode has actions, which joint training needs",
                where,
                "leave it out of data.mixture; action-free video trains gfdm and gidm",
            )
    usable = kind.can_use(source)
    if not usable.any():
        some = itertools.islice(range(len(source)), 100)
        available = sorted({camera for i in some for camera in source.meta(i).cameras})
        raise errors.DataError(
            f"no episode has the cameras {', '.join(cameras)}",
            where,
            f"available: {', '.join(available)}; give --config.data.cameras",
        )
    if not usable.all():
        left_out = int((~usable).sum())
        logging.warning("%s: %d episodes lack actions or cameras", component.name, left_out)
