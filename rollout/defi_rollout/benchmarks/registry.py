"""Benchmarks by the name that users type."""

from collections.abc import Callable

from defi_rollout import errors
from defi_rollout.benchmarks import base, metaworld

BENCHMARKS: dict[str, Callable[[], base.Benchmark]] = {"metaworld": metaworld.MetaWorld}


def get_benchmark(name: str) -> base.Benchmark:
    """Returns the benchmark called `name`.

    Raises:
        UserError: there is none of that name.
    """
    if name not in BENCHMARKS:
        raise errors.UserError(
            "unknown benchmark", name, f"give --benchmark={'|'.join(BENCHMARKS)}"
        )
    return BENCHMARKS[name]()
