"""`dla-train export`: a trained model as a folder for others."""

import argparse
from pathlib import Path
from typing import Any

from dla_train.cli.needed import Needed, require_options
from dla_train.cli.out_folder import a_folder
from dla_train.errors import UsageError

_EXAMPLES = """\
The folder holds model.safetensors, config.json, the tokenizer if the model reads text, the recipe, and the code that
transformers needs. It appears when it is complete.

  from dla_train import load_model
  model = load_model("tiny-model")                # runs no code of the folder

  from transformers import AutoModelForCausalLM
  model = AutoModelForCausalLM.from_pretrained("tiny-model", trust_remote_code=True)   # needs no dla_train

examples:
  dla-train export --checkpoint runs/tiny --to tiny-model
  dla-train export --checkpoint runs/tiny/checkpoints/step-00000220 --to tiny-model-220
"""


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "export",
        help="a trained model as a folder for others",
        description=__doc__,
        usage="dla-train export --checkpoint RUN --to DIR",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint", metavar="RUN", type=Path, help="a run folder, or one of its checkpoints/step-..."
    )
    parser.add_argument("--to", metavar="DIR", type=a_folder, help="a new or empty folder")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Write the folder."""
    needed = (
        Needed("--checkpoint RUN", "a run folder, or one of its checkpoints/step-...", options.checkpoint),
        Needed("--to DIR", "a new folder for the model", options.to),
    )
    require_options("export", needed, settings)
    if settings:
        raise UsageError(f"dla-train export takes no key=value (given {settings[0]}): the run has its recipe.")
    from dla_train.evaluation.find import find_trained
    from dla_train.export.place import require_empty

    require_empty(options.to)
    found = find_trained(options.checkpoint)
    from dla_train.evaluation.trained import load_trained  # imports torch, after all checks that do not need it
    from dla_train.export.write import write_export

    trained = load_trained(found)
    assert trained.step is not None, "a run's checkpoint has a step"
    write_export(
        options.to,
        trained.model,
        tokenizer=trained.tokenizer_path,
        description=trained.recipe.description,
        step=trained.step,
        recipe=trained.folder.recipe.read_text(encoding="utf-8"),
    )
    size = sum(path.stat().st_size for path in options.to.iterdir())
    print(f"{trained.checkpoint} is in {options.to}: {size / 1e6:,.1f} MB, step {trained.step:,}.")
    if trained.tokenizer_path is None:
        print(f"It has no tokenizer: {trained.folder} has none.")
    return 0
