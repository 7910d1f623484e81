"""Everything that a training step reads and writes, as one frozen dataclass of plain trees."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax

from defi_jax.array_typing import Params
from defi_jax.models import params as params_lib


@flax.struct.dataclass
class TrainState:
    """State of a run after `step` steps.

    Attributes:
        step: int32 scalar, steps taken, the skipped ones included.
        params: trained parameters, nested dict.
        frozen: parameters that stay as they are, nested dict.
        ema_params: moving average of `params`, or None.
        opt_state: optax state over `params`.
        extra: arrays the objective owns and the optimizer does not touch.
        rng: typed key, constant over a run; a step folds its own number in.
        bad_steps: int32 scalar, consecutive steps without a finite loss and gradient.
        skipped_steps: int32 scalar, all steps since the start of the run that changed nothing.
        spikes: what is usual for losses and gradients, {} without the rule; see training.spikes.
    """

    step: jax.Array
    params: Params
    frozen: Params
    ema_params: Params | None
    opt_state: Any
    extra: dict[str, jax.Array]
    rng: jax.Array
    bad_steps: jax.Array
    skipped_steps: jax.Array
    spikes: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    def all_params(self) -> Params:
        """Trained (the average where there is one) and frozen together."""
        return merge_params(self.ema_params or self.params, self.frozen)


def split_params(params: Params, is_trainable: Callable[[str], bool]) -> tuple[Params, Params]:
    """Returns (trainable, frozen), each nested like `params` with only its own leaves."""
    flat = params_lib.flatten(params)
    trainable = {path: leaf for path, leaf in flat.items() if is_trainable(path)}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trainable}
    return params_lib.unflatten(trainable), params_lib.unflatten(frozen)


def merge_params(trainable: Params, frozen: Params) -> Params:
    """Inverse of `split_params`."""
    return params_lib.unflatten(params_lib.flatten(trainable) | params_lib.flatten(frozen))
