import jax
import numpy as np
import pytest
import toy_run

from defi_jax import errors
from defi_jax.training import device_batches, sharding

SPEC = toy_run.ToyObjective().batch_spec(4)


def make(**options):
    mesh = sharding.make_mesh(toy_run.config().mesh, jax.devices()[:1])
    loader = toy_run.ToyLoader(SPEC, **options)
    return device_batches.DeviceBatches(loader, SPEC, mesh), loader


def test_state_is_that_of_the_batch_taken_next():
    batches, loader = make()
    for number in range(3):
        assert batches.state() == {"next": number}
        batches.prefetch()
        batches.prefetch()  # once is enough
        assert loader.position == number + 1
        assert batches.state() == {"next": number}
        np.testing.assert_array_equal(batches.take()["x"], loader.batch(number)["x"])


def test_a_batch_that_breaks_the_contract_is_named():
    batches, loader = make()
    loader.batch = lambda number: {"x": np.zeros((4, 64)), "y": np.zeros((4, 4), np.float32)}
    with pytest.raises(ValueError, match=r"x.*float64"):
        batches.prefetch()


def test_the_end_of_the_data_is_an_error():
    batches, _ = make(num_batches=1)
    batches.take()
    with pytest.raises(errors.DataError, match="came to an end"):
        batches.prefetch()


def test_held_out_batches_are_the_same_every_time():
    mesh = sharding.make_mesh(toy_run.config().mesh, jax.devices()[:1])
    loader = toy_run.ToyLoader(SPEC)
    held_out = device_batches.HeldOut(loader, 2, SPEC, mesh)
    first, second = ([np.asarray(batch["x"]) for batch in held_out] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(first) == 2 and loader.position == 0
    assert held_out and not device_batches.HeldOut(None, 2, SPEC, mesh)


def test_what_was_replaced_is_counted_over_all_data_sets():
    batches, loader = make()
    loader.bad_samples, loader.still_pairs = {"a": 1, "b": 2}, {"b": 5}
    assert batches.replaced == {"bad_samples": 3, "still_pairs": 5}
