"""Arrays of several processes as numpy arrays, for the part of an evaluation done on the host."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def fetch(tree: Any) -> Any:
    """Returns the tree with numpy arrays, each whole, on every process.

    All processes must call this, with the same tree: what another process holds is gathered.
    """
    return jax.tree.map(_fetch, tree)


def _fetch(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)
