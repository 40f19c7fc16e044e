"""`dla-train import`: a published checkpoint as a model of dla-train."""

import argparse
from pathlib import Path
from typing import Any

from dla_train.cli.needed import Needed, require_options
from dla_train.cli.out_folder import a_folder
from dla_train.errors import UsageError

_EXAMPLES = """\
Known are Mamba-2 (state-spaces/mamba2-*, and what transformers or flash-linear-attention saved) and Gated DeltaNet
(flash-linear-attention, hybrids with softmax attention included). Download the files of a model first, and put its
tokenizer.json beside them; no code of theirs is run. The new folder is like one of dla-train export: generate and
eval take it, and training goes on from it, with a dynamic memory if you wish, which begins as the single state that
the model was trained with.

examples:
  dla-train import --from downloads/mamba2-780m --to mamba2-780m
  dla-train generate --checkpoint mamba2-780m --prompt "The"
  dla-train prepare corpus/ --tokenizer mamba2-780m/tokenizer.json --out tokens
  dla-train fit --recipe mamba2-780m/recipe.yaml initial_weights=mamba2-780m model.mixer.memory=dynamic
"""


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "import",
        help="a published checkpoint (Mamba-2, Gated DeltaNet) as a model of dla-train",
        description=__doc__,
        usage="dla-train import --from DIR --to DIR",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--from", dest="source", metavar="DIR", type=Path, help="the files of a published model")
    parser.add_argument("--to", metavar="DIR", type=a_folder, help="a new or empty folder")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Write the folder."""
    needed = (
        Needed("--from DIR", "the folder with the files of a published model", options.source),
        Needed("--to DIR", "a new folder for the model", options.to),
    )
    require_options("import", needed, settings)
    if settings:
        raise UsageError(f"dla-train import takes no key=value (given {settings[0]}): the model is what it is.")
    if not options.source.is_dir():
        raise UsageError(f"there is no folder {options.source}. Give the one that a model's files were downloaded to.")
    from dla_train.export.place import require_empty

    require_empty(options.to)
    from dla_train.conversion.convert import convert  # imports torch, after all checks that do not need it
    from dla_train.report.text import parameter_count
    from dla_train.training.announcement import layers_in_words

    made = convert(options.source, options.to)
    to, layers = options.to, layers_in_words(made.config)
    print(f"{options.source} is in {to}: {parameter_count(made.parameters)} parameters, {layers}.")
    if not made.has_tokenizer:
        print("It has no tokenizer: put its tokenizer.json beside the weights and import it again.")
    elif made.end:
        print(f"Its token {made.end} ends documents, and is called <|endoftext|> here.")
    print(f"To go on training it: dla-train fit --recipe {to}/recipe.yaml initial_weights={to} data.path=TOKENS")
    return 0
