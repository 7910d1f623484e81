"""What the policy server costs, and what batching of several robots gains; by hand.

    python benchmarks/serving.py [--bundle=runs/demo/bundle] [--calls=200]

Each robot is a process of its own and the server another. Without a bundle the policy is one of a
constant time a call (20 ms, of whatever batch), as on an accelerator: throughput of eight robots
beside one. Latency is the median of calls in turns, served and in process, with two images of
256 x 256. Results stand in docs/benchmarks.md.
"""

import asyncio
import concurrent.futures
import contextlib
import json
import multiprocessing
import statistics
import time

import numpy as np
from absl import app, flags
from defi_rollout import batching, client, noise, policy, server

CALL_SECONDS = 0.02
ROBOTS = 8

_F = flags.FLAGS
flags.DEFINE_string("bundle", "", "Bundle to serve; else a policy of a constant time.")
flags.DEFINE_integer("calls", 200, "Of each robot.", 1)


class Constant:
    """A policy of a constant time a call."""

    def __init__(self, seconds: float):
        self._seconds = seconds

    def prepare(self, obs, noise, max_rows=None):
        """Takes any observation."""
        del noise, max_rows
        return {
            "images": np.stack([obs[key] for key in sorted(obs) if "image" in key])[None]
        }, False

    def run(self, inputs):
        """Waits, as for an accelerator."""
        time.sleep(self._seconds)
        return np.zeros((len(inputs["images"]), 10, 7), np.float32)


def main(_) -> None:
    """Prints the figures as JSON."""
    if _F.bundle:
        loaded = policy.Policy.load(_F.bundle)
        key = loaded.spec.cameras[0].key
        shape = loaded.metadata["obs_spec"][key]["shape"]
        obs = {c.key: np.zeros(shape, np.uint8) for c in loaded.spec.cameras} | {"prompt": "go"}
        result = {"in_process_ms": _median(lambda: loaded.infer(obs))}
        start = _F.bundle
    else:
        images = np.random.default_rng(0).integers(0, 255, (2, 256, 256, 3), np.uint8)
        obs = {"observation/image": images[0], "observation/wrist_image": images[1], "prompt": "go"}
        fast, sequence = Constant(0.0), noise.NoiseSequence()
        result = {"in_process_ms": _median(lambda: fast.run(fast.prepare(obs, sequence)[0]))}
        with _serving(0.0) as url:
            result["served_ms"] = _apart([url], obs)[0]["median_ms"]
        start = CALL_SECONDS
    with _serving(start) as url:
        for robots in (1, ROBOTS):
            found = _apart([url] * robots, obs)
            seconds = max(one["seconds"] for one in found)
            result[f"calls_per_second_{robots}"] = robots * _F.calls / seconds
            result[f"median_ms_{robots}"] = statistics.median(one["median_ms"] for one in found)
    result["ratio"] = result[f"calls_per_second_{ROBOTS}"] / result["calls_per_second_1"]
    print(json.dumps({key: round(value, 2) for key, value in result.items()}))


def _median(call) -> float:
    times = []
    for _ in range(_F.calls):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def _apart(urls, obs) -> list[dict[str, float]]:
    """One process a robot; all begin together."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Manager().Barrier(len(urls))
    with concurrent.futures.ProcessPoolExecutor(len(urls), context) as pool:
        return list(pool.map(_robot, urls, *([x] * len(urls) for x in (obs, _F.calls, barrier))))


def _robot(url, obs, calls, barrier) -> dict[str, float]:
    times = []
    with client.Client(url) as robot:
        robot.infer(obs)
        barrier.wait()
        began = time.monotonic()
        for _ in range(calls):
            started = time.perf_counter()
            robot.infer(obs)
            times.append(1000 * (time.perf_counter() - started))
        return {"median_ms": statistics.median(times), "seconds": time.monotonic() - began}


@contextlib.contextmanager
def _serving(what):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(what, theirs), daemon=True)
    process.start()
    yield f"ws://127.0.0.1:{ours.recv()}"
    process.terminate()
    process.join()


def _serve(what, pipe) -> None:
    if isinstance(what, str):
        model = policy.Policy.load(what, warm_up=False)
        for size in batching.batch_sizes(ROBOTS):
            model.run(model.example_inputs(size))
    else:
        model = Constant(what)
    serving = server.Server(
        batching.Batcher(model, max_rows=ROBOTS), {"bundle": "benchmark"}, server.Options(port=0)
    )
    asyncio.run(serving.run(pipe.send))


if __name__ == "__main__":
    app.run(main)
