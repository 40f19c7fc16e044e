"""Checkpoints in the layouts of their publishers, made here, and the models that they become."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from dla_data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from dla_train import load_model
from dla_train.conversion.convert import convert
from dla_train.errors import RunError, UsageError
from dla_train.models import (
    AttentionConfig,
    GatedDeltaNetConfig,
    HybridConfig,
    LanguageModel,
    ModelConfig,
    SingleMemory,
    initialize,
)

TOKENS = torch.arange(2 * 23).view(2, 23).mul(37) % 300
MAMBA2 = {
    "num_heads": 4, "head_dim": 16, "hidden_size": 32, "state_size": 24, "expand": 2, "n_groups": 1, "conv_kernel": 4,
    "num_hidden_layers": 3, "vocab_size": 300, "chunk_size": 16, "layer_norm_epsilon": 1e-5,
}  # fmt: skip


def moved(module: torch.nn.Module) -> Any:
    """With every parameter away from values such as 0 and 1, which hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


SAVES_TIED_WEIGHTS = pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="version 4 of transformers cannot save tied weights of Mamba-2"
)


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=SAVES_TIED_WEIGHTS)])
def test_mamba2_of_transformers_gives_the_same_logits(tmp_path: Path, tied: bool) -> None:
    torch.manual_seed(0)
    theirs = moved(transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**MAMBA2, tie_word_embeddings=tied)))
    theirs.save_pretrained(tmp_path / "theirs")
    made = convert(tmp_path / "theirs", tmp_path / "ours")
    mine = load_model(tmp_path / "ours")
    assert (made.has_tokenizer, mine.config.tie_embeddings, mine.config.mlp_ratio) == (False, tied, None)
    with torch.no_grad():
        torch.testing.assert_close(mine(TOKENS)[0], theirs(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_mamba2_of_its_authors_has_the_same_weights_under_other_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = moved(transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**MAMBA2, tie_word_embeddings=True)))
    weights = {name.replace("embeddings", "embedding"): value for name, value in theirs.state_dict().items()}
    folder = tmp_path / "theirs"
    folder.mkdir()
    torch.save(weights, folder / "pytorch_model.bin")
    config = {"d_model": 32, "n_layer": 3, "vocab_size": 300, "ssm_cfg": {"layer": "Mamba2"}, "rms_norm": True}
    (folder / "config.json").write_text(json.dumps(config | {"residual_in_fp32": True, "tie_embeddings": True}))
    convert(folder, tmp_path / "ours")
    with torch.no_grad():
        expected = theirs(TOKENS).logits
        torch.testing.assert_close(load_model(tmp_path / "ours")(TOKENS)[0], expected, rtol=1e-4, atol=1e-4)


def delta_net(hybrid: bool, tied: bool) -> LanguageModel:
    config = ModelConfig(
        vocab_size=300,
        hidden=32,
        layers=3,
        mixer=GatedDeltaNetConfig(heads=2, key_dim=8, value_dim=16, memory=SingleMemory()),
        hybrid=HybridConfig(layers=(1,), mixer=AttentionConfig(heads=4, kv_heads=2, window=7, rope_base=1e4))
        if hybrid
        else None,
        tie_embeddings=tied,
        mlp_ratio=6.0,
        norm_eps=1e-6,
    )
    return moved(initialize(LanguageModel(config), 0))


def as_fla_saves_it(model: LanguageModel, folder: Path, **changes: Any) -> None:
    """The folder that flash-linear-attention 0.6 writes of the same model: names as in its modules."""
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        layer, _, rest = name.removeprefix("blocks.").partition(".")
        place = f"model.layers.{layer}."
        match rest if name.startswith("blocks.") else name:
            case "mixer.in_proj.weight":
                parts = value.split((16, 16, 32, 32, 2, 2))
                weights |= {f"{place}attn.{part}_proj.weight": w for part, w in zip("qkvgba", parts, strict=True)}
            case "mixer.conv.weight":
                parts = value[:, None].split((16, 16, 32))
                weights |= {f"{place}attn.{part}_conv1d.weight": w for part, w in zip("qkv", parts, strict=True)}
            case "mixer.qkv_proj.weight":
                parts = value.split((32, 16, 16))
                weights |= {f"{place}attn.{part}_proj.weight": w for part, w in zip("qkv", parts, strict=True)}
            case "mlp.gate_up_proj.weight":
                weights |= {
                    f"{place}mlp.{part}_proj.weight": w for part, w in zip(("gate", "up"), value.chunk(2), strict=True)
                }
            case "embedding.weight":
                weights["model.embeddings.weight"] = value
            case "head.weight":
                weights["lm_head.weight"] = value
            case "norm.weight":
                weights["model.norm.weight"] = value
            case _:
                theirs = {"mixer_norm": "attn_norm", "mixer.norm": "attn.o_norm", "mixer.out_proj": "attn.o_proj"}
                stem, _, leaf = rest.rpartition(".")
                weights[f"{place}{theirs.get(stem, stem.replace('mixer', 'attn'))}.{leaf}"] = value
    config = {
        "model_type": "gated_deltanet", "hidden_size": 32, "num_heads": 2, "head_dim": 8, "expand_v": 2.0,
        "use_gate": True, "use_short_conv": True, "allow_neg_eigval": False, "hidden_act": "swish", "norm_eps": 1e-6,
        "num_hidden_layers": 3, "tie_word_embeddings": model.config.tie_embeddings, "max_position_embeddings": 512,
        "attn": None, "vocab_size": 300,
    }  # fmt: skip
    if model.config.hybrid:
        config["attn"] = {"layers": [1], "num_heads": 4, "num_kv_heads": 2, "window_size": 7, "rope_theta": 10000.0}
    folder.mkdir()
    save_file({name: value.clone() for name, value in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("hybrid", [False, True])
def test_gated_deltanet_of_fla_is_the_same_model(tmp_path: Path, hybrid: bool, tied: bool) -> None:
    model = delta_net(hybrid, tied)
    as_fla_saves_it(model, tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    mine = load_model(tmp_path / "ours")
    assert mine.config == model.config
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in mine.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gla"}, "it is a model of the kind gla. Known are mamba2"),
        ({"model_type": "dla"}, "is a model of dla-train already: take it as it is, --checkpoint"),
        ({"allow_neg_eigval": True}, "has allow_neg_eigval true, and models of dla-train know false alone"),
        ({"hidden_act": "powlu"}, 'has hidden_act "powlu", and models of dla-train know "swish" or "silu" alone'),
        ({"num_v_heads": 4}, "has num_v_heads 4"),
        ({"num_heads": None}, "does not say num_heads"),
        ({"attn": {"layers": [0, 1, 2], "num_heads": 4}}, "all of its layers are softmax attention"),
        (
            {"attn": {"layers": [2], "num_heads": 4}},
            "cannot be imported: it has weights that the model has no place for",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_another_model_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    as_fla_saves_it(delta_net(False, False), tmp_path / "theirs", **changes)
    with pytest.raises(UsageError, match=said):
        convert(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_folder_that_is_not_whole_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    with pytest.raises(UsageError, match="it has no config"):
        convert(tmp_path, tmp_path / "ours")
    as_fla_saves_it(delta_net(False, False), folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(RunError, match=r"is damaged.*Download it again"):
        convert(folder, tmp_path / "ours")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="has no weights: neither model"):
        convert(folder, tmp_path / "ours")
    (folder / "pytorch_model.bin").write_bytes(b"PK nothing")
    with pytest.raises(RunError, match=r"is damaged: pytorch_model.bin: .*Download it again"):
        convert(folder, tmp_path / "ours")
    torch.save({"weight": torch.ones(9)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    whole = (folder / "pytorch_model.bin").read_bytes()
    for length in range(len(whole)):  # torch fails in a dozen ways
        (folder / "pytorch_model.bin").write_bytes(whole[:length])
        with pytest.raises(RunError, match=r"is damaged: pytorch_model.bin: \w.* Download it again\."):
            convert(folder, tmp_path / "ours")
    torch.save({"model": {"weight": torch.ones(1)}}, folder / "pytorch_model.bin")
    with pytest.raises(
        RunError, match=r"is damaged: pytorch_model.bin: it holds no weights by name. Download it again"
    ):
        convert(folder, tmp_path / "ours")
    (folder / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config.json is damaged"):
        convert(folder, tmp_path / "ours")


def test_pickled_weights_in_parts_are_read_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    as_fla_saves_it(delta_net(False, False), folder)
    convert(folder, tmp_path / "whole")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"pytorch_model-00001-of-00002.bin": names[:4], "pytorch_model-00002-of-00002.bin": names[4:]}
    for part, inside in parts.items():
        torch.save({name: weights[name] for name in inside}, folder / part)
    places = {name: part for part, inside in parts.items() for name in inside}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    convert(folder, tmp_path / "ours")
    assert torch.equal(load_model(tmp_path / "ours")(TOKENS)[0], load_model(tmp_path / "whole")(TOKENS)[0])

    last = folder / list(parts)[-1]
    for spoil, said in (
        (
            lambda: torch.save({names[-1]: weights[names[-1]]}, last),
            f"{last.name} and pytorch_model.bin.index.json do ",
        ),
        (lambda: last.write_bytes(last.read_bytes()[:-40]), f"is damaged: {last.name}: "),
        (last.unlink, f"is incomplete: {last.name} is missing"),
    ):
        spoil()
        with pytest.raises(RunError, match=rf"{said}.*Download it again"):
            convert(folder, tmp_path / "not")
        assert not (tmp_path / "not").exists()


def word_tokenizer(*special: str) -> Tokenizer:
    words = {word: number for number, word in enumerate((*special, "alpha", "beta"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def test_a_token_of_another_name_ends_documents(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    as_fla_saves_it(delta_net(False, False), folder)
    word_tokenizer("<unk>", "<s>", "</s>").save(str(folder / "tokenizer.json"))
    with pytest.raises(UsageError, match=r"has no token <\|endoftext\|>, and tokenizer_config.json does not say which"):
        convert(folder, tmp_path / "ours")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    assert convert(folder, tmp_path / "ours").end == "</s>"
    tokenizer = load_tokenizer(tmp_path / "ours/tokenizer.json")
    assert tokenizer.token_to_id("<|endoftext|>") == 2
    assert tokenizer.encode("beta alpha").ids == [4, 3], "as it was, and without what surrounds texts"
    assert "vocab_size: 5\n" in (tmp_path / "ours/recipe.yaml").read_text()
    as_transformers = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert as_transformers.eos_token_id == 2


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    as_fla_saves_it(delta_net(False, False), folder)
    tokenizer = train_tokenizer(["abc def " * 200], 260)
    tokenizer.add_tokens([f"word{number}" for number in range(41)])
    save_tokenizer(tokenizer, folder / "tokenizer.json")
    with pytest.raises(UsageError, match="makes ids up to 300, but the model has only 300"):
        convert(folder, tmp_path / "ours")


def test_an_mlp_of_a_width_that_ours_cannot_have_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    as_fla_saves_it(delta_net(False, False), folder)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if ".mlp." in name:
            weights[name] = (weight[:, :100] if "down" in name else weight[:100]).contiguous()
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UsageError, match="its MLPs are 100 wide, and those of dla-train a multiple of 64"):
        convert(folder, tmp_path / "ours")
