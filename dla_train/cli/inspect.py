"""`dla-train inspect`: what a model's memory does with a text."""

import argparse
from pathlib import Path
from typing import Any

from dla_train.cli.needed import TRAINED, Needed, require_options
from dla_train.cli.out_folder import a_folder, require_unused
from dla_train.errors import UsageError
from dla_train.inspection.files import FILES

_EXAMPLES = """\
DIR gets index.html, one page that needs no network, and its pictures as life.png, boundary-rates.png and
slot-weights.png. The page can switch to every other layer and head.

examples:
  dla-train inspect --checkpoint runs/tiny --text story.txt --out seen
  dla-train inspect --checkpoint runs/tiny --text story.txt --layer 1 --head 3 --max-tokens 500 --out seen
"""


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "inspect",
        help="what a model's memory does with a text",
        description=__doc__,
        usage="dla-train inspect --checkpoint RUN --text FILE --out DIR [options]",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint",
        metavar="RUN",
        type=Path,
        help=TRAINED,
    )
    parser.add_argument("--text", metavar="FILE", type=Path, help="UTF-8 text; - for standard input")
    parser.add_argument("--out", metavar="DIR", type=a_folder, help="where the page goes; without an earlier one")
    parser.add_argument("--layer", metavar="N", type=int, help="shown first (the first that has slots)")
    parser.add_argument("--head", metavar="N", type=int, default=0, help="shown first (0)")
    parser.add_argument("--max-tokens", metavar="N", type=int, default=1024, help="of the text, from its start (1024)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Write the page and the pictures."""
    needed = (
        Needed("--checkpoint RUN", TRAINED, options.checkpoint),
        Needed("--text FILE", "UTF-8 text, or - for standard input", options.text),
        Needed("--out DIR", "where the page goes", options.out),
    )
    require_options("inspect", needed, settings)
    if settings:
        raise UsageError(f"dla-train inspect takes no key=value (given {settings[0]}): the run has its recipe.")
    if options.max_tokens < 2:
        raise UsageError(f"--max-tokens is {options.max_tokens}; it must be at least 2.")
    require_unused(options.out, FILES)
    from dla_train.evaluation.find import find_model
    from dla_train.evaluation.prompts import read_text

    text = read_text(options.text)
    found = find_model(options.checkpoint)
    from dla_train.evaluation.trained import load_trained  # torch: all that can be refused without it was
    from dla_train.inspection.write import write_inspection

    made = write_inspection(options.out, load_trained(found), text, options.layer, options.head, options.max_tokens)
    print(f"Open {made}")
    return 0
