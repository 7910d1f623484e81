"""The 1000 chains of CALVIN's evaluation and the scenes that they start from; needs no simulator.

The list is the official `get_sequences(1000)`: 192 scenes, five tasks each (calvin_chains.json). A
scene is drawn from a seed, a hash of its description; pyhash's `fnv1_32`, which hashes
UTF-16 from an initial value of 0, stands here in four lines.

Source: calvin_agent/evaluation/{multistep_sequences,utils}.py of mees/calvin, MIT.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import json
from typing import Any

import numpy as np

from defi_rollout import errors

SHA256 = "4121d62cea846bd5a80cf9309b27240dbd8b2a21a5ba02f311f39df01819e86d"
NUM_TASKS = 5  # of a chain

# Tool position (m) and Euler angles (rad), gripper width (m), seven joints (rad), gripper action.
ROBOT_OBS = (
    *(0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585),
    0.07999963,
    *(-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928),
    1.0,
)
_KEYS = (
    *("led", "lightbulb", "slider", "drawer", "red_block", "blue_block", "pink_block"),
    "grasped",
)
_SLIDER_OPEN, _DRAWER_OPEN, _SWITCH_ON = 0.28, 0.22, 0.088  # joint positions, m
_IN_SLIDER = {
    "slider_left": (-2.40851662e-01, 9.24044687e-02, 4.60990009e-01),
    "slider_right": (7.03416330e-02, 9.24044687e-02, 4.60990009e-01),
}
_ON_TABLE = (
    (5.00000896e-02, -1.20000177e-01, 4.59990009e-01),
    (2.29995412e-01, -1.19995140e-01, 4.59990010e-01),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """Five tasks in a row.

    Attributes:
        state: what the scene is like at its start; the order of its keys is part of the protocol.
        tasks: names of the tasks, in order.
    """

    state: dict[str, Any]
    tasks: tuple[str, ...]

    def scene_obs(self) -> np.ndarray:
        """The start of the simulated scene, float64 [24]: doors, switches and blocks."""
        return scene_obs(self.state)


@functools.cache
def chains() -> tuple[Chain, ...]:
    """Returns the 1000 chains in the official order; a quick evaluation takes the first of them.

    Raises:
        BundleError: the list of this package is damaged.
    """
    folder = importlib.resources.files("defi_rollout.benchmarks")
    text = folder.joinpath("calvin_chains.json").read_text()
    table = json.loads(text)
    states = [dict(zip(_KEYS, (*state, 0), strict=True)) for state in table["states"]]
    found = tuple(
        Chain(state=states[state], tasks=tuple(table["tasks"][task] for task in tasks))
        for state, *tasks in table["chains"]
    )
    official = json.dumps([[list(one.state.items()), list(one.tasks)] for one in found])
    if hashlib.sha256(official.encode()).hexdigest() != SHA256:
        raise errors.BundleError(
            "not the official chains", "calvin_chains.json", "install defi-rollout again"
        )
    return found


def state_hash(state: dict[str, Any]) -> int:
    """32-bit FNV-1 over UTF-16-LE from 0, of the text that Python prints of the state's values."""
    found = 0
    for byte in str(state.values()).encode("utf-16-le"):
        found = (found * 0x01000193 & 0xFFFFFFFF) ^ byte
    return found


def scene_obs(state: dict[str, Any]) -> np.ndarray:
    """The scene of a state, float64 [24], with places on the table and angles drawn from its hash.

    Order: slider, drawer, button, switch (m); bulb, LED (0 or 1); red, blue, pink block, each
    position (m) and Euler angles (rad).
    """
    rng = np.random.RandomState(state_hash(state))
    table = list(_ON_TABLE)
    rng.shuffle(table)
    bulb, led = state["lightbulb"], state["led"]
    found = [
        _SLIDER_OPEN * (state["slider"] == "left"),
        _DRAWER_OPEN * (state["drawer"] == "open"),
        0.0,
        _SWITCH_ON * bulb,
        float(bulb),
        float(led),
    ]
    places = [state[f"{colour}_block"] for colour in ("red", "blue", "pink")]
    # The second place is the blue block's beside a red one, and always the pink one's.
    own = (table[0], table[int(places[0] == "table")], table[1])
    for place, on_table in zip(places, own, strict=True):
        angle = rng.uniform(np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8)
        found += [*_IN_SLIDER.get(place, on_table), 0.0, 0.0, angle]
    return np.array(found)
