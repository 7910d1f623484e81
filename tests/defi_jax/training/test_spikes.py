import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_run

from defi_jax import errors
from defi_jax.checkpoints import manager
from defi_jax.training import loop, metrics, spikes

RULE = {"spike_factor": 3.0, "spike_window": 12, "spike_skips": 2, "spike_cuts": 1}


def optimizer(**changes):
    numbers = {f"optimizer.{name}": value for name, value in {**RULE, **changes}.items()}
    return toy_run.config(**numbers).optimizer


def judged(losses, norms=None, **changes):
    """Which steps are spikes, and the rate after each."""
    config = optimizer(**changes)
    judge = jax.jit(lambda *args: spikes.judge(*args, config))
    history, found, rates = spikes.init(config), [], []
    for step, (loss, norm) in enumerate(zip(losses, norms or [1.0] * len(losses), strict=True)):
        is_spike, history = judge(history, jnp.int32(step), jnp.float32(loss), jnp.float32(norm))
        found += [step] if is_spike else []
        rates.append(float(spikes.rate(history)))
    return found, rates


def test_a_spike_is_far_above_the_median_of_usual_steps_in_loss_or_gradient():
    usual = [1.0, 1.2, 0.8] * 4
    assert judged([*usual, 2.9, 3.2, 1.0])[0] == [13]
    assert judged([1.0] * 15, [*usual, 4.0, 1.0, 1.0])[0] == [12]
    assert judged([*[1.0] * 9, 50.0])[0] == []  # nothing is usual yet
    assert judged([*usual, np.nan, np.inf])[0] == []  # not finite is another rule's


def test_spikes_within_the_window_halve_the_rate_and_the_usual_is_learnt_anew():
    found, rates = judged([*[1.0] * 12, 9.0, 1.0, 9.0, *[9.0] * 11, 30.0])
    assert found == [12, 14, 26]  # 9 is usual after the cut
    assert rates[13:15] == [1.0, 0.5] and rates[-1] == 0.5
    # Far apart they are single accidents.
    found, rates = judged(([*[1.0] * 14, 9.0]) * 3)
    assert found == [14, 29, 44] and rates[-1] == 1.0


def test_without_the_rule_nothing_is_kept():
    config = optimizer(spike_factor=0.0)
    assert spikes.init(config) == {} and spikes.rate({}) == 1
    assert not spikes.judge({}, jnp.int32(3), jnp.float32(1e9), jnp.float32(1), config)[0]
    with pytest.raises(errors.UserError, match=r"0\.5: --config\.optimizer\.spike_factor"):
        spikes.init(optimizer(spike_factor=0.5))


class _Accidents(toy_run.ToyLoader):
    """Some batches have targets that are far off."""

    at = (14, 16, 28, 30)

    def batch(self, number):
        draw = super().batch(number)
        return draw | {"y": draw["y"] + 5.0 * (number in self.at)}


def train(workdir, steps):
    numbers = {f"optimizer.{name}": value for name, value in RULE.items()}
    config = toy_run.config(
        **{"steps": steps, "save_every": 15, "optimizer.schedule": "constant", **numbers}
    )
    objective = toy_run.ToyObjective(hidden=16)
    return loop.train(config, objective, lambda spec, **options: _Accidents(spec), workdir)


def test_a_run_skips_lowers_and_goes_on_the_same_after_a_stop(tmp_path):
    whole = train(tmp_path / "whole", steps=20)
    assert int(whole.skipped_steps) == 2 and int(whole.spikes["cuts"]) == 1
    last = metrics.last(metrics.read(tmp_path / "whole/metrics.jsonl"), "train")
    assert last["rate_cuts"] == 1 and last["learning_rate"] == pytest.approx(0.5e-2)
    (tmp_path / "whole/checkpoints/20").rename(tmp_path / "20")
    (tmp_path / "whole/checkpoints/20.sha256.json").unlink()
    again = train(tmp_path / "whole", steps=20)  # from step 15, between the two spikes
    for path, leaf in toy_run.leaves(whole).items():
        np.testing.assert_array_equal(leaf, toy_run.leaves(again)[path], err_msg=path)


def test_a_run_that_would_lower_the_rate_too_often_ends(tmp_path):
    with pytest.raises(errors.NumericsError) as caught:
        train(tmp_path, steps=40)
    assert "above 3 times their median again after 1 cuts of the rate; the last" in str(
        caught.value
    )
    assert caught.value.exit_code == 76
    assert manager.committed_steps(tmp_path) == [15, 30]
