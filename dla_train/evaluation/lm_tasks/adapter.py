"""Our models behind the interface of lm-evaluation-harness: likelihoods of texts, and texts up to a stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from dla_train.errors import UsageError
from dla_train.evaluation.continuation import Continuations, Sampling
from dla_train.evaluation.likelihood import likelihoods
from dla_train.models import LanguageModel

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from tokenizers import Tokenizer

_MAX_TOKENS = 256  # of a text whose task sets no limit: the harness's own default


class HarnessModel(TemplateLM):
    """A model and its tokenizer.

    A linear model reads contexts of any length, in pieces. Softmax attention may never have seen positions beyond its
    training window: of longer contexts such a model gets the end, as is usual in the harness.

    Args:
        model: in evaluation mode. tokenizer: the model's. end: the token that ends documents, which also marks the
            beginning of a text. window: tokens that the model may see at once; None for no limit.
    Raises:
        UsageError: by `generate_until`, if the texts that a task asks for would alone fill the window.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, *, end: int, window: int | None = None) -> None:
        super().__init__()
        self._model, self._tokens, self._end, self._window = model, tokenizer, end, window
        self._device = next(model.parameters()).device

    @property
    def eot_token_id(self) -> int:
        return self._end

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._tokens.encode(string, add_special_tokens=bool(add_special_tokens)).ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._within_window(context, continuation) for _, context, continuation in requests]
        with _bar(len(pairs), "likelihoods") as bar:
            results = likelihoods(self._model, pairs, done=bar.update)
        found = [(result.log_probability, result.is_greedy) for result in results]
        for (texts, _, _), result in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, result)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        found = []
        for request in _bar(requests, "texts read"):
            (text,) = request.args
            tokens = self.tok_encode(text)
            windows = get_rolling_token_windows(tokens, self._end, self._window or len(tokens) or 1, 1)
            pairs = [make_disjoint_window(window) for window in windows]
            found.append(sum(result.log_probability for result in likelihoods(self._model, pairs)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        asked: list[tuple[str, dict[str, Any]]] = [tuple(request.args) for request in requests]  # pyright: ignore
        found = [""] * len(requests)
        alike: dict[tuple[int, float, float], list[int]] = {}
        for number, (_, how) in enumerate(asked):
            alike.setdefault(_drawing(how), []).append(number)
        for (max_tokens, temperature, top_p), members in alike.items():
            sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, end=self._end)
            prompts = [self._prompt(asked[number][0], max_tokens) for number in members]
            stops = [_stops(asked[number][1]) for number in members]
            for number, text in zip(members, self._texts(prompts, stops, sampling), strict=True):
                found[number] = text
                self.cache_hook.add_partial("generate_until", asked[number], text)
        return found

    def _texts(self, prompts: list[list[int]], stops: list[list[str]], sampling: Sampling) -> list[str]:
        drawn: list[list[int]] = [[] for _ in prompts]
        texts = [""] * len(prompts)
        continuations = Continuations(self._model, prompts, sampling)
        begun: set[int] = set()
        with _bar(len(prompts), "texts begun") as bar:
            for number, token in continuations:
                bar.update(number not in begun)
                begun.add(number)
                if token == self._end:
                    continue
                drawn[number].append(token)
                # Decodes all tokens again, because a character may be spread over several.
                texts[number] = self._tokens.decode(drawn[number])
                places = [place for stop in stops[number] if (place := texts[number].find(stop)) >= 0]
                if places:
                    texts[number] = texts[number][: min(places)]
                    continuations.finish(number)
        return texts

    def _prompt(self, text: str, max_tokens: int) -> list[int]:
        tokens = self.tok_encode(text) or [self._end]
        if self._window is None:
            return tokens
        if max_tokens >= self._window:
            raise UsageError(
                f"the task asks for texts of up to {max_tokens} tokens, but the softmax attention of this model was "
                f"trained on windows of {self._window}; nothing would be left for the prompt. Leave the task out, or "
                "evaluate a model of a longer window."
            )
        return tokens[-(self._window - max_tokens) :]

    def _within_window(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The context, cut at its beginning so that the model's window holds all. Of a continuation that is longer than
        the window by itself, the beginning becomes context or is cut."""
        if self._window is None or len(context) + len(continuation) <= self._window + 1:
            return context, continuation
        kept = [*context, *continuation][-(self._window + 1) :]
        asked = min(len(continuation), self._window)
        return kept[: len(kept) - asked], kept[len(kept) - asked :]


def _bar(of: Any, name: str) -> tqdm[Any]:
    """A progress bar over a number of items, or over the items themselves; shown on a terminal only."""
    return tqdm(total=of, desc=name, disable=None) if isinstance(of, int) else tqdm(of, desc=name, disable=None)


def _drawing(how: dict[str, Any]) -> tuple[int, float, float]:
    """Maximum number of tokens, temperature and top_p; as in the harness, decoding is greedy unless `do_sample` is
    set."""
    max_tokens = int(how.get("max_gen_toks", how.get("max_new_tokens", _MAX_TOKENS)))
    if not how.get("do_sample", False):
        return max_tokens, 0.0, 1.0
    return max_tokens, float(how.get("temperature", 1.0)), float(how.get("top_p", 1.0))


def _stops(how: dict[str, Any]) -> list[str]:
    until = how.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]
