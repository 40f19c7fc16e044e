"""`logging.inspect_every`: pages while training, which change nothing in it."""

import csv
import json
import re


def losses(path):
    with path.open() as file:
        return [row["loss"] for row in csv.DictReader(file)]


def test_pages_are_written_and_training_stays_the_same(cli, micro_recipe, tmp_path):
    fit = ["fit", "--recipe", micro_recipe, "training.steps=6"]
    assert cli(*fit, "--run-dir", "plain").code == 0
    done = cli(*fit, "--run-dir", "shown", "logging.inspect_every=3")
    assert done.code == 0, done.err
    assert losses(tmp_path / "shown/metrics.csv") == losses(tmp_path / "plain/metrics.csv")
    assert not (tmp_path / "plain/inspections").exists()
    pages = sorted((tmp_path / "shown/inspections").iterdir())
    assert [page.name for page in pages] == ["step-00000003.html", "step-00000006.html"]
    data = [json.loads(re.search(r"const data = (.*);\n", page.read_text())[1]) for page in pages]
    assert [one["title"] for one in data] == ["shown, step 3", "shown, step 6"]
    assert "alpha" in "".join(data[0]["words"])
    assert len(data[0]["words"]) == 24
    assert data[0]["layers"][0]["score"] != data[1]["layers"][0]["score"]


def test_what_cannot_be_inspected_is_refused_before_training(cli, micro_recipe, tmp_path):
    fit = ["fit", "--recipe", micro_recipe, "--run-dir", "run"]
    for settings, message in [
        (["logging.inspect_every=0"], "inspect_every is 0; it must be at least 1"),
        *(
            (["logging.inspect_every=3", setting], "has one state (memory single, or capacity 1) or softmax attention")
            for setting in (
                "model.mixer.memory=single",
                "model.mixer={kind: attention, heads: 2}",
                "model.mixer.memory={kind: dynamic, capacity: 1}",
                "model.mixer.memory={kind: fixed, capacity: 1}",
                "model.mixer.memory={kind: fenwick, capacity: 1}",
            )
        ),
    ]:
        done = cli(*fit, *settings)
        assert done.code == 2
        assert message in done.err
        assert not (tmp_path / "run").exists()
