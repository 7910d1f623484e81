"""Benchmarks by the name that users type."""

import functools
import importlib
from collections.abc import Callable

from defi_rollout import errors
from defi_rollout.benchmarks import (
    base,
    calvin,
    libero,
    metaworld,
    metaworld_multitask,
    simpler,
    simpler_tables,
)

BENCHMARKS: dict[str, Callable[[], base.Benchmark]] = {
    "metaworld": metaworld.MetaWorld,
    **{
        name: functools.partial(metaworld_multitask.MultiTask, name=name)
        for name in metaworld_multitask.TASK_LISTS
    },
    **{name: functools.partial(calvin.Calvin, name=name) for name in calvin.TASK_STEPS},
    **{name: functools.partial(libero.Libero, name=name) for name in libero.SUITES},
    **{name: functools.partial(simpler.Simpler, name=name) for name in simpler_tables.TABLES},
}


def get_benchmark(name: str) -> base.Benchmark:
    """Returns the benchmark called `name`, or a user's own one, MODULE:CLASS.

    Raises:
        UserError: there is none of that name.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]()
    module, _, attribute = name.partition(":")
    fix = f"give --benchmark={'|'.join(BENCHMARKS)}, or your own MODULE:CLASS"
    if not attribute:
        raise errors.UserError("unknown benchmark", name, fix)
    with errors.UserError.instead_of((ImportError, AttributeError), "unknown benchmark", name, fix):
        return getattr(importlib.import_module(module), attribute)()
