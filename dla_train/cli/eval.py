"""`dla-train eval`: what a trained model has learned: tasks of our own, and those of lm-evaluation-harness."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import logging
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dla_train.cli.device import device_named
from dla_train.cli.needed import TRAINED, Needed, require_options
from dla_train.cli.out_folder import a_folder, require_unused
from dla_train.errors import UsageError
from dla_train.evaluation.built_in.catalog import BUILT_IN
from dla_train.evaluation.lm_tasks.names import require_possible
from dla_train.evaluation.prompts import read_text
from dla_train.runs.compilations import told_of_compilations

if TYPE_CHECKING:
    from dla_train.evaluation.built_in.task import Result
    from dla_train.evaluation.lm_tasks.harness import Harness, Score
    from dla_train.evaluation.trained import Trained

_RESULTS = ("results.json", "results.md")
_LONGEST = 2**24  # each text is made as a whole in main memory
_GROUPS = {
    "paper-commonsense": "the paper's eight data sets of common sense",
    "paper-retrieval": "its six of retrieval from the text",
    "paper-ruler": "RULER's needles at 4,096 tokens, as the harness makes them",
    "paper-longbench": "twelve tasks of LongBench",
}
_EXAMPLES = f"""\
Built-in tasks, which need no network:
{chr(10).join(f"  {name:24}{line}" for name, line in BUILT_IN.items())}

All else are tasks of lm-evaluation-harness by name, groups of them, or task files of your own (a path that ends in
.yaml); they need the extra: pip install 'dla-train[eval]'. The paper's data sets are four groups, and its figures
stand beside yours:
{chr(10).join(f"  {name:24}{line}" for name, line in _GROUPS.items())}

examples:
  dla-train eval --checkpoint runs/tiny --tasks perplexity-by-position,needles --out runs/tiny/evaluation
  dla-train eval --checkpoint runs/mine --tasks needles --lengths 1K,4K,16K,64K
  dla-train eval --checkpoint runs/mqar-gdn-dla --tasks mqar
  dla-train eval --checkpoint runs/mine --tasks paper-commonsense,paper-retrieval --limit 100
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
        "--checkpoint",
        metavar="RUN",
        type=Path,
        help=TRAINED,
    )
    parser.add_argument("--tasks", metavar="NAME[,NAME...]", help="tasks, groups or task files; `list` shows them")
    parser.add_argument("--limit", metavar="N", type=int, help="ask only N examples (windows) of each kind")
    parser.add_argument("--lengths", metavar="N[,N...]", help="built-in tasks: in tokens, such as 1K,4K,64K")
    parser.add_argument("--text", metavar="FILE", type=Path, help="built-in tasks: read this, not the validation text")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="built-in tasks: of the examples (0)")
    parser.add_argument(
        "--out", metavar="DIR", type=a_folder, help="also write results.json, results.md and pictures there"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), default="auto", help="auto takes a GPU if there is one"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Print a table for each given task name."""
    if options.tasks == "list":
        print("\n".join(f"{name:24}{line}" for name, line in (BUILT_IN | _GROUPS).items()))
        print("All tasks of lm-evaluation-harness: lm-eval ls tasks. A path that ends in .yaml is a task file.")
        return 0
    names, lengths = _check(options, settings)
    from dla_train.evaluation.find import find_model

    found = find_model(options.checkpoint)
    from dla_train.evaluation.built_in.catalog import open_task  # imports torch, after all checks that do not need it
    from dla_train.evaluation.built_in.task import Asked
    from dla_train.evaluation.trained import load_trained

    trained = load_trained(found)
    device = device_named(options.device)
    trained.model.to(device)
    asked = Asked(trained=trained, lengths=lengths, limit=options.limit, text=options.text, seed=options.seed, say=_say)
    ours = {name: open_task(name, asked) for name in names if name in BUILT_IN}
    foreign = [name for name in names if name not in BUILT_IN]
    with told_of_compilations(device, _say):
        tables, scores = _ask_harness(trained, foreign, options.limit) if foreign else ({}, {})
        results = {name: task.run() for name, task in ours.items()}
    tables |= {name: result.markdown() for name, result in results.items()}
    head = f"{trained.title}\n\n"
    print(head + "\n".join(tables[name] for name in names), end="")
    if options.out is not None:
        about: dict[str, Any] = {"checkpoint": str(trained.checkpoint), "step": trained.step, "limit": options.limit}
        if foreign:
            about["lm_eval"] = version("lm-eval")
        if ours:
            about["seed"] = options.seed
        pictured = {name: f"{text}\n![{name}]({name}.png)\n" if name in ours else text for name, text in tables.items()}
        _write(options.out, head + "\n".join(pictured[name] for name in names), about, scores, results)
    return 0


def _check(options: argparse.Namespace, settings: list[str]) -> tuple[list[str], tuple[int, ...] | None]:
    """Check the options; returns the names of the tasks, each once, and the lengths."""
    names = [name for part in (options.tasks or "").split(",") if (name := part.strip())]
    needed = (
        Needed("--checkpoint RUN", TRAINED, options.checkpoint),
        Needed("--tasks NAME[,NAME...]", "for example needles or piqa,fda; --tasks list shows them", names or None),
    )
    require_options("eval", needed, settings)
    if settings:
        raise UsageError(f"dla-train eval takes no key=value (given {settings[0]}): the run has its recipe.")
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit is {options.limit}; it must be at least 1.")
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed is {options.seed}; it must be at least 0 and below 2**63.")
    for flag, value in (("--lengths", options.lengths), ("--text", options.text)):
        if value is not None and not any(name in BUILT_IN for name in names):
            raise UsageError(f"{flag} is for the built-in tasks ({', '.join(BUILT_IN)}); none of them is in --tasks.")
    if options.text is not None:
        read_text(options.text)  # refused before the model is loaded
    lengths = None if options.lengths is None else _lengths(options.lengths)
    if options.out is not None:
        pictures = [f"{name}.png" for name in dict.fromkeys(names) if name in BUILT_IN]
        require_unused(options.out, [*_RESULTS, *pictures])
        _require_writable(options.out)
    if importlib.util.find_spec("lm_eval") is None and (foreign := [name for name in names if name not in BUILT_IN]):
        raise UsageError(
            f"there is no built-in task '{foreign[0]}'.{_hint(foreign[0])} The built-in ones are "
            f"{', '.join(BUILT_IN)}; all others need lm-evaluation-harness. Install it: pip install 'dla-train[eval]'."
        )
    require_possible([name for name in names if name not in BUILT_IN], tuple(BUILT_IN))
    return list(dict.fromkeys(names)), lengths


def _hint(name: str) -> str:
    from dla_train.config.overrides import nearest

    guess = nearest(name, [*BUILT_IN, *_GROUPS])
    return f" Did you mean {guess}?" if guess else ""


def _lengths(text: str) -> tuple[int, ...]:
    """`1K,4000` -> (1024, 4000), ascending, each once."""
    found = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)([kK]?)\s*", part)
        if match is None or int(match[1]) < 1:
            raise UsageError(
                f"--lengths holds '{part.strip()}'; it must be numbers of tokens, at least 1, such as 1K,4K or "
                "1000,4000."
            )
        length = int(match[1]) * (1024 if match[2] else 1)
        if length > _LONGEST:
            raise UsageError(f"--lengths holds '{part.strip()}'; it must be at most {_LONGEST:,} tokens.")
        found.add(length)
    return tuple(sorted(found))


def _require_writable(out: Path) -> None:
    """Make the folder and check that a file can be written there, so that nobody learns that it cannot after an
    hour."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be made: {error.strerror}. Give another folder.") from error
    probe = out / ".results.incoming"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _not_written(out, error) from error


def _ask_harness(
    trained: Trained, names: list[str], limit: int | None
) -> tuple[dict[str, str], dict[str, list[Score]]]:
    """The table of each name, and the scores by member."""
    from dla_data.tokenizer import END_OF_DOCUMENT
    from dla_train.evaluation.lm_tasks.adapter import HarnessModel
    from dla_train.evaluation.lm_tasks.harness import Harness, transformers_folder
    from dla_train.evaluation.lm_tasks.published import published
    from dla_train.evaluation.lm_tasks.table import table

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tokenizer = trained.tokenizer()
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    if end is None:
        raise UsageError(f"the tokenizer of {trained.folder} has no token {END_OF_DOCUMENT}, which texts begin with.")
    trained_on = trained.recipe.data.window
    window = None if trained.recipe.model.reads_any_length(trained_on) else trained_on
    if window is not None:
        _say(
            "The softmax attention of this model knows positions of its training window only: contexts are their last "
            f"{window:,} tokens."
        )
    model = HarnessModel(trained.model, tokenizer, end=end, window=window)
    with transformers_folder(tokenizer, END_OF_DOCUMENT) as folder:
        harness = Harness(
            folder, ships_its_own=any(not name.endswith(".yaml") for name in names), besides=tuple(BUILT_IN)
        )
        groups = {name: harness.members(name) for name in names}
        scores = _scores(harness, groups, model, limit)
    tables = {
        name: table(
            name, [score for member in members for score in scores[member]], published(name, trained.recipe.model)
        )
        for name, members in groups.items()
    }
    return tables, scores


def _scores(harness: Harness, groups: dict[str, list[str]], model: Any, limit: int | None) -> dict[str, list[Score]]:
    """The scores of each member of the groups. All tasks are loaded before the first one runs, so that missing data
    shows at once."""
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


def _write(
    out: Path, text: str, about: dict[str, Any], scores: dict[str, list[Score]], results: dict[str, Result]
) -> None:
    from dla_train.atomic_files import write_text

    every = [dataclasses.asdict(score) for found in scores.values() for score in found]
    content = {**about, "scores": every, "built_in": {name: result.values for name, result in results.items()}}
    try:
        for name, result in results.items():
            result.picture(out / f"{name}.png")
        write_text(out / _RESULTS[0], json.dumps(content, indent=2) + "\n")
        write_text(out / _RESULTS[1], text)
    except OSError as error:
        raise _not_written(out, error) from error


def _not_written(out: Path, error: OSError) -> UsageError:
    return UsageError(f"--out {out} cannot be written: {error.strerror}. Give another folder.")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
