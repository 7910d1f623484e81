"""Dataset name (the `name` in its dataset_info.json) -> how it is read."""

from __future__ import annotations

from data_pipelines.standardize import base, bridge
from defi_jax import cli, errors

STANDARDS: dict[str, base.Standard] = {
    "bridge_dataset": bridge.STANDARD,
    "bridge_orig": bridge.STANDARD,
}


def find(name: str) -> base.Standard:
    """Returns the standardisation of a dataset.

    Raises:
        UserError: there is none.
    """
    if name not in STANDARDS:
        raise errors.UserError(
            f"no standardisation for dataset '{name}'",
            "data_pipelines/standardize/registry.py",
            f"add one file there and list it; {cli.nearest(name, STANDARDS)}",
        )
    return STANDARDS[name]
