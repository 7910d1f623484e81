"""Frozen encoders, pluggable by name in the config, pretrained or from scratch.

Three kinds: frames -> latents (`LatentEncoder`), text -> features (`TextEncoder`), frames -> patch
features (`FeatureEncoder`). A preset names one of each per role; other code knows only the three
protocols. An encoder is a frozen dataclass of numbers; its parameters, if any, live in the
parameter tree under "encoders/<role>" and are handed to each call. From-scratch encoders have none:
`init_params` returns {}.

    latent_encoder("space_to_depth", factor=8, frequencies=4)
    text_encoder("bytes", length=48, dim=64)
    feature_encoder("patches", patch=8)
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from defi_rollout import tokenizers

from defi_jax import errors
from defi_jax.models.frozen import pretrained, scratch
from defi_jax.models.frozen import types as encoder_types

LatentEncoder = encoder_types.LatentEncoder
TextEncoder = encoder_types.TextEncoder
FeatureEncoder = encoder_types.FeatureEncoder
TextFeatures = encoder_types.TextFeatures
Tokenizer = tokenizers.Tokenizer

LATENT_ENCODERS = ("space_to_depth", "svd_vae")
TEXT_ENCODERS = ("bytes", "clip_text", "clip_openai", "t5_encoder")
FEATURE_ENCODERS = ("patches", "dinov2")


def latent_encoder(name: str, *, factor: int, frequencies: int) -> LatentEncoder:
    """Returns the latent encoder called `name`; `svd_vae` computes in float32, as it asks for.

    Args:
        name: one of `LATENT_ENCODERS`.
        factor: pixels per latent cell and side; used by `space_to_depth`.
        frequencies: kept per side of a cell; used by `space_to_depth`.

    Raises:
        UserError: unknown name, or more frequencies than pixels.
    """
    _check_name(name, LATENT_ENCODERS, "latent encoder")
    if name == "svd_vae":
        return pretrained.SVDVAELatents()
    encoder: Any = scratch.SpaceToDepth(factor=factor, frequencies=frequencies)
    return encoder


def text_encoder(
    name: str,
    *,
    length: int,
    dim: int,
    lower_case: bool | None = None,
    strip_punctuation: bool | None = None,
    tokenizer_dir: str = "",
    dtype: Any = jnp.float32,
) -> TextEncoder:
    """Returns the text encoder called `name`.

    Args:
        name: one of `TEXT_ENCODERS`.
        length: number of tokens; used by `bytes` and `t5_encoder`, CLIP's towers have their
            official length.
        dim: width; used by `bytes`.
        lower_case: whether text is lower-cased before it is tokenised. None is the encoder's own
            habit: `bytes` does, pretrained ones get raw text.
        strip_punctuation: whether ASCII punctuation is deleted before; None as above.
        tokenizer_dir: directory with the tokenizer's files; "" gives pretrained encoders a stand-in
            vocabulary of bytes, of use only with random weights.
        dtype: compute dtype; used by pretrained encoders.

    Raises:
        UserError: unknown name.
    """
    _check_name(name, TEXT_ENCODERS, "text encoder")
    is_scratch = name == "bytes"
    rules: dict[str, Any] = {
        "lower_case": is_scratch if lower_case is None else lower_case,
        "strip_punctuation": is_scratch if strip_punctuation is None else strip_punctuation,
    }
    if is_scratch:
        return scratch.BytesText(length=length, dim=dim, **rules)
    make = pretrained.TEXT_ENCODERS[name]
    return make(length=length, tokenizer_dir=tokenizer_dir, dtype=dtype, **rules)


def feature_encoder(name: str, *, patch: int, dtype: Any = jnp.float32) -> FeatureEncoder:
    """Returns the feature encoder called `name`.

    Args:
        name: one of `FEATURE_ENCODERS`.
        patch: pixels per patch and side; used by `patches`.
        dtype: compute dtype; used by pretrained encoders (officially they run under autocast too).

    Raises:
        UserError: unknown name.
    """
    _check_name(name, FEATURE_ENCODERS, "feature encoder")
    if name == "dinov2":
        return pretrained.DINOv2Features(dtype=dtype)
    return scratch.Patches(patch_size=patch)


def _check_name(name: str, known: tuple[str, ...], kind: str) -> None:
    if name not in known:
        raise errors.UserError(f"unknown {kind} {name!r}", "encoders", f"known: {', '.join(known)}")
