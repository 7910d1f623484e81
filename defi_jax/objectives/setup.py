"""From the config to the pieces that objectives share: encoders, model configs, warm starts."""

from typing import Any

from defi_jax import errors
from defi_jax.array_typing import Params, PRNGKey
from defi_jax.models import encoders, gfdm, svd_unet
from defi_jax.models import params as params_lib
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
    return encoders.latent_encoder(section.latents, factor=section.latents_factor)


def feature_encoder(config: Any) -> encoders.FeatureEncoder:
    """Returns the frame-feature encoder named by `encoders.features`."""
    section = config.encoders
    return encoders.feature_encoder(section.features, patch=section.features_patch)


def text_encoder(config: Any, role: str) -> encoders.TextEncoder:
    """Returns the text encoder of a role: "gfdm", "gidm" or "goal"."""
    section = config.encoders
    name = section[f"{role}_text"]
    return encoders.text_encoder(name, length=section.text_length, dim=section.text_dim)


def gfdm_config(config: Any, section: Any, latents: Any, text: Any) -> gfdm.GFDMConfig:
    """Returns the forward model's config, its channel counts taken from the encoders."""
    fields = section.to_dict()
    unet = fields.pop("unet")
    unet["in_channels"], unet["out_channels"] = 2 * latents.channels, latents.channels
    unet["cross_attention_dim"] = text.dim * fields["text_copies"]
    unet = {k: tuple(v) if isinstance(v, list) else v for k, v in unet.items()}
    del config
    return gfdm.GFDMConfig(unet=svd_unet.SVDUNetConfig(**unet), **fields)


def with_encoders(params: Params, by_role: dict[str, Any], rng: PRNGKey) -> Params:
    """Adds the frozen encoders' parameters under "encoders/<role>"."""
    frozen = {role: enc.init_params(rng) for role, enc in by_role.items()}
    frozen = {role: tree for role, tree in frozen.items() if tree}
    return {**params, "encoders": frozen} if frozen else params


def encoder_weights(config: Any, by_role: dict[str, Any]) -> list[base.WarmStart]:
    """Returns where the pretrained encoders in use come from.

    Raises:
        UserError: if a pretrained encoder has no weights and the data is real.
    """
    starts = []
    for role, encoder in by_role.items():
        if encoder.name not in config.weights:
            continue
        source = config.weights[encoder.name]
        if source:
            starts.append(
                base.WarmStart(
                    source=source, theirs="", ours=f"encoders/{role}", flag=f"weights.{encoder.name}"
                )
            )
    return starts


def stage(config: Any, name: str, theirs: str, ours: str) -> list[base.WarmStart]:
    """Returns the warm start named by `init.<name>`, none for "" and "scratch"."""
    source = config.init[name]
    if source in ("", SCRATCH):
        return []
    return [base.WarmStart(source=source, theirs=theirs, ours=ours, flag=f"init.{name}")]


def check(config: Any) -> None:
    """Raises one UserError naming all that real data needs and the config lacks.

    Synthetic data needs nothing: pretrained encoders without weights are then random.
    """
    missing = []
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
