"""Steps whose loss or gradient norm is far above the usual: skipped; if they go on, a lower rate.

A step is a spike if its loss or gradient norm is above `spike_factor` times its median over the
last `spike_window` steps. It changes nothing. After `spike_skips` of them within the window the
learning rate is halved for the rest of the run, and what is usual is learnt anew; a run that would
halve it more than `spike_cuts` times ends.

Config keys read, of `optimizer`: spike_factor (0: no step is a spike), spike_window, spike_skips,
spike_cuts.
"""

from typing import Any

import jax
import jax.numpy as jnp

from defi_jax import errors

FEWEST = 10  # usual steps before a median says anything

History = dict[str, jax.Array]


def init(config: Any) -> History:
    """Nothing is known yet; {} where no step is a spike.

    Raises:
        UserError: every step would be one.
    """
    if not config.spike_factor:
        return {}
    if config.spike_factor <= 1:
        raise errors.UserError(
            f"impossible {config.spike_factor}", "--config.optimizer.spike_factor", "give above 1"
        )
    window = config.spike_window
    return {
        "losses": jnp.full(window, jnp.nan),  # of usual steps, NaN for others
        "norms": jnp.full(window, jnp.nan),
        "is_spike": jnp.zeros(window, jnp.bool_),
        "cuts": jnp.zeros((), jnp.int32),
    }


def judge(
    history: History, step: jax.Array, loss: jax.Array, norm: jax.Array, config: Any
) -> tuple[jax.Array, History]:
    """Returns whether a step is a spike, and what is known after it.

    Args:
        history: what is known before.
        step: int32 scalar, steps taken before.
        loss, norm: scalars of the step; one that is not finite makes no spike.
        config: the `optimizer` section.
    """
    if not history:
        return jnp.zeros((), jnp.bool_), history
    is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    is_far = _is_far(history["losses"], loss, config) | _is_far(history["norms"], norm, config)
    is_spike, is_usual = is_far & is_finite, is_finite & ~is_far
    place = step % config.spike_window
    after = {
        "losses": history["losses"].at[place].set(jnp.where(is_usual, loss, jnp.nan)),
        "norms": history["norms"].at[place].set(jnp.where(is_usual, norm, jnp.nan)),
        "is_spike": history["is_spike"].at[place].set(is_spike),
        "cuts": history["cuts"],
    }
    is_cut = jnp.sum(after["is_spike"]) >= config.spike_skips
    anew = init(config) | {"cuts": history["cuts"] + 1}
    return is_spike, jax.tree.map(lambda new, old: jnp.where(is_cut, new, old), anew, after)


def rate(history: History) -> jax.Array:
    """What the learning rate is multiplied with."""
    return jnp.exp2(-history["cuts"].astype(jnp.float32)) if history else jnp.ones(())


def _is_far(past: jax.Array, value: jax.Array, config: Any) -> jax.Array:
    is_known = jnp.sum(jnp.isfinite(past)) >= min(FEWEST, config.spike_window)
    return is_known & (value > config.spike_factor * jnp.nanmedian(past))
