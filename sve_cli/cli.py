"""The command line: one line per command, and the one place that turns an exception into an exit code.

Imports nothing heavy: `sve --help` loads no torch.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated

import typer

from sve_cli import __version__
from sve_cli.commands.lazy import SETTINGS, LazyCommands
from sve_cli.console import Console
from sve_cli.errors import EXIT_CRASH, EXIT_OK, EXIT_USER, SveError

DEBUG = "SVE_DEBUG"
EXIT_INTERRUPTED = 130  # typer returns this number for Ctrl-C, and says nothing
EXIT_TERMINATED = 143

app = typer.Typer(
    name="sve",
    help="Turn a pretrained checkpoint into a calibrated Singular Value Ensemble.",
    cls=LazyCommands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    **SETTINGS,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"sve {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help=f"Show tracebacks (also {DEBUG}=1).")] = False,
) -> None:
    """Singular Value Ensembles: decompose, train, evaluate, detect out-of-distribution inputs, export."""
    if debug:
        os.environ[DEBUG] = "1"


class _Terminated(BaseException):
    """SIGTERM, raised so that open files are closed and progress ends; what was checkpointed can be resumed."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def main() -> None:
    """Run the command line and exit: 0 fine, 1 our bug, 2 the user can mend it, 3 a check said no, 130 and 143 interrupted."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    console = Console()
    arguments = [_at_home(argument) for argument in arguments]
    try:
        code = app(arguments, standalone_mode=False)
        return _interrupted(console, arguments) if code == EXIT_INTERRUPTED else code if isinstance(code, int) else EXIT_OK
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted(console, arguments)
    except _Terminated:
        return _told(console, arguments, "Terminated.", _resume_hint(arguments), EXIT_TERMINATED)
    except SveError as error:
        if _debug():
            traceback.print_exc()
        if error.exit_code == EXIT_USER:
            return _told(console, arguments, error.message, error.hint, EXIT_USER)
        console.error(error.message, error.hint)  # a failed check has printed its own document
        return error.exit_code
    except Exception as error:  # the only broad handler: a crash is our bug, and says so
        return _crashed(error, console)


def _at_home(argument: str) -> str:
    """`--out=~/x` with the user's folder, as `--out ~/x` has it from the shell, which leaves a tilde after an equals sign."""
    option, equals, value = argument.partition("=")
    return option + equals + os.path.expanduser(value) if option.startswith("--") and equals else argument


def _interrupted(console: Console, arguments: list[str]) -> int:
    return _told(console, arguments, "Interrupted.", _resume_hint(arguments), EXIT_INTERRUPTED)


def _told(console: Console, arguments: list[str], message: str, hint: str, code: int) -> int:
    """Say what ended the command, as a document too where one was asked for; the exit code."""
    console.error(message, hint)
    if "--json" in arguments:
        console.json({"error": message, "hint": hint, "exit_code": code})
    return code


def _resume_hint(arguments: list[str]) -> str:
    if "bench" in arguments or "shift" in arguments:
        return "What is finished is kept: the same command goes on from there."
    training = "train" in arguments and "--dry-run" not in arguments
    return "A training run that had begun goes on with: sve train --resume" if training else ""


def _crashed(error: Exception, console: Console) -> int:
    show = getattr(error, "show", None)  # usage errors of typer's own parser know how to show themselves
    if callable(show):
        show()
        return int(getattr(error, "exit_code", 2))
    if _debug():
        traceback.print_exc()
    if told := _of_the_machine(error):
        console.error(*told)
        return EXIT_USER
    console.error(
        f"This is a bug: {type(error).__name__}: {error}", f"Run again with --debug (or {DEBUG}=1) and report the traceback."
    )
    return EXIT_CRASH


def _of_the_machine(error: Exception) -> tuple[str, str] | None:
    """(what, what to do) of a full disk or too little memory, wherever it was met; those are no bugs."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
        where = f" '{error.filename}'" if error.filename else ""
        return (
            f"Cannot write or read{where}: {error.strerror}.",
            "Free some disk or change the permissions, then: sve train --resume",
        )
    names = {cls.__name__ for cls in type(error).__mro__}  # torch's class has a name here, so that torch is not imported
    if names & {"MemoryError", "OutOfMemoryError"} or "DefaultCPUAllocator: can't allocate memory" in str(error):
        smaller = (
            "Lower train.batch_size and evaluate.batch_size, raise train.accumulation, or set train.member_execution: sequential."
        )
        return "There is not enough memory.", smaller
    return None


def _debug() -> bool:
    return os.environ.get(DEBUG, "") not in ("", "0")


if __name__ == "__main__":
    main()
