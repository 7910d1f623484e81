"""What a policy wants to see and what its actions mean, beside what a benchmark offers and takes.

Our servers say it themselves. For others' servers a JSON file says it, for example:

    {
      "embodiment": "libero_panda",
      "observations": {
        "observation/image": {"source": "observation/image", "size": [224, 224], "resize": "pad"},
        "observation/state": {"source": "observation/state"}
      },
      "prompt": "prompt",
      "action_dim": 7,
      "execute_horizon": 5,
      "factors": [1, 1, 1, 1, 1, 1, -1]
    }

Legend: S action-chunk length, A action dimension, H W image size.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from defi_rollout import errors

DIRECTORY = pathlib.Path(__file__).parent / "policies"  # adapters that come along

_RESIZES = ("none", "stretch", "pad")


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """One entry of the policy's observation.

    Attributes:
        source: key under which the environment offers it.
        size: (height, width) wanted; None: as the environment draws it.
        resize: "none" for a policy that resizes itself; "stretch"; or "pad", which keeps the
            aspect and fills with black, as openpi's clients do.
        leading_axes: axes of length 1 in front, such as batch and time.
    """

    source: str
    size: tuple[int, int] | None = None
    resize: str = "none"
    leading_axes: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """Between one policy and any benchmark that has its robot.

    Attributes:
        embodiment: the robot, and what the numbers of an action mean.
        observations: the policy's key to where its value comes from.
        prompt: the policy's key of the instruction.
        action_dim: A.
        action_horizon: S; None where it is not known.
        execute_horizon: actions executed of each chunk.
        factors: multiplied into each action, A of them, such as a gripper's sign.
    """

    embodiment: str
    observations: dict[str, View]
    prompt: str
    action_dim: int
    action_horizon: int | None
    execute_horizon: int
    factors: tuple[float, ...]

    def observe(self, offered: Mapping[str, np.ndarray], instruction: str) -> dict[str, Any]:
        """The policy's observation, of what the environment offers."""
        obs: dict[str, Any] = {self.prompt: instruction}
        for key, view in self.observations.items():
            value = offered[view.source]
            if view.size is not None and view.resize != "none":
                value = _resize(value, view.size, pad=view.resize == "pad")
            obs[key] = value.reshape((1,) * view.leading_axes + value.shape)
        return obs

    def act(self, actions: np.ndarray) -> np.ndarray:
        """Actions of the robot, float32 [S, A], of what the policy predicts ([..., S, A]).

        Raises:
            UserError: the policy predicts another number of dimensions, or several rows.
        """
        *rows, _, width = actions.shape
        if any(length != 1 for length in rows) or width != self.action_dim:
            raise errors.UserError(
                f"actions of shape {list(actions.shape)}",
                "the policy",
                f"the adapter says {self.action_dim} numbers an action",
            )
        chunk = actions.reshape(-1, width).astype(np.float32)
        return chunk * np.asarray(self.factors, np.float32)


def from_metadata(metadata: Mapping[str, Any], where: str) -> Adapter:
    """The adapter of a server that describes its policy, as ours do.

    Args:
        metadata: first message of the server.
        where: its address, to be named in an error.

    Raises:
        UserError: the server says too little.
    """
    kinds, what = (KeyError, TypeError, ValueError, AttributeError), "the server does not describe"
    fix = f"say it in a file: --adapter={_shipped()} or FILE.json"
    with errors.UserError.instead_of(kinds, f"{what} what it observes and does", where, fix):
        images = {k: v["shape"] for k, v in metadata["obs_spec"].items() if v["dtype"] == "uint8"}
        width = metadata["action_spec"]["dim"]
        return Adapter(
            embodiment=metadata["embodiment"]["name"],
            observations={
                key: View(source=key, size=(shape[0], shape[1])) for key, shape in images.items()
            },
            prompt="prompt",
            action_dim=width,
            action_horizon=metadata["action_horizon"],
            execute_horizon=metadata["execute_horizon"],
            factors=(1.0,) * width,
        )


def read(name: str) -> Adapter:
    """Reads an adapter from its file, or one that comes along by its name.

    Raises:
        UserError: there is no such file, or an entry is absent, unknown or of another type.
    """
    shipped = DIRECTORY / f"{name}.json"
    path = shipped if shipped.exists() else pathlib.Path(name)
    with errors.UserError.instead_of(
        (OSError, ValueError), "cannot be read", f"--adapter={name}", f"give {_shipped()} or a file"
    ):
        document = json.loads(path.read_text())
    kinds = (TypeError, ValueError, KeyError, AttributeError)
    fix = "see docs/evaluation.md for its entries"
    with errors.UserError.instead_of(kinds, "malformed adapter", path, fix):
        return from_json(document)


def from_json(document: Mapping[str, Any]) -> Adapter:
    """Rebuilds an adapter from JSON values; TypeError or ValueError name what is wrong."""
    entries = {"action_horizon": None, "factors": [1.0] * document["action_dim"], **document}
    views = {}
    for key, view in entries["observations"].items():
        size = view.get("size")
        views[key] = View(**{**view, "size": None if size is None else (size[0], size[1])})
        if views[key].resize not in _RESIZES:
            raise ValueError(f"resize {view['resize']!r} is none of {', '.join(_RESIZES)}")
    made = Adapter(**{**entries, "observations": views, "factors": tuple(entries["factors"])})
    if len(made.factors) != made.action_dim:
        raise ValueError(f"{len(made.factors)} factors for {made.action_dim} dimensions")
    if not 1 <= made.execute_horizon <= (made.action_horizon or made.execute_horizon):
        raise ValueError(f"execute_horizon {made.execute_horizon}")
    return made


def _shipped() -> str:
    return "|".join(sorted(path.stem for path in DIRECTORY.glob("*.json")))


def _resize(image: np.ndarray, size: tuple[int, int], *, pad: bool) -> np.ndarray:
    """Bilinear with antialiasing; `pad` keeps the aspect and centres the image on black."""
    from PIL import Image

    height, width = size
    if not pad:
        inner = size
    else:
        ratio = max(image.shape[0] / height, image.shape[1] / width)
        inner = (int(image.shape[0] / ratio), int(image.shape[1] / ratio))
    picture = Image.fromarray(image).resize((inner[1], inner[0]), Image.Resampling.BILINEAR)
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = max(0, int((height - inner[0]) / 2)), max(0, int((width - inner[1]) / 2))
    canvas[top : top + inner[0], left : left + inner[1]] = np.asarray(picture)
    return canvas
