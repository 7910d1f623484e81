"""Errors a user can cause: those of the rollout client, and the ends of a training run."""

from defi_rollout.errors import CheckFailed, DataError, UserError, listed

__all__ = [
    "CheckFailed",
    "DataError",
    "NumericsError",
    "PeerLost",
    "Preempted",
    "StorageError",
    "UserError",
    "listed",
]


class StorageError(UserError):
    """What a run writes to is full, cannot be reached, or refuses."""

    exit_code = 74


class Preempted(UserError):
    """The run was asked to stop and has saved its state."""

    exit_code = 75


class NumericsError(UserError):
    """Too many consecutive steps were not finite."""

    exit_code = 76


class PeerLost(UserError):
    """Another process of the run ended or fell silent; that one keeps its own code."""

    exit_code = 77
