"""What a loader reads: the components of its mixture, with all that their samples need.

config, components -> values of each data set -> normalisers -> sample kinds -> `Prepared`
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from data_pipelines import normalization
from data_pipelines.latents import cache
from data_pipelines.loading import config as config_lib
from data_pipelines.loading import mixtures, named_mixtures, sample_kinds
from data_pipelines.open_x import base, registry
from defi_jax import batch as batch_lib
from defi_jax import cli, errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A mixture that can be read.

    Attributes:
        components: of the mixture.
        kinds: how a sample of each is read, by name.
        normalizer: of the actions of all together.
        fingerprint: what decides the samples, JSON-able.
    """

    components: tuple[mixtures.Component, ...]
    kinds: Mapping[str, sample_kinds.SampleKind]
    normalizer: normalization.Normalizer
    fingerprint: Mapping[str, Any]


def prepare(
    config: config_lib.DataConfig,
    spec: batch_lib.Batch,
    components: Sequence[mixtures.Component],
    *,
    train: bool,
    seed: int,
) -> Prepared:
    """Returns the components with their sample kinds.

    Args:
        config: the data section.
        spec: abstract batch, of any batch size.
        components: opened sources.
        train: draw cameras and augmentations.
        seed: of what is drawn once for a run.

    Raises:
        UserError: data sets contradict each other, or the config names unknown ones.
        DataError: a component lacks actions or cameras.
    """
    kind = sample_kinds.kind_of(spec)
    if kind.actions is sample_kinds.Actions.SHARED:
        mixtures.check_actions(components, f"data.mixture={config.mixture!r}")
    configs = own_configs(config, components, seed)
    fingerprint = {
        "transforms": config.transforms,
        "rules": {name: own.own for name, own in configs.items()},
        "objective": kind.stage,
        "sources": [[c.name, c.weight, c.fingerprint()] for c in components],
    }
    if kind is sample_kinds.LatentClips:
        components = _with_latents(components, config.latents, configs)
        manifests = [[c.name, cache.cache_of(c.source).manifest] for c in components]
        fingerprint |= {"latents": manifests}
    normalizer, own = make_normalizers(config, kind.actions, components)
    fingerprint |= {"normalizer": normalizer.to_json()}
    of_each = {name: one.to_json() for name, one in own.items()}
    if any(values != normalizer.to_json() for values in of_each.values()):
        fingerprint |= {"normalizers": of_each}
    kinds = {
        name: kind(config=values, normalizer=own[name], train=train)
        for name, values in configs.items()
    }
    for component in components:
        _check_needs(component, kinds[component.name], len(config.cameras))
    return Prepared(
        components=tuple(components),
        kinds=kinds,
        normalizer=normalizer,
        fingerprint=fingerprint,
    )


def own_configs(
    config: config_lib.DataConfig, components: Sequence[mixtures.Component], seed: int
) -> dict[str, config_lib.DataConfig]:
    """Returns the values of each component by name, see `DataConfig.for_dataset`.

    Raises:
        UserError: `per_dataset` names data sets that nobody knows.
    """
    names, standards = [component.name for component in components], registry.standards()
    known = {*names, *standards}
    known.update(*(mixture.weights for mixture in named_mixtures.NAMED.values()))
    unknown = [name for name in config.per_dataset if name not in known]
    if unknown:
        what = "; ".join(f"no data set {name!r}" for name in unknown)
        hints = " ".join(cli.nearest(name, names) for name in unknown)
        raise errors.UserError(what, "data.per_dataset", hints)
    found = {}
    for component in components:
        standard = standards.get(component.source.meta(0).source)
        offset = base.DEFAULT_OFFSET if standard is None else standard.pair_offset
        found[component.name] = config.for_dataset(component.name, offset, seed)
    return found


def _with_latents(
    components: Sequence[mixtures.Component],
    directory: str,
    configs: Mapping[str, config_lib.DataConfig],
) -> list[mixtures.Component]:
    """The same components, their sources together with their latent caches below a directory."""
    root, found = pathlib.Path(directory), []
    for component in components:
        name = component.name
        source = cache.open_source(component.source, root / name, configs[name].cameras)
        found.append(dataclasses.replace(component, source=source))
    return found


def make_normalizers(
    config: config_lib.DataConfig,
    actions: sample_kinds.Actions,
    components: Sequence[mixtures.Component],
) -> tuple[normalization.Normalizer, dict[str, normalization.Normalizer]]:
    """Returns the actions' normaliser of all components together, and that of each by name.

    Statistics are those of the components that have actions of data.action_dim.

    Raises:
        DataError: shared actions are of another width than data.action_dim.
    """
    mask = tuple(dim not in config.unnormalized_dims for dim in range(config.action_dim))
    none = normalization.Normalizer(kind="none", statistics=None, mask=mask)
    used = []
    for component in components if actions is not sample_kinds.Actions.UNUSED else ():
        width = _action_width(component)
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
    kind = config.normalization
    if kind == "none" or not used:
        return none, {component.name: none for component in components}
    columns = {component.name: component.statistics()["actions"] for component in used}
    merged = normalization.merge(list(columns.values()))
    together = normalization.Normalizer(kind=kind, statistics=merged, mask=mask)
    own = {component.name: together for component in components}
    if actions is sample_kinds.Actions.OWN:
        for name, column in columns.items():
            own[name] = normalization.Normalizer(kind=kind, statistics=column, mask=mask)
    return together, own


def _action_width(component: mixtures.Component) -> int | None:
    """Returns A of the component's first episode with actions, None without any."""
    rows = np.flatnonzero(component.source.has_actions)
    return component.source.actions(int(rows[0])).shape[1] if len(rows) else None


def _check_needs(
    component: mixtures.Component, kind: sample_kinds.SampleKind, num_cameras: int
) -> None:
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
