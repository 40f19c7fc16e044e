"""`dla-train eval`: what a trained model has learned, on the data sets of lm-evaluation-harness."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import logging
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dla_train.cli.device import device_named
from dla_train.errors import UsageError

if TYPE_CHECKING:
    from dla_train.evaluation.lm_tasks.harness import Harness, Score

_EXAMPLES = """\
Tasks of lm-evaluation-harness by name, groups of them, or task files of your own (a path that ends in .yaml). The
paper's data sets are four groups: paper-commonsense, paper-retrieval, paper-ruler and paper-longbench; the paper's
figures stand beside yours. Needs the extra: pip install 'dla-train[eval]'.

examples:
  dla-train eval --checkpoint runs/tiny --tasks lambada_openai,piqa --limit 100
  dla-train eval --checkpoint runs/mine --tasks paper-commonsense,paper-retrieval --out runs/mine/evaluation
  dla-train eval --checkpoint runs/mine --tasks my-questions.yaml
"""


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "eval",
        help="what a trained model has learned",
        description=__doc__,
        usage="dla-train eval --checkpoint RUN --tasks NAME[,NAME...] [options]",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint", metavar="RUN", type=Path, help="a run folder, or one of its checkpoints/step-..."
    )
    parser.add_argument("--tasks", metavar="NAME[,NAME...]", help="tasks, groups or task files")
    parser.add_argument("--limit", metavar="N", type=int, help="ask only the first N examples of each task")
    parser.add_argument("--out", metavar="DIR", type=Path, help="also write results.json and results.md there")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), default="auto", help="auto takes a GPU if there is one"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Print a table of scores for each name that was given."""
    names = _check(options, settings)
    from dla_data.tokenizer import END_OF_DOCUMENT
    from dla_train.evaluation.lm_tasks.adapter import HarnessModel
    from dla_train.evaluation.lm_tasks.harness import Harness, transformers_folder
    from dla_train.evaluation.lm_tasks.published import published
    from dla_train.evaluation.lm_tasks.table import table
    from dla_train.evaluation.trained import load_trained
    from dla_train.models import AttentionConfig

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    trained = load_trained(options.checkpoint)
    tokenizer = trained.tokenizer()
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    if end is None:
        raise UsageError(f"the tokenizer of {trained.folder} has no token {END_OF_DOCUMENT}, which texts begin with.")
    window = trained.recipe.data.window if isinstance(trained.recipe.model.mixer, AttentionConfig) else None
    if window is not None:
        _say(f"A softmax model knows positions of its training window only: contexts are their last {window:,} tokens.")
    model = HarnessModel(trained.model.to(device_named(options.device)), tokenizer, end=end, window=window)
    with transformers_folder(tokenizer, END_OF_DOCUMENT) as folder:
        harness = Harness(folder, ships_its_own=any(not name.endswith(".yaml") for name in names))
        groups = {name: harness.members(name) for name in names}
        scores = _scores(harness, groups, model, options.limit)
    tables = [
        table(name, [score for member in members for score in scores[member]], published(name, trained.recipe.model))
        for name, members in groups.items()
    ]
    text = f"{trained.folder}, step {trained.step:,}\n\n" + "\n".join(tables)
    print(text, end="")
    if options.out is not None:
        _write(options.out, text, scores, checkpoint=str(trained.checkpoint), step=trained.step, limit=options.limit)
    return 0


def _check(options: argparse.Namespace, settings: list[str]) -> list[str]:
    """The names of the tasks, each once."""
    names = [name for part in (options.tasks or "").split(",") if (name := part.strip())]
    if options.checkpoint is None:
        raise UsageError("dla-train eval needs --checkpoint RUN: a run folder, or one of its checkpoints/step-...")
    if not names:
        raise UsageError("dla-train eval needs --tasks, for example --tasks paper-commonsense or --tasks piqa,fda.")
    if settings:
        raise UsageError(f"dla-train eval takes no key=value (given {settings[0]}): the run has its recipe.")
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit is {options.limit}; it must be at least 1.")
    if options.out is not None:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {options.out} cannot be made: {error.strerror}. Give another folder.") from error
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError("these tasks need lm-evaluation-harness. Install it: pip install 'dla-train[eval]'.")
    return list(dict.fromkeys(names))


def _scores(harness: Harness, groups: dict[str, list[str]], model: Any, limit: int | None) -> dict[str, list[Score]]:
    """Of each member of a group. All are loaded before the first is asked: what is missing shows at once."""
    loaded = {member: harness.load(member) for members in groups.values() for member in members}
    total, number = sum(map(len, loaded.values())), 0
    found: dict[str, list[Score]] = {}
    for member, tasks in loaded.items():
        found[member] = []
        for name, task in tasks.items():
            scores = harness.run(task, model, limit=limit)
            found[member] += scores
            number += 1
            shown = ", ".join(f"{score.metric} {score.value:.4g}" for score in scores)
            _say(f"{number} of {total}: {name}, {shown}")
    return found


def _write(out: Path, text: str, scores: dict[str, list[Score]], **about: Any) -> None:
    from dla_train.atomic_files import write_text

    every = [dataclasses.asdict(score) for found in scores.values() for score in found]
    try:
        write_text(
            out / "results.json", json.dumps({**about, "lm_eval": version("lm-eval"), "scores": every}, indent=2) + "\n"
        )
        write_text(out / "results.md", text)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error.strerror}. Give another folder.") from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
