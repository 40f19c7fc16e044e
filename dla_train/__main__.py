"""The `dla-train` command, and `python -m dla_train`.

Nothing is imported before `main` runs, so that Ctrl-C prints one word at any moment, even during imports.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sys import UnraisableHookArgs


def main(arguments: list[str] | None = None) -> int:
    """Run one command, from `sys.argv` if no arguments are given; returns the exit code."""
    import _thread
    import sys

    before = sys.unraisablehook

    def not_lost(lost: UnraisableHookArgs) -> None:
        """Raise a Ctrl-C again that Python dropped because it came in a destructor or a weak reference's callback."""
        if lost.exc_type is KeyboardInterrupt:
            _thread.start_new_thread(_thread.interrupt_main, ())  # in a thread: raised here, it would be dropped again
        else:
            before(lost)

    sys.unraisablehook = not_lost
    try:
        from dla_train.cli.main import main as run

        return run(arguments)
    except KeyboardInterrupt:
        if "--debug" in (sys.argv if arguments is None else arguments):
            raise
        print("\ndla-train: interrupted", file=sys.stderr)
        return 130
    finally:
        sys.unraisablehook = before


if __name__ == "__main__":
    raise SystemExit(main())
