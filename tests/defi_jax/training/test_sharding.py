import jax
import numpy as np
import pytest
import toy_run

from defi_jax import errors
from defi_jax.training import sharding, step

MESH = {"replica": 1, "fsdp": 4, "tensor": 2}
KERNEL = "params/attn/to_q/kernel"


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("params/conv/kernel", (3, 3, 320, 640), (None, None, None, "fsdp")),
        ("params/conv/kernel", (3, 3, 640, 320), (None, None, "fsdp", None)),
        ("params/conv/kernel", (3, 3, 512, 512), (None, None, None, "fsdp")),
        ("params/conv/kernel", (3, 3, 4, 320), (None,) * 4),  # small: copied
        ("params/odd/kernel", (1001, 1003), (None, None)),  # divides nowhere: copied
        ("opt_state/1/0/mu/attn/to_q/kernel", (512, 256), ("fsdp", "tensor")),
        ("ema_params/attn/to_out/kernel", (256, 512), ("tensor", "fsdp")),
        (KERNEL, (512, 255), ("fsdp", None)),
        ("params/blocks/attn/to_q/kernel", (12, 512, 256), (None, "fsdp", "tensor")),
        ("params/auto_q/kernel", (512, 256), ("fsdp", None)),  # only whole names match
        ("step", (), ()),
        ("rng", (), ()),
    ],
)
def test_placement_by_path_and_shape(path, shape, spec):
    assert tuple(sharding.leaf_spec(path, shape, MESH)) == spec


def test_a_leaf_that_no_rule_covers_is_an_error():
    with pytest.raises(ValueError, match=r"no placement rule covers 'surprise/kernel' \(3, 4\)"):
        sharding.leaf_spec("surprise/kernel", (3, 4), MESH)


def test_every_leaf_of_a_state_is_placed_and_the_largest_copy_named():
    config, objective = toy_run.config(), toy_run.ToyObjective()
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    abstract, placement = step.abstract_state(config, objective, mesh)
    assert jax.tree.structure(placement.shardings) == jax.tree.structure(abstract)
    assert placement.largest_replicated == ("params/net/fc1/kernel", 64 * 1024 * 4)
    sizes = [
        leaf.nbytes
        for leaf in toy_run.leaves(step.initialize(config, objective, abstract)).values()
    ]
    assert placement.bytes_per_device == pytest.approx(sum(sizes), abs=8)


def test_mesh_takes_the_rest_and_has_auto_axes():
    mesh = sharding.make_mesh(MESH | {"fsdp": -1, "tensor": 1}, jax.devices()[:1])
    assert mesh.axis_names == ("replica", "fsdp", "tensor")
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
    "sizes", [MESH, {**MESH, "fsdp": 0}, {**MESH, "fsdp": -1, "tensor": -1}, {**MESH, "fsdp": -2}]
)
def test_mesh_that_does_not_fit_is_refused(sizes):
    with pytest.raises(errors.UserError, match="mesh"):
        sharding.make_mesh(sizes, jax.devices()[:1])


def test_local_batch_of_the_wrong_size_is_an_error():
    mesh = sharding.make_mesh(toy_run.config().mesh, jax.devices()[:1])
    with pytest.raises(ValueError, match="should have 8 examples"):
        sharding.global_batch_array({"x": np.zeros((4, 2))}, 8, mesh)
