"""Which frames of an episode make a sample: clips, frame pairs, windows. Index arithmetic only."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames of a video clip (official Step1_GFDM/video_dataset/dataset_mix.py:121-158).

    With `stride` s > 0 there is a clip for every s-th start and indices past the end repeat the
    last frame:

        n=7, num_frames=3, stride=2  ->  [0, 2, 4], [2, 4, 6], [4, 6, 6], [6, 6, 6]

    With `stride` 0 the episode is one clip, spread evenly from the first to the last frame:

        n=7, num_frames=3, stride=0  ->  [0, 3, 6]

    Attributes:
        num_frames: T.
        stride: control steps between frames and between starts; 0 for the whole episode.
        max_frames: longer episodes have no clip; 0 for any length.
    """

    num_frames: int
    stride: int
    max_frames: int = 0

    def __post_init__(self):
        if self.num_frames < 1 or self.stride < 0 or self.max_frames < 0:
            raise ValueError(f"impossible clip: {self}")

    def num_samples(self, lengths: np.ndarray) -> np.ndarray:
        """Returns int64, the number of clips of episodes of these lengths."""
        counts = np.ones_like(lengths) if self.stride == 0 else -(-lengths // self.stride)
        return np.where(lengths <= self.max_frames, counts, 0) if self.max_frames else counts

    def __call__(self, length: int, sample: int) -> np.ndarray:
        """Returns int64[T], the frames of the episode's clip number `sample`."""
        if self.stride == 0:
            return np.linspace(0, length - 1, self.num_frames).astype(np.int64)
        start = sample * self.stride
        return np.minimum(start + self.stride * np.arange(self.num_frames), length - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FramePair:
    """The frames (t, t + k), k drawn for each sample, clamped to the last frame.

    Every t but the last starts a pair, so that no pair shows one frame twice (an episode of a
    single frame has none):

        n=5, offset (3, 3)  ->  [0, 3], [1, 4], [2, 4], [3, 4]

    Deviation: officially the last frame pairs with itself (`include_last`) and k is drawn once per
    run (Step2_GIDM/datasets/rlds/traj_transforms.py:13-44, dataset.py:359-367), as with
    data.pair_draw="run".

    Attributes:
        min_offset: smallest k, at least 1.
        max_offset: largest k, inclusive.
        include_last: whether the last frame is paired too, with itself.
    """

    min_offset: int
    max_offset: int
    include_last: bool = False

    def __post_init__(self):
        if not 1 <= self.min_offset <= self.max_offset:
            raise ValueError(f"impossible frame pair: {self}")

    def num_samples(self, lengths: np.ndarray) -> np.ndarray:
        """Returns int64, the number of pairs of episodes of these lengths."""
        return lengths if self.include_last else lengths - 1

    def __call__(self, length: int, sample: int, rng: np.random.Generator) -> np.ndarray:
        """Returns int64[2], the frames of the pair that starts at frame `sample`."""
        offset = int(rng.integers(self.min_offset, self.max_offset + 1))
        return np.array([sample, min(sample + offset, length - 1)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """One observation, at every `stride`-th frame; `action.Chunk` cuts the actions that follow.

        n=7, stride=3  ->  0, 3, 6

    Attributes:
        stride: control steps between windows.
    """

    stride: int = 1

    def __post_init__(self):
        if self.stride < 1:
            raise ValueError(f"impossible window: {self}")

    def num_samples(self, lengths: np.ndarray) -> np.ndarray:
        """Returns int64, the number of windows of episodes of these lengths."""
        return -(-lengths // self.stride)

    def __call__(self, length: int, sample: int) -> int:
        """Returns the frame of window number `sample`."""
        frame = sample * self.stride
        if not 0 <= frame < length:
            raise ValueError(f"window {sample} of {self} in an episode of {length} frames")
        return frame
