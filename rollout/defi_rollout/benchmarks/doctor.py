"""Checks of this machine and of a bundle, before a robot or a benchmark depends on them."""

import dataclasses
import functools
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Iterator

from defi_rollout import bundle, errors
from defi_rollout.benchmarks import adapters, base, registry, simulators

# Largest relative L2 distance of the example's actions: other hardware sums in another order.
EXAMPLE_TOLERANCE = 1e-2
_TIMED_CALLS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """Outcome of one check; `detail` says what was found or what to do."""

    name: str
    ok: bool
    detail: str


def run_checks(bundle_path: str | None, benchmark: str) -> list[Check]:
    """Runs all checks that apply; `bundle_path` None and `benchmark` "" leave theirs out."""
    checks = [_check("python", platform.python_version)]
    checks += [_check(name, _version(name)) for name in ("numpy", "jax", "jaxlib", "safetensors")]
    checks.append(_check("devices", _devices))
    if bundle_path is not None:
        checks += _bundle_checks(bundle_path)
    if benchmark:
        checks += _benchmark_checks(benchmark, bundle_path)
    return checks


def _check(name: str, probe: Callable[[], str]) -> Check:
    try:
        return Check(name=name, ok=True, detail=probe())
    except errors.UserError as error:
        return Check(name=name, ok=False, detail=str(error))
    except Exception as error:  # a doctor reports whatever is broken
        return Check(name=name, ok=False, detail=f"{type(error).__name__}: {error}")


def _version(package: str) -> Callable[[], str]:
    return lambda: importlib.metadata.version(package)


def _devices() -> str:
    import jax

    return ", ".join(str(device) for device in jax.devices())


def _bundle_checks(path: str) -> Iterator[Check]:
    verified = _check("bundle files", lambda: f"verified, {bundle.read_bundle(path).digest[:12]}")
    yield verified
    if verified.ok:
        yield _check("bundle policy", lambda: _try_policy(path))


def _try_policy(path: str) -> str:
    """Compiles the policy, repeats the bundle's own example and times it."""
    from defi_rollout import policy as policy_lib

    policy = policy_lib.Policy.load(path, warm_up=False)
    started = time.perf_counter()
    distance = policy.run_example()
    compile_seconds = time.perf_counter() - started
    if not distance <= EXAMPLE_TOLERANCE:
        raise errors.CheckFailed(
            f"the example's actions are off by {distance:.1e} (relative L2)",
            path,
            "export the bundle again with this machine's jax",
        )
    times = []
    for _ in range(_TIMED_CALLS):
        started = time.perf_counter()
        policy.run_example()
        times.append(1000 * (time.perf_counter() - started))
    return (
        f"example within {distance:.1e}, first call {compile_seconds:.1f} s, "
        f"then {statistics.median(times):.1f} ms"
    )


def _benchmark_checks(name: str, bundle_path: str | None) -> Iterator[Check]:
    benchmark = registry.get_benchmark(name)
    for source in benchmark.simulator.sources:
        check = functools.partial(simulators.check_source, benchmark.simulator.name, source)
        yield _check(f"{name} {source.name}", lambda check=check: f"{check()} files")
    for label, question in (
        ("simulator", "versions"),
        ("files", "check_files"),
        ("renderer", "draw_one"),
    ):
        yield _check(f"{name} {label}", lambda question=question: _ask(benchmark, question))
    if bundle_path is not None:
        yield _check(f"{name} bundle", lambda: _fits(benchmark, bundle_path))


def _ask(benchmark: base.Benchmark, question: str) -> str:
    answer = simulators.ask(benchmark.simulator, question)[question]
    return answer["version"] if isinstance(answer, dict) else answer


def _fits(benchmark: base.Benchmark, bundle_path: str) -> str:
    source = bundle.read_bundle(bundle_path)
    benchmark.check(adapters.from_metadata(source.spec.metadata(source.digest), bundle_path))
    return "fits the benchmark"
