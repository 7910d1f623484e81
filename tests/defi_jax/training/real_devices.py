"""Run with 8 fake devices by test_real_stages.py: a real stage's gradient by mesh. Prints JSON."""

import functools
import json
import logging
import sys

import jax
import numpy as np
import real_stages
import toy_run

from defi_jax import partition
from defi_jax.training import sharding, start, step
from tests.fixtures import fake_batch

MESHES = {
    "one": {"replica": 1, "fsdp": 1, "tensor": 1},
    "fsdp": {"replica": 1, "fsdp": 8, "tensor": 1},
    "all": {"replica": 2, "fsdp": 2, "tensor": 2},
}


def perturbed(state):
    """The state with no parameter at zero, where whole branches would get no gradient."""
    rng = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda leaf: np.asarray(leaf) + rng.normal(0, 0.2, leaf.shape).astype(leaf.dtype),
        state.params,
    )
    return state.replace(params=moved)


def gradient(config, objective, state, mesh):
    """Loss and gradient leaves of one batch, and the axes that the parameters are split over.

    Scalar leaves, such as the UNet's mixing factors, are compared together as one vector.
    """
    # Noise for frames: all leaves get a gradient that is well above the rounding errors.
    batch = fake_batch.fake(objective.batch_spec(config.global_batch))
    with jax.set_mesh(mesh):
        placed = sharding.place(state, mesh).shardings
        batch = sharding.global_batch_array(batch, config.global_batch, mesh)
        compute = functools.partial(step.compute_gradient, objective=objective, config=config)
        jitted = jax.jit(compute)
        loss, _, _, grads = jitted(jax.device_put(state, placed), batch, jax.random.key(1))
    axes = {axis for leaf in jax.tree.leaves(placed.params) for axis in leaf.spec if axis}
    leaves = toy_run.leaves(grads)
    scalars = {path: leaf for path, leaf in leaves.items() if not leaf.ndim}
    found = {path: leaf for path, leaf in leaves.items() if leaf.ndim} | {"loss": np.asarray(loss)}
    if scalars:
        # Each is one sum of thousands of terms that may cancel: its own size is no measure.
        found["scalars"] = np.stack(list(scalars.values()))
    return found, sorted(axes)


def difference(want, got):
    """Relative L2 difference of each leaf; infinite where a leaf has no gradient.

    A constant in all keys changes no attention, so the gradient of keys' biases is zero but for
    rounding: it is measured against that of the kernel beside it.
    """
    found = {}
    for path, leaf in want.items():
        norm = np.linalg.norm(want[path.replace("['to_k']['bias']", "['to_k']['kernel']")])
        found[path] = float(np.linalg.norm(leaf - got[path]) / norm) if norm else np.inf
    return found


def main(name):
    partition.FSDP_MIN_SIZE = 1  # the shrunk parameters are split like large ones
    start.enable_compilation_cache(toy_run.PROGRAMS)
    config = real_stages.get_config(name)
    objective, _ = real_stages.make(config)
    first = sharding.make_mesh(MESHES["one"], jax.devices()[:1])
    abstract, _ = step.abstract_state(config, objective, first)
    state = perturbed(step.initialize(config, objective, abstract))
    one, _ = gradient(config, objective, state, first)
    report = {}
    for mesh in ("fsdp", "all"):
        devices = sharding.make_mesh(MESHES[mesh])
        found, axes = gradient(config, objective, state, devices)
        report[mesh] = {"axes": axes, "difference": difference(one, found)}
    print(json.dumps(report))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    main(*sys.argv[1:])
