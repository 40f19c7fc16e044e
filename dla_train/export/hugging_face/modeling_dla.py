"""A language model of dla-train behind the interface of transformers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from dla_train.export.hugging_face.configuration_dla import DlaConfig
from dla_train.models.cache import ModelCache
from dla_train.models.config import model_config_from_dict
from dla_train.models.language_model import LanguageModel

FIXED_VOCABULARY = "the vocabulary of this model is fixed: train it with the tokenizer that it is to have"
REFUSED = ("inputs_embeds", "position_ids", "cu_seqlens", "cu_seq_lens_q")
"""Arguments of `forward` that would change the result; the last two are borders of documents packed into a row."""
PAST = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""How the installed transformers calls the past: since 5.24 `cache`."""


class Past:
    """The past of a model in a form that `generate` can pass on; with linear mixers its size is constant."""

    is_compileable = False

    def __init__(self, cache: ModelCache) -> None:
        self.cache = cache

    def get_seq_length(self, layer: int = 0) -> int:
        """How many tokens the model has seen."""
        return self.cache.tokens

    def reorder_cache(self, rows: Tensor) -> None:
        """Keep the sequences `rows` `[B]`, for beam search."""
        self.cache = self.cache.rows(rows)


class DlaForCausalLM(PreTrainedModel, GenerationMixin):
    """A `LanguageModel`, `self.model`, with a cache of its own in `past_key_values`.

    Args:
        config: of an exported model.
    """

    config_class = DlaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _is_stateful = True  # a state cannot be rolled back, which assisted decoding would need
    _tied_weights_keys = {"model.head.weight": "model.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: DlaConfig) -> None:
        super().__init__(config)
        # Not by a method of `config`: transformers may have loaded its class from another copy of these files, whose
        # classes the blocks would not recognize.
        self.model = LanguageModel(model_config_from_dict(config.language_model or {}))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Past | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        cache: Past | None = None,
        **others: Any,
    ) -> Any:
        """Logits after every token.

        Args:
            input_ids: `[B, T]` int64.
            attention_mask: None, or `[B, T]` with zeros only at the ends of rows, and only without a cache, because a
                token cannot be hidden from a state.
            past_key_values: the past that `input_ids` continues.
            labels: `[B, T]`, shifted here; labels of -100 do not count.
            num_items_in_batch: the number of labels that the sum of losses is divided by, if a batch comes in several
                parts (transformers' Trainer with gradient accumulation); None divides by the number of labels given
                here.
            use_cache: whether to return the past; None returns it unless in training mode or given labels.
            logits_to_keep: logits of this many last tokens only; 0 for all.
            return_dict: False returns a tuple.
            cache: another name of `past_key_values`, as transformers calls it since 5.24.
            others: arguments that callers pass to every model; ignored, except for those that would change the result,
                which are refused.
        Returns:
            `loss` (with labels), `logits` `[B, T, vocab]` and the past, by the name that transformers has for it.
        Raises:
            ValueError: padding that would enter a state, an input that this model does not know, or the past given by
                both names.
        """
        if unknown := [name for name in REFUSED if others.get(name) is not None]:
            raise ValueError(f"{unknown[0]} is given; this model reads input_ids alone, each row in order as one text")
        use_cache = (not self.training and labels is None) if use_cache is None else use_cache
        given = _the_one(past_key_values, cache)
        _check_mask(attention_mask, has_cache=use_cache or given is not None)
        hidden, grown = self.model.hidden_states(
            input_ids, cache=None if given is None else given.cache, return_cache=use_cache
        )
        logits = self.model.head(hidden[:, -logits_to_keep:])
        loss = None if labels is None else _loss(logits, labels, num_items_in_batch)
        past = None if grown is None else Past(grown)
        if return_dict is False:
            return tuple(part for part in (loss, logits, past) if part is not None)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{PAST: past})  # type: ignore[arg-type]

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: Past | None = None, cache: Past | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The inputs of `forward`, with only the tokens that the past does not hold yet. The parameter must be named
        `kwargs`: by that name transformers knows that arguments of `forward` may be passed.

        Raises:
            ValueError: the past holds all of `input_ids`, or is given by both names.
        """
        past = _the_one(past_key_values, cache)
        seen = 0 if past is None else past.get_seq_length()
        if seen >= input_ids.shape[1]:
            raise ValueError(
                f"{PAST} holds {seen} tokens and input_ids {input_ids.shape[1]}; give the whole text, which "
                "must be longer than its past"
            )
        passed_on = ("attention_mask", "use_cache", "logits_to_keep", "inputs_embeds")
        return {
            "input_ids": input_ids[:, seen:],
            PAST: past,
            **{name: kwargs[name] for name in passed_on if name in kwargs},
        }

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.model.head

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Refuse another embedding.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(FIXED_VOCABULARY)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *others: Any, **more: Any) -> Any:
        """The embedding, if it is to keep its size. That of transformers would change it in place, and then fail.

        Raises:
            NotImplementedError: the size is another one.
        """
        if new_num_tokens not in (None, self.model.config.vocab_size):
            raise NotImplementedError(FIXED_VOCABULARY)
        return self.get_input_embeddings()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """False: `generate` should not make a cache, because `forward` returns one."""
        return False

    def _init_weights(self, module: nn.Module) -> None:
        """Fill weights that are missing in the file with nan, as a sound model misses none."""
        for parameter in module.parameters(recurse=False):
            if not getattr(parameter, "_is_hf_initialized", False):
                nn.init.constant_(parameter, torch.nan)


def _the_one(past_key_values: Past | None, cache: Past | None) -> Past | None:
    if past_key_values is not None and cache is not None:
        raise ValueError("past_key_values and cache are both given; they are two names of one thing: give one")
    return cache if past_key_values is None else past_key_values


def _check_mask(mask: Tensor | None, *, has_cache: bool) -> None:
    if mask is None or bool(mask.all()):
        return
    if has_cache:
        raise ValueError(
            "attention_mask hides tokens, but padding cannot be hidden from a state. Continue texts of equal length "
            "together, or one after the other; for logits alone, pad on the right and pass use_cache=False"
        )
    if bool((mask.long().diff(dim=-1) > 0).any()):
        raise ValueError("attention_mask hides tokens before others, which a state would have seen; pad on the right")


def _loss(logits: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
    """Mean negative log-likelihood of each next token, in nats; their sum divided by `count` if that is given."""
    if logits.shape[1] != labels.shape[1]:
        raise ValueError("labels are given together with logits_to_keep; a loss needs the logits of all tokens")
    given, wanted = logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten()
    if count is None:
        return F.cross_entropy(given, wanted, ignore_index=-100)
    return F.cross_entropy(given, wanted, ignore_index=-100, reduction="sum") / count
