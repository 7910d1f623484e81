"""How long a save keeps the training loop waiting, beside how long it takes.

    python -m benchmarks.async_save --folder=DIR --params=250

Saves a train state of so many million float32 parameters with Adam's moments by the checkpoint
manager of runs, --saves times, each after the values have changed. Exit code 1 where the loop waits
for more than 5 % of a save, from its start until its commit, in the median.

Results stand in docs/benchmarks.md.
"""

import functools
import resource
import statistics
import sys
import time

import jax
import jax.numpy as jnp
from absl import app, flags

from defi_jax.checkpoints import digests, manager, train_state
from defi_jax.checkpoints import format as checkpoint_format

LIMIT = 0.05
WIDTH = 2048

_F = flags.FLAGS


def main(_) -> None:
    """Prints what came of it."""
    state = make_state(_F.params)
    leaves = flat(state)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())
    print(f"{_F.params} M parameters, {len(leaves)} leaves, {size / 2**30:.2f} GiB", flush=True)
    shares = []
    with manager.Checkpointer(_F.folder, keep=1) as checkpoints:
        for _ in range(_F.saves):
            state = jax.block_until_ready(advance(state))
            start = time.monotonic()
            checkpoints.save(state, metadata={}, data_state={})
            waited = time.monotonic() - start
            marker = checkpoints.directory / str(int(state.step)) / checkpoint_format.COMMIT_MARKER
            while not marker.exists():
                time.sleep(0.05)
            whole = time.monotonic() - start
            shares.append(waited / whole)
            print(f"waited {waited:.3f} s of {whole:.2f} s: {shares[-1]:.1%}", flush=True)
            checkpoints.wait()
    leaves, start = flat(state), time.monotonic()
    digests.leaf_digests(leaves)
    print(f"the digests alone: {time.monotonic() - start:.3f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    share = statistics.median(shares)
    print(f"median {share:.1%}, peak {peak:.1f} GiB, on {jax.devices()[0].device_kind}")
    sys.exit(0 if share < LIMIT else 1)


def flat(state: train_state.TrainState) -> dict[str, jax.Array]:
    """Its leaves as the manager names them."""
    return checkpoint_format.flat_items(checkpoint_format.to_items(state))


def make_state(millions: int) -> train_state.TrainState:
    """A state of square kernels."""
    count = max(1, round(millions * 1e6 / WIDTH**2))
    keys = jax.random.split(jax.random.key(0), count)
    params = {
        f"layer_{i}": {"kernel": jax.random.normal(k, (WIDTH,) * 2)} for i, k in enumerate(keys)
    }
    moments = jax.tree.map(lambda leaf: leaf * 1e-3, params)
    return train_state.TrainState(
        step=jnp.int32(0),
        params=params,
        frozen={},
        ema_params=None,
        opt_state={"mu": moments, "nu": jax.tree.map(jnp.square, moments)},
        extra={},
        rng=jax.random.key(1),
        bad_steps=jnp.int32(0),
        skipped_steps=jnp.int32(0),
    )


@functools.partial(jax.jit, donate_argnums=0)
def _changed(leaf: jax.Array) -> jax.Array:
    return leaf * 0.999


def advance(state: train_state.TrainState) -> train_state.TrainState:
    """The state one step later."""
    changed = jax.tree.map(_changed, (state.params, state.opt_state))
    return state.replace(step=state.step + 1, params=changed[0], opt_state=changed[1])


if __name__ == "__main__":
    flags.DEFINE_string("folder", None, "Empty directory to work in.", required=True)
    flags.DEFINE_integer("params", 250, "Millions of parameters.", 1)
    flags.DEFINE_integer("saves", 3, "Number of times.", 1)
    app.run(main)
