"""Rules by dataset: how samples are taken from each component of a mixture.

The `data` section says how for all of them, `data.per_dataset` what differs where:

    per_dataset = {"calvin": {"cameras": ("static", "gripper"), "camera_weights": (0.75, 0.25)}}

Rules of a dataset that is known but not in the mixture do nothing; unknown names are an error.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import episodes
from data_pipelines.loading import mixtures, named_mixtures
from data_pipelines.open_x import base, registry
from defi_jax import cli, errors

OFFICIAL_OFFSET = ("dataset",)  # as data.pair_offset: the official one of each dataset
PAIR_DRAWS = ("sample", "run")
WHERE = "data.per_dataset"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """How samples are taken from one dataset.

    Attributes:
        cameras: GFDM and GIDM draw one a sample among those an episode has; joint takes all.
        camera_weights: of each in that draw; () for equal ones.
        frame_stride: control steps between a clip's frames, and between the starts of clips; 0 for
            one clip an episode, spread over it.
        max_frames: longer episodes give no clip; 0 for any length.
        pair_offset: smallest and largest number of control steps between the frames of a pair.
    """

    cameras: tuple[str, ...]
    camera_weights: tuple[float, ...]
    frame_stride: int
    max_frames: int
    pair_offset: tuple[int, int]

    def __post_init__(self):
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"no camera, or one twice: {self.cameras}")
        if self.camera_weights and len(self.camera_weights) != len(self.cameras):
            raise ValueError(f"{len(self.camera_weights)} weights for cameras {self.cameras}")
        if not all(0 < weight < float("inf") for weight in self.camera_weights):
            raise ValueError(f"camera weights {self.camera_weights} are not positive numbers")
        if not 1 <= self.pair_offset[0] <= self.pair_offset[1]:
            raise ValueError(f"impossible frame pair: offsets {self.pair_offset}")
        if self.frame_stride < 0 or self.max_frames < 0:
            numbers = f"frame_stride {self.frame_stride}, max_frames {self.max_frames}"
            raise ValueError(f"impossible clip: {numbers}")


KEYS = tuple(field.name for field in dataclasses.fields(Rules))


def by_component(
    config: Any, components: Sequence[mixtures.Component], seed: int
) -> dict[str, Rules]:
    """Returns the rules of each component of a mixture, by name.

    Args:
        config: the `data` section.
        components: of the mixture.
        seed: of the offsets, where they are drawn once for a run.

    Raises:
        UserError: `per_dataset` names unknown datasets or keys, or a rule is impossible.
    """
    _check_names(config, [component.name for component in components])
    if config.pair_draw not in PAIR_DRAWS:
        raise errors.UserError(
            f"unknown draw {config.pair_draw!r}",
            "data.pair_draw",
            cli.nearest(config.pair_draw, PAIR_DRAWS),
        )
    tables, found = dict(config.per_dataset.items()), {}
    for component in components:
        own = tables.get(component.name, {})
        try:
            values = {key: own[key] if key in own else config[key] for key in KEYS}
            rules = _make(values, component.source)
        except (TypeError, ValueError) as error:
            where = f"{WHERE}.{component.name}" if own else f"data set {component.name!r}"
            fix = "change these numbers of the data section"
            raise errors.UserError(str(error), where, fix) from error
        if config.pair_draw == "run":
            rules = dataclasses.replace(rules, pair_offset=_once(rules, component.name, seed))
        found[component.name] = rules
    return found


def _make(values: Mapping[str, Any], source: episodes.EpisodeSource) -> Rules:
    """Returns the rules.

    Raises:
        TypeError, ValueError: a value is of another type, or impossible.
    """
    for key in ("cameras", "camera_weights", "pair_offset"):
        if isinstance(values[key], str):
            raise TypeError(f"{key} is {values[key]!r}, not a tuple")
    offset = tuple(values["pair_offset"])
    if offset == OFFICIAL_OFFSET:
        standard = registry.standards().get(source.meta(0).source)
        offset = base.DEFAULT_OFFSET if standard is None else standard.pair_offset
    if len(offset) != 2:
        raise ValueError(f"pair_offset {offset} is neither (min, max) nor 'dataset'")
    return Rules(
        cameras=tuple(values["cameras"]),
        camera_weights=tuple(float(weight) for weight in values["camera_weights"]),
        frame_stride=int(values["frame_stride"]),
        max_frames=int(values["max_frames"]),
        pair_offset=(int(offset[0]), int(offset[1])),
    )


def _once(rules: Rules, name: str, seed: int) -> tuple[int, int]:
    """Returns the one offset of a run, as smallest and largest."""
    low, high = rules.pair_offset
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    offset = int(rng.integers(low, high + 1))
    return offset, offset


def _check_names(config: Any, components: Sequence[str]) -> None:
    """Raises UserError for datasets and keys that there are not, all of them at once."""
    known = {*components, *registry.standards()}
    known.update(*(mixture.weights for mixture in named_mixtures.NAMED.values()))
    wrong, hints = [], []
    for name, own in config.per_dataset.items():
        if name not in known:
            wrong.append(f"no data set {name!r}")
            hints.append(cli.nearest(name, components))
        elif not hasattr(own, "items"):
            wrong.append(f"rules of {name} are {own!r}, not a table")
        else:
            unknown = [key for key in own if key not in KEYS]
            wrong += [f"no rule {name}.{key}" for key in unknown]
            hints += [cli.nearest(key, KEYS) for key in unknown]
    if wrong:
        hints = hints or [f"give {{key: value}} of {', '.join(KEYS)}"]
        raise errors.UserError("; ".join(wrong), WHERE, " ".join(dict.fromkeys(hints)))
