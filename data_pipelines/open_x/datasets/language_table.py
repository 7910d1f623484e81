"""Language-Table: pushing blocks with an xArm (Google)."""

import numpy as np

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

_OPEN = columns.Constant(width=1, value=1.0)  # there is no gripper


def _code_points(values: np.ndarray) -> tuple[str, ...]:
    """Returns the text of int32[T, 512], code points up to the first 0.

    Raises:
        ValueError: a number is no code point.
    """
    text = "".join(chr(code) for code in values[0]) if len(values) else ""
    return (text.partition("\0")[0].strip(),)


STANDARDS = {
    "language_table": base.Standard(
        robot="xarm",
        control_hz=10.0,
        cameras=base.views(primary="rgb"),
        actions=(columns.tensor("action", 2), columns.zeros(4), _OPEN),
        states=(columns.tensor("observation/effector_translation", 2), columns.zeros(6)),
        convention=embodiment.end_effector(rotation="none", gripper="none"),
        language="observation/instruction",
        language_field=base.Field(kind="tensor", shape=(512,), dtype="int32"),
        read_language=_code_points,
    )
}
