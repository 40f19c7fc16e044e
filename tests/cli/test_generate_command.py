"""`dla-train generate` as a user types it, on a run of this process."""

import io
import json
import sys

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing


@pytest.mark.usefixtures("run_folder")
def test_the_text_on_standard_output_and_the_speed_on_standard_error(cli, tmp_path, monkeypatch):
    generate = ["generate", "--checkpoint", "run", "--max-tokens", 20]
    first = cli(*generate, "--prompt", "alpha béta")
    assert first.code == 0, first.err
    assert first.out.startswith("alpha béta")
    assert len(first.out) > len("alpha béta\n")
    assert "tokens of prompt in" in first.err
    assert "tokens/s; the past of a text takes 0." in first.err
    assert cli(*generate, "--prompt", "alpha béta").out == first.out
    assert cli(*generate, "--prompt", "alpha béta", "--seed", 1).out != first.out
    assert cli(*generate, "--prompt", "alpha béta", "--stream").out == first.out
    newest = tmp_path / "run/checkpoints/step-00000004"
    assert cli("generate", "--checkpoint", newest, "--max-tokens", 20, "--prompt", "alpha béta").out == first.out
    assert cli(*generate, "--prompt", "").code == 0, "a document from its beginning"

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("alpha béta".encode())))
    assert cli(*generate, "--prompt", "-").out == first.out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"alpha\nb\xe9ta")))
    done = cli(*generate, "--prompt", "-")
    assert done.code == 2
    assert "standard input is not UTF-8: byte 0xe9 at position 7 (line 2). Convert it" in done.err

    (tmp_path / "prompts.txt").write_bytes("alpha\r\n\nbeta\fgam\u2028ma\nalpha".encode())
    done = cli(*generate, "--prompts", "prompts.txt", "--temperature", 0)
    lines = [json.loads(line) for line in done.out.split("\n")[:-1]]
    assert [line["prompt"] for line in lines] == ["alpha", "beta\fgam\u2028ma", "alpha"]
    assert lines[0] == lines[2]
    alone = cli(*generate, "--prompt", "beta\fgam\u2028ma", "--temperature", 0)
    assert alone.out == lines[1]["prompt"] + lines[1]["text"] + "\n"


@pytest.mark.usefixtures("run_folder")
def test_a_prompt_is_read_as_texts_are_in_training(cli, tmp_path):
    """Without the tokens that a tokenizer's template puts around a text, which the model has never seen."""
    generate = ["generate", "--checkpoint", "run", "--max-tokens", 6, "--temperature", 0, "--prompt"]
    before = [cli(*generate, prompt) for prompt in ("alpha béta", "")]
    path = tmp_path / "run/tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = TemplateProcessing(single="a $A b", special_tokens=[("a", 65), ("b", 66)])
    tokenizer.save(str(path))
    after = [cli(*generate, prompt) for prompt in ("alpha béta", "")]
    for one, other in zip(before, after, strict=True):
        assert other.code == 0, other.err
        assert other.out == one.out
        assert other.err.partition(" of prompt in")[0] == one.err.partition(" of prompt in")[0]
    assert after[1].err.startswith("1 token of prompt in"), "the end of a document, where the prompt is empty"


def test_text_behind_the_positions_that_attention_knows_is_told(cli, micro_recipe):
    few = ["training.steps=1", "schedule.warmup=0", "training.validate_every=null", "report.prompt=null"]
    fit = ["fit", "--recipe", micro_recipe, *few, "--run-dir", "softmax", "model.mixer={kind: attention, heads: 2}"]
    assert cli(*fit).code == 0
    generate = ["generate", "--checkpoint", "softmax", "--prompt", "", "--max-tokens"]
    assert "softmax attention" not in cli(*generate, 24).err
    beyond = cli(*generate, 25)
    assert beyond.code == 0
    assert "its training window of 24 tokens only, and a prompt with its continuation may have 26: " in beyond.err


@pytest.mark.usefixtures("run_folder")
@pytest.mark.parametrize(
    ("inside", "named"),
    [
        ("", "run/checkpoints"),
        ("run", "."),
        ("run", "checkpoints"),
        ("run/checkpoints", "."),
        ("run/checkpoints", "step-00000004"),
        ("run/checkpoints/step-00000004", "."),
        ("run/checkpoints/step-00000004", "../step-00000004"),
    ],
)
def test_a_checkpoint_may_be_named_from_within_its_run(cli, tmp_path, monkeypatch, inside, named):
    arguments = ["--prompt", "alpha", "--max-tokens", 3]
    expected = cli("generate", "--checkpoint", "run", *arguments).out
    monkeypatch.chdir(tmp_path / inside)
    done = cli("generate", "--checkpoint", named, *arguments)
    assert done.code == 0, done.err
    assert done.out == expected


@pytest.mark.usefixtures("run_folder")
def test_what_is_missing_or_damaged_is_named(cli, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    prompt = ["--prompt", "alpha"]
    for arguments, message in [
        (["--checkpoint", "run"], "needs --prompt TEXT (- for standard input; or --prompts FILE)."),
        (["--checkpoint", "run", *prompt, "--prompts", "x"], "takes either --prompt TEXT"),
        (["my run"], "needs --checkpoint RUN, --prompt TEXT. Did you mean --checkpoint 'my run'?"),
        (prompt, "needs --checkpoint RUN"),
        (["--checkpoint", "runs", *prompt], "there is no folder runs"),
        (["--checkpoint", "run", "--prompts", "none.txt"], "cannot read the prompts none.txt: No such file"),
        (["--checkpoint", "run", "--prompts", "empty.txt"], "empty.txt has no prompts: every line is blank"),
        (["--checkpoint", "run", *prompt, "--max-tokens", 0], "--max-tokens is 0; it must be at least 1"),
        (["--checkpoint", "run", *prompt, "--temperature", -1], "--temperature is -1; it must be at least 0"),
        (["--checkpoint", "run", *prompt, "--top-p", 0], "--top-p is 0; it must be above 0"),
        (["--checkpoint", "run", *prompt, "--seed", -1], "--seed is -1; it must be at least 0 and below 2**63"),
        (["--checkpoint", "run", *prompt, "--seed", 10**20], "it must be at least 0 and below 2**63"),
        (["--checkpoint", "run", *prompt, "model.hidden=4"], "takes no key=value (given model.hidden=4)"),
        (["--checkpoint", "run", "--prompts", "empty.txt", "--stream"], "cannot be used with --prompts"),
        (["--checkpoint", "run", *prompt, "--tempurature", 1], "has no option --tempurature"),
    ]:
        done = cli("generate", *arguments)
        assert done.code == 2, done.err
        assert message in done.err
    (tmp_path / "run/tokenizer.json").rename(tmp_path / "kept.json")
    done = cli("generate", "--checkpoint", "run", *prompt)
    assert done.code == 2
    assert "run has no tokenizer.json" in done.err
    (tmp_path / "kept.json").rename(tmp_path / "run/tokenizer.json")
    newest = tmp_path / "run/checkpoints/step-00000004"
    state = bytearray((newest / "state.ckpt").read_bytes())
    state[len(state) // 2] ^= 1
    (newest / "state.ckpt").write_bytes(state)
    done = cli("generate", "--checkpoint", newest, *prompt)
    assert done.code == 1
    assert "is damaged" in done.err
