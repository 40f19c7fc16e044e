"""The token that ends a document: put there by whoever writes or streams documents, and never by a text itself."""

from contextlib import suppress

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from dla_data.errors import DataError
from dla_data.tokenizer import END_OF_DOCUMENT


def end_of_document_id(tokenizer: Tokenizer) -> int:
    """Return the id of `END_OF_DOCUMENT`.

    Args:
        tokenizer: as `load_tokenizer` returns it, so that special tokens within a text are encoded as plain text.
    Raises:
        DataError: the tokenizer has no such token, or a text could produce it.
    """
    number = tokenizer.token_to_id(END_OF_DOCUMENT)
    if number is None:
        raise DataError(
            f"the tokenizer has no token {END_OF_DOCUMENT}, which ends documents. Add it as a special token."
        )
    added = tokenizer.get_added_tokens_decoder().get(number)
    if added is None or not added.special:
        raise DataError(
            f"the tokenizer's {END_OF_DOCUMENT} is not a special token: a text with these characters would end its "
            'document there. Set "special": true for it under added_tokens in its file.'
        )
    for text in (END_OF_DOCUMENT, f"a {END_OF_DOCUMENT} b"):
        ids: list[int] = []
        with suppress(Exception):  # a model with another alphabet may refuse these letters, so it cannot produce the id
            ids = tokenizer.encode(text, add_special_tokens=False).ids
        if number in ids:
            raise DataError(
                f"the tokenizer makes of the characters {END_OF_DOCUMENT} in a text the token that ends documents: its "
                f"{type(tokenizer.model).__name__} model has them in its vocabulary. Use byte-level BPE, or a "
                "tokenizer that was trained without this token and got it afterwards (add_special_tokens)."
            )
    return number


def require_no_end(ids: npt.NDArray[np.uint32], end_of_document: int, what: str) -> None:
    """Raise DataError if `ids`, the tokens of the text that messages call `what`, contain the end-of-document id."""
    if (ids == end_of_document).any():
        raise DataError(
            f"{what} holds token {end_of_document}, which ends documents, in its own text. Use a tokenizer that makes "
            "ordinary tokens of any text, such as byte-level BPE."
        )
