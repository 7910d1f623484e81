"""Changes of memory layout between PyTorch's tensors and our parameters."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """A change of memory layout and its inverse; both are views or copies, never arithmetic."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


# Letters: O output and I input channels, t h w kernel extents; theirs is PyTorch's.
LAYOUTS: dict[str, Layout] = {
    "same": Layout(lambda x: x, lambda x: x),
    # (O, I) <-> (I, O)
    "linear": Layout(lambda x: x.transpose(1, 0), lambda x: x.transpose(1, 0)),
    # (O, I, h, w) <-> (h, w, I, O)
    "conv2d": Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
    # (O, I, t, h, w) <-> (t, h, w, I, O)
    "conv3d": Layout(lambda x: x.transpose(2, 3, 4, 1, 0), lambda x: x.transpose(4, 3, 0, 1, 2)),
    # (O, I, t, 1, 1) <-> (t, I, O)
    "conv3d_time": Layout(
        lambda x: x[:, :, :, 0, 0].transpose(2, 1, 0),
        lambda x: x.transpose(2, 1, 0)[:, :, :, None, None],
    ),
    # (O, I, 1, 1) <-> (I, O)
    "conv1x1_linear": Layout(
        lambda x: x[:, :, 0, 0].transpose(1, 0), lambda x: x.transpose(1, 0)[:, :, None, None]
    ),
    # (1, ...) <-> (...)
    "leading1": Layout(lambda x: x[0], lambda x: x[None]),
    # (1, 1, ...) <-> (...)
    "leading11": Layout(lambda x: x[0, 0], lambda x: x[None, None]),
    # (1,) <-> ()
    "scalar": Layout(lambda x: x.reshape(()), lambda x: x.reshape((1,))),
}
