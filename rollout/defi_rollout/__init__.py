"""Client side of DeFI-JAX: acts with an exported bundle, in process or behind a server."""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {"Policy": "defi_rollout.policy", "Client": "defi_rollout.client"}


def __getattr__(name: str) -> Any:
    """Imports public classes on first use: a worker sets its core limits before jax loads."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'defi_rollout' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
