"""Frozen encoders from scratch: no weights, no files.

B batch, H W C height width channels (lower case h w c after encoding), N patches, L language
tokens, D width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from defi_rollout import tokenizers as rollout_tokenizers

from defi_jax import errors
from defi_jax.array_typing import Array, Bool, Float, Int32, Params, PRNGKey, UInt8, typed
from defi_jax.models.frozen import bytes_text, tokenizers
from defi_jax.models.frozen import types as encoder_types

# uint8 pixels are mapped to [-1, 1]; natural pictures then have a standard deviation near 1/2.
_PIXEL_GAIN = 2.0

# Deviation of the mean colour of a square (pixels in [-1, 1]), and how fast deviations fall with
# the frequency in half cycles a pixel: fitted to Meta-World pictures of 64 px.
_PIXEL_DEVIATION = 0.14
_SPECTRUM_DECAY = 12.0


def pixels_to_float(frames: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """uint8 -> [-1, 1], the range of the official VAE."""
    return (frames.astype(jnp.float32) / 127.5 - 1.0).astype(dtype)


def float_to_pixels(values: jax.Array) -> jax.Array:
    """[-1, 1] -> uint8, rounded and clipped: the inverse of `pixels_to_float`."""
    scaled = (values.astype(jnp.float32) + 1.0) * 127.5
    return jnp.clip(jnp.round(scaled), 0, 255).astype(jnp.uint8)


def _cosines(size: int, count: int) -> np.ndarray:
    """float64[count, size]: the `count` lowest vectors of the orthonormal cosine basis (DCT-II)."""
    waves = np.arange(count)[:, None] * (2 * np.arange(size) + 1) * (np.pi / (2 * size))
    return np.cos(waves) * np.where(np.arange(count)[:, None] == 0, 1, 2**0.5) / size**0.5


@typed
def space_to_depth(frames: Float[Array, "*B H W C"], factor: int) -> Float[Array, "*B h w c"]:
    """Folds each factor x factor square of pixels into channels, ordered (row, column, C)."""
    *lead, height, width, channels = frames.shape
    grid = frames.reshape(*lead, height // factor, factor, width // factor, factor, channels)
    cells = jnp.moveaxis(grid, -4, -3)
    return cells.reshape(*lead, height // factor, width // factor, factor * factor * channels)


@typed
def depth_to_space(cells: Float[Array, "*B h w c"], factor: int) -> Float[Array, "*B H W C"]:
    """Inverse of `space_to_depth`."""
    *lead, height, width, depth = cells.shape
    channels = depth // (factor * factor)
    grid = jnp.moveaxis(cells.reshape(*lead, height, width, factor, factor, channels), -3, -4)
    return grid.reshape(*lead, height * factor, width * factor, channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpaceToDepth(encoder_types.Encoder):
    """Latents that are the pixels of a square in JPEG's cosine basis; no weights.

    A square's lowest frequencies become the channels, ordered (row frequency, column frequency,
    colour). Pictures hold ever less of higher frequencies; half of that decay (in decibels) is
    undone, so that the latents' variances are of one order and their mean square error still
    follows that of the pixels. Exactly invertible when all frequencies are kept.

    Attributes:
        factor: side of the square of pixels that becomes one latent cell.
        frequencies: how many are kept along each side, at most `factor`.
    """

    name: ClassVar[str] = "space_to_depth"
    scale: ClassVar[float] = 1.0
    factor: int
    frequencies: int

    def __post_init__(self) -> None:
        if not 0 < self.frequencies <= self.factor:
            raise errors.UserError(
                f"{self.frequencies} frequencies do not fit {self.factor} pixels",
                "--config.encoders.latents_frequencies",
                f"give 1 to {self.factor}",
            )

    @property
    def channels(self) -> int:
        """Three colours for each frequency kept."""
        return 3 * self.frequencies**2

    @typed
    def encode(
        self, params: Params, frames: UInt8[Array, "*B H W 3"], rng: PRNGKey | None = None
    ) -> Float[Array, "*B h w c"]:
        """See `LatentEncoder`."""
        del params, rng
        _check_divisible(frames.shape, self.factor, "space_to_depth")
        return space_to_depth(pixels_to_float(frames), self.factor) @ self._basis(self._gains())

    @typed
    def decode(self, params: Params, latents: Float[Array, "*B h w c"]) -> UInt8[Array, "*B H W 3"]:
        """See `LatentEncoder`."""
        del params
        return float_to_pixels(
            depth_to_space(latents @ self._basis(1 / self._gains()).T, self.factor)
        )

    def _gains(self) -> np.ndarray:
        """[frequencies, frequencies], to about unit variance at frequency 0."""
        index = np.arange(self.frequencies) / self.factor
        decay = 1 + _SPECTRUM_DECAY * (index[:, None] + index)
        return np.sqrt(decay) / (_PIXEL_DEVIATION * self.factor)

    def _basis(self, gains: np.ndarray) -> np.ndarray:
        """float32[3 * factor^2, channels]: pixels of a square -> latents; inverse, transposed."""
        rows = _cosines(self.factor, self.frequencies)
        waves = np.einsum("ui,vj,uv->ijuv", rows, rows, gains)
        of_one_colour = waves.reshape(self.factor**2, self.frequencies**2)
        return np.kron(of_one_colour, np.eye(3)).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BytesText(bytes_text.BytesTextConfig, encoder_types.Encoder):
    """Frozen random n-gram features of UTF-8 bytes; see `bytes_text`.

    Attributes:
        length: L, bytes kept of a text.
        lower_case: whether text is lower-cased before it becomes bytes.
        strip_punctuation: whether ASCII punctuation is deleted before.
    """

    name: ClassVar[str] = "bytes"
    length: int
    lower_case: bool
    strip_punctuation: bool

    @property
    def pooled_dim(self) -> int:
        """D: the pooled vector is a mean over bytes."""
        return self.dim

    @property
    def tokenizer(self) -> rollout_tokenizers.Tokenizer:
        """See `TextEncoder`."""
        return tokenizers.utf8(
            self.length,
            lower_case=self.lower_case,
            strip_punctuation=self.strip_punctuation,
        )

    @typed
    def encode(
        self, params: Params, ids: Int32[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> encoder_types.TextFeatures:
        """See `TextEncoder`."""
        del params
        vectors, pooled = bytes_text.ngram_features(self, ids, mask)
        tokens, words = bytes_text.word_ends(ids, mask, vectors)
        return encoder_types.TextFeatures(tokens=tokens, mask=words, pooled=pooled)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patches(encoder_types.Encoder):
    """Patch features that are just the pixels of the patch; exactly invertible, no weights.

    Attributes:
        patch_size: side of a patch in pixels.
    """

    name: ClassVar[str] = "patches"
    patch_size: int

    @property
    def dim(self) -> int:
        """Three colours for each pixel of the patch."""
        return 3 * self.patch_size**2

    @typed
    def encode(self, params: Params, frames: UInt8[Array, "*B H W 3"]) -> Float[Array, "*B N D"]:
        """See `FeatureEncoder`."""
        del params
        _check_divisible(frames.shape, self.patch_size, "patches")
        cells = space_to_depth(pixels_to_float(frames) * _PIXEL_GAIN, self.patch_size)
        return cells.reshape(*cells.shape[:-3], -1, self.dim)

    @typed
    def decode(
        self, params: Params, features: Float[Array, "*B N D"], grid: tuple[int, int]
    ) -> UInt8[Array, "*B H W 3"]:
        """Pictures from features, for people to look at; `grid` is (rows, columns) of patches."""
        del params
        cells = features.reshape(*features.shape[:-2], *grid, self.dim)
        return float_to_pixels(depth_to_space(cells, self.patch_size) / _PIXEL_GAIN)


def _check_divisible(shape: tuple[int, ...], factor: int, name: str) -> None:
    height, width = shape[-3:-1]
    if height % factor or width % factor:
        raise errors.UserError(
            f"frames of {height}x{width} are not a multiple of {factor}",
            name,
            "change the image size or the encoder's factor",
        )
