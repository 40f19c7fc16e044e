"""`dla-train prepare`: text to shards of tokens, once, for recipes with data kind `prepared`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dla_train.cli.out_folder import a_folder
from dla_train.cores import usable_cores
from dla_train.errors import UsageError

if TYPE_CHECKING:
    from dla_data.shards.prepared_manifest import PreparedManifest

_EXAMPLES = """\
sources:
  FILE          .jsonl, .ndjson or .json (an object per line), with .gz or .zst or without; .parquet; any other name is
                plain text, one document
  DIRECTORY     all files of these kinds below it, sorted; of plain text .txt, .md, .rst and .py, but beside JSON lines
                or Parquet .txt only
  'PATTERN'     such as 'pretrain/arxiv*.jsonl.zst', sorted
  OWNER/NAME    a data set of the Hugging Face hub, where no such path exists; OWNER/NAME@REVISION takes a commit, tag
                or branch of it
  hf:FOLDER     a folder laid out like one, read as `datasets` reads it

The result is the same for any number of workers. A command that was interrupted, however rudely, is run again as it is:
it goes on after the last whole shard, and reads the commit of a hub's data set that it began with.

examples:
  dla-train prepare corpus/ --out tokens --train-tokenizer 16384
  dla-train prepare 'pretrain/*.jsonl.zst' --out tokens --tokenizer tokenizer.json --skip-bad 20
  dla-train prepare HuggingFaceFW/fineweb-edu --config sample-10BT --out tokens --tokenizer tokenizer.json
  dla-train fit --recipe my.yaml 'data={kind: prepared, path: tokens, vocab_size: 16384, window: 4096}'
"""


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "prepare",
        help="make shards of tokens out of text",
        description=__doc__,
        usage="dla-train prepare SOURCE [SOURCE ...] --out DIR (--tokenizer FILE | --train-tokenizer VOCAB) [options]",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="where the text is; see below")
    parser.add_argument(
        "--out", required=True, metavar="DIR", type=a_folder, help="the folder to make or to go on with"
    )
    tokenizer = parser.add_mutually_exclusive_group(required=True)
    tokenizer.add_argument("--tokenizer", metavar="FILE", type=Path, help="a tokenizer.json with <|endoftext|>")
    tokenizer.add_argument(
        "--train-tokenizer", metavar="VOCAB", type=int, help="train byte-level BPE with so many entries on the text"
    )
    parser.add_argument("--text-field", metavar="NAME", default="text", help="field or column (default: text)")
    parser.add_argument("--config", metavar="NAME", help="configuration of a Hugging Face data set")
    parser.add_argument("--split", metavar="NAME", help="split of a Hugging Face data set (default: train)")
    parser.add_argument("--workers", metavar="N", type=int, help="processes that encode (default: one per core)")
    parser.add_argument(
        "--skip-bad", metavar="N", type=int, default=0, help="leave out up to N bad rows (default: stop at the first)"
    )
    parser.add_argument(
        "--shard-tokens", metavar="N", type=int, default=100_000_000, help="tokens per shard (default: 100 million)"
    )
    parser.add_argument(
        "--validation-share", metavar="SHARE", type=float, default=0.01, help="of the documents (default: 0.01)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Prepare, print a summary, return the exit code."""
    from dla_data.errors import DataError
    from dla_train.runs.console import start_console

    start_console()
    if settings:
        raise UsageError(f"dla-train prepare takes no settings (given {settings[0]}): sources, then options.")
    from dla_data.readers import Source
    from dla_data.shards.prepare import PrepareOptions, prepare_shards

    try:
        how = PrepareOptions(
            tokenizer=options.tokenizer,
            train_tokenizer=options.train_tokenizer,
            shard_tokens=options.shard_tokens,
            validation_share=options.validation_share,
            skip_bad=options.skip_bad,
            workers=options.workers if options.workers is not None else usable_cores(),
        )
    except DataError as error:
        name, _, problem = str(error).partition(" ")  # the field's name, which is also the option's
        raise UsageError(f"--{name.replace('_', '-')} {problem}") from error
    sources = [
        Source(path=path, text_field=options.text_field, config=options.config, split=options.split)
        for path in options.sources
    ]
    try:
        manifest = prepare_shards(sources, options.out, how)
    except DataError as error:
        raise UsageError(str(error)) from error
    print(_shown(manifest, options.out), end="")
    if not manifest.counts["validation"]["documents"]:
        print(
            f"warning: no document was held out for validation (--validation-share is {options.validation_share:g}), "
            "and `dla-train fit` validates on held-out documents unless training.validation_windows is 0. For a folder "
            "that it can validate on, prepare the text again in another folder (--out) with a larger share.",
            file=sys.stderr,
        )
    return 0


def _shown(manifest: "PreparedManifest", out: Path) -> str:
    from dla_data.counted import counted

    lines = [f"{out}: {counted(len(manifest.shards), 'shard')}, vocabulary of {manifest.vocab_size:,}"]
    for part, counts in manifest.counts.items():
        lines.append(
            f"  {part:<11} {counts['tokens']:>14,} tokens  {counts['documents']:>10,} "
            f"{'document ' if counts['documents'] == 1 else 'documents'}  "
            f"{counts['text_bytes'] / 1e6:>10,.2f} MB of text"
        )
    if skipped := len(manifest.skipped):
        first = "; the first" if skipped > 3 else ""
        lines.append(f"  left out {counted(skipped, 'bad row')}, listed in {out / 'manifest.json'}{first}:")
        lines += [f"    {row.place}: {row.reason}" for row in manifest.skipped[:3]]
    return "\n".join(lines) + "\n"
