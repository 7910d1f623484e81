"""Weight tables of the joint policy: official Step3_DeFI names, and those of its parts.

The reference holds three groups of parameters that it never applies; they have no place in our
denoiser and are kept for a round trip by the importer (`DROPPED`, passthrough).
"""

from collections.abc import Iterable
from typing import Any

from defi_jax import errors
from defi_jax.array_typing import Params
from defi_jax.models import action_denoiser, policy, video_former
from defi_jax.weights import table
from defi_jax.weights.tables import gidm as gidm_table

# Relative to the denoiser, whose official names start with `inner_model.`.
DENOISER_DROPPED: tuple[tuple[str, str], ...] = (
    ("inner_model.goal_emb.*", "never applied by the reference: goals are embedded by lang_emb"),
    ("inner_model.proprio_emb.*", "never applied by the reference: the policy has no state input"),
    ("inner_model.pos_emb", "never applied by the reference"),
)

DROPPED: tuple[tuple[str, str], ...] = (
    *((f"model.{pattern}", reason) for pattern, reason in DENOISER_DROPPED),
    *((f"lam.{pattern}", reason) for pattern, reason in gidm_table.DROPPED),
    ("language_goal.*", "frozen OpenAI CLIP, imported on its own (clip_openai table)"),
    ("TVP_encoder.*", "frozen CLIP text encoder, imported on its own (clip_text table)"),
)


_VIDEO_FORMER = {
    "goal_emb/fc1": "goal_emb.0",
    "goal_emb/fc2": "goal_emb.2",
    "layers/perceiver_attn": "layers.{}.0",
    **{f"layers/temporal_attn/{name}": "layers.{}.1.qkv" for name in table.QKV},
    "layers/temporal_attn/to_out": "layers.{}.1.proj",
    "layers/ff/norm": "layers.{}.2.0",
    "layers/ff/mlp/fc1": "layers.{}.2.1",
    "layers/ff/mlp/fc2": "layers.{}.2.3",
}
_PROJECTIONS = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out": "c_proj"}
_DENOISER = {
    "lang_emb/fc1": "lang_emb.0",
    "lang_emb/fc2": "lang_emb.2",
    "sigma_emb/fc1": "sigma_emb.1",
    "sigma_emb/fc2": "sigma_emb.3",
    "encoder_ln": "encoder.ln",
    "decoder_ln": "decoder.ln",
    "encoder_blocks": "encoder.blocks.{}",
    "decoder_blocks": "decoder.blocks.{}",
    **{f"attn/{ours}": f"attn.{theirs}" for ours, theirs in _PROJECTIONS.items()},
    **{f"cross_att/{ours}": f"cross_att.{theirs}" for ours, theirs in _PROJECTIONS.items()},
    "mlp/fc1": "mlp.c_fc",
    "mlp/fc2": "mlp.c_proj",
    "modulation": "adaLN_zero.modulation.1",
}
_POLICY = {
    **gidm_table.TABLE.levels,
    **_VIDEO_FORMER,
    **_DENOISER,
    "latent_action": "lam",
    "video_former": "Video_Former",
    "denoiser": "model.inner_model",
}


# Fields of a config that are false or 0 where official weights fit.
_PARTS_OF_OURS = {
    "policy": ("normalize_features",),
    "video_former": ("token_positions",),
    "denoiser": ("action_positions", "modulation_offset"),
}


def entries(
    params: Params, config: policy.PolicyConfig, official: Iterable[str] = ()
) -> list[table.Entry]:
    """Returns the table of the whole policy.

    Raises:
        UserError: the config has parts that the reference does not know.
    """
    del official
    parts = {"video_former": config.video_former, "denoiser": config.denoiser}
    _refuse_parts_of_ours(policy=config, **parts)
    return table.Names(_POLICY)(params)


def video_former_entries(
    params: Params, config: video_former.VideoFormerConfig, official: Iterable[str] = ()
) -> list[table.Entry]:
    """Returns the table of the Video Former, relative to it; errors as of `entries`."""
    del official
    _refuse_parts_of_ours(video_former=config)
    return table.Names(_VIDEO_FORMER)(params)


def denoiser_entries(
    params: Params, config: action_denoiser.ActionDenoiserConfig, official: Iterable[str] = ()
) -> list[table.Entry]:
    """Returns the table of the action denoiser, relative to it; errors as of `entries`."""
    del official
    _refuse_parts_of_ours(denoiser=config)
    rows = table.Names(_DENOISER)(params)
    return [row._replace(theirs=f"inner_model.{row.theirs}") for row in rows]


def _refuse_parts_of_ours(**configs: Any) -> None:
    """Raises UserError when a config uses a part that official weights do not have."""
    names = [
        f"{where}.{field}"
        for where, config in configs.items()
        for field in _PARTS_OF_OURS[where]
        if getattr(config, field)
    ]
    if names:
        raise errors.UserError(
            "the official policy has no such part",
            ", ".join(names),
            "official weights need a config without it, as presets small and full",
        )
