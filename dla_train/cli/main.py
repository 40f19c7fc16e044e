"""`dla-train`: reads the command line, and turns failures into one sentence and an exit code.

Exit codes: 0 done; 1 the run failed; 2 wrong usage, recipe, data or folder; 75 it hung (`watchdog.minutes`); stopped by
Ctrl-C 130, by SIGTERM 143, by SIGUSR1 138, by SIGHUP 129. Heavy modules are imported inside the commands that need
them, so that help and errors come at once.
"""

import argparse
import difflib
import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NoReturn

from dla_train.cli import (
    compare,
    estimate,
    eval,
    export,
    fit,
    generate,
    import_,
    inspect,
    keys,
    preflight,
    prepare,
    recipes,
    show,
    submit,
)
from dla_train.errors import RelayedError, RunError, UsageError

_COMMANDS = (
    fit,
    prepare,
    estimate,
    preflight,
    generate,
    eval,
    inspect,
    compare,
    export,
    import_,
    recipes,
    show,
    keys,
    submit,
)
_EXAMPLES = """\
examples:
  dla-train recipes                                           list what is there
  dla-train show tiny                                         print a recipe with every value
  dla-train keys training                                     what its keys mean
  dla-train estimate --recipe mamba2-dla-780m --devices 8     what it costs: memory, FLOPs, days
  dla-train preflight --recipe tiny                           whether it will train here
  dla-train fit --recipe tiny                                 train it, in runs/tiny
  dla-train fit --recipe tiny --resume auto                   go on after a stop of any kind
  dla-train generate --checkpoint runs/tiny --prompt "def "   let it write
  dla-train eval --checkpoint runs/tiny --tasks needles       what it has learned
  dla-train fit --recipe tiny training.steps=50 --run-dir runs/short
"""


_ELSEWHERE = {"config": "recipe", "config-file": "recipe", "job.config-file": "recipe", "out-dir": "run-dir"}
"""What other programs for training call our options."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    _open_closed_output()
    _let_output_be_any_text()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    # Threads that wait for others sleep instead of spinning, which made a step many times slower on cores shared with
    # anything else. Torch reads this variable when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        _require_current_folder()
        parser = _parser()
        arguments = [_decoded(argument) for argument in arguments]
        _require_command(arguments)
        options, rest = parser.parse_known_args([argument for argument in arguments if argument != "--debug"])
        options.debug = debug
        if options.command is None:
            parser.print_help()
            return 2
        code: int = options.run(options, _settings(rest, options.command, known=_options_of(parser, options.command)))
        sys.stdout.flush()  # a write that fails should fail here, not when the interpreter ends
        return code
    except RelayedError as error:
        return error.exit_code
    except (UsageError, RunError) as error:
        if debug:
            raise
        print(f"dla-train: error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `dla-train show tiny | head`
        _drop_output()
        return 1
    except Exception as error:
        if debug:
            raise
        if isinstance(error, MemoryError):
            print(f"dla-train: error: too little main memory: {str(error) or 'no more is said'}.", file=sys.stderr)
            return 1
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # `dla-train show > /full/disk`
            place = error.filename or "the output"
            print(f"dla-train: error: cannot write {place}: {error.strerror}. Make room there.", file=sys.stderr)
            try:
                sys.stdout.flush()
            except OSError:
                _drop_output()
            return 1
        if isinstance(error, OSError) and error.filename is not None:
            print(
                f"dla-train: error: cannot use {error.filename}: {error.strerror}. See to it that it is what it should "
                "be and can be read and written; --debug shows what wanted it.",
                file=sys.stderr,
            )
            return 1
        print(
            f"dla-train: unexpected {type(error).__name__}: {error}\nThis is a fault of dla-train, not of yours; "
            "--debug shows where.",
            file=sys.stderr,
        )
        return 1


def _open_closed_output() -> None:
    """Discard what is written to an output that was closed beforehand (`>&-`), as some schedulers do. Otherwise a flush
    would fail, and the next file that is opened would get its number and whatever a library prints."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  open for as long as we run


def _require_current_folder() -> None:
    """Refuse to run in a folder that was removed: relative paths mean nothing there, and torch cannot be loaded.

    Raises:
        UsageError: says what to do.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the current folder was removed. Change to one that is there, with cd.") from error


def _let_output_be_any_text() -> None:
    """If the output's encoding is not UTF-8, write characters that it lacks as `\\u25b8` and the like: a finished run
    must not fail when it prints its report."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Discard further output; otherwise the interpreter would try to write what is buffered as it ends, and fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _decoded(argument: str) -> str:
    """The argument; read as UTF-8 if Python could not decode its bytes in the locale's encoding."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        try:
            return os.fsencode(argument).decode("utf-8")
        except UnicodeDecodeError as error:
            shown = ascii(argument.encode("utf-8", "surrogateescape"))[1:]
            raise UsageError(f"the argument {shown} is not UTF-8. Convert it, for example with iconv.") from error
    return argument


class _OneRecipe(argparse._StoreAction):
    """Stores a value, but refuses a second --recipe, which would replace the first. (`submit` takes several.)"""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if self.dest == "recipe" and namespace.recipe is not None:
            parser.error(f"{option} is given twice. Give one; `dla-train submit` takes several")
        super().__call__(parser, namespace, values, option)


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage in one sentence, like every other error."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register("action", None, _OneRecipe)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. `{self.prog} --help` shows what is allowed.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dla-train",
        description="Train language models with Dynamic Linear Attention.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dla-train {metadata.version('dla-train')}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error (may stand anywhere)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(commands)
    return parser


def _require_command(arguments: Sequence[str]) -> None:
    """Refuse a first word that is no command; argparse would list the commands, but not guess which one was meant."""
    word = next((argument for argument in arguments if not argument.startswith("-")), None)
    names = [command.__name__.rpartition(".")[2].rstrip("_") for command in _COMMANDS]
    if word is not None and word not in names:
        known_elsewhere = {"list": "recipes", "train": "fit", "pretrain": "fit", "help": "--help", "convert": "import"}
        guess = known_elsewhere.get(word) or next(iter(difflib.get_close_matches(word, names, n=1, cutoff=0.6)), None)
        hint = f" Did you mean {guess}?" if guess else ""
        raise UsageError(f"there is no command '{word}'.{hint} The commands are {', '.join(names)}.")


def _settings(rest: list[str], command: str, known: Sequence[str]) -> list[str]:
    """The arguments that argparse did not know, which must be `key=value`; an unknown option is refused with a hint."""
    for text in rest:
        if text.startswith("-"):
            raise UsageError(
                f"dla-train {command} has no option {text}.{_hint(text, known)} `dla-train {command} --help` lists "
                "its options."
            )
    return rest


def _hint(text: str, known: Sequence[str]) -> str:
    """A guess at what was meant: a recipe key in another program's style, or an option with a similar name."""
    option = text.partition("=")[0]
    name = option.lstrip("-")
    if name == "set":
        return " To set a key of the recipe, write key=value."
    by_name = {other.lstrip("-"): other for other in known}
    if (ours := _ELSEWHERE.get(name.replace("_", "-"))) in by_name:
        return f" Did you mean --{ours}?"
    if "." in name:
        return f" To set a key of the recipe, write {name}=VALUE."
    if guess := difflib.get_close_matches(name, by_name, n=1, cutoff=0.7):
        return f" Did you mean {by_name[guess[0]]}?"
    from dla_train.config.load import recipe_keys

    keys = [key for key in recipe_keys() if key.rpartition(".")[2] == name.replace("-", "_")]
    return f" To set a key of the recipe, write {' or '.join(f'{key}=VALUE' for key in keys)}." if keys else ""


def _options_of(parser: argparse.ArgumentParser, command: str) -> list[str]:
    """The options of a command: `--recipe`, `--resume` and the like."""
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return list(commands.choices[command]._option_string_actions)
