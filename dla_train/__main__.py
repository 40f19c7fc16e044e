"""The `dla-train` command, and `python -m dla_train`.

Nothing is imported before `main` runs, so that Ctrl-C is one word at any moment, also while the command is imported.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sys import UnraisableHookArgs


def main(arguments: list[str] | None = None) -> int:
    """Run one command, `sys.argv` if no arguments are given; returns the exit code."""
    import _thread
    import sys

    before = sys.unraisablehook

    def not_lost(lost: UnraisableHookArgs) -> None:
        """A Ctrl-C that came in a destructor or weak reference's callback, where Python drops it: raise it again."""
        if lost.exc_type is KeyboardInterrupt:
            _thread.start_new_thread(_thread.interrupt_main, ())  # a thread: at once, it would be dropped again
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
