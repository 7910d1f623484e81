import functools
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from data_pipelines.sources import workers as workers_lib
from defi_jax import errors

LIMITS: Any = {"seconds": 20, "memory_bytes": 256 << 20}


def _workers(count: int) -> workers_lib.Workers:
    return workers_lib.Workers(count=count, **LIMITS)


def _square(item: int) -> int:
    time.sleep(0.02 * (3 - item % 3))  # later items of a round are faster
    return item * item


def _misbehave(item: str) -> object:
    if item == "crash":
        os._exit(3)
    if item == "abort":
        os.abort()
    if item == "hoard":
        return [np.ones(1 << 26) for _ in range(8)]
    if item == "reject":
        raise errors.DataError("bad", "file", "replace it")
    if item == "bug":
        raise AssertionError("a mistake of ours")
    return item


def _hang(item: float) -> float:
    time.sleep(item)
    return item


def _arrow_pool(_: int) -> str:
    import pyarrow

    return pyarrow.default_memory_pool().backend_name


def test_tables_do_not_reserve_the_memory_of_the_decoders():
    assert list(workers_lib.run(_arrow_pool, [0], _workers(1))) == [(0, "system")]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_keep_the_order_of_the_items(workers):
    found = list(workers_lib.run(_square, range(12), _workers(workers)))
    assert found == [(item, item * item) for item in range(12)]


def test_a_crash_and_a_hoard_cost_their_own_item_only():
    items = ["a", "crash", "b", "hoard", "abort", "c"]
    found = dict(workers_lib.run(_misbehave, items, _workers(2)))
    assert [found[name] for name in "abc"] == list("abc")
    assert found["crash"] == workers_lib.Failure("its worker process died (exit 3)")
    assert found["abort"] == workers_lib.Failure("its worker process died (SIGABRT)")
    assert found["hoard"] == workers_lib.Failure("needed more than 256 MiB of memory")


class _HangsAtStart:
    """A function whose module takes for ever to import."""

    def __call__(self, item):
        return item

    def __reduce__(self):
        return time.sleep, (60,)


def test_a_process_that_hangs_at_its_start_ends_the_run_and_rejects_nothing(monkeypatch):
    monkeypatch.setattr(workers_lib, "_START_SECONDS", 1.0)
    item = b"x" * (1 << 22)  # more than a pipe holds
    with pytest.raises(errors.UserError, match="did not start within 1 s: --workers"):
        list(workers_lib.run(_HangsAtStart(), [item], _workers(1)))


def test_a_hanging_call_ends_at_its_deadline():
    workers = workers_lib.Workers(count=1, seconds=3)
    found = list(workers_lib.run(_hang, [0, 60, 0], workers))
    assert found == [(0, 0), (60, workers_lib.Failure("took more than 3 s")), (0, 0)]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_expected_error_ends_the_run_as_it_is(workers):
    results = workers_lib.run(_misbehave, ["a", "reject"], _workers(workers))
    with pytest.raises(errors.DataError, match="bad: file; replace it"):
        list(results)


def test_a_bug_is_no_failure():
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        list(workers_lib.run(_misbehave, ["bug"], _workers(1)))


def test_items_are_taken_as_workers_become_free():
    taken = []

    def items():
        for item in range(50):
            taken.append(item)
            yield item

    results = workers_lib.run(_square, items(), _workers(2))
    for _ in range(5):
        next(results)
    assert len(taken) <= 5 + 3 * 2
    results.close()


def test_few_results_wait_for_a_slow_first_one():
    taken = []

    def items():
        for item in (1.5, *[0.0] * 50):
            taken.append(item)
            yield item

    results = workers_lib.run(_hang, items(), _workers(2))
    assert next(results) == (1.5, 1.5) and len(taken) <= 3 * 2
    results.close()


def test_a_partial_function_reaches_the_workers():
    function: Any = functools.partial(max, key=abs)
    assert list(workers_lib.run(function, [(1, -2)], _workers(1))) == [((1, -2), -2)]


def test_workers_end_when_the_parent_is_killed(tmp_path):
    script = """
import os, signal, sys, threading, time
from data_pipelines.sources import workers
def busy(path):
    open(path, "w").write(str(os.getpid()))
    time.sleep(600)
if __name__ == "__main__":
    results = workers.run(busy, [sys.argv[1]], workers.Workers(count=1))
    threading.Thread(target=next, args=(results,), daemon=True).start()
    while not os.path.exists(sys.argv[1]) or not open(sys.argv[1]).read():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "killed.py").write_text(script)
    output = tmp_path / "pid"
    subprocess.run(
        [sys.executable, tmp_path / "killed.py", output],
        env=dict(os.environ, PYTHONPATH=":".join(sys.path)),
        stderr=subprocess.DEVNULL,  # the resource tracker complains about the kill
    )
    state = pathlib.Path("/proc", output.read_text(), "stat")
    deadline = time.monotonic() + 30.0
    while state.exists() and ") Z " not in state.read_text():
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.05)
