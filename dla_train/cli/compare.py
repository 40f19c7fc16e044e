"""`dla-train compare`: several runs side by side."""

import argparse
import os
from typing import Any

from dla_train.cli.out_folder import a_folder, require_unused
from dla_train.errors import UsageError

_FILES = ("comparison.md", "comparison.json", "losses.png")

_EXAMPLES = """\
A table says what each run has reached, another one which keys of their recipes differ. Runs may be under way or
stopped; if they have come to different lengths, the last validation that all of them have is shown, too.

examples:
  dla-train compare runs/mamba2-130m runs/mamba2-dla-130m
  dla-train compare runs/* --out comparison        # also losses.png, comparison.md and comparison.json
"""


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "compare",
        help="several runs side by side: losses, speed, what differs",
        description=__doc__,
        usage="dla-train compare RUN [RUN ...] [--out DIR]",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=a_folder, help="run folders")
    parser.add_argument(
        "--out", metavar="DIR", type=a_folder, help="also write tables, figures as JSON and the loss curves there"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Print the tables."""
    if setting := next((text for text in map(str, options.runs) if "=" in text and not os.path.exists(text)), None):
        raise UsageError(f"dla-train compare takes no key=value (given {setting}): each run has its recipe.")
    if options.out is not None:
        require_unused(options.out, _FILES)
    from dla_train.comparison.compared import read_run
    from dla_train.comparison.text import render
    from dla_train.runs.folder import RunFolder

    runs = [read_run(RunFolder(path)) for path in options.runs]
    text = render(runs)
    print(text, end="")
    if options.out is not None:
        from dla_train.comparison.write import write_comparison

        write_comparison(options.out, runs, text)
        print(f"\nLoss curves: {options.out}/losses.png")
    return 0
