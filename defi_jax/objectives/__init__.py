"""What is trained: batch, loss, trainable parameters and evaluation of each stage."""

from typing import Any

from defi_jax import errors
from defi_jax.objectives import base, gfdm, gidm, joint, setup

OBJECTIVES = {"gfdm": gfdm.GFDMObjective, "gidm": gidm.GIDMObjective, "joint": joint.JointObjective}


def make(config: Any) -> base.Objective:
    """Returns the objective that `config.objective` names, after checking what it needs.

    Raises:
        UserError: if the config lacks data or weights, or its numbers contradict each other.
    """
    setup.check(config)
    return rebuild(config)


def rebuild(config: Any) -> base.Objective:
    """Returns the objective of a config that has trained, such as a checkpoint's.

    The files that it started from may be gone, and its keys may be older than this code.

    Raises:
        UserError: the numbers of its models contradict each other.
    """
    try:
        return OBJECTIVES[config.objective](config)
    except (TypeError, ValueError) as error:  # its dataclasses lack fields, or refuse them
        raise errors.UserError(
            str(error), f"--config=configs/{config.objective}.py", "change config.model"
        ) from error
