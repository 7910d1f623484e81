"""From the config to the pieces that objectives share: encoders, model configs, warm starts."""

import math
from typing import Any

import jax.numpy as jnp
from etils import epath

from defi_jax import cli, config_keys, errors
from defi_jax.models import action_denoiser, gfdm, gidm, policy, svd_unet, video_former
from defi_jax.models.frozen import encoders
from defi_jax.objectives import base

SCRATCH = "scratch"
SYNTHETIC = "synthetic"

# Encoder keys that each objective uses.
_ENCODERS = {
    "gfdm": ("latents", "gfdm_text"),
    "gidm": ("features", "gidm_text"),
    "joint": ("latents", "gfdm_text", "gidm_text", "goal_text"),
}


def latent_encoder(config: Any) -> encoders.LatentEncoder:
    """Returns the frames-to-latents encoder named by `encoders.latents`."""
    section = config.encoders
    return encoders.latent_encoder(
        section.latents,
        factor=section.latents_factor,
        frequencies=section.latents_frequencies,
    )


def feature_encoder(config: Any) -> encoders.FeatureEncoder:
    """Returns the frame-feature encoder named by `encoders.features`."""
    section = config.encoders
    return encoders.feature_encoder(
        section.features,
        patch=section.features_patch,
        dtype=jnp.dtype(config.compute_dtype),
    )


def text_encoder(config: Any, role: str) -> encoders.TextEncoder:
    """Returns the text encoder of a role: "gfdm", "gidm" or "goal"."""
    section, name = config.encoders, config.encoders[f"{role}_text"]
    # Stage 2 was trained on lower-cased text without punctuation, the other roles on raw text.
    is_normalised = True if config.objective == "gidm" else None
    return encoders.text_encoder(
        name,
        length=section.text_length,
        dim=section.text_dim,
        lower_case=is_normalised,
        strip_punctuation=is_normalised,
        tokenizer_dir=config.weights.get(name) or "",
        dtype=jnp.dtype(config.compute_dtype),
    )


def gfdm_config(section: Any, latents: Any, text: Any) -> gfdm.GFDMConfig:
    """Returns the forward model's config, its channel counts taken from the encoders."""
    fields = section.to_dict()
    unet = fields.pop("unet")
    unet["in_channels"], unet["out_channels"] = 2 * latents.channels, latents.channels
    unet["cross_attention_dim"] = text.dim * fields["text_copies"]
    sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in unet.items()}
    return gfdm.GFDMConfig(unet=svd_unet.SVDUNetConfig(**sizes), **fields)


def policy_config(config: Any, forward: gfdm.GFDMConfig, texts: Any) -> policy.PolicyConfig:
    """Returns the policy's config, its widths taken from the parts around it."""
    fields = config.model.policy.to_dict()
    side = config.data.image_size // latent_encoder(config).factor
    num_frames, height, width, channels = forward.feature_shape(side)
    former_fields = fields.pop("video_former")
    if former_fields["token_positions"]:
        former_fields["token_positions"] = len(config.data.cameras) * height * width
    former = video_former.VideoFormerConfig(
        **former_fields | {"condition_dim": channels, "num_frames": num_frames}
    )
    inverse = gidm_config(fields.pop("gidm"), feature_encoder(config), texts["gidm"])
    denoiser = action_denoiser.ActionDenoiserConfig(
        **fields.pop("denoiser")
        | {
            "action_dim": config.data.action_dim,
            "action_horizon": config.data.action_horizon,
            "goal_dim": texts["goal"].pooled_dim,
            "observation_dim": former.dim,
            "latent_action_dim": inverse.model_dim,
            "num_tokens": former.num_latents,
        }
    )
    fields["condition_frames"] = tuple(fields["condition_frames"])
    fields["commitment_weight"] = config.commitment_weight
    return policy.PolicyConfig(video_former=former, gidm=inverse, denoiser=denoiser, **fields)


def gidm_config(fields: dict[str, Any], features: Any, text: Any) -> gidm.GIDMConfig:
    """Returns the inverse model's config, its input widths taken from the encoders."""
    return gidm.GIDMConfig(**fields | {"feature_dim": features.dim, "text_dim": text.dim})


def stage(
    config: Any, name: str, theirs: str, ours: str, module_config: Any = None
) -> list[base.WarmStart]:
    """Returns the warm start named by `init.<name>`, none for "" and "scratch"."""
    source = config.init[name]
    if source in ("", SCRATCH):
        return []
    start = base.WarmStart(
        source=source, theirs=theirs, ours=ours, flag=f"init.{name}", config=module_config
    )
    return [start]


def check(config: Any) -> None:
    """Raises UserError for what the config lacks or has wrong, before anything is compiled.

    Synthetic data needs nothing: pretrained encoders without weights are then random.
    """
    config_keys.check(config)
    _check_complete(config)
    _check_numbers(config)
    _check_directories(config)


def _check_numbers(config: Any) -> None:
    """Raises UserError for numbers that would fail much later, in a worse place."""
    if config.objective != "joint" and config.train_parts != "all":
        raise errors.UserError(
            f"{config.objective} trains all its parts, not '{config.train_parts}'",
            "--config.train_parts",
            "leave it out",
        )
    cell = _cell(config)
    if config.data.image_size < cell or config.data.image_size % cell:
        raise errors.UserError(
            f"images of {config.data.image_size} pixels do not divide into cells of {cell}",
            "--config.data.image_size",
            f"use a multiple of {cell}",
        )


def _cell(config: Any) -> int:
    """Pixels of a side that images must be a multiple of."""
    section = config.encoders
    cells = [1]
    if config.objective != "gfdm" and section.features == "patches":  # dinov2 resizes by itself
        cells.append(section.features_patch)
    if config.objective != "gidm":
        forward = config.model if config.objective == "gfdm" else config.model.gfdm
        halvings = len(forward.unet.block_out_channels) - 1
        cells.append(latent_encoder(config).factor << halvings)
    return math.lcm(*cells)


def _check_directories(config: Any) -> None:
    """Raises UserError for a directory of parameters that the config names and that is absent."""
    named = {f"init.{name}": source for name, source in config.init.items() if source != SCRATCH}
    named |= {f"weights.{name}": source for name, source in config.weights.items()}
    for flag, source in named.items():
        if source and not epath.Path(source).is_dir():
            raise errors.UserError(
                f"no such directory for {flag}",
                source,
                "give a run's workdir, a checkpoint or a directory of imported weights",
            )


def _check_complete(config: Any) -> None:
    """Raises one UserError naming all that real data needs and the config lacks."""
    missing, mixture = [], config.data.mixture
    near = cli.nearest(mixture, [SYNTHETIC], otherwise="")
    if near and mixture != SYNTHETIC and not config.data.root:
        raise errors.UserError(f"no mixture {mixture!r}", "--config.data.mixture", near)
    if not config.data.mixture:
        missing.append("--config.data.mixture (stores to train on)")
    if config.data.mixture != SYNTHETIC:
        if not config.data.root:
            missing.append("--config.data.root (directory of episode stores)")
        sections = config.encoders
        names = {sections[key] for key in _ENCODERS[config.objective]}
        missing += [
            f"--config.weights.{name} (from launch/import_weights.py)"
            for name in sorted(names)
            if name in config.weights and not config.weights[name]
        ]
        if config.objective == "joint":
            missing += [
                f"--config.init.{name} (an earlier stage's workdir, or '{SCRATCH}')"
                for name in ("gfdm", "gidm")
                if not config.init[name]
            ]
    if missing:
        raise errors.UserError(
            f"the config lacks {', '.join(missing)}",
            f"--config=configs/{config.objective}.py:{config.preset}",
            "give them, or try --config.data.mixture=synthetic, which needs no files "
            f"(quick: --config=configs/{config.objective}.py:tiny)",
        )
