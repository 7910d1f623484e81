"""Episodes made up on the fly: coloured shapes of which one moves as the text says.

    "move the red square to the left"  ->  the red square glides to the left edge

Everything follows from the episode's number, so that access is random and costs no memory or file.
Actions cause the motion: the velocity of the named shape at step t is read from action t alone,
and the next frame shows it moved by that. The text is necessary: the other shapes could move too.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines import episodes
from defi_jax import errors

NAME = "synthetic"
CAMERAS = ("static", "gripper")  # the second follows the moving shape at twice the scale

COLOURS = {
    "red": (220, 50, 47),
    "green": (60, 180, 75),
    "blue": (50, 90, 230),
    "yellow": (240, 210, 40),
    "purple": (150, 60, 200),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle")
TEMPLATES = (
    "move the {colour} {shape} {phrase}",
    "push the {colour} {shape} {phrase}",
    "slide the {shape} that is {colour} {phrase}",
)

NUM_SHAPES = 3
SPEED = 0.06  # image widths a step at action 1
GAIN = 3.0  # action per image width still to go
REACH = 0.12  # distance of the goal from the image's edge
# What the text asks for: the axis of the motion, and the goal there.
GOALS = {
    "to the left": (0, REACH),
    "to the right": (0, 1 - REACH),
    "up": (1, REACH),
    "down": (1, 1 - REACH),
}
RADIUS = 0.11  # half a shape's width, in image widths
FPS = 10.0


@dataclasses.dataclass(frozen=True)
class _Scene:
    """One episode before rendering.

    Attributes:
        colours: float32[NUM_SHAPES, 3]; shape 0 is the one that moves.
        shapes: names.
        positions: float32[n, NUM_SHAPES, 2], x and y of the centres in image widths.
        actions: float32[n, A].
        background: float32[2, 3], colours of the top and the bottom.
        instructions: paraphrases.
    """

    colours: np.ndarray
    shapes: tuple[str, ...]
    positions: np.ndarray
    actions: np.ndarray
    background: np.ndarray
    instructions: tuple[str, ...]


class SyntheticSource(episodes.EpisodeSource):
    """Episodes without files.

    Args:
        image_size: pixels of a side.
        action_dim: A; even dimensions push sideways, odd ones down, each set in equal parts.
        num_episodes: how many there are.
        length: frames of each.
    """

    def __init__(
        self, *, image_size: int, action_dim: int, num_episodes: int = 2048, length: int = 32
    ):
        if action_dim < 2:
            raise errors.UserError(
                f"synthetic data moves in two dimensions, action_dim is {action_dim}",
                "data.action_dim",
                "give 2 or more",
            )
        self._image_size = image_size
        self._action_dim = action_dim
        self._length = length
        self.episode_ids = tuple(f"{NAME}-{i:06d}" for i in range(num_episodes))
        self.lengths = np.full(num_episodes, length, np.int64)
        self.has_actions = np.ones(num_episodes, bool)

    def has_camera(self, camera: str) -> np.ndarray:
        """Returns bool[len(self)], whether each episode has the camera."""
        return np.full(len(self), camera in CAMERAS)

    def meta(self, i: int) -> episodes.EpisodeMeta:
        """Returns what is known of episode `i` without drawing it."""
        return episodes.EpisodeMeta(
            episode_id=self.episode_ids[i],
            source=NAME,
            embodiment=NAME,
            instructions=self._scene(i).instructions,
            cameras=CAMERAS,
            length=self._length,
            fps=FPS,
            has_actions=True,
            has_states=True,
            metadata={},
        )

    def fetch(
        self, i: int, camera: str, indices: Sequence[int] | np.ndarray
    ) -> Iterator[np.ndarray]:
        """Draws the given frames, each when it is taken; see `episodes.EpisodeSource`."""
        if camera not in CAMERAS:
            where = f"episode {self.episode_ids[i]!r}"
            fix = f"use one of {', '.join(CAMERAS)}"
            raise errors.DataError(f"no camera {camera!r}", where, fix)
        scene = self._scene(i)
        for t in indices:
            positions, scale = scene.positions[t], 1.0
            if camera == "gripper":
                scale = 2.0
                positions = 0.5 + scale * (positions - positions[0])
            yield _render(scene, positions, RADIUS * scale, self._image_size)

    def actions(self, i: int) -> np.ndarray:
        """Returns float32[n, A] in [-1, 1]."""
        return self._scene(i).actions

    def states(self, i: int) -> np.ndarray:
        """Returns float32[n, 2], the centre of the moving shape."""
        return self._scene(i).positions[:, 0]

    def fingerprint(self) -> str:
        """Digest of what the episodes follow from and of the first one's pixels."""
        facts = (NAME, self._image_size, self._action_dim, len(self), self._length)
        digest = hashlib.sha256(repr(facts).encode())
        digest.update(self.frames(0, "static", range(self._length)).tobytes())
        return digest.hexdigest()

    def _scene(self, i: int) -> _Scene:
        return _make_scene(i, self._action_dim, self._length)


@functools.lru_cache(maxsize=4096)  # about 2 KB each
def _make_scene(number: int, action_dim: int, length: int) -> _Scene:
    rng = np.random.default_rng((20260, number))
    names = rng.permutation(list(COLOURS))[:NUM_SHAPES]
    shapes = tuple(str(name) for name in rng.choice(SHAPES, NUM_SHAPES))
    phrase = str(rng.choice(list(GOALS)))
    words = {"colour": names[0], "shape": shapes[0], "phrase": phrase}
    starts = rng.uniform(0.2, 0.8, (NUM_SHAPES, 2)).astype(np.float32)
    axis, goal = GOALS[phrase]
    pushes, path = [], [float(starts[0, axis])]
    for _ in range(length):
        pushes.append(min(max(GAIN * (goal - path[-1]), -1.0), 1.0))
        path.append(path[-1] + SPEED * pushes[-1])
    actions = np.zeros((length, action_dim), np.float32)
    actions[:, axis::2] = np.array(pushes)[:, None]
    positions = np.tile(starts, (length, 1, 1))
    positions[:, 0, axis] = path[:-1]
    return _Scene(
        colours=np.array([COLOURS[name] for name in names], np.float32),
        shapes=shapes,
        positions=positions,
        actions=actions,
        background=rng.uniform(20, 110, (2, 3)).astype(np.float32),
        instructions=tuple(template.format(**words) for template in TEMPLATES),
    )


def _render(scene: _Scene, positions: np.ndarray, radius: float, size: int) -> np.ndarray:
    """Returns uint8[size, size, 3] of shapes at float32[NUM_SHAPES, 2], the moving one on top."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    top, bottom = scene.background
    rows = top + axis[:, None] * (bottom - top)
    image = np.repeat(rows[:, None], size, axis=1)
    for number in reversed(range(NUM_SHAPES)):
        x, y = axis - positions[number, 0], axis - positions[number, 1]
        inside = _coverage(scene.shapes[number], x[None, :], y[:, None], radius, size)
        image += inside[..., None] * (scene.colours[number] - image)
    return np.rint(image).astype(np.uint8)


def _coverage(shape: str, x: np.ndarray, y: np.ndarray, radius: float, size: int) -> np.ndarray:
    """Returns float32[size, size] in [0, 1], 1 inside, from the distance to the outline."""
    if shape == "circle":
        outside = np.sqrt(x * x + y * y) - radius
    elif shape == "square":
        outside = np.maximum(np.abs(x), np.abs(y)) - 0.9 * radius
    else:  # point up; 0.447 and 0.894 are the slanted sides' normal
        outside = np.maximum(y - radius, 0.894 * np.abs(x) - 0.447 * (y + radius))
    return np.clip(0.5 - outside * size, 0, 1)
