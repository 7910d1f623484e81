"""What `bundle.json` says, as frozen dataclasses: strict in both directions.

`BundleSpec.from_json(document)` refuses unknown and missing keys and wrong types, naming the path
of the field; `BundleSpec.to_json()` is its inverse. The exporter builds the same class, so that
writer and reader cannot drift apart.

Legend: S action-chunk length, A action dimension, H W image size, L text tokens.
"""

import dataclasses
import json
import math
import typing
from typing import Any

import numpy as np

from defi_rollout import errors

SCHEMA_VERSION = 1

TOKENIZERS = ("bytes", "stand_in", "clip", "clip_openai", "t5")
_FILELESS_TOKENIZERS = ("bytes", "stand_in")
RESIZE_RULES = ("pillow_bilinear",)

_FIX = "export the bundle again with launch/export.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """The robot's action vector, in its own units.

    Attributes:
        dim: A.
        names: one name per dimension.
        low: smallest value sent to the robot, per dimension.
        high: largest value sent to the robot, per dimension.
    """

    dim: int
    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self):
        for field in ("names", "low", "high"):
            _require_length(getattr(self, field), self.dim, f"action_spec.{field}")
        if any(low >= high for low, high in zip(self.low, self.high, strict=True)):
            raise errors.BundleError("low is not below high", "action_spec", _FIX)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraSpec:
    """One camera of the observation.

    Attributes:
        key: key of the observation, such as "observation/image".
        name: the camera's name in the training data, such as "static".
        height: rows of the image that the robot sends.
        width: columns of it.
    """

    key: str
    name: str
    height: int
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """Size that the model reads, and the rule that gets there from the camera's size."""

    height: int
    width: int
    resize: str

    def __post_init__(self):
        _require_known(self.resize, RESIZE_RULES, "image.resize")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSpec:
    """How one text input of the model is tokenised.

    Attributes:
        name: "bytes", "stand_in", "clip" or "clip_openai" (tokenizer.json), "t5" (sentencepiece
            model).
        length: L, the fixed number of tokens, special ones included.
        lower_case: whether the instruction is lower-cased first.
        strip_punctuation: whether ASCII punctuation is deleted from it.
        file: name of the tokenizer's file in the bundle; empty where it needs none.
        start_ids: put before the text.
        end_ids: put after it, also when it is cut.
        pad_id: id of the padding.
    """

    name: str
    length: int
    lower_case: bool
    strip_punctuation: bool
    file: str
    start_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    pad_id: int

    def __post_init__(self):
        _require_known(self.name, TOKENIZERS, "text.name")
        if (self.name in _FILELESS_TOKENIZERS) != (not self.file):
            raise errors.BundleError(
                f"tokenizer {self.name!r} with file {self.file!r}", "text", _FIX
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionStatistics:
    """Affine map from the model's normalised actions to the robot's: `x * scale + offset`.

    Attributes:
        method: name of the normalisation in training ("bounds", "normal", ...), for the reader.
        scale: per dimension.
        offset: per dimension.
    """

    method: str
    scale: tuple[float, ...]
    offset: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Size in bytes and sha256 (hex) of one file of the bundle."""

    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class BundleSpec:
    """Everything of `bundle.json`.

    Attributes:
        schema_version: 1.
        files: file name to size and digest, without bundle.json itself.
        embodiment: name of the robot and its conventions, as free JSON.
        action_spec: the action vector.
        action_statistics: how normalised actions become real ones.
        action_horizon: S, actions predicted by one inference.
        execute_horizon: how many of them are executed before the next inference.
        control_hz: actions per second.
        cameras: in the model's order.
        image: size and preprocessing of the model's images.
        text: role ("goal", ...) to its tokenisation.
        noise: name to the shape of one example's standard normal noise.
        example_prompt: instruction of example.safetensors.
        training_starts: digests of the start states seen in training, for unseen-start checks.
        model: objective name and resolved config: enough to rebuild policy.stablehlo.
        provenance: step, versions, source; for the reader.
    """

    schema_version: int
    files: dict[str, FileEntry]
    embodiment: dict[str, Any]
    action_spec: ActionSpec
    action_statistics: ActionStatistics
    action_horizon: int
    execute_horizon: int
    control_hz: float
    cameras: tuple[CameraSpec, ...]
    image: ImageSpec
    text: dict[str, TextSpec]
    noise: dict[str, tuple[int, ...]]
    example_prompt: str
    training_starts: tuple[str, ...]
    model: dict[str, Any]
    provenance: dict[str, Any]

    def __post_init__(self):
        for field in ("scale", "offset"):
            values = getattr(self.action_statistics, field)
            _require_length(values, self.action_spec.dim, f"action_statistics.{field}")
        if not 1 <= self.execute_horizon <= self.action_horizon:
            raise errors.BundleError(
                f"execute_horizon {self.execute_horizon} is not in 1..{self.action_horizon}",
                "bundle.json",
                _FIX,
            )
        if not self.cameras or len({c.key for c in self.cameras}) != len(self.cameras):
            raise errors.BundleError("no camera, or one key twice", "bundle.json cameras", _FIX)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; inverse of `from_json`."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, document: Any) -> "BundleSpec":
        """Checks and converts a parsed bundle.json; BundleError names the field.

        The version comes first: other versions may have other fields.
        """
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version is not None and version != SCHEMA_VERSION:
            raise errors.BundleError(
                f"schema version {version!r}, this package reads {SCHEMA_VERSION}",
                "bundle.json",
                "install the defi-rollout that matches the exporter",
            )
        return _decode(cls, document, "bundle.json")

    def unnormalise(self, actions: np.ndarray) -> np.ndarray:
        """Maps normalised actions [..., A] to the robot's units, clipped to its limits, float32."""
        statistics, limits = self.action_statistics, self.action_spec
        numbers = (statistics.scale, statistics.offset, limits.low, limits.high)
        scale, offset, low, high = (np.asarray(values, np.float32) for values in numbers)
        return np.clip(actions.astype(np.float32) * scale + offset, low, high)

    def observation_spec(self) -> dict[str, dict[str, Any]]:
        """Observation key to {dtype, shape}, as sent in the server's metadata (design 4)."""
        spec: dict[str, dict[str, Any]] = {
            camera.key: {"dtype": "uint8", "shape": [camera.height, camera.width, 3]}
            for camera in self.cameras
        }
        return spec | {"prompt": {"dtype": "str", "shape": []}}

    def metadata(self, digest: str) -> dict[str, Any]:
        """What a server tells its clients about the policy of the bundle with that digest."""
        return {
            "obs_spec": self.observation_spec(),
            "action_spec": self.to_json()["action_spec"],
            "action_horizon": self.action_horizon,
            "execute_horizon": self.execute_horizon,
            "control_hz": self.control_hz,
            "embodiment": self.embodiment,
            "origins": self.provenance.get("origins", []),
            "bundle": digest,
        }


def _require_length(values: tuple, length: int, where: str) -> None:
    if len(values) != length:
        raise errors.BundleError(f"{len(values)} values for {length} dimensions", where, _FIX)


def _require_known(value: str, known: tuple[str, ...], where: str) -> None:
    if value not in known:
        raise errors.BundleError(f"unknown {value!r} (known: {', '.join(known)})", where, _FIX)


def _decode_dataclass(kind: type, value: Any, where: str) -> Any:
    fields = typing.get_type_hints(kind)
    if not isinstance(value, dict):
        raise errors.BundleError("not an object", where, _FIX)
    if missing := sorted(fields.keys() - value.keys()):
        raise errors.BundleError(f"missing {', '.join(missing)}", where, _FIX)
    if unknown := sorted(value.keys() - fields.keys()):
        raise errors.BundleError(f"unknown {', '.join(unknown)}", where, _FIX)
    return kind(**{n: _decode(hint, value[n], f"{where}.{n}") for n, hint in fields.items()})


def _decode_container(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict and isinstance(value, dict):
        return {key: _decode(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    raise errors.BundleError(f"expected {origin.__name__}", where, _FIX)


def _decode_scalar(kind: Any, value: Any, where: str) -> Any:
    accepted = (int, float) if kind is float else kind
    # bool is a subclass of int in Python, not in JSON.
    if not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool):
        raise errors.BundleError(f"expected {kind.__name__}, got {value!r}", where, _FIX)
    if kind in (int, float) and not math.isfinite(value):
        raise errors.BundleError(f"{value!r} is not finite", where, _FIX)
    if kind is int and value < 0:
        raise errors.BundleError(f"{value!r} is negative", where, _FIX)
    return kind(value)


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Checks a JSON value against a type hint of the classes above and converts it."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), value, where)
    if kind in (bool, int, float, str):
        return _decode_scalar(kind, value, where)
    return _decode_container(kind, value, where)
