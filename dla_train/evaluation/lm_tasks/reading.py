"""In-context retrieval from TriviaQA, NQ and DROP, as in "Based" and "Just read twice" (arXiv 2402.18668, 2407.05483).

A row has `context`, a `question` that is the beginning of a sentence, and `answers`. The context may already end with
the question, and in TriviaQA it contains paragraph markers; both are removed.
"""

from __future__ import annotations

import re
from typing import Any

_MARKERS = re.compile(r"\[(?:PAR|DOC|TLE)\]")


def prompt(row: dict[str, Any]) -> str:
    """The cleaned context, and the question once."""
    context, question = _MARKERS.sub("", row["context"]).strip(), row["question"].strip()
    while question and context.lower().endswith(question.lower()):
        context = context[: -len(question)].rstrip()
    return f"{context.strip().strip('.')}. {question}"


def target(row: dict[str, Any]) -> str:
    """The answer that is shown as correct: the first one."""
    return " " + (row["answers"][0] if row["answers"] else "unanswerable")


def contains(row: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the text contains any of the answers, ignoring case, else 0."""
    text = results[0].lower()
    return {"contains": float(any(answer.lower() in text for answer in row["answers"]))}
