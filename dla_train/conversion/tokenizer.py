"""A published tokenizer whose token for the end of a text bears our name for it.

dla-train ends documents with `<|endoftext|>`. Other tokenizers have a token with the same meaning and another name,
such as `</s>`. Only the name is changed; the number, which is all that a model knows of a token, stays.
"""

from __future__ import annotations

import json
from pathlib import Path

from dla_data.tokenizer import END_OF_DOCUMENT
from dla_train.conversion.source import read_table
from dla_train.errors import UsageError

TOKENIZER = "tokenizer.json"


def end_token(folder: Path) -> str | None:
    """The token that ends texts, as `tokenizer_config.json` names it; None if it does not."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    found = read_table(path).get("eos_token")
    if isinstance(found, dict):
        found = found.get("content")
    return found if isinstance(found, str) else None


def with_our_end(folder: Path) -> tuple[str, str | None]:
    """The text of the folder's `tokenizer.json`, in which the end of a text is `END_OF_DOCUMENT`.

    Returns:
        the text, and the name that the token had there; None if it had ours.
    Raises:
        UsageError: it does not say which token ends texts. RunError: a file is damaged.
    """
    path = folder / TOKENIZER
    content = read_table(path)
    added = [token for token in content.get("added_tokens", ()) if isinstance(token, dict)]
    if any(token.get("content") == END_OF_DOCUMENT for token in added):
        return path.read_text(encoding="utf-8"), None
    name = end_token(folder)
    found = next((token for token in added if token.get("content") == name), None)
    if name is None or found is None:
        raise UsageError(
            f"{path} has no token {END_OF_DOCUMENT}, and tokenizer_config.json does not say which of its special "
            "tokens ends a text (eos_token). Add that, or take tokenizer.json out of the folder."
        )
    found["content"] = END_OF_DOCUMENT
    # What surrounds texts with such tokens; texts are encoded without it here.
    content["post_processor"] = None
    vocabulary = content.get("model", {}).get("vocab")
    if isinstance(vocabulary, dict) and name in vocabulary:
        vocabulary[END_OF_DOCUMENT] = vocabulary.pop(name)
    elif isinstance(vocabulary, list):
        content["model"]["vocab"] = [
            [END_OF_DOCUMENT, *rest] if word == name else [word, *rest] for word, *rest in vocabulary
        ]
    return json.dumps(content, ensure_ascii=False), name
