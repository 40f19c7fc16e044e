"""Byte-level BPE: trained on the corpus itself, without unknown characters, the same on every run.

Every text is encoded literally. In particular the characters `<|endoftext|>` in a document become ordinary
tokens: only the writer of a token file ends a document, never its content.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from dla_data.errors import DataError, unreadable

END_OF_DOCUMENT = "<|endoftext|>"
LARGEST_VOCABULARY = 2**22  # memory is taken for all of it at once
SMALLEST_VOCABULARY = 256 + 1  # every byte, and the end of a document

# A merge seen once would spend a vocabulary entry on one place of the corpus.
_MIN_FREQUENCY = 2
# Long texts go to the encoder in pieces of about this many characters, so that one long document is encoded in parallel
# and in bounded memory (while it exists, an encoding is many times larger than its text).
_PIECE_CHARACTERS = 200_000
_BATCH_CHARACTERS = 4_000_000
# Between two lines of which neither has white space at the cut, byte-level pre-tokenizing always splits.
_SAFE_CUT = re.compile(r"(?<=\S)\n(?=\S)")
# Options that decide the ids beside vocabulary and merges; all are off in a tokenizer trained here.
_MODEL_OPTIONS = ("dropout", "ignore_merges", "byte_fallback", "unk_token")
# The flags of an added token, as training sets them.
_FLAGS = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}


class Encoded(NamedTuple):
    """One document as tokens.

    ids: uint32 [tokens], without an end-of-document token.
    text_bytes: length of its text in UTF-8.
    """

    ids: npt.NDArray[np.uint32]
    text_bytes: int


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE with exactly `vocab_size` entries, of which id 0 is `END_OF_DOCUMENT`.

    Raises:
        DataError: fewer entries asked for than bytes and special tokens need, or more than the texts support.
    """
    require_vocabulary(vocab_size)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with _all_cores():
        tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True
    reached = tokenizer.get_vocab_size()
    if reached < vocab_size:
        raise DataError(
            f"vocabulary of {vocab_size:,} asked for, but the corpus supports only {reached:,}: "
            f"no further pair of tokens occurs {_MIN_FREQUENCY} times. Ask for at most {reached:,}, or give more text."
        )
    return tokenizer


def require_vocabulary(vocab_size: int) -> None:
    """Raise DataError if no byte-level vocabulary can be as small as `vocab_size`, or none should be as large."""
    if vocab_size > LARGEST_VOCABULARY:
        raise DataError(f"vocabulary of {vocab_size:,} is too large. Ask for at most {LARGEST_VOCABULARY:,}.")
    if vocab_size < SMALLEST_VOCABULARY:
        raise DataError(
            f"vocabulary of {vocab_size:,} is too small: "
            f"the 256 bytes and {END_OF_DOCUMENT} need {SMALLEST_VOCABULARY}. "
            f"Ask for {SMALLEST_VOCABULARY} or more."
        )


def save_tokenizer(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> None:
    """Write `tokenizer.json` to `path`."""
    Path(path).write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a `tokenizer.json`; its settings for truncation and padding are dropped, because whole texts are encoded.

    Raises:
        DataError: missing or unreadable file, not a tokenizer, or one whose ids are drawn at random (dropout).
    """
    try:
        tokenizer = Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DataError(f"cannot read the tokenizer {path}: {error.strerror}. Check the path.") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # the library raises bare Exception for every kind of bad content
        raise DataError(
            f"{path} is not a tokenizer file ({error}). Give one, such as the tokenizer.json of a model; where "
            "dla-train made it, the file is damaged: restore it, or remove it and prepare the text again."
        ) from error
    if dropout := getattr(tokenizer.model, "dropout", None):
        raise DataError(
            f"{path} leaves out merges at random (dropout {dropout}): the same text would give other tokens each time. "
            "Set the model's dropout to null in the file."
        )
    tokenizer.encode_special_tokens = True  # not part of the file
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def vocabulary_of(tokenizer: Tokenizer) -> int:
    """The largest id plus one; a vocabulary may have gaps."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Return a SHA-256 over what decides the ids; saving, loading or reformatting the file does not change it."""
    tree = json.loads(tokenizer.to_str())
    deciding = {
        "model": {key: tree["model"].get(key) for key in ("type", "vocab", "merges")},
        "added": sorted((token["id"], token["content"]) for token in tree["added_tokens"]),
        "normalizer": tree["normalizer"],
        "pre_tokenizer": tree["pre_tokenizer"],
    }
    # Only options that differ from what `train_tokenizer` sets, so that the fingerprints of its tokenizers stay.
    if options := {name: tree["model"][name] for name in _MODEL_OPTIONS if tree["model"].get(name)}:
        deciding["options"] = options
    changed = ([token["id"], *(token[name] for name in _FLAGS)] for token in tree["added_tokens"])
    if flags := sorted(token for token in changed if token[1:] != list(_FLAGS.values())):
        deciding["flags"] = flags
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[Encoded]:
    """Encode texts in parallel, in order; takes about 4 million characters from `texts` at a time."""
    parts: list[npt.NDArray[np.uint32]] = []
    text_bytes = 0
    for batch in _batches(pieces_to_encode(tokenizer, texts)):
        with _all_cores():
            encodings = tokenizer.encode_batch_fast([piece for piece, _ in batch], add_special_tokens=False)
        for (piece, is_last), encoding in zip(batch, encodings, strict=True):
            parts.append(np.asarray(encoding.ids, dtype=np.uint32))
            text_bytes += len(piece.encode())
            if is_last:
                yield Encoded(np.concatenate(parts), text_bytes)
                parts, text_bytes = [], 0


def pieces_to_encode(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Cut long texts where the cut changes no token: (piece, is the last of its text), in order."""
    return _pieces(texts, _is_cut_safe(tokenizer))


def encode_pieces(
    tokenizer: Tokenizer, text: str, begin: int = 0
) -> Iterator[tuple[int, npt.NDArray[np.uint32], bool]]:
    """Encode one text piece by piece, each when it is asked for: where it begins, its ids, whether it is the last.

    Args:
        tokenizer: of the text.
        text: all of it.
        begin: a character at which an earlier call began a piece: the pieces before it are left out.
    """
    for piece, is_last in _pieces([text], _is_cut_safe(tokenizer), begin):
        yield begin, _ids(tokenizer, piece), is_last
        begin += len(piece)


def _ids(tokenizer: Tokenizer, piece: str) -> npt.NDArray[np.uint32]:
    """The ids alone: the encoding is many times larger and must not stay in memory while a stream waits."""
    (encoding,) = tokenizer.encode_batch_fast([piece], add_special_tokens=False)
    return np.asarray(encoding.ids, dtype=np.uint32)


def _is_cut_safe(tokenizer: Tokenizer) -> bool:
    """Whether `_SAFE_CUT` is known not to change this tokenizer's result."""
    pre_tokenizer = tokenizer.pre_tokenizer
    return (
        isinstance(pre_tokenizer, pre_tokenizers.ByteLevel)
        and pre_tokenizer.use_regex
        and not pre_tokenizer.add_prefix_space
        and tokenizer.normalizer is None
        and not any(map(_reaches_across_lines, tokenizer.get_added_tokens_decoder().values()))
    )


def _reaches_across_lines(token: AddedToken) -> bool:
    """Whether an added token may contain or absorb the line end before a cut; texts never match special tokens."""
    return "\n" in token.content or (not token.special and (token.lstrip or token.rstrip))


def _pieces(texts: Iterable[str], cut: bool, first: int = 0) -> Iterator[tuple[str, bool]]:
    """Yield (piece, is the last of its text); pieces end after a line, as soon as they are long enough.

    Each text begins at character `first`.
    """
    for text in texts:
        begin = first
        while cut and (match := _SAFE_CUT.search(text, begin + _PIECE_CHARACTERS)):
            yield text[begin : match.end()], False
            begin = match.end()
        yield text[begin:], True


def _batches(pieces: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    batch: list[tuple[str, bool]] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece[0])
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


_PARALLELISM = "TOKENIZERS_PARALLELISM"
_parallelism_is_ours = False


@contextmanager
def _all_cores() -> Iterator[None]:
    """Let `tokenizers` use its threads inside, and leave the variable "false" outside, unless the user has set it.

    The library's thread pool does not survive a fork: a forked data loader worker that used it would wait forever, so
    the library prints a warning at every fork unless the variable is set. "false" silences it and is safe in the
    worker.
    """
    global _parallelism_is_ours
    if _PARALLELISM not in os.environ:
        _parallelism_is_ours = True
    if not _parallelism_is_ours:
        yield
        return
    os.environ[_PARALLELISM] = "true"
    try:
        yield
    finally:
        os.environ[_PARALLELISM] = "false"
