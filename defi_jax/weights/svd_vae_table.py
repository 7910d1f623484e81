"""Weight table of the SVD VAE: our modules carry diffusers' names, so a rule gives the rows."""

from flax import nnx

from defi_jax.models import params as params_lib
from defi_jax.models import svd_vae
from defi_jax.weights import diffusers_names, table

DROPPED: tuple[tuple[str, str], ...] = ()


def entries(config: svd_vae.SVDVAEConfig) -> list[table.Entry]:
    """Returns one row per parameter of `SVDVAE(config)`."""
    abstract = params_lib.abstract_params(lambda rngs: _make(config, rngs))
    return diffusers_names.entries(abstract)


def _make(config: svd_vae.SVDVAEConfig, rngs: nnx.Rngs) -> svd_vae.SVDVAE:
    return svd_vae.SVDVAE(config, rngs=rngs)
