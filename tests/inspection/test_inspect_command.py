"""`dla-train inspect` as a user types it, and its page in a real browser."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TEXT = 'alpha béta </script><b>"gamma"\n delta 😀 state slot\n' * 4


@pytest.fixture
def run_folder(run_folder, tmp_path):
    (tmp_path / "story.txt").write_text(TEXT)


def data_of(page):
    return json.loads(re.search(r"const data = (.*);\n", page)[1])


@pytest.mark.usefixtures("run_folder")
def test_the_page_holds_the_text_and_what_every_head_did(cli, tmp_path):
    done = cli("inspect", "--checkpoint", "run", "--text", "story.txt", "--layer", 1, "--out", "a/seen")
    assert done.code == 0, done.err
    assert done.out == "Open a/seen/index.html\n"
    page = (tmp_path / "a/seen/index.html").read_text()
    assert page.count("</script>") == 1, "the text cannot end the script"
    assert not re.search(r"(src|href)=\"(?!data:)|@import|url\(", page), "nothing is fetched"
    data = data_of(page)
    assert "".join(data["words"]) == TEXT
    assert (data["title"], data["layer"], data["head"], data["note"]) == ("run, step 4", 1, 0, "")
    for layer in data["layers"]:
        for head in range(2):
            opens = [t for t, score in enumerate(layer["score"][head]) if t == 0 or score >= 0.9]
            assert layer["opens"][head] == opens
            assert layer["rates"][head] == pytest.approx((len(opens) - 1) / (len(data["words"]) - 1), abs=1e-4)
            assert 0 < layer["slots"][head] <= layer["capacity"] == 4
    for name in ("life.png", "boundary-rates.png", "slot-weights.png"):
        with Image.open(tmp_path / "a/seen" / name) as picture:
            assert len(picture.convert("RGB").getcolors(1_000_000)) > 30

    again = ["inspect", "--checkpoint", "run", "--text", "story.txt", "--max-tokens", 9, "--out"]
    done = cli(*again, "a/seen")
    assert done.code == 2
    assert "--out a/seen holds earlier results (index.html, life.png, boundary-rates.png, slot-weights" in done.err
    assert (tmp_path / "a/seen/index.html").read_text() == page, "the earlier page is as it was"
    done = cli(*again, "a")
    assert done.code == 0, done.err
    short = data_of((tmp_path / "a/index.html").read_text())
    assert len(short["words"]) == 9
    assert short["note"] == f"The first 9 of {len(data['words'])} tokens (--max-tokens)."


@pytest.mark.usefixtures("run_folder")
def test_a_text_is_read_as_in_training(cli, tmp_path):
    """Without the tokens that a tokenizer's template puts around it, which the model has never seen."""
    inspect = ["inspect", "--checkpoint", "run", "--text", "story.txt", "--out"]
    assert cli(*inspect, "before").code == 0
    path = tmp_path / "run/tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = TemplateProcessing(single="a $A b", special_tokens=[("a", 65), ("b", 66)])
    tokenizer.save(str(path))
    assert cli(*inspect, "after").code == 0
    before, after = (data_of((tmp_path / name / "index.html").read_text()) for name in ("before", "after"))
    assert after == before


def look(page, picture, profile):
    """Screenshot of `page` at 900 x 1600; returns what its console said."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    done = subprocess.run(
        [
            str(CHROMIUM),
            *options,
            f"--user-data-dir={profile}",
            "--window-size=900,1600",
            f"--screenshot={picture}",
            page.resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert picture.is_file(), done.stderr[-2000:]
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def colorful(picture):
    """How many pixels are not gray: all of the text's and the pictures' colors come from the script."""
    with Image.open(picture) as image:
        colors = np.asarray(image.convert("RGB")).astype(int)
    return int((np.ptp(colors, axis=2) > 40).sum())


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.usefixtures("run_folder")
def test_the_page_draws_in_a_browser(cli, tmp_path):
    assert cli("inspect", "--checkpoint", "run", "--text", "story.txt", "--out", "seen").code == 0
    page = tmp_path / "seen/index.html"
    assert look(page, tmp_path / "drawn.png", tmp_path / "profile") == []
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace("show(layer, head);\n</script>", "none();\n</script>"))
    said = look(broken, tmp_path / "blank.png", tmp_path / "profile")
    assert any("none is not defined" in line for line in said), "this test would see an error"
    assert colorful(tmp_path / "drawn.png") > 20_000 > 1_000 > colorful(tmp_path / "blank.png")


@pytest.mark.usefixtures("run_folder")
def test_what_is_missing_or_cannot_be_shown_is_named(cli, tmp_path, micro_recipe):
    (tmp_path / "latin.txt").write_bytes(b"alpha\nb\xe9ta")
    (tmp_path / "empty.txt").write_text("")
    run, text, out = ["--checkpoint", "run"], ["--text", "story.txt"], ["--out", "out"]
    for arguments, message in [
        ([*text, *out], "dla-train inspect needs --checkpoint RUN"),
        ([*run, *out], "dla-train inspect needs --text FILE"),
        ([*run, *text], "dla-train inspect needs --out DIR"),
        (["--checkpoint", "runs", *text, *out], "there is no folder runs"),
        ([*run, *out, "--text", "none.txt"], "cannot read the text none.txt: No such file"),
        ([*run, *out, "--text", "latin.txt"], "latin.txt is not UTF-8: byte 0xe9 at position 7 (line 2). Convert it"),
        ([*run, *out, "--text", "empty.txt"], "the text has fewer than two tokens"),
        ([*run, *text, *out, "--layer", 2], "--layer is 2; it must be from 0 to 1"),
        ([*run, *text, *out, "--head", -1], "--head is -1; it must be from 0 to 1"),
        ([*run, *text, *out, "--max-tokens", 1], "--max-tokens is 1; it must be at least 2"),
        ([*run, *text, *out, "model.hidden=4"], "takes no key=value (given model.hidden=4)"),
        ([*run, *text, "--out", "story.txt/x"], "cannot write story.txt/x: Not a directory"),
    ]:
        done = cli("inspect", *arguments)
        assert done.code == 2, done.err
        assert message in done.err
        assert not (tmp_path / "out").exists()
    (tmp_path / "run/tokenizer.json").unlink()
    assert "run has no tokenizer.json" in cli("inspect", *run, *text, *out).err


@pytest.mark.parametrize(("memory", "code"), [("single", 2), ("fixed", 0)])
def test_memories_that_do_not_look_at_the_content(cli, tmp_path, micro_recipe, memory, code):
    (tmp_path / "story.txt").write_text(TEXT * 30)
    settings = ["training.steps=4", "training.validate_every=null", f"model.mixer.memory={memory}"]
    assert cli("fit", "--recipe", micro_recipe, "--run-dir", memory, *settings).code == 0
    done = cli("inspect", "--checkpoint", memory, "--text", "story.txt", "--out", "seen")
    assert done.code == code, done.err
    if code:
        assert "this model divides no text: it has one state" in done.err
    else:
        data = data_of((tmp_path / "seen/index.html").read_text())
        assert "does not look at the content" in data["note"]
        assert data["layers"][0]["opens"][0] == [0, 512]
