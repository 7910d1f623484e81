"""Optimizer, learning-rate schedules, moving average and accumulation, all from `config.optimizer`.

Keys read: name ("adamw" | "muon"), learning_rate, schedule ("constant" | "warmup_cosine" |
"tri_stage"), warmup_steps, schedule_steps (0: those of the run; after it the rate stays),
final_scale (of learning_rate, at the schedule's end), b1, b2, eps, weight_decay, grad_clip_norm (0:
none), accumulation_steps, ema_decay (0: no average). "constant" ignores final_scale, "tri_stage"
ignores warmup_steps: its phases are shares of the schedule.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from defi_jax import errors
from defi_jax.array_typing import Array, Params
from defi_jax.models import params as params_lib

# Warm-up starts at this share of the peak and takes this share of the run; then the hold
# (method.md 3.7: 1e-5 -> 1e-4, phases 0.02, 0.08, 0.9).
_TRI_STAGE_START = 0.1
_TRI_STAGE_WARMUP, _TRI_STAGE_HOLD = 0.02, 0.08

# Root mean square of Muon's updates at rate 1, about AdamW's; and the side below which a matrix is
# a mere embedding of a few numbers, which AdamW updates.
_MUON_MOMENTUM, _MUON_RMS, _SMALLEST_MATRIX = 0.95, 0.2, 16
_STACKED_MATRICES = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)


def make_schedule(config: Any, steps: int) -> optax.Schedule:
    """Learning rate by update number for the `optimizer` section `config` of a run of `steps`.

    `config.schedule_steps` are its length, if they are not 0.
    """
    makers = {"constant": _constant, "warmup_cosine": _warmup_cosine, "tri_stage": _tri_stage}
    _check_known("schedule", config.schedule, makers, "optimizer.schedule")
    return makers[config.schedule](config, config.schedule_steps or steps)


def make_optimizer(config: Any, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW or Muon with decay on every parameter.

    AdamW is the reference's (method.md 1.5, 2.6, 3.7). Muon makes each matrix of momenta orthogonal
    (Jordan et al. 2024), scaled to the size of AdamW's updates (Moonlight, arXiv 2502.16982); from
    scratch it needs about half of the samples.
    """
    makers = {"adamw": _adamw, "muon": _muon}
    _check_known("optimizer", config.name, makers, "optimizer.name")
    update = makers[config.name](config, make_schedule(config, steps))
    if config.grad_clip_norm <= 0:
        return update
    return optax.chain(optax.clip_by_global_norm(config.grad_clip_norm), update)


def _check_known(what: str, name: str, known: Iterable[str], key: str) -> None:
    if name not in known:
        choices = f"use one of {', '.join(sorted(known))}"
        raise errors.UserError(f"unknown {what} {name!r}", key, choices)


def _adamw(config: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        schedule, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay
    )


def _muon(config: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon for matrices, equal shapes stacked so that each is one small program; AdamW else.

    Stacking gathers what is split over `fsdp`: for models whose momenta fit one device.
    """
    muon = optax.contrib.muon(
        schedule,
        beta=_MUON_MOMENTUM,
        weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=_all_matrices,
        consistent_rms=_MUON_RMS,
    )
    adamw = _adamw(config, schedule)

    def init(params: Any) -> Any:
        stacks, others = _split_matrices(params)
        return {"muon": muon.init(stacks), "adamw": adamw.init(others)}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        stacks, others = _split_matrices(params)
        new: list[Any] = list(_split_matrices(updates))
        new[0], muon_state = muon.update(new[0], state["muon"], stacks)
        new[1], adamw_state = adamw.update(new[1], state["adamw"], others)
        return _merge_matrices(updates, *new), {"muon": muon_state, "adamw": adamw_state}

    return optax.GradientTransformation(init, update)


def _all_matrices(stacks: Any) -> dict[str, Any]:
    return dict.fromkeys(stacks, _STACKED_MATRICES)


def _matrix_shape(path: str, leaf: Any) -> tuple[int, int] | None:
    """The last two axes of a kernel, None for what AdamW updates; axes before count matrices."""
    is_kernel = path.endswith("kernel") and leaf.ndim >= 2
    is_matrix = is_kernel and min(leaf.shape[-2:]) >= _SMALLEST_MATRIX
    return leaf.shape[-2:] if is_matrix else None


def _split_matrices(params: Params) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Returns all matrices as {"rows x columns": [n, rows, columns]}, and the other leaves."""
    stacks: dict[str, list[jax.Array]] = {}
    others = {}
    for path, leaf in params_lib.flatten(params).items():
        shape = _matrix_shape(path, leaf)
        if shape is None:
            others[path] = leaf
        else:
            stacks.setdefault(f"{shape[0]}x{shape[1]}", []).append(leaf.reshape(-1, *shape))
    return {name: jnp.concatenate(leaves) for name, leaves in stacks.items()}, others


def _merge_matrices(
    like: Params, stacks: dict[str, jax.Array], others: dict[str, jax.Array]
) -> Params:
    """Inverse of `_split_matrices`; `like` gives paths and shapes."""
    taken = dict.fromkeys(stacks, 0)
    merged = {}
    for path, leaf in params_lib.flatten(like).items():
        shape = _matrix_shape(path, leaf)
        if shape is None:
            merged[path] = others[path]
            continue
        name, count = f"{shape[0]}x{shape[1]}", math.prod(leaf.shape[:-2])
        start = taken[name]
        taken[name] += count
        merged[path] = stacks[name][start : start + count].reshape(leaf.shape)
    return params_lib.unflatten(merged)


def gradient_norms(grads: Params) -> dict[str, jax.Array]:
    """Returns the norm of a gradient as `grad_norm`, and of each part as `grad_norm/a/b`.

    Parts are what the first two names of paths tell apart, or as many more as tell any apart.
    """
    flat = params_lib.flatten(grads)
    names = [path.split("/") for path in flat]
    depth = 2
    while depth < max(map(len, names)) and len({(*name[:depth],) for name in names}) == 1:
        depth += 1
    squares: dict[str, Any] = {}
    for name, leaf in zip(names, flat.values(), strict=True):
        part = "/".join(name[:depth])
        squares[part] = squares.get(part, 0.0) + jnp.sum(jnp.square(leaf.astype(jnp.float32)))
    norms = {f"grad_norm/{part}": jnp.sqrt(square) for part, square in squares.items()}
    return {"grad_norm": jnp.sqrt(sum(squares.values())), **norms}


def update_ema(ema: Params, params: Params, updates: jax.Array, decay: float) -> Params:
    """Moving average with the warm-up min(decay, (1 + n) / (10 + n)) over the number of updates.

    The warm-up keeps short runs from averaging over their random start.
    """
    count = updates.astype(jnp.float32)
    rate = 1.0 - jnp.minimum(decay, (1.0 + count) / (10.0 + count))
    return jax.tree.map(
        lambda mean, new: mean + rate.astype(mean.dtype) * (new - mean), ema, params
    )


def accumulate(
    loss_and_grad: Callable[..., Any], extra: Any, batch: Any, rng: jax.Array, num: int
) -> tuple[jax.Array, dict[str, jax.Array], Any, Any]:
    """Mean loss, metrics and gradient over `num` microbatches, scanned in one program.

    Args:
        loss_and_grad: (extra, batch, rng) -> ((loss, LossOutput), gradient).
        extra: the objective's arrays, threaded through the microbatches in order.
        batch: leaves [B, ...], B divisible by `num`. Microbatch i takes the examples i, i + num,
            ..., so that a batch sharded over devices stays where it is.
        rng: key of the step; microbatch i uses fold_in(rng, i).
        num: number of microbatches of equal sizes: the mean of plain or weighted means
            (`Objective.weigh`) is the batch's.

    Returns:
        loss, metrics, extra after the last microbatch, gradient.
    """

    def one(extra: Any, batch: Any, index: Any) -> tuple[Any, Any]:
        (loss, output), grads = loss_and_grad(extra, batch, jax.random.fold_in(rng, index))
        return output.extra, (loss, output.metrics, grads)

    if num == 1:
        extra, (loss, metrics, grads) = one(extra, batch, 0)
        return loss, metrics, extra, grads

    def body(carry: Any, index: jax.Array) -> tuple[Any, None]:
        extra, total = carry
        extra, result = one(extra, jax.tree.map(lambda leaf: leaf[:, index], split), index)
        return (extra, jax.tree.map(jnp.add, total, result)), None

    split = jax.tree.map(lambda leaf: leaf.reshape(-1, num, *leaf.shape[1:]), batch)
    first = jax.eval_shape(one, extra, jax.tree.map(lambda leaf: leaf[:, 0], split), 0)[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
    (extra, total), _ = jax.lax.scan(body, (extra, zeros), jnp.arange(num))
    loss, metrics, grads = jax.tree.map(lambda leaf: leaf / num, total)
    return loss, metrics, extra, grads


def _constant(config: Any, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 over `warmup_steps` (may be 0), then constant."""
    del steps
    warmup, peak = config.warmup_steps, config.learning_rate
    if warmup == 0:
        return optax.constant_schedule(peak)
    return lambda count: peak * jnp.minimum(1.0, (count + 1) / warmup)


def _warmup_cosine(config: Any, steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup_steps`, then a cosine down to `final_scale` of the peak."""
    warmup, peak = config.warmup_steps, config.learning_rate
    final = peak * config.final_scale

    def schedule(count: Array) -> Array:
        rise = peak * (count + 1) / max(1, warmup)
        return jnp.where(count < warmup, rise, _cosine(count - warmup, steps - warmup, peak, final))

    return schedule


def _tri_stage(config: Any, steps: int) -> optax.Schedule:
    """Warm-up, hold, cosine decay: the intended schedule of the policy (method.md 3.7)."""
    start, peak = _TRI_STAGE_START * config.learning_rate, config.learning_rate
    final = peak * config.final_scale
    warmup, hold = round(_TRI_STAGE_WARMUP * steps), round(_TRI_STAGE_HOLD * steps)

    def schedule(count: Array) -> Array:
        rise = start + (peak - start) * count / max(1, warmup)
        decay = _cosine(count - warmup - hold, steps - warmup - hold, peak, final)
        return jnp.where(count < warmup, rise, jnp.where(count < warmup + hold, peak, decay))

    return schedule


def _cosine(count: jax.Array, steps: int, peak: float, final: float) -> jax.Array:
    """Half a cosine from `peak` at 0 to `final` at `steps`, then `final`."""
    fraction = jnp.clip(count / max(1, steps), 0.0, 1.0)
    return final + 0.5 * (peak - final) * (1.0 + jnp.cos(jnp.pi * fraction))
