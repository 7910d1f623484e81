"""Expected errors of the rollout side: one line `what: where; what to do` and an exit code each."""

EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_DAMAGED = 65


class RolloutError(Exception):
    """An error that its reader can act on.

    Attributes:
        exit_code: process exit code when the error ends a command.
    """

    exit_code = EXIT_USAGE

    def __init__(self, what: str, where: object, fix: str):
        self.what, self.where, self.fix = what, str(where), fix
        super().__init__(f"{what}: {where}; {fix}")

    def __reduce__(self) -> tuple:
        """Rebuilds from the three parts, so that the error survives a process boundary."""
        return type(self), (self.what, self.where, self.fix)


class UsageError(RolloutError):
    """Wrong flags, a malformed observation or a missing input (exit 2)."""


class BundleError(RolloutError):
    """A bundle with a missing, unknown, damaged or refused file (exit 65)."""

    exit_code = EXIT_DAMAGED


class CheckFailed(RolloutError):
    """A check ran and said no (exit 1)."""

    exit_code = EXIT_CHECK_FAILED
