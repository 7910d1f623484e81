"""What a loader reads: the components of its mixture, with all that the objective needs of them."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from data_pipelines import normalization
from data_pipelines.latents import cache
from data_pipelines.loading import batches, mixtures, sample_kinds, sampling_rules
from data_pipelines.sources import synthetic
from defi_jax import errors


def open_components(config: Any) -> list[mixtures.Component]:
    """Opens the sources of the mixture that the `data` section names."""
    make_synthetic = functools.partial(
        synthetic.SyntheticSource, image_size=config.image_size, action_dim=config.action_dim
    )
    return mixtures.load(config.mixture, config.root, make_synthetic)


def with_latents(
    components: Sequence[mixtures.Component],
    directory: str,
    rules: Mapping[str, sampling_rules.Rules],
) -> list[mixtures.Component]:
    """The same components, their sources together with their latent caches below a directory."""
    root, found = pathlib.Path(directory), []
    for component in components:
        name, cameras = component.name, rules[component.name].cameras
        source = cache.open_source(component.source, root / name, cameras)
        found.append(dataclasses.replace(component, source=source))
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A mixture that can be read.

    Attributes:
        components: of the mixture.
        rules: of each, by name.
        readers: of each, by name.
        normalizer: of the actions of all together.
        normalizers: of the actions of each, by name, as they are read; joint has one head and
            takes `normalizer` for all.
    """

    components: tuple[mixtures.Component, ...]
    rules: Mapping[str, sampling_rules.Rules]
    readers: Mapping[str, sample_kinds.Reader]
    normalizer: normalization.Normalizer
    normalizers: Mapping[str, normalization.Normalizer]

    def describe(self, config: Any) -> dict[str, Any]:
        """Returns what decides how a sample is read, for the fingerprint."""
        return {
            "transforms": sample_kinds.describe(config),
            "rules": {name: dataclasses.asdict(own) for name, own in self.rules.items()},
            "normalizer": self.normalizer.to_json(),
            **self._describe_own(),
        }

    def _describe_own(self) -> dict[str, Any]:
        own = {name: normalizer.to_json() for name, normalizer in self.normalizers.items()}
        is_one = all(values == self.normalizer.to_json() for values in own.values())
        return {} if is_one else {"normalizers": own}


def prepare(
    config: Any,
    objective_name: str,
    components: Sequence[mixtures.Component],
    rules: Mapping[str, sampling_rules.Rules],
    *,
    train: bool,
    with_images: bool,
) -> Opened:
    """Returns the components with their readers; see `readers.make_reader`."""
    normalizer, normalizers = make_normalizers(config, objective_name, components)
    return Opened(
        components=tuple(components),
        rules=rules,
        readers={
            name: sample_kinds.make_reader(
                config,
                objective_name,
                own,
                normalizers[name],
                train=train,
                with_images=with_images,
            )
            for name, own in rules.items()
        },
        normalizer=normalizer,
        normalizers=normalizers,
    )


def make_normalizers(
    config: Any, objective_name: str, components: Sequence[mixtures.Component]
) -> tuple[normalization.Normalizer, dict[str, normalization.Normalizer]]:
    """Returns the actions' normaliser of all components together, and that of each by name.

    Statistics are those of the components that have actions of data.action_dim. GIDM takes each
    dataset's own, as officially; joint, whose actions mean the same, one for all.

    Raises:
        DataError: joint is given actions of another width than data.action_dim.
    """
    mask = tuple(dim not in config.unnormalized_dims for dim in range(config.action_dim))
    used = []
    for component in components:
        width = _action_width(component)
        if width == config.action_dim:
            used.append(component)
        elif width is not None and objective_name == "joint":
            raise errors.DataError(
                f"actions have {width} dimensions, data.action_dim is {config.action_dim}",
                f"data set {component.name!r}",
                f"give --config.data.action_dim={width}",
            )
        elif width is not None and objective_name == "gidm":
            logging.warning("%s: %d-D actions stay out of the probe", component.name, width)
    kind = config.normalization
    if kind == "none" or objective_name == "gfdm" or not used:
        none = normalization.Normalizer(kind="none", statistics=None, mask=mask)
        return none, {component.name: none for component in components}
    parts = {component.name: component.statistics()["actions"] for component in used}
    merged = normalization.merge(list(parts.values()))
    together = normalization.Normalizer(kind=kind, statistics=merged, mask=mask)
    normalizers = {component.name: together for component in components}
    if objective_name == "gidm":
        normalizers |= {
            name: normalization.Normalizer(kind=kind, statistics=own, mask=mask)
            for name, own in parts.items()
        }
    return together, normalizers


def _action_width(component: mixtures.Component) -> int | None:
    """Returns A of the component's first episode with actions, None without any."""
    rows = np.flatnonzero(component.source.has_actions)
    return component.source.actions(int(rows[0])).shape[1] if len(rows) else None


def divide(
    components: Sequence[mixtures.Component],
    own_readers: Mapping[str, sample_kinds.Reader],
    config: Any,
    split: str,
) -> tuple[batches.Part, ...]:
    """Returns the components' samples of a split, read by the reader of their name.

    Raises:
        DataError: a component lacks actions, cameras or frames.
        UserError: no episode of any component is held out.
    """
    parts = []
    for component in components:
        source, reader = component.source, own_readers[component.name]
        usable = has_needs(component, reader)
        held_out = np.array(
            [batches.is_held_out(name, config.holdout_percent) for name in source.episode_ids]
        )
        rows = np.flatnonzero(usable & (held_out == (split == "eval")))
        table = batches.Table(rows, reader.num_samples(source.lengths[rows]))
        if len(table):
            parts.append(
                batches.Part(
                    name=component.name,
                    weight=component.weight,
                    source=source,
                    reader=reader,
                    table=table,
                )
            )
        elif split == "train":
            raise errors.DataError(
                "no episode is of usable length or left for training",
                f"data set {component.name!r}",
                "leave it out of data.mixture, lower data.holdout_percent or raise data.max_frames",
            )
    if not parts:
        names = ", ".join(component.name for component in components)
        raise errors.UserError(
            f"no episode of {names} is held out for evaluation",
            f"data.holdout_percent={config.holdout_percent}",
            "raise it, collect more episodes, or set eval_batches=0",
        )
    return tuple(parts)


def has_needs(component: mixtures.Component, reader: sample_kinds.Reader) -> np.ndarray:
    """Returns bool[episodes], those that have the actions and cameras the objective takes."""
    source, where = component.source, f"data set {component.name!r}"
    usable = np.ones(len(source), bool)
    if reader.needs_actions:
        usable = source.has_actions
        if not usable.any():
            raise errors.DataError(
                "no episode has actions, which joint training needs",
                where,
                "leave it out of data.mixture; action-free video trains gfdm and gidm",
            )
    with_cameras = usable & reader.has_cameras(source)
    if not with_cameras.any():
        some = itertools.islice(range(len(source)), 100)
        available = sorted({camera for i in some for camera in source.meta(i).cameras})
        raise errors.DataError(
            f"no episode has the cameras {', '.join(reader.camera_names)}",
            where,
            f"available: {', '.join(available)}; give --config.data.cameras",
        )
    left_out = len(source) - int(with_cameras.sum())
    if left_out:
        logging.warning("%s: %d episodes lack actions or cameras", component.name, left_out)
    return with_cameras
