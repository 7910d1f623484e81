"""Error of bfloat16 compute against the reference's float32 outputs, on parity fixtures; by hand.

    JAX_PLATFORMS=cpu python benchmarks/bfloat16.py ../shared/parity

Prints the relative L2 error of each float output in both types and the share of equal integers.
Weights stay float32; norms' statistics, softmax, sigmas and distances are float32 in both. Weights
of fixtures are random, without a trained network's large activations. Results: docs/benchmarks.md.
"""

import pathlib
import sys

import jax.numpy as jnp
import numpy as np

from defi_jax.models import (
    action_denoiser,
    clip_text,
    dinov2,
    gidm,
    policy,
    svd_unet,
    svd_vae,
    t5_encoder,
    video_former,
)
from defi_jax.weights.parity import check

_MODULES = (
    action_denoiser.ActionDenoiser,
    clip_text.CLIPText,
    dinov2.DINOv2,
    gidm.GIDM,
    policy.Policy,
    svd_unet.SVDUNet,
    svd_vae.SVDVAE,
    t5_encoder.T5Encoder,
    video_former.VideoFormer,
)


def main(directory: pathlib.Path) -> None:
    """Prints one line per output of each fixture."""
    for path in sorted(directory.glob("*.safetensors")):
        fixture = check.read_fixture(path)
        full, half = _run(fixture, jnp.float32), _run(fixture, jnp.bfloat16)
        for name, want in fixture.outputs.items():
            print(f"{fixture.kind:20} {name:24} {_compare(full[name], want)}", end="  ")
            print(f"bfloat16 {_compare(half[name], want)}")


def _run(fixture: check.Fixture, dtype: jnp.dtype) -> dict[str, np.ndarray]:
    for module in _MODULES:
        module.__init__.__kwdefaults__["dtype"] = dtype  # the runners build with defaults
    return dict(check.KINDS[fixture.kind](fixture.config, fixture.params, fixture.inputs))


def _compare(found: np.ndarray, want: np.ndarray) -> str:
    if np.issubdtype(want.dtype, np.integer):
        return f"{np.mean(found == want):.1%} equal"
    error = np.asarray(found, np.float64) - want
    return f"{np.linalg.norm(error) / np.linalg.norm(want):.1e}"


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
