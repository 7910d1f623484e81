"""Statistics of actions and states, and the normalisation that follows from them.

Only low-dimensional columns are read, never an image. Statistics are cached beside a store under
its fingerprint, travel as JSON into checkpoints and bundles, and are the same on every host.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from absl import logging
from defi_rollout import files

from data_pipelines import episodes
from defi_jax import errors

KINDS = ("none", "normal", "bounds", "bounds_q99")
EPSILON = 1e-8  # official: Step2_GIDM/datasets/rlds/utils/data_utils.py:49-103

Kept = TypeVar("Kept")

_FIELDS = ("mean", "std", "min", "max", "q01", "q99")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """Per-dimension statistics of one column, float64[A] each.

    Attributes:
        mean: arithmetic mean.
        std: population standard deviation.
        min: smallest value.
        max: largest value.
        q01: 1 % quantile; of merged statistics the mean of the parts weighted by their counts.
        q99: 99 % quantile, likewise.
        count: number of steps.
    """

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q99: np.ndarray
    count: int

    def to_json(self) -> dict[str, Any]:
        """Returns JSON-able values; `from_json` gives back the same bits."""
        return {name: getattr(self, name).tolist() for name in _FIELDS} | {"count": self.count}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Statistics:
        """Inverse of `to_json`."""
        arrays = {name: np.array(values[name], np.float64) for name in _FIELDS}
        return cls(**arrays, count=int(values["count"]))


def compute(values: np.ndarray, where: str = "") -> Statistics:
    """Returns the statistics of all steps' values, [count, A]; an error names `where`.

    Raises:
        DataError: a value is not finite, or there are none.
    """
    if len(values) == 0:
        raise errors.DataError("no steps to compute statistics of", where)
    finite = np.isfinite(values).all(axis=0)
    if not finite.all():
        dims = np.flatnonzero(~finite).tolist()
        raise errors.DataError(f"values of dimensions {dims} are not finite", where)
    values = np.asarray(values, np.float64)
    q01, q99 = np.quantile(values, (0.01, 0.99), axis=0)
    return Statistics(
        mean=values.mean(axis=0),
        std=values.std(axis=0),
        min=values.min(axis=0),
        max=values.max(axis=0),
        q01=q01,
        q99=q99,
        count=len(values),
    )


def of_episodes(
    found: Iterable[tuple[str, np.ndarray | None, np.ndarray | None]], where: str = ""
) -> dict[str, Statistics]:
    """Returns the statistics of the columns that there are, "actions" and "states".

    Args:
        found: id, recorded actions and states of each episode; sums depend on their order.
        where: what an error about all of them names.

    Raises:
        DataError: an episode's width differs from the others', or values are not finite.
    """
    parts: dict[str, list[np.ndarray]] = {"actions": [], "states": []}
    for episode_id, *columns in found:
        for (name, earlier), column in zip(parts.items(), columns, strict=True):
            if column is None:
                continue
            if earlier and column.shape[1] != earlier[0].shape[1]:
                raise errors.DataError(
                    f"{name} are {column.shape[1]} wide, {earlier[0].shape[1]} in earlier episodes",
                    f"episode {episode_id!r}",
                    "convert embodiments separately",
                )
            earlier.append(column)
    return {
        name: compute(np.concatenate(own), f"{name} of {where}")
        for name, own in parts.items()
        if own
    }


def of_source(source: episodes.EpisodeSource, where: str = "") -> dict[str, Statistics]:
    """Returns `of_episodes` of all of a source."""
    metas = (source.meta(i) for i in range(len(source)))
    found = (
        (
            meta.episode_id,
            episodes.recorded_actions(source.actions(i), meta.metadata),
            source.states(i),
        )
        for i, meta in enumerate(metas)
    )
    return of_episodes(found, where)


def cached(source: episodes.EpisodeSource, directory: pathlib.Path | None) -> dict[str, Statistics]:
    """Returns `of_source`, read from or kept in `directory` under the source's fingerprint."""
    if directory is None:
        return of_source(source)
    path = directory / f"statistics_{source.fingerprint()[:16]}.json"
    kept = read_kept(path, parse)
    if kept is None:
        kept = of_source(source, str(directory))
        keep(path, {name: values.to_json() for name, values in kept.items()})
    return kept


def parse(content: Mapping[str, Any]) -> dict[str, Statistics]:
    """Returns the statistics of columns from their `to_json`, by name."""
    return {name: Statistics.from_json(values) for name, values in content.items()}


def read_kept(path: pathlib.Path, parse: Callable[[Any], Kept]) -> Kept | None:
    """Returns what a JSON file keeps; None where it is absent or, with a warning, damaged."""
    try:
        return parse(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logging.warning("statistics in %s are damaged (%s), computing them again", path, error)
        return None


def keep(path: pathlib.Path, content: Any) -> None:
    """Writes JSON for `read_kept`; where that cannot be, it warns."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, json.dumps(content, indent=1))
    except OSError as error:
        logging.warning("statistics are not kept in %s: %s", path, error)


def merge(parts: Sequence[Statistics]) -> Statistics:
    """Returns the statistics of the parts together, each step counting once.

    Exact but for the quantiles, see `Statistics`.

    Raises:
        DataError: the parts differ in width.
    """
    widths = sorted({len(part.mean) for part in parts})
    if len(widths) != 1:
        raise errors.DataError(f"cannot merge statistics of widths {widths}")
    if len(parts) == 1:
        return parts[0]
    counts = np.array([part.count for part in parts], np.float64)[:, None]
    share = counts / counts.sum()
    stacked = {name: np.stack([getattr(part, name) for part in parts]) for name in _FIELDS}
    mean = (share * stacked["mean"]).sum(axis=0)
    variance = (share * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(axis=0)
    return Statistics(
        mean=mean,
        std=np.sqrt(variance),
        min=stacked["min"].min(axis=0),
        max=stacked["max"].max(axis=0),
        q01=(share * stacked["q01"]).sum(axis=0),
        q99=(share * stacked["q99"]).sum(axis=0),
        count=sum(part.count for part in parts),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalizer:
    """Maps stored actions to the model's range and back, by one affine function a dimension.

        normal:      (x - mean) / (std + 1e-8)
        bounds:      clip(2 (x - min) / (max - min + 1e-8) - 1, -1, 1)
        bounds_q99:  the same with q01 and q99
        none:        x

    Unmasked dimensions (the gripper) pass through; with the two bounds kinds a dimension whose
    min equals its max becomes 0 whatever its mask, as officially. `invert` undoes `apply` inside
    the bounds and gives back the constant of such a dimension.

    Attributes:
        kind: one of `KINDS`.
        statistics: statistics of the column; None only for "none".
        mask: which dimensions are normalised.
    """

    kind: str
    statistics: Statistics | None
    mask: tuple[bool, ...]

    def __post_init__(self):
        if self.kind not in KINDS:
            raise errors.UserError(
                f"unknown normalisation {self.kind!r}",
                "data.normalization",
                f"use one of {', '.join(KINDS)}",
            )
        if (self.statistics is None) != (self.kind == "none"):
            raise ValueError(f"normalisation {self.kind!r} with statistics {self.statistics}")
        if self.statistics is not None and len(self.statistics.mean) != len(self.mask):
            width = len(self.statistics.mean)
            raise errors.DataError(f"statistics of {width} dimensions, mask of {len(self.mask)}")

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Returns float32[..., A] normalised."""
        values = np.asarray(values, np.float32)
        if self.kind == "none":
            return values
        center, scale = self._affine()
        mask = np.array(self.mask)
        changed = (values - center) / scale
        if self.kind != "normal":
            changed = np.clip(changed, -1.0, 1.0)
        changed = np.where(mask, changed, values)
        return np.where(self._constant(), 0.0, changed).astype(np.float32)

    def invert(self, values: np.ndarray) -> np.ndarray:
        """Returns float32[..., A] as stored."""
        values = np.asarray(values, np.float32)
        if self.kind == "none":
            return values
        center, scale = self._affine()
        changed = np.where(np.array(self.mask), values * scale + center, values)
        return np.where(self._constant(), self.statistics.min, changed).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Returns JSON-able values; `from_json` gives back an equal normaliser."""
        statistics = None if self.statistics is None else self.statistics.to_json()
        return {"kind": self.kind, "mask": list(self.mask), "statistics": statistics}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Normalizer:
        """Inverse of `to_json`."""
        kept = values["statistics"]
        return cls(
            kind=values["kind"],
            mask=tuple(bool(flag) for flag in values["mask"]),
            statistics=None if kept is None else Statistics.from_json(kept),
        )

    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns center and scale: normalised = (x - center) / scale."""
        kept = self.statistics
        if self.kind == "normal":
            return kept.mean, kept.std + EPSILON
        low, high = (kept.q01, kept.q99) if self.kind == "bounds_q99" else (kept.min, kept.max)
        scale = (high - low + EPSILON) / 2
        return low + scale, scale

    def _constant(self) -> np.ndarray:
        """Returns bool[A], the dimensions that the bounds kinds set to 0."""
        if self.kind == "normal":
            return np.zeros(len(self.mask), bool)
        return self.statistics.min == self.statistics.max
