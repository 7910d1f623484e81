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

from data_pipelines import episodes, normalization
from data_pipelines.latents import cache
from data_pipelines.loading import config as config_lib
from data_pipelines.loading import mixtures, sample_kinds, sampling
from data_pipelines.open_x import registry
from defi_jax import batch as batch_lib
from defi_jax import embodiment, errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A mixture that can be read.

    Attributes:
        components: components of the mixture.
        kinds: how a sample of each is read, by name.
        normalizer: normalizer of the actions of all together.
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
    request: sampling.Request,
) -> Prepared:
    """Returns the components with their sample kinds.

    Args:
        config: the data section.
        spec: abstract batch, of any batch size.
        components: opened sources.
        request: request of the run.

    Raises:
        UserError: data sets contradict each other, or the config names unknown ones.
        DataError: a component lacks actions or cameras.
    """
    kind = sample_kinds.kind_of(spec)
    sources = {component.name: component.source.meta(0).source for component in components}
    configs = config.by_dataset(sources, request.seed)  # and knows standardisations of your own
    if kind.actions is sample_kinds.Actions.SHARED:
        _check_meaning(components, f"data.mixture={config.mixture!r}")
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
    normalizer, own = make_normalizers(config, kind.actions, components)
    fingerprint |= {"normalizer": normalizer.to_json()}
    of_each = {name: one.to_json() for name, one in own.items()}
    if any(values != normalizer.to_json() for values in of_each.values()):
        fingerprint |= {"normalizers": of_each}
    kinds = {
        name: kind(config=values, normalizer=own[name], train=request.train, **extra[name])
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


def _check_meaning(components: Sequence[mixtures.Component], where: str) -> None:
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


def check_robot(components: Sequence[mixtures.Component], robot: str) -> None:
    """Checks that the components' actions are those of a robot; see `embodiment.check_robot`."""
    for name, meta in _kinds(components).items():
        convention = registry.convention_of(meta)
        if convention is not None:
            embodiment.check_robot(robot, convention, name)


def _kinds(components: Sequence[mixtures.Component]) -> dict[str, episodes.EpisodeMeta]:
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
