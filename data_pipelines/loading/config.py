"""The `data` section of an experiment: what a run asks of its data.

Each key of the section stands here with its default, what it means and what it decides. Checks, the
fingerprint of a run's data and docs/data_keys.md all follow from `DataConfig`:

    python -m data_pipelines.loading.config > docs/data_keys.md
"""

from __future__ import annotations

import dataclasses
import math
import typing
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_pipelines import normalization
from data_pipelines.loading import named_mixtures
from data_pipelines.open_x import base, registry
from data_pipelines.sources import rlds_directory
from defi_jax import cli, errors

OFFICIAL_OFFSET = ("dataset",)  # as pair_offset: the official one of each data set


def _key(
    default: Any,
    decides: str,
    meaning: str,
    *,
    own: bool = False,
    least: float = -math.inf,
    most: float = math.inf,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declares a key.

    Args:
        default: its value where the experiment says nothing.
        decides: the entry of the fingerprint that it changes; "" where it changes no batch.
        meaning: for the documentation, with the unit.
        own: whether a data set of the mixture may have a value of its own (`per_dataset`).
        least: smallest number.
        most: largest number.
        choices: all values, of a text.
    """
    metadata = {"meaning": meaning, "decides": decides, "own": own}
    metadata |= {"least": least, "most": most, "choices": choices}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data section, checked; the keys are documented in docs/data_keys.md.

    Raises:
        UserError: a value is of another type, or impossible; names its key.
    """

    root: str = _key("", "sources", "directory of episode stores, or of RLDS directories to stream")
    mixture: str = _key(
        "",
        "sources",
        '"synthetic", "store[:weight],store[:weight]" below `root`, or the name of a mixture',
    )
    per_dataset: Mapping[str, Any] = _key(
        {}, "rules", "{name: {key: value}} where data sets of the mixture differ"
    )
    image_size: int = _key(64, "transforms", "pixels of a side", least=1)
    cameras: tuple[str, ...] = _key(
        ("static",),
        "rules",
        "GFDM and GIDM draw one a sample among those an episode has (the first one in evaluation); "
        "joint takes all of them, in this order",
        own=True,
    )
    camera_weights: tuple[float, ...] = _key(
        (), "rules", "weight of each camera in that draw; () for equal ones", own=True
    )
    num_frames: int = _key(3, "transforms", "frames T of a GFDM clip", least=1)
    frame_stride: int = _key(
        10,
        "rules",
        "control steps between the frames of a clip, and between the starts of clips; 0 for one "
        "clip an episode, spread over it",
        own=True,
        least=0,
    )
    max_frames: int = _key(
        0, "rules", "longer episodes give no clip; 0 for any length", own=True, least=0
    )
    pair_offset: tuple[Any, ...] = _key(
        (4, 12),
        "rules",
        "(min, max) control steps between the frames of a GIDM pair, inclusive; (dataset,) for the "
        "official ones of each data set, (9, 9) where none is known",
        own=True,
    )
    pair_draw: str = _key(
        "sample",
        "rules",
        "draw the offset for each `sample`, or once for the `run` and data set, as officially",
        choices=("sample", "run"),
    )
    pair_include_last: bool = _key(
        False, "transforms", "pair the last frame too, with itself, as officially"
    )
    drop_still: float = _key(
        0.0,
        "transforms",
        "mean difference of a pair's resized frames, in grey levels, below which another pair of "
        "the data set takes its place; 0 takes all",
        least=0,
    )
    action_horizon: int = _key(10, "transforms", "actions S of a joint window", least=1)
    window_stride: int = _key(1, "transforms", "control steps between joint windows", least=1)
    action_dim: int = _key(4, "transforms", "dimensions A of an action", least=1)
    normalization: str = _key(
        "none", "normalizer", "how actions are normalised", choices=normalization.KINDS
    )
    unnormalized_dims: tuple[int, ...] = _key(
        (), "normalizer", "dimensions of an action that are left as they are, such as the gripper's"
    )
    holdout_percent: float = _key(
        10,
        "transforms",
        "percent of the episodes that are held out, by a hash of their id",
        least=0,
        most=100,
    )
    augment: bool = _key(
        False, "transforms", "change crop and colours in training, alike for all frames of a sample"
    )
    correlated_augment: bool = _key(
        False, "transforms", "one number drives crop and colours, as officially"
    )
    workers: int = _key(
        0,
        "",
        "processes that read; 0 reads in a thread. Each takes 2 CPU seconds and 220 MiB to start",
        least=0,
    )
    max_bad_fraction: float = _key(
        0.001,
        "",
        "fraction of the samples read that may be damaged before the run stops",
        least=0,
        most=1,
    )
    splits: tuple[str, ...] = _key(
        rlds_directory.DEFAULTS.splits,
        "sources",
        "splits of RLDS files that are streamed; ('all',) for every one",
        own=True,
    )
    dataset_version: str = _key(
        "", "sources", 'folder of the version that is streamed; "" for the newest', own=True
    )
    allow_missing_shards: bool = _key(
        False, "sources", "stream a partial download as far as it goes", own=True
    )
    camera_fields: tuple[str, ...] = _key(
        (),
        "sources",
        "('static=observation/image',): stream these image fields as action-free video",
        own=True,
    )
    text_field: str = _key("", "sources", "field of the instruction of such video", own=True)
    fps: float = _key(
        0.0,
        "sources",
        "frames per second of such video; 0 where its episodes have a field `fps`",
        own=True,
        least=0,
    )
    standardization: str = _key(
        "", "sources", "Python file with STANDARDS of data sets of your own", own=True
    )
    stream_mib: int = _key(
        256, "", "MiB of encoded episodes in memory where RLDS files are streamed", least=0
    )
    latents: str = _key(
        "",
        "latents",
        "GFDM: directory of latent caches (`launch/data.py encode`), one below it for each store; "
        '"" runs the encoders in the step',
    )

    def __post_init__(self):
        types = typing.get_type_hints(type(self))
        for key, field in _FIELDS.items():
            value = _converted(getattr(self, key), types[key], key)
            object.__setattr__(self, key, value)
            _check_range(key, value, field.metadata)
        for key, problem in self._problems():
            raise errors.UserError(problem, f"data.{key}", "change this value")
        self._check_tables()

    @classmethod
    def of(cls, section: Any) -> DataConfig:
        """Returns the checked config of a ConfigDict's `data` section, or of a mapping.

        Raises:
            UserError: a key is unknown or absent, or a value impossible.
        """
        values = section.to_dict() if hasattr(section, "to_dict") else dict(section)
        unknown, absent = sorted(values.keys() - _FIELDS.keys()), _FIELDS.keys() - values.keys()
        if unknown or absent:
            hint = cli.nearest(unknown[0], _FIELDS) if unknown else "give all keys"
            what = f"unknown keys {unknown}, absent keys {sorted(absent)}"
            raise errors.UserError(what, "data section of the config", hint)
        return cls(**values)

    def of_dataset(self, name: str) -> DataConfig:
        """Returns the values of one data set of the mixture, as `per_dataset` has them."""
        return _with_values(self, name, self.per_dataset.get(name, {}))

    def by_dataset(self, sources: Mapping[str, str], seed: int) -> dict[str, DataConfig]:
        """Returns the values of each data set of the mixture, pair offsets in numbers.

        Args:
            sources: name of the data set in the mixture -> the one its episodes come from.
            seed: seed of the offsets, where they are drawn once for a run.

        Raises:
            UserError: `per_dataset` names data sets that nobody knows.
        """
        standards, found = registry.standards(self.standardization), {}
        for name, source in sources.items():
            own = self.of_dataset(name)
            low, high = own.pair_offset if len(own.pair_offset) == 2 else base.DEFAULT_OFFSET
            if own.pair_offset == OFFICIAL_OFFSET and source in standards:
                low, high = standards[source].pair_offset
            if self.pair_draw == "run":
                rng = np.random.default_rng((seed, zlib.crc32(bytes(name, "utf-8"))))
                low = high = int(rng.integers(low, high + 1))
            found[name] = dataclasses.replace(own, pair_offset=(low, high))
        known = {*sources, *standards}
        known.update(*(mixture.weights for mixture in named_mixtures.NAMED.values()))
        unknown = [name for name in self.per_dataset if name not in known]
        if unknown:
            what = "; ".join(f"no data set {name!r}" for name in unknown)
            hints = " ".join(cli.nearest(name, sources) for name in unknown)
            raise errors.UserError(what, "data.per_dataset", hints)
        return found

    def rlds_options(self, name: str) -> rlds_directory.RldsOptions:
        """Returns what is streamed of the RLDS directory of a data set of the mixture."""
        own = self.of_dataset(name)
        return rlds_directory.RldsOptions(**{k: getattr(own, k) for k in rlds_directory.KEYS})

    @property
    def rules(self) -> dict[str, Any]:
        """The values that say how samples are taken from a data set, by key."""
        return {key: getattr(self, key) for key in _deciding("rules") if key in OWN_KEYS}

    @property
    def transforms(self) -> dict[str, Any]:
        """The values that decide what a sample is, alike for all data sets, by key."""
        return {key: getattr(self, key) for key in _deciding("transforms")}

    def _problems(self) -> Iterator[tuple[str, str]]:
        """Yields keys and what is wrong with their values, beside types and ranges."""
        cameras, weights, offset = self.cameras, self.camera_weights, self.pair_offset
        if not cameras or len(set(cameras)) < len(cameras):
            yield "cameras", f"no camera, or one twice: {cameras}"
        if weights and len(weights) != len(cameras):
            yield "camera_weights", f"{len(weights)} weights for cameras {cameras}"
        if not all(0 < weight < math.inf for weight in weights):
            yield "camera_weights", f"camera weights {weights} are not positive numbers"
        if offset != OFFICIAL_OFFSET:
            if len(offset) != 2 or not all(type(steps) is int for steps in offset):
                yield "pair_offset", f"{offset} is neither (min, max) nor {OFFICIAL_OFFSET}"
            elif not 1 <= offset[0] <= offset[1]:
                yield "pair_offset", f"impossible frame pair: offsets {offset}"

    def _check_tables(self) -> None:
        """Raises UserError for tables of `per_dataset` that say something unknown or impossible."""
        wrong, hints = [], []
        for name, own in self.per_dataset.items():
            if not isinstance(own, Mapping):
                wrong.append(f"rules of {name} are {own!r}, not a table")
                continue
            unknown = [key for key in own if key not in OWN_KEYS]
            wrong += [f"no rule {name}.{key}" for key in unknown]
            hints += [cli.nearest(key, OWN_KEYS) for key in unknown]
        if wrong:
            hints = hints or [f"give {{key: value}} of {', '.join(OWN_KEYS)}"]
            what, hint = "; ".join(wrong), " ".join(dict.fromkeys(hints))
            raise errors.UserError(what, "data.per_dataset", hint)
        for name, own in self.per_dataset.items():
            _with_values(self, name, own)


_FIELDS = {field.name: field for field in dataclasses.fields(DataConfig)}
OWN_KEYS = tuple(key for key, field in _FIELDS.items() if field.metadata["own"])


def _deciding(entry: str) -> list[str]:
    """Returns the keys that change an entry of the fingerprint."""
    return [key for key, field in _FIELDS.items() if field.metadata["decides"] == entry]


def _with_values(config: DataConfig, name: str, own: Mapping[str, Any]) -> DataConfig:
    """Returns the config with the values of one data set's table."""
    try:
        return dataclasses.replace(config, per_dataset={}, **own)
    except errors.UserError as error:
        where = f"data.per_dataset.{name}" if own else f"data set {name!r}"
        raise errors.UserError(error.what, where, error.fix) from error


def _converted(value: Any, kind: Any, key: str) -> Any:
    """Returns a value as its type; lists become tuples, whole numbers may stand for floats."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        items = tuple(_converted(item, parts[0], key) for item in value)
        joined = next((item for item in items if isinstance(item, str) and "," in item), None)
        if joined:
            names = ", ".join(repr(part.strip()) for part in joined.split(","))
            fix = f'write --config.data.{key}="({names})"'
            raise errors.UserError(f"{joined!r} is one text", f"data.{key}", fix)
        return tuple(map(float, items)) if parts[0] is float else items
    plain = typing.get_origin(kind) or kind
    fits = plain is Any or isinstance(value, (float, int) if plain is float else plain)
    if not fits or (plain is not bool and isinstance(value, bool)):
        raise errors.UserError(
            f"{value!r} is not {_name(kind)}", f"data.{key}", f"give {_name(kind)}"
        )
    return value


def _name(kind: Any) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "True or False"}
    return names.get(kind, "a tuple" if typing.get_origin(kind) is tuple else "a table")


def _check_range(key: str, value: Any, metadata: Mapping[str, Any]) -> None:
    least, most, choices = metadata["least"], metadata["most"], metadata["choices"]
    if choices and value not in choices:
        raise errors.UserError(f"unknown {value!r}", f"data.{key}", cli.nearest(value, choices))
    if (least, most) != (-math.inf, math.inf) and not least <= value <= most:
        most_text = "" if most == math.inf else f" and at most {most}"
        raise errors.UserError(
            f"impossible {value}", f"data.{key}", f"give at least {least}{most_text}"
        )


def table() -> str:
    """Returns the documentation of the keys, Markdown."""
    lines = [
        "# Keys of the `data` section",
        "",
        "Written by `python -m data_pipelines.loading.config`; the presets' values are in",
        "`configs/`. A data set of a mixture may have its own value of the keys marked *",
        "(`per_dataset`, [sampling.md](sampling.md)). A run resumes only under the same entries of",
        "its data's fingerprint; the last column names the one that a key decides.",
        "",
        "| key | default | meaning | decides |",
        "|---|---|---|---|",
    ]
    for key, field in _FIELDS.items():
        default = getattr(DataConfig(), key)
        star = " *" if field.metadata["own"] else ""
        meaning = field.metadata["meaning"]
        if field.metadata["choices"]:
            meaning += f": {', '.join(field.metadata['choices'])}"
        decides = field.metadata["decides"] or "-"
        lines.append(f"| `{key}`{star} | `{default!r}` | {meaning} | {decides} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
