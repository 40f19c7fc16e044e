"""An exported folder gives the checkpoint's logits to the last bit, also where dla_train cannot be imported."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from dla_data.tokenizer import load_tokenizer, save_tokenizer, tokenizer_fingerprint, train_tokenizer
from dla_train import load_model
from dla_train.errors import RunError
from dla_train.export.hugging_face.configuration_dla import DlaConfig
from dla_train.export.hugging_face.modeling_dla import DlaForCausalLM
from dla_train.export.model_code import model_code, own_imports
from dla_train.export.write import write_export
from dla_train.models import LanguageModel, ModelConfig, generate, initialize, model_config_from_dict

MAMBA = {"kind": "mamba2", "heads": 2, "head_dim": 8, "state_dim": 8, "groups": 1, "conv_width": 4}
DELTA = {"kind": "gated_deltanet", "heads": 2, "key_dim": 8, "value_dim": 8, "conv_width": 4}
DYNAMIC = {"kind": "dynamic", "capacity": 4, "threshold": 0.9}
MIXERS = {
    "single": MAMBA | {"memory": {"kind": "single"}},
    "fixed": MAMBA | {"memory": {"kind": "fixed", "block": 5, "capacity": 3}},
    "fenwick": DELTA | {"memory": {"kind": "fenwick", "capacity": 6}},
    "dynamic": MAMBA | {"memory": DYNAMIC},
    "learned": DELTA | {"memory": DYNAMIC | {"learn_threshold": True}},
    "attention": {"kind": "attention", "heads": 2},
    "hybrid": DELTA | {"memory": DYNAMIC},
}
SLIDING = {"kind": "attention", "heads": 2, "kv_heads": 1, "window": 5}
TOKENS = torch.arange(2 * 23).view(2, 23).mul(37) % 300

ELSEWHERE = """
import sys, torch
class NoTraining:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dla_train", "dla_data", "lightning"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTraining())
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
root, *names = sys.argv[1:]
tokens = torch.arange(2 * 23).view(2, 23).mul(37) % 300
found = {}
for name in names:
    model, report = AutoModelForCausalLM.from_pretrained(
        f"{root}/{name}", trust_remote_code=True, output_loading_info=True
    )
    assert not any(report.values()), report
    with torch.no_grad():
        found[f"{name}.logits"] = model(tokens).logits
        wide = torch.nn.functional.pad(tokens, (0, 4))
        mask = (torch.arange(27) < 23).long().expand(2, -1)
        padded = model(wide, attention_mask=mask, labels=wide.masked_fill(mask == 0, -100), use_cache=False)
        found[f"{name}.padded"] = padded.logits[:, :23].contiguous()
        found[f"{name}.loss"] = padded.loss
        parts = [model(row, labels=row, num_items_in_batch=torch.tensor(44)).loss for row in tokens.split(1)]
        torch.testing.assert_close(sum(parts), model(tokens, labels=tokens).loss)
    steps, all_seen = [], torch.ones_like(tokens)
    note = lambda module, given, kwargs, out: steps.append(kwargs["input_ids"].shape[1])
    model.register_forward_hook(note, with_kwargs=True)
    searched = dict(max_new_tokens=5, num_beams=3, do_sample=False, eos_token_id=None, attention_mask=all_seen)
    greedy = dict(searched, num_beams=1, max_new_tokens=9)
    found[f"{name}.greedy"] = model.generate(tokens, **greedy)
    assert steps == [23] + [1] * 8, steps
    found[f"{name}.beams"] = model.generate(tokens, **searched)
    found[f"{name}.recomputed"] = model.generate(tokens, **searched, use_cache=False)
    try:
        model(tokens, attention_mask=mask[:, 4:], use_cache=True)
    except ValueError as error:
        assert "padding cannot be hidden from a state" in str(error)
    else:
        raise AssertionError("padding entered a state")
reader = AutoTokenizer.from_pretrained(f"{root}/{names[0]}", trust_remote_code=True)
found["ids"] = torch.tensor(reader("alpha b\\u00e9ta\\n\\n  gamma")["input_ids"])
assert reader.decode(found["ids"]) == "alpha b\\u00e9ta\\n\\n  gamma"
assert reader.eos_token == "<|endoftext|>"
save_file({name: part.contiguous() for name, part in found.items()}, f"{root}/found.safetensors")
"""


def small_config(name: str) -> ModelConfig:
    tied = name in ("dynamic", "attention")
    fields = {"vocab_size": 300, "hidden": 16, "layers": 2, "tie_embeddings": tied, "mixer": MIXERS[name]}
    if name == "hybrid":
        fields["hybrid"] = {"layers": [0], "mixer": SLIDING}
    return model_config_from_dict(fields)


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    made = {name: initialize(LanguageModel(small_config(name)), seed=7).eval() for name in MIXERS}
    for model in made.values():
        for name, buffer in model.named_buffers():  # as calibration leaves them: another one per head
            buffer += torch.arange(buffer.numel()) * 0.1
            assert name.endswith("threshold")
    return made


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("exported")
    tokenizer = root / "tokenizer.json"
    save_tokenizer(train_tokenizer(["alpha béta gamma\n" * 40, "abcdefghijklmnopqrstuvwxyz " * 9], 290), tokenizer)
    for name, model in models.items():
        write_export(root / name, model, tokenizer=tokenizer, description="small", step=3, recipe="a: 1\n")
    return root


@pytest.mark.parametrize("name", MIXERS)
def test_load_model_gives_the_same_logits(models, exported, name):
    model = load_model(exported / name)
    assert torch.equal(model(TOKENS)[0], models[name](TOKENS)[0])
    assert (model.head.weight is model.embedding.weight) == models[name].config.tie_embeddings
    assert ("model.head.weight" in load_file(exported / name / "model.safetensors")) != model.config.tie_embeddings
    assert not model.training
    assert len({path.stat().st_mode for path in (exported / name).iterdir()}) == 1, "all can be read by the same people"


def test_transformers_gives_the_same_logits_and_text_without_dla_train(models, exported, tmp_path):
    threads = str(torch.get_num_threads())  # sums of other threads differ in their last bits
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(exported), *MIXERS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = load_file(exported / "found.safetensors")
    for name, model in models.items():
        with torch.no_grad():
            logits = model(TOKENS)[0]
        assert torch.equal(found[f"{name}.logits"], logits), name
        torch.testing.assert_close(found[f"{name}.padded"], logits)
        expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
        torch.testing.assert_close(found[f"{name}.loss"], expected)
        assert torch.equal(found[f"{name}.greedy"][:, 23:], generate(model, TOKENS, 9, temperature=0)), name
        assert torch.equal(found[f"{name}.beams"], found[f"{name}.recomputed"]), name


def test_transformers_reads_texts_as_training_does(models, tmp_path):
    """Without the tokens that a tokenizer's template puts around a text: the model has never seen them."""
    tokenizer = train_tokenizer(["alpha beta gamma delta"] * 9, 260)
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A <s>", special_tokens=[("<s>", 260)])
    tokenizer.save(str(tmp_path / "own.json"))
    write_export(
        tmp_path / "made",
        models["single"],
        tokenizer=tmp_path / "own.json",
        description="",
        step=3,
        recipe="model: {}",
    )
    kept = load_tokenizer(tmp_path / "made/tokenizer.json")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "made")
    texts = ["alpha béta\n\n gamma", "", " a", "a<|endoftext|>b", "<|endoftext|>", "<s> <s>\u2581\r\n<|endoftext|> "]
    for text in texts:
        found = theirs(text)["input_ids"]
        assert found == theirs.encode(text) == kept.encode(text, add_special_tokens=False).ids
        assert theirs.decode(found) == text
        assert not {tokenizer.token_to_id("<s>"), theirs.eos_token_id} & set(found), "text is never taken for more"
    assert theirs(texts)["input_ids"] == [theirs(text)["input_ids"] for text in texts]
    assert tokenizer_fingerprint(kept) == tokenizer_fingerprint(tokenizer), "it is the same one for dla-train"


def test_the_code_that_travels_is_that_of_the_models_and_imports_nothing_else():
    files = model_code()
    assert {"modeling_dla.py", "configuration_dla.py", "dla_mamba2.py", "dla_memory.py"} <= set(files)
    for source in files.values():
        assert own_imports(source) == []
    assert "dla_initialization.py" not in files, "a trained model is not drawn"


def test_the_entry_names_every_file_that_travels():
    """transformers before version 5 copies no others."""
    files = model_code()
    named = re.findall(r"^\s*from\s+\.(\S+)\s+import", files["modeling_dla.py"], flags=re.MULTILINE)
    assert {f"{name}.py" for name in named} == files.keys() - {"modeling_dla.py"}


def test_tokenizers_give_what_the_model_reads_and_nothing_else(exported):
    """By default, transformers before version 5 gives token_type_ids, which `generate` then refuses."""
    written = json.loads((exported / "single" / "tokenizer_config.json").read_text())
    assert written["model_input_names"] == ["input_ids", "attention_mask"]


def test_the_past_goes_by_both_names_that_transformers_has_for_it(exported):
    model = DlaForCausalLM.from_pretrained(exported / "dynamic")
    with torch.no_grad():
        past = model(TOKENS[:, :20])[1]
        expected = model(TOKENS).logits[:, 20:]
        for name in ("past_key_values", "cache"):
            torch.testing.assert_close(model(TOKENS[:, 20:], **{name: past}).logits, expected)
            prepared = model.prepare_inputs_for_generation(TOKENS, **{name: past})
            assert torch.equal(prepared["input_ids"], TOKENS[:, 20:])
            assert past in prepared.values()
    for ask in (model, model.prepare_inputs_for_generation):
        with pytest.raises(ValueError, match="two names of one thing: give one"):
            ask(TOKENS, past_key_values=past, cache=past)


@pytest.mark.parametrize(
    "said", ["I/O error: No space left on device (os error 28)", "IoError(Os { code: 28, kind: S })"]
)
def test_a_full_disk_is_recognized_in_the_words_of_every_safetensors(models, tmp_path, monkeypatch, said):
    import dla_train.export.write as write

    def full(*arguments, **options):
        raise write.SafetensorError(f"Error while serializing: {said}")

    monkeypatch.setattr(write, "save_file", full)
    with pytest.raises(write.UsageError, match="No space left on device"):
        write_export(tmp_path / "m", models["single"], tokenizer=None, description="", step=1, recipe="")


def test_a_folder_is_complete_or_absent(models, tmp_path, monkeypatch):
    import dla_train.export.write as write

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "_write_json", full)
    with pytest.raises(write.UsageError, match="No space left on device"):
        write_export(tmp_path / "m", models["single"], tokenizer=None, description="", step=1, recipe="")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_on_the_disk_are_no_fault_of_the_program(models, tmp_path, monkeypatch):
    import resource
    import signal

    import dla_train.export.write as write

    monkeypatch.setattr(write, "model_code", dict)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(write.UsageError, match=r"cannot write .*m: File too large .*model.safetensors") as raised:
            write_export(tmp_path / "m", models["single"], tokenizer=None, description="", step=1, recipe="")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "Make room" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_folder_is_named(exported, models, tmp_path):
    write_export(tmp_path / "m", models["single"], tokenizer=None, description="", step=1, recipe="")
    weights, config = tmp_path / "m/model.safetensors", tmp_path / "m/config.json"
    sound, fields = weights.read_bytes(), json.loads(config.read_text())
    for spoil, message in [
        (lambda: weights.write_bytes(sound[:-9]), "is damaged"),
        (
            lambda: weights.write_bytes((exported / "dynamic/model.safetensors").read_bytes()),
            "do not fit its config.json: head.weight is absent",
        ),
        (lambda: weights.unlink(), "model.safetensors is missing"),
        (lambda: config.write_text("{"), "is damaged"),
        (lambda: config.write_text(json.dumps(fields | {"language_model": {}})), "is damaged: mixer is None"),
        (lambda: config.write_text(json.dumps(fields | {"model_type": "gpt2"})), "holds a model of another kind"),
    ]:
        spoil()
        with pytest.raises(Exception, match=message) as raised:
            load_model(tmp_path / "m")
        assert type(raised.value).__name__ in ("RunError", "UsageError")
    with pytest.raises(Exception, match="there is no folder"):
        load_model(tmp_path / "nothing")


@pytest.fixture
def sharded(exported, tmp_path) -> Callable[[str], Path]:
    """Saves an exported model again as transformers saves a large one: in parts, with an index."""

    def save(name: str) -> Path:
        config = DlaConfig.from_pretrained(exported / name)
        model = DlaForCausalLM(config)
        model.model.load_state_dict(load_model(exported / name).state_dict())
        model.save_pretrained(tmp_path / name, max_shard_size="15KB")
        assert len(list((tmp_path / name).glob("model-0000*-of-0000*.safetensors"))) > 1
        assert not (tmp_path / name / "model.safetensors").exists()
        return tmp_path / name

    return save


@pytest.mark.parametrize("name", ["dynamic", "learned"])  # with tied embeddings, and without
def test_what_transformers_saved_in_parts_is_the_same_model(models, sharded, name):
    assert torch.equal(load_model(sharded(name))(TOKENS)[0], models[name](TOKENS)[0])


def test_parts_that_do_not_belong_together_are_named(sharded):
    folder = sharded("learned")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name, place = next(iter(content["weight_map"].items()))
    other = next(shard for shard in content["weight_map"].values() if shard != place)
    less = {key: shard for key, shard in content["weight_map"].items() if key != name}
    for spoil, message in [
        (lambda: index.write_text("{"), "is damaged: model.safetensors.index.json is no index of shards"),
        (lambda: index.write_text('{"weight_map": {"a": "../../etc/passwd"}}'), "does not name files of this folder"),
        (
            lambda: index.write_text(json.dumps({"weight_map": content["weight_map"] | {name: other}})),
            f"model.safetensors.index.json do not agree on {name}",
        ),
        (lambda: index.write_text(json.dumps({"weight_map": less})), "model.safetensors.index.json do not agree on"),
        (
            lambda: index.write_text(json.dumps(content)) and (folder / other).unlink(),
            f"is incomplete: {other} is missing",
        ),
    ]:
        spoil()
        with pytest.raises(RunError, match=re.escape(message)):
            load_model(folder)


def test_half_precision_stays_although_thresholds_are_float32(models, tmp_path):
    model = LanguageModel(models["dynamic"].config).to(torch.bfloat16)
    model.load_state_dict(models["dynamic"].state_dict())
    write_export(tmp_path / "half", model, tokenizer=None, description="small", step=3, recipe="a: 1\n")
    kept = load_model(tmp_path / "half")
    for name, tensor in model.state_dict().items():
        found = kept.state_dict()[name]
        assert (found.dtype, name) == (tensor.dtype, name)
        assert torch.equal(found, tensor)
    assert {tensor.dtype for tensor in kept.state_dict().values()} == {torch.bfloat16, torch.float32}


def test_transformers_may_ask_for_what_would_change_the_model(exported):
    model = DlaForCausalLM.from_pretrained(exported / "learned").eval()
    for name in ("position_ids", "cu_seqlens", "cu_seq_lens_q"):
        with pytest.raises(ValueError, match=f"{name} is given; this model reads input_ids alone"):
            model(TOKENS[:1], **{name: torch.tensor([0, 5, 23])})
    before = model(TOKENS).logits
    assert model.resize_token_embeddings(300) is model.get_input_embeddings()
    with pytest.raises(NotImplementedError, match="vocabulary of this model is fixed"):
        model.resize_token_embeddings(320)
    assert torch.equal(model(TOKENS).logits, before)
