"""Weight tables of DINOv2 with registers, one per release: the hub's names and Hugging Face's.

Hugging Face has renamed its attention layers: "hf" is what its published files hold, "hf5" what
transformers from 5.0 on writes.
"""

from collections.abc import Iterable, Mapping

from defi_jax import errors
from defi_jax.models import dinov2
from defi_jax.weights import table

_MASK = "stands in for hidden patches in pretraining, unused by features"

DROPPED = (
    ("mask_token", _MASK),
    ("embeddings.mask_token", _MASK),
)

# release -> our names of one block -> theirs.
_BLOCK: dict[str, Mapping[str, str]] = {
    "hub": {
        "attention/to_out": "attn.proj",
        "scale": "ls{}.gamma",
    },
    "hf": {
        "attention/to_q": "attention.attention.query",
        "attention/to_k": "attention.attention.key",
        "attention/to_v": "attention.attention.value",
        "attention/to_out": "attention.output.dense",
        "scale": "layer_scale{}.lambda1",
    },
    "hf5": {
        "attention/to_q": "attention.q_proj",
        "attention/to_k": "attention.k_proj",
        "attention/to_v": "attention.v_proj",
        "attention/to_out": "attention.o_proj",
        "scale": "layer_scale{}.lambda1",
    },
}

# release -> (class token, registers, positions, patch embedding, blocks, final norm).
_STEM = {
    "hub": ("cls_token", "register_tokens", "pos_embed", "patch_embed.proj", "blocks", "norm"),
    "hf": (
        "embeddings.cls_token",
        "embeddings.register_tokens",
        "embeddings.position_embeddings",
        "embeddings.patch_embeddings.projection",
        "encoder.layer",
        "layernorm",
    ),
}
_STEM["hf5"] = _STEM["hf"]


def release(names: Iterable[str]) -> str:
    """Returns which release's names these are: "hub", "hf" or "hf5".

    Raises:
        DataError: none of them.
    """
    names = set(names)
    markers = {
        "hub": "blocks.0.attn.proj.weight",
        "hf": "encoder.layer.0.attention.output.dense.weight",
        "hf5": "encoder.layer.0.attention.o_proj.weight",
    }
    for key, marker in markers.items():
        if marker in names:
            return key
    raise errors.DataError(
        "no DINOv2 weights", "weights", f"expected one of {sorted(markers.values())}"
    )


def entries(config: dinov2.DINOv2Config, release: str = "hub") -> list[table.Entry]:
    """Returns the table for one size of the model and one release's names."""
    cls, registers, positions, patch, blocks, norm = _STEM[release]
    rows = [
        table.Entry("cls_token", cls, "leading11"),
        table.Entry("register_tokens", registers, "leading1"),
        table.Entry("position_embeddings", positions, "leading1"),
        table.Entry("patch_embed/kernel", f"{patch}.weight", "conv2d"),
        table.Entry("patch_embed/bias", f"{patch}.bias"),
        *table.norm("layernorm", norm),
    ]
    for layer in range(config.num_hidden_layers):
        rows += _block(config, release, f"{blocks}.{layer}", layer)
    return rows


def _block(config: dinov2.DINOv2Config, release: str, theirs: str, layer: int) -> list[table.Entry]:
    names = _BLOCK[release]
    rows = []
    for index in (1, 2):
        rows += table.norm(f"layer/norm{index}", f"{theirs}.norm{index}", layer=layer)
        rows += table.linear(f"layer/mlp/fc{index}", f"{theirs}.mlp.fc{index}", layer=layer)
        scale = f"{theirs}.{names['scale'].format(index)}"
        rows.append(table.Entry(f"layer/layer_scale{index}", scale, layer=layer))
    for index, ours in enumerate(("attention/to_q", "attention/to_k", "attention/to_v")):
        packed = release == "hub"
        rows += table.linear(
            f"layer/{ours}",
            f"{theirs}.attn.qkv" if packed else f"{theirs}.{names[ours]}",
            use_bias=config.qkv_bias,
            layer=layer,
            part=(index, 3) if packed else None,
        )
    rows += table.linear(
        "layer/attention/to_out", f"{theirs}.{names['attention/to_out']}", layer=layer
    )
    return rows
