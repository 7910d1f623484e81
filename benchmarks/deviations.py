"""Effects of our switches against the official behaviour, on parity fixtures; by hand.

    python benchmarks/deviations.py ../shared/parity

Prints the relative L2 change of an output by flipping one switch. Weights of fixtures are random:
the numbers say that a switch reaches the output and how strongly there, not what it costs a trained
model. Results stand in docs/deviations.md.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from defi_jax.models import svd_vae
from defi_jax.models.frozen import pretrained
from defi_jax.weights import fields, sources
from defi_jax.weights.parity import check


def main(directory: pathlib.Path) -> None:
    """Prints every effect."""
    for name, value in (
        *_cross_attention(check.read_fixture(directory / "action_denoiser.safetensors")),
        *_mask_order(check.read_fixture(directory / "gidm.safetensors")),
        *_features(check.read_fixture(directory / "svd_unet.safetensors")),
        *_posterior(check.read_fixture(directory / "svd_vae.safetensors")),
    ):
        print(f"{name}: {value:.3g}")


def relative(changed: np.ndarray, base: np.ndarray) -> float:
    """L2 norm of the difference over that of `base`."""
    return float(np.linalg.norm(changed - base) / np.linalg.norm(base))


def _cross_attention(fixture):
    """Row 1: the denoiser attends to all of the context, or action i to tokens 0..i."""
    outputs = [
        check.KINDS["action_denoiser"](
            {**fixture.config, "cross_attention": kind}, fixture.params, fixture.inputs
        )
        for kind in ("causal", "full")
    ]
    for name in ("denoised", "sampled_actions"):
        yield f"full cross-attention, {name}", relative(outputs[1][name], outputs[0][name])


def _mask_order(fixture):
    """Row 2: text masks of texts of unequal length in the order of samples, or tiled."""
    batch, length = fixture.inputs["text_mask"].shape
    lengths = np.maximum(length - 2 * np.arange(batch), 1)[:, None]
    mask = (np.arange(length) < lengths).astype(fixture.inputs["text_mask"].dtype)
    inputs = {**fixture.inputs, "text_mask": mask}
    tiled, aligned = (
        check.KINDS["gidm"]({**fixture.config, "mask_order": order}, fixture.params, inputs)
        for order in ("tiled", "aligned")
    )
    yield (
        "aligned text masks, encoder codes",
        relative(aligned["encoder_codes"], tiled["encoder_codes"]),
    )
    yield (
        "aligned text masks, share of indices",
        float(np.mean(aligned["indices"] != tiled["indices"])),
    )


def _features(fixture):
    """Rows 5, 13 and 18: noise, fps id and noise strength id of the first step's features."""
    ids = fixture.inputs["added_time_ids"]
    rng = np.random.default_rng(0)

    def run(fps, noise, strength=0.0):
        sample = fixture.inputs["sample"].copy()
        sample[:, :, : noise.shape[2]] = noise  # scaled by c_in: unit noise at the first sigma
        inputs = {**fixture.inputs, "sample": sample, "added_time_ids": ids.copy()}
        inputs["added_time_ids"][:, 0], inputs["added_time_ids"][:, 2] = fps, strength
        return check.KINDS["svd_unet"](fixture.config, fixture.params, inputs)["up_features"]

    batch, frames, channels, height, width = fixture.inputs["sample"].shape
    shape = (batch, frames, channels // 2, height, width)
    first, second = rng.standard_normal((2, *shape)).astype(np.float32)
    base = run(4.0, first)
    yield "fps id 7 instead of 4, features", relative(run(7.0, first), base)
    yield "noise strength id 0.02 instead of 0, features", relative(run(4.0, first, 0.02), base)
    yield "another noise, features", relative(run(4.0, second), base)
    yield "no noise, features", relative(run(4.0, np.zeros_like(first)), base)


def _posterior(fixture):
    """Rows of the latent cache: a sample of the posterior, and float16 on disk."""
    config = fields.make_config(svd_vae.SVDVAEConfig, fixture.config, "svd_vae")
    mode = pretrained.SVDVAELatents(config=config)
    sample = pretrained.SVDVAELatents(config=config, posterior="sample")
    params = sources.VAE.plan_import(config, fixture.params).params()
    pixels = jnp.asarray(fixture.inputs["pixels"]).transpose(0, 2, 3, 1)
    frames = jnp.clip(jnp.round((pixels + 1) * 127.5), 0, 255).astype(jnp.uint8)
    mean = np.asarray(mode.encode(params, frames))
    drawn = np.asarray(sample.encode(params, frames, jax.random.key(0)))
    yield "sample of the posterior, latents", relative(drawn, mean)
    yield "float16 storage, latents", relative(mean.astype(np.float16).astype(np.float32), mean)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
