"""A policy server in a thread, for tests of both of its ends."""

import contextlib
import time

import numpy as np
from defi_rollout import batching, errors, server
from defi_rollout.benchmarks import policy_thread


class Slow:
    """A policy of a constant time a call; "boom" fails and "sleep" takes that many seconds."""

    def __init__(self, seconds=0.0):
        self.seconds, self.sizes = seconds, []

    def prepare(self, obs, noise, max_rows):
        if "x" not in obs:
            raise errors.UserError("lacks ['x']", "observation", "send x")
        key = noise.keys(obs, 1)[0]
        sleep = float(obs.get("sleep", self.seconds))
        row = np.array([[*key[:2], 0.0, obs["x"], sleep, "boom" in obs]])
        return {"row": row}, False

    def run(self, inputs):
        rows = inputs["row"]
        self.sizes.append(len(rows))
        if rows[:, 5].any():
            raise ValueError("a secret path /root/secret")
        time.sleep(rows[:, 4].max())
        return np.repeat(rows[:, None, :4], 5, axis=1).astype(np.float32)


@contextlib.contextmanager
def serving(model, **options):
    """Serves in a thread; yields the port."""
    batcher = batching.Batcher(model, max_rows=8)
    metadata = {"bundle": "b", "action_horizon": 5}
    with policy_thread.serving(batcher, metadata, server.Options(port=0, **options)) as url:
        yield int(url.rpartition(":")[2])
