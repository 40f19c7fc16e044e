"""`dla-train generate`: text from a trained model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dla_train.cli.device import device_named
from dla_train.cli.needed import TRAINED, Needed, require_options
from dla_train.errors import UsageError
from dla_train.runs.compilations import told_of_compilations

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from dla_train.evaluation.continuation import Continuations
    from dla_train.evaluation.trained import Trained

_EXAMPLES = """\
A prompt may have any length: it is read in pieces, and what a linear model remembers of it has a fixed size, as many
tokens as may come. (A Transformer remembers every token, so its memory grows.) The text goes to standard output, its
speed to standard error. A text ends with the end of a document or after --max-tokens.

examples:
  dla-train generate --checkpoint runs/tiny --prompt "def read_lines(path):" --stream
  dla-train generate --checkpoint runs/tiny/checkpoints/step-00000220 --prompt - < long.txt
  dla-train generate --checkpoint runs/tiny --prompts prompts.txt --temperature 0 > out.jsonl
"""


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "generate",
        help="text from a trained model",
        description=__doc__,
        usage="dla-train generate --checkpoint RUN (--prompt TEXT|- | --prompts FILE) [options]",
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
    parser.add_argument("--prompt", metavar="TEXT|-", help="what to continue; - reads standard input")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help="a prompt a line, continued together; one line of JSON each comes out; - reads standard input",
    )
    parser.add_argument("--max-tokens", metavar="N", type=int, default=128, help="of a continuation (128)")
    parser.add_argument("--temperature", metavar="X", type=float, default=0.8, help="0 takes the likeliest token (0.8)")
    parser.add_argument("--top-p", metavar="P", type=float, default=0.95, help="draw from the likeliest tokens (0.95)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="the same seed gives the same text (0)")
    parser.add_argument("--stream", action="store_true", help="show the text as it comes")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), default="auto", help="auto takes a GPU if there is one"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Print continuations."""
    _check(options, settings)
    from dla_data.tokenizer import END_OF_DOCUMENT
    from dla_train.evaluation.find import find_model
    from dla_train.evaluation.prompts import read_prompt, read_prompts

    prompts = [read_prompt(options.prompt)] if options.prompts is None else read_prompts(options.prompts)
    found = find_model(options.checkpoint)
    from dla_train.evaluation.continuation import Continuations, Sampling  # imports torch, so checks come first
    from dla_train.evaluation.trained import load_trained

    trained = load_trained(found)
    tokenizer = trained.tokenizer()
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    # As in training, without the special tokens that a tokenizer may put around a text.
    encoded = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    tokens = [ids or _beginning(end, trained) for ids in encoded]
    _tell_of_unknown_positions(trained, max(map(len, tokens)) + options.max_tokens)
    device = device_named(options.device)
    model = trained.model.to(device)
    sampling = Sampling(
        max_tokens=options.max_tokens, temperature=options.temperature, top_p=options.top_p, seed=options.seed, end=end
    )
    continuations = Continuations(model, tokens, sampling)
    with told_of_compilations(device, lambda line: print(line, file=sys.stderr)):
        if options.prompts is None:
            _print_one(prompts[0], continuations, tokenizer, options.stream)
        else:
            _print_all(prompts, continuations, tokenizer)
    print(_speed(continuations), file=sys.stderr)
    return 0


def _check(options: argparse.Namespace, settings: list[str]) -> None:
    prompted = options.prompt if options.prompt is not None else options.prompts
    needed = (
        Needed("--checkpoint RUN", TRAINED, options.checkpoint),
        Needed("--prompt TEXT", "- for standard input; or --prompts FILE", prompted),
    )
    require_options("generate", needed, settings)
    if options.prompt is not None and options.prompts is not None:
        raise UsageError("dla-train generate takes either --prompt TEXT (- for standard input) or --prompts FILE.")
    if settings:
        raise UsageError(f"dla-train generate takes no key=value (given {settings[0]}): the run has its recipe.")
    if options.stream and options.prompts is not None:
        raise UsageError("--stream shows one text as it comes; it cannot be used with --prompts. Leave one out.")
    if options.max_tokens < 1:
        raise UsageError(f"--max-tokens is {options.max_tokens}; it must be at least 1.")
    if not 0 <= options.temperature < float("inf"):
        raise UsageError(
            f"--temperature is {options.temperature:g}; it must be at least 0 (the likeliest token) and finite."
        )
    if not 0 < options.top_p <= 1:
        raise UsageError(f"--top-p is {options.top_p:g}; it must be above 0 and at most 1.")
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed is {options.seed}; it must be at least 0 and below 2**63.")


def _beginning(end: int | None, trained: Trained) -> list[int]:
    """The tokens of an empty prompt: the end-of-document token, which precedes the first token of a document."""
    if end is None:
        raise UsageError(
            f"the prompt is empty, and the tokenizer of {trained.folder} has no token that ends documents."
        )
    return [end]


def _tell_of_unknown_positions(trained: Trained, longest: int) -> None:
    """Say so if a text of `longest` tokens has positions that the model's softmax attention has never seen."""
    window = trained.recipe.data.window
    # The last token that is drawn is not read.
    if longest - 1 > window and not trained.recipe.model.reads_any_length(window):
        print(
            f"The softmax attention of this model knows positions of its training window of {window:,} tokens only, "
            f"and a prompt with its continuation may have {longest:,}: expect worse text behind it.",
            file=sys.stderr,
        )


def _print_one(prompt: str, continuations: Continuations, tokenizer: Tokenizer, stream: bool) -> None:
    """Print the prompt and its continuation."""
    from tokenizers.decoders import DecodeStream

    decoder = DecodeStream(skip_special_tokens=True)
    tokens, shown = [], ""
    if stream:
        print(prompt, end="", flush=True)
    for _, token in continuations:
        tokens.append(token)
        if stream and (piece := decoder.step(tokenizer, token)):
            shown += piece
            print(piece, end="", flush=True)
    text = tokenizer.decode(tokens)
    # The stream holds back bytes that do not form a character yet; print them at the end, where no more will come.
    print(text.removeprefix(shown) if stream else prompt + text)


def _print_all(prompts: list[str], continuations: Continuations, tokenizer: Tokenizer) -> None:
    """Print a line of JSON for each prompt, in order."""
    found: list[list[int]] = [[] for _ in prompts]
    for number, token in continuations:
        found[number].append(token)
    for prompt, tokens in zip(prompts, found, strict=True):
        print(json.dumps({"prompt": prompt, "text": tokenizer.decode(tokens)}, ensure_ascii=False))


def _speed(found: Continuations) -> str:
    from dla_data.counted import counted

    read = f"{counted(found.prompt_tokens, 'token')} of prompt in {found.prompt_seconds:.2f} s"
    drawn = f"{found.tokens:,} more in {found.seconds:.2f} s"
    if found.seconds:
        drawn += f", {found.tokens / found.seconds:,.0f} tokens/s"
    return f"{read}; {drawn}; the past of a text takes {found.past_bytes / 1e6:,.2f} MB."
