"""Softmax attention: one function, one TPU kernel of the same maths, one multi-head module.

Legend: B batch, T frames, Q queries, M keys, N tokens, D width, Dh width of a head, Dv of a value;
leading `...` axes are batch axes.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from defi_jax import partition
from defi_jax.array_typing import Array, Bool, Float, PRNGKey, typed
from defi_jax.models.layers import linear as linear_lib
from defi_jax.models.layers import stack

# Below this many tokens the logits are small beside their queries.
MIN_TOKENS, _LANES = 256, 128
# Rows of queries and keys that the kernel holds at once, and of these the keys it multiplies.
_BLOCK, _COMPUTE_BLOCK = 1024, 512


def split_heads(x: Array, heads: int) -> jax.Array:
    """Returns [..., heads, Dh] of [..., heads * Dh], head-major."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Array) -> jax.Array:
    """Inverse of `split_heads`."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


@typed
def attention(
    q: Float[Array, "*b Q heads Dh"],
    k: Float[Array, "*b M heads Dh"],
    v: Float[Array, "*b M heads Dv"],
    mask: Bool[Array, "..."] | None = None,
    bias: Float[Array, "..."] | None = None,
    *,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: PRNGKey | None = None,
) -> Float[Array, "*b Q heads Dv"]:
    """Scaled dot-product attention with softmax in fp32.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: broadcastable to [..., heads, Q, M]; False is not attended, with weight exactly 0. No
            row may be False throughout.
        bias: added to the logits, broadcastable as the mask.
        scale: factor of the products of q and k; None for Dh ** -0.5.
        dropout_rate: share of attention weights that are dropped, as in the reference.
        dropout_rng: None for no dropout.

    Returns:
        Weighted values in the dtype of `v`.
    """
    logits = jnp.einsum("...qhd,...khd->...hqk", q, k, preferred_element_type=jnp.float32)
    logits = logits * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    # Softmax with its division after the second product: Dv numbers a query instead of M.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = jnp.swapaxes(weights.sum(axis=-1), -1, -2)[..., None]
    weights = dropout(weights, dropout_rate, dropout_rng).astype(v.dtype)
    mixed = jnp.einsum("...hqk,...khd->...qhd", weights, v, preferred_element_type=jnp.float32)
    return (mixed / total).astype(v.dtype)


def dropout(x: Array, rate: float, rng: PRNGKey | None) -> Array:
    """Zeroes a share `rate` of `x` and scales the rest up; identity when `rng` is None."""
    if rng is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(rng, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def over_frames(q: Array, k: Array, v: Array) -> jax.Array:
    """Attention of each token over the frames, [B, T, N, heads, Dh] each -> the same shape."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(attention(q, k, v), 1, 2)


def causally_over_frames(q: Array, k: Array, v: Array) -> jax.Array:
    """As `over_frames`, each frame seeing itself and those before.

    A loop of products and sums instead of matmuls, for T of 2: a batch of 2 x 2 matmuls is slow on
    every device.
    """
    scale, frames = q.shape[-1] ** -0.5, []
    for t in range(q.shape[1]):
        products = [q[:, t].astype(jnp.float32) * k[:, s] for s in range(t + 1)]
        logits = jnp.stack([product.sum(-1) * scale for product in products], axis=-1)
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        frames.append(sum(weights[..., s, None] * v[:, s] for s in range(t + 1)))
    return jnp.stack(frames, axis=1)


def over_tokens(q: Array, k: Array, v: Array, mask: Array | None = None) -> jax.Array:
    """Attention within each frame, [..., N, heads, Dh] each -> the same shape.

    Of many tokens, one kernel on TPUs. The logits of 1,024 latent positions, as an array, are read
    and written a dozen times in a training step: half of a fine transformer block's memory traffic
    there.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: bool[..., 1, 1, N], False for keys that are not attended.
    """
    if q.shape[-3] < MIN_TOKENS:
        return attention(q, k, v, mask=mask)
    keys = None if mask is None else jnp.broadcast_to(mask[..., 0, 0, :], q.shape[:-2])
    return lax.platform_dependent(
        q,
        k,
        v,
        keys,
        tpu=_on_each_device,
        default=lambda q, k, v, _: attention(q, k, v, mask=mask),
    )


class Attention(nnx.Module):
    """Multi-head attention with projections made by `linear`.

    Attributes:
        attend: (q, k, v, **options) -> values; `attention`, or one that chooses its axes.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        context_dim: int | None = None,
        inner_dim: int | None = None,
        qkv_bias: bool = True,
        out_bias: bool = True,
        linear: Callable[..., nnx.Linear] = linear_lib.linear,
        attend: Callable[..., jax.Array] = attention,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.attend = num_heads, attend
        context_dim = dim if context_dim is None else context_dim
        inner_dim = dim if inner_dim is None else inner_dim
        options = {"dtype": dtype, "rngs": rngs}
        self.to_q = linear(dim, inner_dim, use_bias=qkv_bias, **options)
        self.to_k = linear(context_dim, inner_dim, use_bias=qkv_bias, **options)
        self.to_v = linear(context_dim, inner_dim, use_bias=qkv_bias, **options)
        self.to_out = linear(inner_dim, dim, use_bias=out_bias, **options)

    def __call__(self, x: Array, context: Array | None = None, **options: Any) -> jax.Array:
        """Attends from x [..., N, D] to context [..., M, Dc], or to x itself.

        Args:
            x: queries' tokens.
            context: keys' and values' tokens.
            **options: what `attend` takes beside, for example `mask`.
        """
        return self.read(x, *self.keys_values(x if context is None else context), **options)

    def keys_values(self, context: Array) -> tuple[jax.Array, jax.Array]:
        """Returns keys and values [..., M, heads, Dh] of [..., M, Dc]."""
        k, v = self.to_k(context), self.to_v(context)
        return split_heads(k, self.num_heads), split_heads(v, self.num_heads)

    def read(self, x: Array, keys: Array, values: Array, **options: Any) -> jax.Array:
        """Attends from x [..., N, D] to what `keys_values` returned."""
        q = split_heads(self.to_q(x), self.num_heads)
        return self.to_out(merge_heads(self.attend(q, keys, values, **options)))


class TextAttention(Attention):
    """Attention to a short text.

    logits = (x Wq) (text Wk)' = x (Wq (text Wk)'), and likewise for values and the output: with L
    text tokens fewer than a head is wide, taking the matrices into the text's side is cheaper than
    projecting every position, and exact. Keys and values serve all rows of a batch element.
    """

    def __call__(self, x: Array, text: Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Maps x [B, N, D] with text [B, L, Dc] to the shape of x."""
        key, value = self.keys_values(text)
        if text.shape[1] >= key.shape[-1]:
            return self.read(x, key, value)
        assert self.to_out.bias is not None
        dtype, (_, _, heads, width) = key.dtype, key.shape
        queries = self.to_q.kernel[...].astype(dtype).reshape(-1, heads, width)
        outputs = self.to_out.kernel[...].astype(dtype).reshape(heads, width, -1)
        key = jnp.einsum("blhd,chd->bhlc", key * width**-0.5, queries)
        value = jnp.einsum("blhd,hdc->bhlc", value, outputs)
        logits = jnp.einsum("bnc,bhlc->bhln", x, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits, axis=-2).astype(dtype)
        mixed = jnp.einsum("bhln,bhlc->bnc", weights, value)
        return mixed + self.to_out.bias[...].astype(dtype)


def _on_each_device(
    query: jax.Array, key: jax.Array, value: jax.Array, keys: jax.Array | None
) -> jax.Array:
    """The kernel on each device's own examples and heads: the compiler cannot split it."""
    mesh = jax.sharding.get_abstract_mesh()
    free = {axis: mesh.shape[axis] for axis in mesh.auto_axes if mesh.shape[axis] > 1}
    if not free:
        return _kernel(query, key, value, keys)
    batch = tuple(axis for axis in partition.BATCH_AXES if axis in free)
    if query.shape[0] % math.prod(free[axis] for axis in batch):
        batch = ()
    heads = "tensor" if "tensor" in free and query.shape[-2] % free["tensor"] == 0 else None
    spec = jax.P(batch, *[None] * (query.ndim - 3), heads)
    return jax.shard_map(
        _kernel,
        mesh=mesh,
        in_specs=(spec, spec, spec, jax.P(batch)),
        out_specs=spec,
        axis_names=set(mesh.auto_axes),  # those of size 1 too: the kernel refuses any other
        check_vma=False,
    )(query, key, value, keys)


def _kernel(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    keys: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Jax's `splash_attention` on [..., N, heads, Dh], of the keys bool[..., N], None for all.

    The kernel wants whole rows of lanes: tokens that are missing are added, and are no keys.
    """
    tokens, heads, width = query.shape[-3:]
    missing = -tokens % _LANES
    N = tokens + missing
    block = N if N <= _BLOCK else math.gcd(N, _BLOCK)
    compute = N if N <= _COMPUTE_BLOCK else math.gcd(N, _COMPUTE_BLOCK)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=compute,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=compute,
        use_fused_bwd_kernel=True,
    )
    mask = masks.MultiHeadMask([masks.FullMask((N, N))] * heads)
    kernel = splash.make_splash_mha_single_device(
        mask, block_sizes=sizes, interpret=interpret, residual_checkpoint_name=stack.KEPT
    )

    def to_heads(x: jax.Array) -> jax.Array:
        x = jnp.pad(x.reshape(-1, tokens, heads, width), [(0, 0), (0, missing), (0, 0), (0, 0)])
        return jnp.swapaxes(x, 1, 2)

    segments = None
    if missing or keys is not None:
        keys = jnp.ones(query.shape[:-2], bool) if keys is None else keys
        kept = jnp.pad(keys.reshape(-1, tokens).astype(jnp.int32), [(0, 0), (0, missing)])
        # Queries attend to keys of their own segment: 1.
        segments = splash.SegmentIds(q=jnp.ones_like(kept), kv=kept)
    y: Any = jax.vmap(kernel)(
        to_heads(query) * width**-0.5, to_heads(key), to_heads(value), segments
    )
    return jnp.swapaxes(y, 1, 2)[:, :tokens].reshape(query.shape)
