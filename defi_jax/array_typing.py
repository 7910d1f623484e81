"""Checked array types, with one letter per dimension across the whole project.

B batch; T video frames; H W C height, width, channels; N tokens or patches; L language tokens;
D width; K latent-action tokens per transition; V codebook size; S action-chunk length;
A action dimension; `cams` cameras.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import beartype
import jax
import jaxtyping
import numpy as np
from jaxtyping import Bool, Float, Int, Int32, UInt8

if TYPE_CHECKING:
    # numpy and jax arrays are passed for each other everywhere; the shapes are checked at run time.
    Array: TypeAlias = Any
else:
    Array = jax.Array | np.ndarray
PRNGKey = jax.Array
Params = dict[str, Any]

_F = TypeVar("_F", bound=Callable)

__all__ = ["Array", "Bool", "Float", "Int", "Int32", "PRNGKey", "Params", "UInt8", "typed"]


def typed(function: _F) -> _F:
    """Checks the annotated shapes and dtypes of a call while it is traced."""
    return cast(_F, jaxtyping.jaxtyped(function, typechecker=beartype.beartype))
