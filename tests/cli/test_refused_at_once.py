"""What can be refused without torch is refused at once: also where it cannot be imported."""

import json
import subprocess
import sys

SCRIPT = """\
import contextlib, io, json, sys
for name in ("torch", "lightning", "matplotlib", "datasets"):
    sys.modules[name] = None
from dla_train.__main__ import main
said = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        said.append((main(arguments), err.getvalue()))
print(json.dumps(said))
"""
TEXT = "data={kind: text, path: nowhere, vocab_size: 4096, window: 256}"
PREPARED = "data={kind: prepared, path: nowhere, vocab_size: 4096, window: 256}"
MIXED = "data={kind: prepared, sources: {one: {path: nowhere}}, vocab_size: 4096, window: 256}"
STREAMED = (
    "data={kind: streaming, sources: {one: {path: nowhere.txt}}, tokenizer: t.json, vocab_size: 4096, window: 256}"
)
FIT = ["fit", "--recipe", "tiny"]
CASES = {
    "resume": ([*FIT, "--resume", "nowhere"], "there is no checkpoint at nowhere."),
    "branch": ([*FIT, "--resume", "auto:nowhere"], "there is no checkpoint at nowhere."),
    "weights": ([*FIT, "initial_weights=nowhere"], "initial_weights: there is no folder nowhere."),
    "text": ([*FIT, TEXT], "data.path: no corpus at nowhere"),
    "place of the text": ([*FIT, TEXT], "A relative path counts from the current folder, "),
    "text to evaluate": (
        ["eval", "--checkpoint", ".", "--tasks", "needles", "--text", "nowhere"],
        "the text nowhere: No",
    ),
    "prepared": ([*FIT, PREPARED], "data.path: "),
    "mixed": ([*FIT, MIXED], "data.sources.one: "),
    "streamed": ([*FIT, STREAMED], "data.sources.one: no source at nowhere.txt"),
    "tokenizer": ([*FIT, STREAMED.replace("t.json", "other.json")], "data.tokenizer: cannot read the tokenizer other"),
    "foreign": ([*FIT, "--run-dir", "full"], "full is not empty and holds no run of dla-train."),
    "begun": (["fit", "--run-dir", "run"], "run already holds this run, finished at step 2"),
    "another": ([*FIT, "--run-dir", "run"], "the run folder run holds a run of another recipe"),
    "estimate": (["estimate", "--recipe", "tiny", "training.step=3"], "training.step is not a key"),
    "device": (
        ["estimate", "--recipe", "tiny", "--device", "abacus"],
        "--device is abacus, which is not in the",
    ),
    "devices": (["estimate", "--recipe", "tiny", "--devices", "7"], "cannot be shared out evenly among 7 devices"),
    "generate": (["generate", "--checkpoint", "nowhere", "--prompt", "a"], "there is no folder nowhere."),
    "export": (["export", "--checkpoint", "nowhere", "--to", "x"], "there is no folder nowhere."),
    "eval": (["eval", "--checkpoint", "nowhere", "--tasks", "needles"], "there is no folder nowhere."),
    "inspect": (
        ["inspect", "--checkpoint", "nowhere", "--text", "t.json", "--out", "x"],
        "there is no folder nowhere.",
    ),
}


def said_without_torch(commands, place):
    """Exit code and message of each command, in a process of their own."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(commands)]
    done = subprocess.run(command, text=True, capture_output=True, timeout=120, cwd=place, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_is_refused_without_torch(cli, micro_recipe, tmp_path):
    how = ["training.steps=2", "training.validate_every=null", "schedule.warmup=1"]
    assert cli("fit", "--recipe", micro_recipe, "--run-dir", "run", *how).code == 0
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
    (tmp_path / "t.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    found = said_without_torch([arguments for arguments, _ in CASES.values()], tmp_path)
    for (case, (_, expected)), (code, err) in zip(CASES.items(), found, strict=True):
        assert code == 2, (case, err)
        assert err.startswith("dla-train: error: "), case
        assert expected in err, case
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


def test_of_several_processes_none_is_alone_with_it(tmp_path):
    """There the later check tells all of them; this one would leave the others waiting."""
    ((_, err),) = said_without_torch([[*FIT, TEXT, "strategy=ddp", "training.accelerator=cpu"]], tmp_path)
    assert "import of torch halted" in err or "import of lightning halted" in err
