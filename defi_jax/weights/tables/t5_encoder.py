"""Weight table of the T5 encoder under Hugging Face names (`T5EncoderModel`, `T5Model`).

The reference stores the token embedding twice, as `shared` and `encoder.embed_tokens` (one tied
tensor, counted once in the parameter count); safetensors files keep only one of the two names.
"""

from defi_jax.weights import table

DROPPED = (
    ("decoder.*", "T5's decoder: DeFI only encodes"),
    ("lm_head.*", "T5's decoder: DeFI only encodes"),
)

_ATTENTION = "encoder.block.{}.layer.0"
_FEED_FORWARD = "encoder.block.{}.layer.1"

TABLE = table.Names(
    levels={
        "relative_attention_bias": f"{_ATTENTION.format(0)}.SelfAttention.relative_attention_bias",
        "block/attention_norm": f"{_ATTENTION}.layer_norm",
        "block/attention": f"{_ATTENTION}.SelfAttention",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out": "o",
        "block/feed_forward_norm": f"{_FEED_FORWARD}.layer_norm",
        **{
            f"block/{name}": f"{_FEED_FORWARD}.DenseReluDense.{name}"
            for name in ("wi", "wi_0", "wi_1", "wo")
        },
        "final_layer_norm": "encoder.final_layer_norm",
    },
    tied={"shared/embedding": "encoder.embed_tokens.weight"},
)
