"""The sample of a report reads its prompt as texts are read in training."""

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from dla_data.tokenizer import END_OF_DOCUMENT
from dla_train.models import LanguageModel, Mamba2Config, ModelConfig, SingleMemory, initialize
from dla_train.report.config import ReportConfig
from dla_train.report.sample import write_sample

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture
def tokenizer(tmp_path):
    """A token for each byte, the end of a document as the last one, as in GPT-2's, and a template of Llama's kind."""
    tokenizer = Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(BYTES)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in ("<s>", END_OF_DOCUMENT)]
    )
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize(("prompt", "expected"), [("ab", [BYTES.index("a"), BYTES.index("b")]), ("", [257])])
def test_what_the_model_reads(tokenizer, prompt, expected):
    mixer = Mamba2Config(heads=1, head_dim=4, state_dim=4, memory=SingleMemory())
    model = initialize(LanguageModel(ModelConfig(vocab_size=258, hidden=8, layers=1, mixer=mixer)), 0)
    read = []
    model.embedding.register_forward_pre_hook(lambda module, given: read.append(given[0].tolist()))
    with torch.no_grad():
        write_sample(model, tokenizer, ReportConfig(prompt=prompt, max_tokens=1), seed=0)
    assert read == [[expected]]
