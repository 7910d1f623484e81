import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_run

from defi_jax import errors
from defi_jax.objectives import base
from defi_jax.training import optimizer


def rates(steps, at, **changes):
    config = toy_run.config(**{f"optimizer.{name}": value for name, value in changes.items()})
    schedule = optimizer.make_schedule(config.optimizer, steps)
    return [float(schedule(np.int32(count))) for count in at]


def test_constant_with_and_without_warm_up():
    assert rates(9, (0, 8), schedule="constant", warmup_steps=0) == pytest.approx([1e-2, 1e-2])
    found = rates(9, (0, 1, 3, 8), schedule="constant", warmup_steps=4)
    assert found == pytest.approx([0.25e-2, 0.5e-2, 1e-2, 1e-2])


def test_warmup_cosine_rises_to_the_peak_and_ends_at_the_final_scale():
    found = rates(100, (0, 9, 10, 55, 100, 500), warmup_steps=10, final_scale=0.2)
    middle = 0.2e-2 + 0.5 * 0.8e-2
    assert found == pytest.approx([1e-3, 1e-2, 1e-2, middle, 0.2e-2, 0.2e-2])


def test_tri_stage_has_the_official_numbers():
    """The intended schedule of the policy over 50,000 steps (method.md 3.7)."""
    found = rates(
        50_000,
        (0, 1, 999, 1000, 4999, 5000, 27_500, 50_000),
        schedule="tri_stage",
        learning_rate=1e-4,
        final_scale=1e-6,
    )
    middle = 1e-10 + 0.5 * (1e-4 - 1e-10)
    want = [1e-5, 1e-5 + 9e-8, 1e-5 + 999 * 9e-8, 1e-4, 1e-4, 1e-4, middle, 1e-10]
    assert found == pytest.approx(want, rel=1e-4, abs=1e-12)


def test_microbatches_take_every_example_once_draw_their_own_noise_and_pass_extra_on():
    def loss_and_grad(extra, batch, rng):
        noise = jax.random.uniform(rng)
        output = base.LossOutput(metrics={"noise": noise}, extra=extra * 2 + batch[0])
        return (jnp.mean(batch), output), batch.sum()

    key, batch = jax.random.key(5), jnp.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    loss, metrics, extra, grad = optimizer.accumulate(
        loss_and_grad, jnp.float32(0), batch, key, num=3
    )
    draws = [float(jax.random.uniform(jax.random.fold_in(key, index))) for index in range(3)]
    assert float(metrics["noise"]) == pytest.approx(np.mean(draws))
    assert float(loss) == pytest.approx(63 / 6) and float(grad) == pytest.approx(63 / 3)
    assert float(extra) == (1 * 2 + 2) * 2 + 4  # microbatches begin with examples 0, 1, 2


def test_gradient_norms_are_by_part_and_of_all():
    def tree(**parts):
        return {name: {"kernel": jnp.full((2, 2), size)} for name, size in parts.items()}

    grads = {"policy": tree(former=1.5, denoiser=2.0) | {"position": jnp.full(3, 4.0)}}
    grads["policy"]["former"]["bias"] = jnp.full(1, 4.0)
    norms = optimizer.gradient_norms(grads)
    want = {"former": 5.0, "denoiser": 4.0, "position": 48**0.5}
    assert norms.pop("grad_norm") == pytest.approx(89**0.5) == optax.global_norm(grads)
    assert norms == {f"grad_norm/policy/{name}": pytest.approx(v) for name, v in want.items()}
    # One module of one part: its own parts.
    norms = optimizer.gradient_norms({"gfdm": {"unet": tree(down=1.0, up=2.0)}})
    assert norms.keys() == {"grad_norm", "grad_norm/gfdm/unet/down", "grad_norm/gfdm/unet/up"}


@pytest.mark.parametrize(("key", "value"), [("schedule", "cosign"), ("name", "lion")])
def test_unknown_names_are_refused(key, value):
    config = toy_run.config(**{f"optimizer.{key}": value})
    with pytest.raises(errors.UserError, match=f"{value}.*optimizer.{key}"):
        optimizer.make_optimizer(config.optimizer, 10)


def test_adamw_and_clipping_match_their_formulas():
    numbers = {"schedule": "constant", "warmup_steps": 0, "grad_clip_norm": 0.5}
    config = toy_run.config(**{f"optimizer.{name}": value for name, value in numbers.items()})
    tx = optimizer.make_optimizer(config.optimizer, 10)
    params = {"w": np.array([2.0, -1.0], np.float32)}
    grads = {"w": np.array([3.0, 4.0], np.float32)}
    updates, _ = tx.update(grads, tx.init(params), params)
    clipped = grads["w"] * 0.5 / 5.0
    want = params["w"] - 1e-2 * (clipped / (np.abs(clipped) + 1e-8) + 0.01 * params["w"])
    np.testing.assert_allclose(optax.apply_updates(params, updates)["w"], want, rtol=1e-5)


def _muon_update(params, grads):
    numbers = {"name": "muon", "schedule": "constant", "warmup_steps": 0, "grad_clip_norm": 0.0}
    numbers["weight_decay"] = 0.0
    config = toy_run.config(**{f"optimizer.{name}": value for name, value in numbers.items()})
    tx = optimizer.make_optimizer(config.optimizer, 10)
    return tx.update(grads, tx.init(params), params)[0], config.optimizer.learning_rate


def _random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_muon_makes_each_matrix_orthogonal_at_the_size_of_adams_steps():
    params = {"layers": {"kernel": _random(2, 24, 48)}, "conv": {"kernel": _random(3, 3, 24, 48)}}
    params["last"] = {"kernel": _random(48, 24)}
    grads = {name: {"kernel": _random(*p["kernel"].shape, seed=1)} for name, p in params.items()}
    updates, rate = _muon_update(params, grads)
    for name, update in updates.items():
        values = np.linalg.svd(np.asarray(update["kernel"]), compute_uv=False)
        assert values.max() / values.min() < 2.0, name  # the gradients': 5 and more
        size = np.sqrt(np.mean(np.square(update["kernel"]), axis=(-2, -1)))
        np.testing.assert_allclose(size, 0.2 * rate, rtol=0.2)
        descent = -np.sum(np.asarray(update["kernel"]) * grads[name]["kernel"], axis=(-2, -1))
        assert (descent > 0).all()


def test_muon_leaves_small_matrices_and_vectors_to_adam():
    params = {"in": {"kernel": _random(4, 64)}, "norm": {"scale": _random(64)}}
    grads = jax.tree.map(lambda leaf: 3.0 * leaf, params)
    updates, rate = _muon_update(params, grads)
    for path in (("in", "kernel"), ("norm", "scale")):
        update, grad = updates[path[0]][path[1]], grads[path[0]][path[1]]
        np.testing.assert_allclose(update, -rate * np.sign(grad), rtol=1e-3)
