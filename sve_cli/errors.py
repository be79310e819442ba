"""Errors a user can mend. The command line turns them into one sentence and an exit code; see docs/troubleshooting.md."""

from __future__ import annotations

from collections.abc import Sequence

EXIT_OK = 0
EXIT_CRASH = 1
EXIT_USER = 2
EXIT_CHECK = 3


class SveError(Exception):
    """Something the user can mend: `message` says what and where, `hint` what to do next."""

    exit_code: int = EXIT_USER

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class RecipeError(SveError):
    """One or more faults of a recipe, all reported together.

    `problems` holds one line each: `file:line: key.path: what is wrong`.
    """

    def __init__(self, problems: Sequence[str], hint: str = "") -> None:
        self.problems = list(problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''} in the recipe"
        super().__init__(count + ":\n" + "\n".join(f"  {p}" for p in self.problems), hint)


class DataError(SveError):
    """A data set, split, column or label that is missing or cannot be used."""


class CheckpointError(SveError):
    """A pretrained network that cannot be opened, or that holds what is not supported."""


class DivergenceError(SveError):
    """Training produced a value that is not finite."""


class CheckFailed(SveError):
    """A check said no: a certificate or a gate. Exit code 3."""

    exit_code = EXIT_CHECK


class NotExportable(SveError):
    """The members of this method are not plain networks."""
