"""Needles in a haystack by length: six of RULER's tasks, answered in constant memory."""

from __future__ import annotations

import math
from statistics import fmean, pstdev

from tokenizers import Tokenizer

from dla_data.counted import counted
from dla_data.errors import DataError
from dla_data.synthetic.needles import NEEDLE_TASKS, NeedlePrompt, longest_needle_prompt, sentences
from dla_data.tokenizer import END_OF_DOCUMENT
from dla_train.errors import UsageError
from dla_train.evaluation.built_in.grid import draw_grid
from dla_train.evaluation.built_in.task import Asked, Result, Task, as_tokens
from dla_train.evaluation.built_in.text import tokenizer_of, tokens_to_read
from dla_train.evaluation.continuation import Continuations, Sampling

LENGTHS = (1024, 2048, 4096)
"""Lengths that are tested if none are given: what a small model reads on a CPU in a few minutes."""
EXAMPLES = 20
"""Examples of each task and length if no limit is given."""
ANSWER = 128
"""Tokens that the model may write, as in RULER."""
SUITE = {
    "single 1": "niah_single_1",
    "single 2": "niah_single_2",
    "single 3": "niah_single_3",
    "multi-key": "niah_multikey_1",
    "multi-query": "niah_multiquery",
    "multi-value": "niah_multivalue",
}
"""RULER's task names by ours: the six tasks of the paper's table."""


class Needles(Task):
    """Greedy answers to prompts that fill each length, scored by the share of the wanted values that they contain.

    Raises:
        UsageError: see `Task`; also if the tokenizer cannot write the answers, or a length has no room for them.
    """

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self.tokenizer = tokenizer_of(asked, "needles")
        self.lengths = asked.within_reach(LENGTHS, beyond=ANSWER)
        tokens = tokens_to_read(asked, self.tokenizer, max(self.lengths))
        try:
            self.haystack = sentences(self.tokenizer.decode(tokens.tolist()))
        except DataError as error:
            raise UsageError(str(error)) from error
        for name in SUITE:
            _require_writable(self._prompt(name, 0, min(self.lengths)), self.tokenizer)

    def run(self) -> Result:
        """See `Task`."""
        asked = self.asked
        examples = asked.limit or EXAMPLES
        scores: dict[tuple[str, str], float] = {}
        values = []
        total = len(self.lengths) * len(SUITE)
        to_read = sum(self.lengths) * len(SUITE) * examples
        asked.say(f"needles: {total} times {counted(examples, 'prompt')}, about {to_read:,} tokens in all")
        for length in self.lengths:
            for name in SUITE:
                prompts = [self._prompt(name, index, length) for index in range(examples)]
                found = [prompt.score(answer) for prompt, answer in zip(prompts, self._answers(prompts), strict=True)]
                scores[name, as_tokens(length)] = fmean(found)
                error = pstdev(found) / math.sqrt(examples - 1) if examples > 1 else None
                values.append(
                    {"task": name, "length": length, "score": fmean(found), "error": error, "examples": examples}
                )
                asked.say(f"needles, {len(values)} of {total}: {name} at {length:,} tokens, {fmean(found):.1%}")
        columns = [as_tokens(length) for length in self.lengths]
        rows = [[name, *(f"{100 * scores[name, column]:.1f}" for column in columns)] for name in SUITE]
        if len(SUITE) > 1:
            means = [100 * fmean(scores[name, column] for name in SUITE) for column in columns]
            rows.append(["**mean**", *(f"{mean:.1f}" for mean in means)])
        return Result(
            name="needles",
            note="Values found in percent, by length of the prompt in tokens; "
            f"{examples:,} example{'s' * (examples > 1)} each.",
            heads=["task", *columns],
            rows=rows,
            values={"cells": values},
            draw=lambda figure: draw_grid(
                figure,
                scores,
                list(SUITE),
                columns,
                title=f"needles, {asked.trained.title}",
                down="",
                across="tokens of the prompt",
            ),
        )

    def _prompt(self, name: str, index: int, length: int) -> NeedlePrompt:
        try:
            return longest_needle_prompt(
                NEEDLE_TASKS[SUITE[name]], self.asked.seed, index, length, self._count, self.haystack
            )
        except DataError as error:
            raise UsageError(f"needles, {name}, at --lengths {length:,}: {error}") from error

    def _count(self, text: str) -> int:
        return len(self._encode(text))

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _answers(self, prompts: list[NeedlePrompt]) -> list[str]:
        """The model's answer to each prompt; it ends with the document, when all values are found, or at a maximum
        length."""
        wanted = max(self._count(", ".join(prompt.answers)) for prompt in prompts)
        # A tokenizer that splits values into bytes needs more tokens than RULER's; but a softmax model has no positions
        # for more.
        most = ANSWER if self.asked.is_limited else max(ANSWER, 2 * wanted)
        sampling = Sampling(max_tokens=most, temperature=0, end=self.tokenizer.token_to_id(END_OF_DOCUMENT))
        continuations = Continuations(
            self.asked.trained.model, [self._encode(prompt.prompt) for prompt in prompts], sampling
        )
        drawn: list[list[int]] = [[] for _ in prompts]
        texts = [""] * len(prompts)
        for number, token in continuations:
            drawn[number].append(token)
            # Decodes all tokens again, because a character may be spread over several.
            texts[number] = self.tokenizer.decode(drawn[number])
            if prompts[number].score(texts[number]) == 1:
                continuations.finish(number)
        return texts


def _require_writable(prompt: NeedlePrompt, tokenizer: Tokenizer) -> None:
    for answer in prompt.answers:
        if answer not in tokenizer.decode(tokenizer.encode(f" {answer}", add_special_tokens=False).ids):
            raise UsageError(
                f"the run's tokenizer cannot write {answer!r}, as the needles ask: its words or characters are not all "
                "in its vocabulary. needles is for byte-level tokenizers, or others that can write digits."
            )
