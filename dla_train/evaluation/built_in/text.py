"""The text that a task reads, the recipe's validation text or a file, in the run's tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from dla_data.errors import DataError
from dla_data.tokenizer import END_OF_DOCUMENT, tokenizer_fingerprint
from dla_train.data.corpus import open_data
from dla_train.data.fingerprints import changed_data, changed_validation
from dla_train.data.synthetic_config import SyntheticData
from dla_train.errors import UsageError
from dla_train.evaluation.built_in.task import Asked
from dla_train.evaluation.prompts import read_text


def tokenizer_of(asked: Asked, task: str) -> Tokenizer:
    """The run's tokenizer.

    Raises:
        UsageError: it has none.
    """
    data = asked.trained.recipe.data
    if isinstance(data, SyntheticData):
        own = {"mqar": "mqar", "change_point": "change-point"}.get(data.task.kind)
        hint = f" Ask it {own}, or" if own else " Take"
        raise UsageError(
            f"{task} is for models of text, but {asked.trained.folder} was trained on the synthetic task "
            f"{data.task.kind}: it has no tokenizer.{hint} a run that was trained on text."
        )
    return asked.trained.tokenizer()


def tokens_to_read(asked: Asked, tokenizer: Tokenizer, at_most: int) -> npt.NDArray[np.int64]:
    """Up to `at_most` tokens from the beginning of the text.

    Says so if the recipe's data is no longer what the run was trained on. Of prepared shards, only the checksums of the
    validation text are compared: those of all text would take hours for a large corpus.

    Raises:
        UsageError: the file, or the recipe's data, cannot be read or is empty; or the recipe's data now has another
            tokenizer than the run.
    """
    if asked.text is not None:
        text = read_text(asked.text)
        if not text.strip():
            raise UsageError(f"the text {asked.text} is empty. Give a file with some text in it.")
        end = tokenizer.token_to_id(END_OF_DOCUMENT)
        begin = [] if end is None else [end]  # as in training, where a document follows the end of another
        return np.array([*begin, *tokenizer.encode(text, add_special_tokens=False).ids], dtype=np.int64)[:at_most]
    try:
        data = open_data(asked.trained.loaded, verify=False, revisions=asked.trained.revisions)
        data.verify_validation()
        tokens = data.validation_tokens(at_most)
    except (UsageError, DataError) as error:
        raise UsageError(
            f"the validation text of {asked.trained.folder} cannot be read: {error} --text FILE reads another text."
        ) from error
    if data.fingerprints["tokenizer"] != tokenizer_fingerprint(tokenizer):
        raise UsageError(
            f"the data of {asked.trained.folder} has changed: its tokenizer is no longer the one of the run. Give a "
            "text with --text FILE."
        )
    if changed := changed_data(asked.trained.data, data.fingerprints):
        asked.say(
            f"warning: {asked.trained.folder} was trained on another {' and '.join(changed)}, so the validation text "
            "may be another one, too, and hold documents that the model has seen. --text FILE reads a text of your own."
        )
    elif changed_validation(asked.trained.data, data.fingerprints):
        asked.say(
            f"warning: the validation text is not the one that {asked.trained.folder} had when it saved this "
            "checkpoint, so losses are not comparable with those in its metrics.csv."
        )
    return tokens
