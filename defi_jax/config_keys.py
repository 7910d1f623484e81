"""Every key of an experiment's config: its type, its range, and what a resumed run may do with it.

The values stand in `configs/`; here stands what they may be. `check` is called before anything is
read or compiled, by whatever takes a config (`objectives.make`). Types and ranges of the `data`
section, and what its keys mean, are in `data_pipelines/loading/config.py`; its kinds are here.

What a run does with a key that has changed since its checkpoint is `training.same_run`'s work:

- IDENTITY is what the run is. It cannot change.
- ORIGIN is what the parameters started from. It is compared by content, so it may move.
- SCHEDULE is how a step is computed from now on. It may change; each change is logged and kept.
- LAYOUT is where the run computes, how fast, when it saves, what it shows. It changes freely: no
  update depends on it but by the order of sums.

Choices that are not obvious:

- `compute_dtype` is SCHEDULE: parameters and optimizer are float32 in all of them, so the state
  fits; rounding changes from then on, as the updates do with another learning rate.
- `optimizer.accumulation_steps` is SCHEDULE: fewer devices may need more, the state is the same,
  but the parts of a batch draw other noise.
- `steps` is SCHEDULE, but the learning rate does not follow it: `optimizer.schedule_steps` does.
- Where data are (`data.root`, `data.mixture`, `data.latents`, ...) is LAYOUT: what is read there is
  compared by the fingerprint of its content.
"""

import dataclasses
import enum
import fnmatch
import math
from collections.abc import Iterator, Mapping
from typing import Any

from defi_jax import cli, errors


class Kind(enum.Enum):
    """What a resumed run may do with a key; see above."""

    IDENTITY = "identity"
    ORIGIN = "origin"
    SCHEDULE = "schedule"
    LAYOUT = "layout"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """What a value may be.

    Attributes:
        kind: see above.
        of: its type; a whole number may stand for a float; None leaves it to who reads the key.
        least: smallest number; those in tuples too.
        most: largest number.
        above, below: the same, exclusive.
        choices: all values, of a text.
        stages: objectives that have the key; () for all.
        is_switch: whether a state made with 0 has another form than one made with more.
        before: what runs did that are older than the key; None for keys that always were.
    """

    kind: Kind
    of: type | None = None
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    choices: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    is_switch: bool = False
    before: Any = None

    def allowed(self) -> str:
        """Returns what may be given, for messages."""
        if self.choices:
            return f"give one of {', '.join(self.choices)}"
        limits = {
            "at least": self.least,
            "above": self.above,
            "at most": self.most,
            "below": self.below,
        }
        given = [f"{word} {limit:,.12g}" for word, limit in limits.items() if math.isfinite(limit)]
        return f"give {_NAMES[self.of]}{', ' * bool(given)}{' and '.join(given)}"

    def problem(self, value: Any) -> str:
        """Returns what is wrong with a value, "" if nothing is."""
        fits = type(value) is self.of or (self.of is float and type(value) is int)
        if self.of and not fits:
            return f"impossible {value!r}"
        if self.choices and value not in self.choices:
            return f"unknown {value!r}"
        numbers = value if isinstance(value, list | tuple) else [value]
        return "" if all(map(self._is_inside, numbers)) else f"impossible {value!r}"

    def _is_inside(self, value: Any) -> bool:
        if type(value) not in (int, float):
            return True
        is_inside = self.least <= value <= self.most and self.above < value < self.below
        return is_inside and math.isfinite(value)


_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    None: "what its section allows",
}


def _whole(kind: Kind, least: int, **options: Any) -> Key:
    return Key(kind=kind, of=int, least=least, **options)


def _number(kind: Kind, **options: Any) -> Key:
    return Key(kind=kind, of=float, **options)


def _text(kind: Kind, *choices: str, **options: Any) -> Key:
    return Key(kind=kind, of=str, choices=choices, **options)


def _flag(kind: Kind, stages: tuple[str, ...] = ()) -> Key:
    return Key(kind=kind, of=bool, stages=stages)


_IDENTITY, _ORIGIN, _SCHEDULE, _LAYOUT = Kind
_GFDM, _GIDM, _JOINT = ("gfdm",), ("gidm",), ("joint",)

# Exact keys first; in a pattern * stands for any section or name, and the first that fits counts.
KEYS: dict[str, Key] = {
    "objective": _text(_IDENTITY, "gfdm", "gidm", "joint"),
    "preset": _text(_LAYOUT),  # a name; its numbers are compared one by one
    "seed": _whole(_IDENTITY, 0, most=2**32 - 1),
    "steps": _whole(_SCHEDULE, 0),  # 0 saves what the run would start from
    "global_batch": _whole(_IDENTITY, 1),
    "compute_dtype": _text(_SCHEDULE, "float32", "bfloat16", "float16"),
    "mesh.replica": _whole(_LAYOUT, -1),  # -1 takes the rest; sharding.make_mesh refuses 0
    "mesh.fsdp": _whole(_LAYOUT, -1),
    "mesh.tensor": _whole(_LAYOUT, -1),
    "eval_every": _whole(_LAYOUT, 0),
    "eval_batches": _whole(_LAYOUT, 0),
    "save_every": _whole(_LAYOUT, 0),
    "log_every": _whole(_LAYOUT, 0),
    "keep_checkpoints": _whole(_LAYOUT, 0),
    "max_failed_saves": _whole(_LAYOUT, 1, before=3),
    "storage_timeout": _number(_LAYOUT, above=0, before=600),
    "step_timeout": _number(_LAYOUT, above=0, before=30),
    "max_consecutive_bad_steps": _whole(_LAYOUT, 1),
    "profile_start": _whole(_LAYOUT, 0, before=0),
    "profile_steps": _whole(_LAYOUT, 1, before=5),
    "compilation_cache_dir": _text(_LAYOUT),
    "logging.tensorboard": _flag(_LAYOUT),
    "logging.wandb": _flag(_LAYOUT),
    "train_parts": _text(_IDENTITY, "all", "adapter", "gfdm+adapter", "gidm+adapter"),
    # ---- optimizer ----
    "optimizer.name": _text(_IDENTITY, "adamw", "muon"),
    "optimizer.learning_rate": _number(_SCHEDULE, least=0),
    "optimizer.schedule": _text(_SCHEDULE, "constant", "warmup_cosine", "tri_stage"),
    "optimizer.warmup_steps": _whole(_SCHEDULE, 0),
    "optimizer.schedule_steps": _whole(_SCHEDULE, 0, before=0),  # 0 is resolved: see same_run
    "optimizer.final_scale": _number(_SCHEDULE, least=0, most=1),
    "optimizer.b1": _number(_SCHEDULE, least=0, below=1),
    "optimizer.b2": _number(_SCHEDULE, least=0, below=1),
    "optimizer.eps": _number(_SCHEDULE, above=0),
    "optimizer.weight_decay": _number(_SCHEDULE, least=0),
    "optimizer.grad_clip_norm": _number(_SCHEDULE, least=0, is_switch=True),
    "optimizer.accumulation_steps": _whole(_SCHEDULE, 1),
    "optimizer.ema_decay": _number(_SCHEDULE, least=0, below=1, is_switch=True),
    "optimizer.spike_factor": _number(_SCHEDULE, least=0, is_switch=True, before=0),
    "optimizer.spike_window": _whole(_IDENTITY, 1, before=100),
    "optimizer.spike_skips": _whole(_SCHEDULE, 1, before=5),
    "optimizer.spike_cuts": _whole(_SCHEDULE, 0, before=3),
    # ---- objectives ----
    "text_dropout": _number(_SCHEDULE, least=0, most=1, stages=_GFDM),
    "sigma_log_mean": _number(_SCHEDULE, stages=_GFDM),
    "sigma_log_std": _number(_SCHEDULE, least=0, stages=_GFDM),
    "commitment_weight": _number(_SCHEDULE, least=0, stages=_GIDM + _JOINT),
    "restart_every": _whole(_SCHEDULE, 0, stages=_GIDM),
    "restart_by_copy": _flag(_SCHEDULE, _GIDM),
    "cache_features": _flag(_SCHEDULE, _JOINT),  # cached ones are rounded to float16
    "noise_draws": _whole(_SCHEDULE, 1, stages=_JOINT),
    "execute_horizon": _whole(_SCHEDULE, 1, stages=_JOINT),  # for who exports the run
    "embodiment": _text(_IDENTITY, stages=_JOINT),
    "eval.sample_steps": _whole(_LAYOUT, 1, stages=_GFDM),
    "eval.max_guidance": _number(_LAYOUT, least=0, stages=_GFDM),
    "eval.pictures": _whole(_LAYOUT, 0, stages=_GFDM + _GIDM),
    # ---- frozen encoders, and files that parameters start from ----
    "encoders.latents": _text(_IDENTITY),
    "encoders.latents_factor": _whole(_IDENTITY, 1),
    "encoders.latents_frequencies": _whole(_IDENTITY, 1),
    "encoders.features": _text(_IDENTITY),
    "encoders.features_patch": _whole(_IDENTITY, 1),
    "encoders.gfdm_text": _text(_IDENTITY),
    "encoders.gidm_text": _text(_IDENTITY),
    "encoders.goal_text": _text(_IDENTITY),
    "encoders.text_length": _whole(_IDENTITY, 1),
    "encoders.text_dim": _whole(_IDENTITY, 1),
    "weights.*": _text(_ORIGIN),
    "init.gfdm": _text(_ORIGIN),
    "init.gidm": _text(_ORIGIN),
    # ---- data ----
    "data.root": Key(kind=_LAYOUT),
    "data.mixture": Key(kind=_LAYOUT),
    "data.per_dataset": Key(kind=_LAYOUT),
    "data.dataset_version": Key(kind=_LAYOUT),
    "data.standardization": Key(kind=_LAYOUT),
    "data.latents": Key(kind=_LAYOUT),
    "data.workers": Key(kind=_LAYOUT),
    "data.stream_mib": Key(kind=_LAYOUT),
    "data.max_bad_fraction": Key(kind=_LAYOUT),
    "data.*": Key(kind=_IDENTITY),
    # ---- numbers of the models; what they say of each other is checked by their own configs ----
    "model.*remat": Key(kind=_LAYOUT),
    "model.*scan_unroll": _whole(_LAYOUT, 1),
    "model.*dropout": _number(_SCHEDULE, least=0, below=1),
    "model.*_weight": _number(_SCHEDULE, least=0),
    "model.*sampling_steps": _whole(_SCHEDULE, 1),
    "model.*fps_id": _number(_IDENTITY, least=0),
    "model.*motion_bucket_id": _number(_IDENTITY, least=0),
    "model.*noise_aug_strength": _number(_IDENTITY, least=0),
    "model.*feature_noise_scale": _number(_IDENTITY, least=0),
    "model.*sigma_*": _number(_IDENTITY, above=0),
    "model.*rho": _number(_IDENTITY, above=0),
    "model.*init_std": Key(kind=_IDENTITY, above=0),  # or None
    "model.*modulation_offset": _number(_IDENTITY),
    "model.*query_key_gain": _number(_IDENTITY, above=0),
    "model.*feature_block": _whole(_IDENTITY, 0),
    "model.*condition_frames": Key(kind=_IDENTITY, least=0),
    "model.*token_positions": _whole(_IDENTITY, 0),
    "model.*": Key(kind=_IDENTITY, least=1),  # sizes, flags and names
}

# Sections whose keys are not the code's but data.
_TABLES = ("data.per_dataset",)


def find(key: str) -> Key | None:
    """Returns the declaration of a dotted key, None for unknown ones."""
    if key in KEYS:
        return KEYS[key]
    return next((KEYS[name] for name in KEYS if fnmatch.fnmatchcase(key, name)), None)


def flatten(config: Any) -> dict[str, Any]:
    """Returns the values of a ConfigDict, or of the mapping it became, by dotted key."""
    tree = config.to_dict() if hasattr(config, "to_dict") else config
    return dict(_walk(tree, ""))


def _walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in _TABLES:
            yield from _walk(value, f"{key}.")
        else:
            yield key, value


def check(config: Any) -> None:
    """Checks that a config has the keys of its objective and no others, of possible values.

    Configs of checkpoints may lack what is younger than they are.

    Raises:
        UserError: naming the key and what may be given.
    """
    values = flatten(config)
    for key, value in values.items():
        known = find(key)
        if known is None:
            raise errors.UserError("unknown config key", f"--config.{key}", cli.nearest(key, KEYS))
        problem = known.problem(value)
        if problem:
            raise errors.UserError(problem, f"--config.{key}", known.allowed())
    absent = [
        key
        for key, known in KEYS.items()
        if "*" not in key
        and key not in values
        and not key.startswith("data.")
        and known.before is None
        and (not known.stages or values["objective"] in known.stages)
    ]
    if absent:
        raise errors.UserError(
            f"the config lacks {', '.join(absent[:10])}",
            f"--config.{absent[0].partition('.')[0]}",
            "give all keys of a section, or one by one: --config.SECTION.KEY=VALUE",
        )
