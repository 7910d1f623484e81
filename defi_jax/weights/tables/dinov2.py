"""Weight tables of DINOv2 with registers, one per release: the hub's names and Hugging Face's.

Hugging Face has renamed its attention layers: "hf" is what its published files hold, "hf5" what
transformers from 5.0 on writes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from defi_jax import errors
from defi_jax.array_typing import Params
from defi_jax.weights import table

_MASK = "stands in for hidden patches in pretraining, unused by features"

DROPPED = (
    ("mask_token", _MASK),
    ("embeddings.mask_token", _MASK),
)

_HUGGING_FACE = {
    "cls_token": "embeddings.cls_token",
    "register_tokens": "embeddings.register_tokens",
    "position_embeddings": "embeddings.position_embeddings",
    "patch_embed": "embeddings.patch_embeddings.projection",
    "layer": "encoder.layer.{}",
    "layer_scale1": "layer_scale1.lambda1",
    "layer_scale2": "layer_scale2.lambda1",
}


def _names(levels: Mapping[str, str]) -> table.Names:
    layouts = {
        "cls_token": "leading11",
        "register_tokens": "leading1",
        "position_embeddings": "leading1",
    }
    return table.Names(levels, layouts)


RELEASES = {
    "hub": _names(
        {
            "position_embeddings": "pos_embed",
            "patch_embed": "patch_embed.proj",
            "layer": "blocks.{}",
            **{f"attention/{name}": "attn.qkv" for name in table.QKV},
            "attention/to_out": "attn.proj",
            "layer_scale1": "ls1.gamma",
            "layer_scale2": "ls2.gamma",
            "layernorm": "norm",
        }
    ),
    "hf": _names(
        {
            **_HUGGING_FACE,
            "to_q": "attention.query",
            "to_k": "attention.key",
            "to_v": "attention.value",
            "to_out": "output.dense",
        }
    ),
    "hf5": _names(
        {
            **_HUGGING_FACE,
            "to_q": "q_proj",
            "to_k": "k_proj",
            "to_v": "v_proj",
            "to_out": "o_proj",
        }
    ),
}


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


def entries(params: Params, config: Any = None, official: Iterable[str] = ()) -> list[table.Entry]:
    """Returns the table of the release that has the official names; the hub's where none are."""
    del config
    official = set(official)
    return RELEASES[release(official) if official else "hub"](params)
