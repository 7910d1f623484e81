"""Run with 8 fake devices by test_devices.py: what must not depend on the mesh. Prints JSON."""

import dataclasses
import functools
import json
import logging
import pathlib
import sys

import jax
import numpy as np
import safetensors.numpy
import toy_run

from defi_jax import tensor_files
from defi_jax.checkpoints import manager
from defi_jax.models import params as params_lib
from defi_jax.objectives import base
from defi_jax.training import device_batches, loop, sharding, step, warm_start

MESHES = {
    "fsdp": {"replica": 1, "fsdp": 8, "tensor": 1},
    "replica": {"replica": 8, "fsdp": 1, "tensor": 1},
    "all": {"replica": 2, "fsdp": 2, "tensor": 2},
}


def gradient(mesh, accumulation):
    """Loss and gradient leaves of one batch, with the state placed on `mesh`."""
    config = toy_run.config(**{"optimizer.accumulation_steps": accumulation})
    objective = toy_run.ToyObjective()
    spec = objective.batch_spec(config.global_batch)
    with jax.set_mesh(mesh):
        abstract, placement = step.abstract_state(config, objective, mesh)
        state = step.initialize(config, objective, abstract)
        batch = device_batches.DeviceBatches(toy_run.ToyLoader(spec), spec, mesh).take()
        compute = functools.partial(step.compute_gradient, objective=objective, config=config)
        loss, _, _, grads = jax.jit(compute)(state, batch, jax.random.key(1))
    kernel = placement.shardings.params["net"]["fc1"]["kernel"].spec
    return {"loss": np.asarray(loss), **toy_run.leaves(grads)}, str(kernel)


def difference(left, right):
    """Largest relative L2 difference over the leaves."""
    errors = [np.linalg.norm(left[k] - right[k]) / np.linalg.norm(left[k]) for k in left]
    return float(max(errors))


def restored_on(workdir, mesh_config, num_devices):
    """Leaves of the checkpoint, restored onto a mesh of so many devices."""
    mesh = sharding.make_mesh(mesh_config, jax.devices()[:num_devices])
    abstract, _ = step.abstract_state(toy_run.config(), toy_run.ToyObjective(), mesh)
    with manager.Checkpointer(workdir, keep=3) as checkpoints:
        state = checkpoints.restore(abstract).state
    devices = {device for leaf in jax.tree.leaves(state) for device in leaf.devices()}
    assert len(devices) == num_devices
    return toy_run.leaves(state)


def warm_start_reads(workdir):
    """Starts a split kernel from a file; returns the shapes that were read of it."""
    config, objective = toy_run.config(), toy_run.ToyObjective()
    rng = np.random.default_rng(0)
    with jax.set_mesh(sharding.make_mesh(MESHES["fsdp"])):
        abstract, _ = step.abstract_state(config, objective, sharding.make_mesh(MESHES["fsdp"]))
        state = step.initialize(config, objective, abstract)
        flat = params_lib.flatten(state.params["net"])
        weights = {path: rng.normal(size=x.shape).astype(np.float16) for path, x in flat.items()}
        directory = pathlib.Path(workdir) / "imported"
        directory.mkdir()
        safetensors.numpy.save_file(weights, directory / warm_start.WEIGHTS_FILE)
        shapes, read = [], tensor_files.SafetensorsFiles.read

        def recording_read(self, name, index):
            value = read(self, name, index)
            shapes.append((name, value.shape))
            return value

        tensor_files.SafetensorsFiles.read = recording_read
        start = base.WarmStart(source=str(directory), theirs="", ours="net", flag="init.gfdm")
        warm, _ = warm_start.apply(dataclasses.replace(state, ema_params=None), [start])
        tensor_files.SafetensorsFiles.read = read
    for path, value in params_lib.flatten(jax.device_get(warm.params["net"])).items():
        np.testing.assert_array_equal(value, weights[path].astype(np.float32))
    assert (
        warm.params["net"]["fc1"]["kernel"].sharding
        == state.params["net"]["fc1"]["kernel"].sharding
    )
    return [shape for name, shape in shapes if name == "fc1/kernel"]


def main(workdir):
    report = {"devices": jax.device_count(), "gradient": {}, "spec": {}, "restored": {}}
    report["warm_start_reads"] = warm_start_reads(workdir)
    one, _ = gradient(sharding.make_mesh(toy_run.config().mesh, jax.devices()[:1]), 1)
    for name, numbers in MESHES.items():
        mesh = sharding.make_mesh(numbers)
        found, report["spec"][name] = gradient(mesh, 1)
        report["gradient"][name] = difference(one, found)
    one, _ = gradient(sharding.make_mesh(toy_run.config().mesh, jax.devices()[:1]), 2)
    report["gradient"]["accumulated"] = difference(
        one, gradient(sharding.make_mesh(MESHES["fsdp"]), 2)[0]
    )

    config = toy_run.config(steps=2, eval_every=1, eval_batches=1)
    state = loop.train(config, toy_run.ToyObjective(), toy_run.make_loader(), workdir)
    want = toy_run.leaves(state)
    np.savez(f"{workdir}/state.npz", **want)
    cases = {"same": ("fsdp", 8), "other": ("all", 8), "two": ({**MESHES["fsdp"], "fsdp": 2}, 2)}
    for name, (numbers, count) in cases.items():
        got = restored_on(workdir, MESHES.get(numbers) if count == 8 else numbers, count)
        report["restored"][name] = all(np.array_equal(want[k], got[k]) for k in want)
    print(json.dumps(report))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    main(sys.argv[1])
