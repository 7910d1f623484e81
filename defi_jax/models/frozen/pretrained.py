"""Frozen encoders with published weights, behind the protocols of `encoder_types`.

Each wraps one architecture at its published size with the reference's pre- and post-processing.
`config` may be replaced by smaller numbers, for tests.

B batch, T frames, H W height and width in pixels, h w of latents, N patches, L tokens, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from defi_rollout import spec
from defi_rollout import tokenizers as rollout_tokenizers
from flax import nnx

from defi_jax import errors
from defi_jax.array_typing import Array, Bool, Float, Int32, Params, PRNGKey, UInt8, typed
from defi_jax.models import clip_text, dinov2, svd_vae, t5_encoder
from defi_jax.models import params as params_lib
from defi_jax.models.frozen import scratch, tokenizers
from defi_jax.models.frozen import types as encoder_types
from defi_jax.models.layers import conv

# Mean and standard deviation of ImageNet's colours in [0, 1], which DINOv2 expects removed.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

# Token counts of the official stages (spec 1.3, 3.6). T5's is the config's: the reference pads to
# the longest text of a batch, but padding is masked, so that a fixed length changes no feature.
_CLIP_LENGTH = 20
_OPENAI_LENGTH = 77

POSTERIORS = ("mode", "sample")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pretrained:
    """What the wrappers share.

    Attributes:
        module: what they wrap.
        dtype: compute dtype.
        config: numbers of the module.
    """

    name: ClassVar[str]
    module: ClassVar[Callable[..., Any]]
    dtype: Any = jnp.float32
    config: Any

    def make(self, rngs: nnx.Rngs) -> Any:
        """Builds the wrapped module."""
        return self.module(self.config, dtype=self.dtype, rngs=rngs)

    def init_params(self, rng: PRNGKey) -> Params:
        """Random parameters of the right shapes; published ones come from `weights/`."""
        return params_lib.init_params(self.make, rng)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SVDVAELatents(_Pretrained):
    """Stable Video Diffusion's VAE as a `LatentEncoder`.

    Attributes:
        posterior: "mode" encodes to the mean, "sample" draws (official stage 1 stores samples, the
            policy encodes to the mode).
        decode_chunk: frames of a video decoded at once; bounds memory. The official pipeline cuts
            the flattened batch instead, so that chunks mix neighbouring videos.
    """

    name: ClassVar[str] = "svd_vae"
    module = svd_vae.SVDVAE
    config: svd_vae.SVDVAEConfig = svd_vae.PRESETS["full"]
    posterior: str = "mode"
    decode_chunk: int = 7

    def __post_init__(self) -> None:
        if self.posterior not in POSTERIORS:
            raise errors.UserError(
                f"unknown posterior {self.posterior!r}", "svd_vae", f"known: {POSTERIORS}"
            )

    @property
    def factor(self) -> int:
        """Every level but the last halves the picture."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def channels(self) -> int:
        """C of the latents."""
        return self.config.latent_channels

    @property
    def scale(self) -> float:
        """Latents leave `encode` multiplied by this."""
        return self.config.scaling_factor

    @typed
    def encode(
        self, params: Params, frames: UInt8[Array, "*B H W 3"], rng: PRNGKey | None = None
    ) -> Float[Array, "*B h w c"]:
        """See `LatentEncoder`; `rng` is needed for posterior "sample".

        Raises:
            UserError: the height or width is no multiple of `factor`.
        """
        height, width = frames.shape[-3:-1]
        if height % self.factor or width % self.factor:
            raise errors.UserError(
                f"image of {height}x{width}", "svd_vae", f"use multiples of {self.factor}"
            )
        pixels = scratch.pixels_to_float(frames.reshape(-1, *frames.shape[-3:]), self.dtype)
        mean, logvar = params_lib.bind(self.make, params).encode(pixels)
        latents = mean.astype(jnp.float32)
        if self.posterior == "sample":
            if rng is None:
                raise ValueError("posterior 'sample' needs an rng")
            deviation = jnp.exp(0.5 * logvar.astype(jnp.float32))
            latents = latents + deviation * jax.random.normal(rng, latents.shape)
        return (latents * self.scale).reshape(*frames.shape[:-3], *latents.shape[1:])

    @typed
    def decode(
        self, params: Params, latents: Float[Array, "B T h w c"]
    ) -> UInt8[Array, "B T H W 3"]:
        """See `LatentEncoder`."""
        model = params_lib.bind(self.make, params)
        latents = (latents / self.scale).astype(self.dtype)
        chunks = [
            model.decode(latents[:, start : start + self.decode_chunk])
            for start in range(0, latents.shape[1], self.decode_chunk)
        ]
        return scratch.float_to_pixels(jnp.concatenate(chunks, axis=1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PretrainedText(_Pretrained):
    """What the text wrappers share.

    Attributes:
        length: number of tokens; used by T5, CLIP's towers have their official lengths.
        tokenizer_dir: directory with the tokenizer's files; "" for the stand-in.
        lower_case: whether text is lower-cased before it is tokenised.
        strip_punctuation: whether ASCII punctuation is deleted before.
    """

    length: int
    tokenizer_dir: str
    lower_case: bool
    strip_punctuation: bool

    def _tokenizer(
        self, name: str, length: int, start: tuple[int, ...], end: int, pad: int
    ) -> rollout_tokenizers.Tokenizer:
        """Returns the tokenizer `name`, or its stand-in, with the ids that it adds to a text."""
        names = ("spiece.model",) if name == "t5" else ("tokenizer.json", "vocab.json")
        directory = self.tokenizer_dir
        text = spec.TextSpec(
            name=name if directory else "stand_in",
            length=length,
            lower_case=self.lower_case,
            strip_punctuation=self.strip_punctuation,
            file=tokenizers.find_file(directory, names) if directory else "",
            start_ids=start,
            end_ids=(end,),
            pad_id=pad,
        )
        vocab_size = self.config.vocab_size
        return tokenizers.ReleaseTokenizer(text=text, directory=directory, vocab_size=vocab_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextEncoder(_PretrainedText):
    """Hugging Face's CLIP ViT-B/32: all hidden states, for the video model."""

    name: ClassVar[str] = "clip_text"
    is_openai: ClassVar[bool] = False
    module = clip_text.CLIPText
    config: clip_text.CLIPTextConfig = clip_text.PRESETS["full"]

    @property
    def dim(self) -> int:
        """Width of the hidden states."""
        return self.config.hidden_size

    @property
    def pooled_dim(self) -> int:
        """Width of the projection."""
        return self.config.projection_dim

    @property
    def tokenizer(self) -> rollout_tokenizers.Tokenizer:
        """20 tokens padded with the end token, OpenAI's 77 padded with 0."""
        end = self.config.eos_token_id
        kind, length, pad = "clip", _CLIP_LENGTH, end
        if self.is_openai:
            kind, length, pad = "clip_openai", _OPENAI_LENGTH, 0
        return self._tokenizer(kind, length, (end - 1,), end, pad)

    @typed
    def encode(
        self, params: Params, ids: Int32[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> encoder_types.TextFeatures:
        """See `TextEncoder`; OpenAI's tower is only causal, padding is not masked."""
        output = params_lib.bind(self.make, params)(ids, None if self.is_openai else mask)
        return encoder_types.TextFeatures(
            tokens=output.last_hidden_state, mask=mask, pooled=output.text_embeds
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPOpenAIEncoder(CLIPTextEncoder):
    """OpenAI's CLIP ViT-B/32: the projected end token, for the policy's goal."""

    name: ClassVar[str] = "clip_openai"
    is_openai: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5TextEncoder(_PretrainedText):
    """T5-base's encoder, for the inverse model; pooled is the mean over real tokens."""

    name: ClassVar[str] = "t5_encoder"
    module = t5_encoder.T5Encoder
    config: t5_encoder.T5EncoderConfig = t5_encoder.PRESETS["full"]

    @property
    def dim(self) -> int:
        """Width of the hidden states."""
        return self.config.d_model

    @property
    def pooled_dim(self) -> int:
        """As `dim`."""
        return self.config.d_model

    @property
    def tokenizer(self) -> rollout_tokenizers.Tokenizer:
        """No start token, end 1, padding 0."""
        return self._tokenizer("t5", self.length, (), 1, 0)

    @typed
    def encode(
        self, params: Params, ids: Int32[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> encoder_types.TextFeatures:
        """See `TextEncoder`."""
        tokens = params_lib.bind(self.make, params)(ids, mask)
        weights = mask[..., None].astype(jnp.float32)
        total = jnp.sum(tokens.astype(jnp.float32) * weights, axis=1)
        pooled = (total / jnp.maximum(weights.sum(axis=1), 1.0)).astype(tokens.dtype)
        return encoder_types.TextFeatures(tokens=tokens, mask=mask, pooled=pooled)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINOv2Features(_Pretrained):
    """DINOv2 ViT-B/14 with registers as a `FeatureEncoder`."""

    name: ClassVar[str] = "dinov2"
    module = dinov2.DINOv2
    config: dinov2.DINOv2Config = dinov2.PRESETS["full"]

    @property
    def dim(self) -> int:
        """Width of a patch feature."""
        return self.config.hidden_size

    @property
    def patch_size(self) -> int:
        """Pixels per patch and side."""
        return self.config.patch_size

    @typed
    def encode(self, params: Params, frames: UInt8[Array, "*B H W 3"]) -> Float[Array, "*B N D"]:
        """See `FeatureEncoder`."""
        pixels = frames.astype(jnp.float32) / 255.0
        pixels = (pixels - jnp.array(_IMAGENET_MEAN)) / jnp.array(_IMAGENET_STD)
        model = params_lib.bind(self.make, params)
        return conv.over_frames(lambda images: model(images).patch_tokens, pixels)


TEXT_ENCODERS = {
    encoder.name: encoder for encoder in (CLIPTextEncoder, CLIPOpenAIEncoder, T5TextEncoder)
}
