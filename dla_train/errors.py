"""The two kinds of failure that a user sees as one sentence, each with its exit code."""


class UsageError(Exception):
    """Wrong usage, recipe, data or folder: what was given, what is allowed, what to do. Exit code 2."""

    exit_code = 2


class RunError(Exception):
    """Something failed in a run that was requested correctly. Exit code 1."""

    exit_code = 1


class RelayedError(Exception):
    """Another rank has failed and reports why; this one only ends with the same exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"another rank failed (exit code {exit_code})")
        self.exit_code = exit_code
