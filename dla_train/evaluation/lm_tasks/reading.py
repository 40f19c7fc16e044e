"""In-context retrieval from TriviaQA, NQ and DROP, as in "Based" and "Just read twice" (arXiv 2402.18668, 2407.05483).

A row has `context`, a `question` that is the beginning of a sentence, and `answers`. The context may already end with
the question, and TriviaQA's holds markers of paragraphs; both go.
"""

from __future__ import annotations

import re
from typing import Any

_MARKERS = re.compile(r"\[(?:PAR|DOC|TLE)\]")


def prompt(row: dict[str, Any]) -> str:
    """The context once, as sentences, and the question."""
    context, question = _MARKERS.sub("", row["context"]).strip(), row["question"].strip()
    while question and context.lower().endswith(question.lower()):
        context = context[: -len(question)].rstrip()
    return f"{context.strip().strip('.')}. {question}"


def target(row: dict[str, Any]) -> str:
    """What is shown as the right answer: the first."""
    return " " + (row["answers"][0] if row["answers"] else "unanswerable")


def contains(row: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the text holds any of the answers, whatever their case, else 0."""
    text = results[0].lower()
    return {"contains": float(any(answer.lower() in text for answer in row["answers"]))}
