"""Weight table of the SVD UNet: our modules carry diffusers' names, so a rule gives the rows."""

from flax import nnx

from defi_jax.models import params as params_lib
from defi_jax.models import svd_unet
from defi_jax.weights import diffusers_names, table

DROPPED: tuple[tuple[str, str], ...] = ()


def entries(config: svd_unet.SVDUNetConfig) -> list[table.Entry]:
    """Returns one row per parameter of `SVDUNet(config)`."""
    abstract = params_lib.abstract_params(lambda rngs: _make(config, rngs))
    return diffusers_names.entries(abstract)


def _make(config: svd_unet.SVDUNetConfig, rngs: nnx.Rngs) -> svd_unet.SVDUNet:
    return svd_unet.SVDUNet(config, rngs=rngs)
