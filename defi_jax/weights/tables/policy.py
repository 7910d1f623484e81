"""Weight tables of the joint policy: official Step3_DeFI names, and those of its parts.

The reference holds three groups of parameters that it never applies; they have no place in our
denoiser and are kept for a round trip by the importer (`DROPPED`, passthrough).
"""

from defi_jax import errors
from defi_jax.models import action_denoiser, policy, video_former
from defi_jax.weights import table
from defi_jax.weights.tables import gidm as gidm_table

Entry = table.Entry

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


def entries(config: policy.PolicyConfig) -> list[Entry]:
    """Returns the table of the whole policy.

    Raises:
        UserError: the config has parts that the reference does not know.
    """
    _refuse_parts_of_ours("policy", normalize_features=config.normalize_features)
    return [
        *table.linear("goal_emb/fc1", "goal_emb.0"),
        *table.linear("goal_emb/fc2", "goal_emb.2"),
        Entry("time_pos_emb", "time_pos_emb"),
        *table.with_prefixes(
            gidm_table.latent_action_entries(config.gidm), ours="latent_action/", theirs="lam."
        ),
        *table.with_prefixes(
            video_former_entries(config.video_former), ours="video_former/", theirs="Video_Former."
        ),
        *table.with_prefixes(denoiser_entries(config.denoiser), ours="denoiser/", theirs="model."),
    ]


def video_former_entries(config: video_former.VideoFormerConfig) -> list[Entry]:
    """Returns the table of the Video Former, relative to it.

    Raises:
        UserError: the config has parts that the reference does not know.
    """
    _refuse_parts_of_ours("video_former", token_positions=config.token_positions > 0)
    linear, norm = table.linear, table.norm
    rows = [
        Entry("latents", "latents"),
        Entry("time_pos_emb", "time_pos_emb"),
        *linear("goal_emb/fc1", "goal_emb.0"),
        *linear("goal_emb/fc2", "goal_emb.2"),
        *norm("norm", "norm"),
    ]
    for layer in range(config.depth):
        ours, theirs = "layers", f"layers.{layer}"
        for name in ("norm_media", "norm_latents"):
            rows += norm(f"{ours}/perceiver_attn/{name}", f"{theirs}.0.{name}", layer=layer)
        for name in ("to_q", "to_k", "to_v", "to_out"):
            path = f"{ours}/perceiver_attn/{name}"
            rows += linear(path, f"{theirs}.0.{name}", use_bias=False, layer=layer)
        for index, name in enumerate(("to_q", "to_k", "to_v")):
            path = f"{ours}/temporal_attn/{name}"
            rows += linear(path, f"{theirs}.1.qkv", layer=layer, part=(index, 3))
        rows += linear(f"{ours}/temporal_attn/to_out", f"{theirs}.1.proj", layer=layer)
        rows += norm(f"{ours}/ff/norm", f"{theirs}.2.0", layer=layer)
        for name, index in {"fc1": 1, "fc2": 3}.items():
            path = f"{ours}/ff/mlp/{name}"
            rows += linear(path, f"{theirs}.2.{index}", use_bias=False, layer=layer)
    return rows


def denoiser_entries(config: action_denoiser.ActionDenoiserConfig) -> list[Entry]:
    """Returns the table of the action denoiser, relative to it; theirs start with `inner_model.`.

    Raises:
        UserError: the config has parts that the reference does not know.
    """
    _refuse_parts_of_ours(
        "denoiser",
        action_positions=config.action_positions,
        modulation_offset=config.modulation_offset != 0.0,
    )
    linear, norm = table.linear, table.norm
    rows = [
        *(row for name in ("tok_emb", "tok_emb_token") for row in linear(name, name)),
        *(row for name in ("action_emb", "action_pred") for row in linear(name, name)),
        *linear("lang_emb/fc1", "lang_emb.0"),
        *linear("lang_emb/fc2", "lang_emb.2"),
        *linear("sigma_emb/fc1", "sigma_emb.1"),
        *linear("sigma_emb/fc2", "sigma_emb.3"),
        *norm("encoder_ln", "encoder.ln", use_bias=False),
        *norm("decoder_ln", "decoder.ln", use_bias=False),
    ]
    for layer in range(config.encoder_layers):
        rows += _block("encoder_blocks", f"encoder.blocks.{layer}", layer)
    for layer in range(config.decoder_layers):
        ours, theirs = "decoder_blocks", f"decoder.blocks.{layer}"
        rows += _block(ours, theirs, layer)
        rows += _attention(f"{ours}/cross_att", f"{theirs}.cross_att", layer)
        rows += norm(f"{ours}/ln3", f"{theirs}.ln3", layer=layer)
        rows += linear(f"{ours}/modulation", f"{theirs}.adaLN_zero.modulation.1", layer=layer)
    return table.with_prefixes(rows, theirs="inner_model.")


def _block(ours: str, theirs: str, layer: int) -> list[Entry]:
    """Rows that encoder and decoder blocks have in common."""
    linear, norm = table.linear, table.norm
    return [
        *norm(f"{ours}/ln_1", f"{theirs}.ln_1", use_bias=False, layer=layer),
        *norm(f"{ours}/ln_2", f"{theirs}.ln_2", use_bias=False, layer=layer),
        *_attention(f"{ours}/attn", f"{theirs}.attn", layer),
        *linear(f"{ours}/mlp/fc1", f"{theirs}.mlp.c_fc", use_bias=False, layer=layer),
        *linear(f"{ours}/mlp/fc2", f"{theirs}.mlp.c_proj", use_bias=False, layer=layer),
    ]


def _attention(ours: str, theirs: str, layer: int) -> list[Entry]:
    """Rows of one attention of the denoiser."""
    rows = table.linear(f"{ours}/to_out", f"{theirs}.c_proj", use_bias=False, layer=layer)
    for path, name in {"to_q": "query", "to_k": "key", "to_v": "value"}.items():
        rows += table.linear(f"{ours}/{path}", f"{theirs}.{name}", layer=layer)
    return rows


def _refuse_parts_of_ours(where: str, **is_used: bool) -> None:
    """Raises UserError when the config uses a part that official weights do not have."""
    names = ", ".join(f"{where}.{name}" for name, used in is_used.items() if used)
    if names:
        raise errors.UserError(
            "the official policy has no such part",
            names,
            "official weights need a config without it, as presets small and full",
        )
