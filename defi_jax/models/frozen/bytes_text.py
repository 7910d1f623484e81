"""Byte ids -> frozen random n-gram features, one token a word: language without weights or files.

A vector per position is a hash of the bytes that end there, at several widths, so that the end of
each word carries the whole word and equal words get equal vectors wherever they stand. There are no
parameters and no constants beyond the seed: integers only, hence the same bits on every backend.

The rule, per scale s (the word widths in order, then the context width) and position i:

1. symbols x_o = ids[i - o], o = 0 .. width - 1; x_o = 0 before the start of the text. For a word
   scale x_o = 0 also when o > 0 and one of the bytes i - o .. i is not a word byte (ASCII letter or
   digit, or any byte above 127), so that the hash never looks past its own word.
2. h = fmix(seed * 31 + s); for o = width - 1 .. 0: h = (h xor x_o) * 16777619 (FNV-1a, mod 2^32).
3. feature d of the scale: u = fmix(h + (d + 1) * 0x9E3779B9), value = ((u >> 8) / 2^24 - 1/2) *
   sqrt(12): uniform, mean 0, variance 1; the context scale's values times `context_scale`, since
   contexts seldom repeat between paraphrases. fmix is MurmurHash3's 32-bit finaliser.

The scales share D equally, in order. Padding gets zeros. `pooled` [B, D] is the mean over the valid
positions, rescaled to unit root mean square (zeros for empty text). The tokens are the vectors at
the words' ends; words past the first L / 4 are left out of them.

B batch, L bytes, W words, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp

from defi_jax.array_typing import Array, Bool, Float, Int32, typed

_FNV_PRIME = 16777619
_GOLDEN = 0x9E3779B9
_BYTES_PER_WORD = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class BytesTextConfig:
    """Numbers of the n-gram features.

    Attributes:
        dim: D, a multiple of the number of scales.
        word_widths: n-gram widths in bytes that stop at the word's start.
        context_width: n-gram width in bytes that crosses words, so that order is not lost.
        context_scale: amplitude of the context features; those of the word scales have 1.
        seed: another seed is another random projection.
    """

    dim: int
    word_widths: tuple[int, ...] = (3, 6, 16)
    context_width: int = 16
    context_scale: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dim % self.num_scales:
            raise ValueError(f"dim {self.dim} is not a multiple of {self.num_scales} scales")

    @property
    def num_scales(self) -> int:
        """Number of n-gram widths."""
        return len(self.word_widths) + 1


@typed
def ngram_features(
    config: BytesTextConfig, ids: Int32[Array, "B L"], mask: Bool[Array, "B L"]
) -> tuple[Float[Array, "B L D"], Float[Array, "B D"]]:
    """Returns (a vector per byte, pooled), float32; see the module's rule."""
    ids = jnp.where(mask, ids, 0)
    scales = [(width, True) for width in config.word_widths] + [(config.context_width, False)]
    hashes = [
        _ngram_hash(ids, width, within_word, config.seed * 31 + index)
        for index, (width, within_word) in enumerate(scales)
    ]
    size = config.dim // len(scales)
    offsets = jnp.arange(1, size + 1, dtype=jnp.uint32) * jnp.uint32(_GOLDEN)
    bits = _fmix(jnp.stack(hashes, axis=-1)[..., None] + offsets)  # [B, L, scales, size]
    unit = (bits >> 8).astype(jnp.float32) * 2.0**-24 - 0.5
    amplitude = jnp.array([1.0] * len(config.word_widths) + [config.context_scale]) * 12.0**0.5
    tokens = (unit * amplitude[:, None]).reshape(*ids.shape, config.dim)
    tokens = jnp.where(mask[..., None], tokens, 0.0)
    total = tokens.sum(axis=1)
    mean_square = jnp.mean(jnp.square(total), axis=-1, keepdims=True)
    return tokens, total * jax.lax.rsqrt(jnp.maximum(mean_square, 1e-12))


@typed
def word_ends(
    ids: Int32[Array, "B L"], mask: Bool[Array, "B L"], vectors: Float[Array, "B L D"]
) -> tuple[Float[Array, "B W D"], Bool[Array, "B W"]]:
    """Returns (tokens, mask): the vectors at the ends of the first W = ceil(L / 4) words."""
    in_word = _is_word_byte(ids) & mask
    ends = in_word & ~jnp.pad(in_word[:, 1:], ((0, 0), (0, 1)))
    slots = -(-ids.shape[1] // _BYTES_PER_WORD)
    order = jnp.cumsum(ends, axis=1) - 1
    picks = ends[:, None] & (order[:, None] == jnp.arange(slots)[:, None])  # [B, W, L]
    return picks.astype(vectors.dtype) @ vectors, picks.any(axis=-1)


def _ngram_hash(ids: jax.Array, width: int, within_word: bool, seed: int) -> jax.Array:
    """FNV-1a over the last `width` symbols at each position: int32[B, L] -> uint32[B, L]."""
    in_word = _is_word_byte(ids)
    inside = in_word
    shifted = [ids.astype(jnp.uint32)]
    for offset in range(1, width):
        symbol = _shift(ids, offset)
        inside = inside & _shift(in_word, offset)
        symbol = jnp.where(inside, symbol, 0) if within_word else symbol
        shifted.append(symbol.astype(jnp.uint32))
    digest = jnp.broadcast_to(_fmix(jnp.uint32(seed % 2**32)), ids.shape)
    for symbol in reversed(shifted):
        digest = (digest ^ symbol) * jnp.uint32(_FNV_PRIME)
    return digest


def _shift(values: jax.Array, offset: int) -> jax.Array:
    """values[:, i - offset], zero (False) before the start."""
    length = values.shape[1]
    return jnp.pad(values, ((0, 0), (offset, 0)))[:, :length]


def _is_word_byte(ids: jax.Array) -> jax.Array:
    byte = ids - 1
    digit = (byte >= ord("0")) & (byte <= ord("9"))
    letter = ((byte | 32) >= ord("a")) & ((byte | 32) <= ord("z"))
    return digit | letter | (byte > 127)


def _fmix(value: jax.Array) -> jax.Array:
    """MurmurHash3's 32-bit finaliser: every input bit changes every output bit half of the time."""
    value = (value ^ (value >> 16)) * jnp.uint32(0x85EBCA6B)
    value = (value ^ (value >> 13)) * jnp.uint32(0xC2B2AE35)
    return value ^ (value >> 16)
