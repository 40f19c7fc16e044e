"""`dla-train compare`: what runs have reached, where their recipes differ, and the files."""

import json

import pytest

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.config.show import to_yaml
from dla_train.runs.folder import RunFolder
from dla_train.runs.metrics_file import MetricsFile

PER_STEP = 2048


@pytest.fixture
def make_run(tmp_path):
    """A run folder with a recipe and rows of `tiny`: losses fall from `loss` by a tenth a step."""

    def make(name, *settings, steps=4, loss=8.0, validations=(2, 4), columns=(), **more):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir(parents=True)
        folder.recipe.write_text(
            to_yaml(load(find("tiny"), ["training.steps=4", "schedule.warmup=1", *settings]).recipe)
        )
        file = MetricsFile(folder.metrics, columns, 0)
        for step in range(1, steps + 1):
            row = {"step": step, "tokens": step * PER_STEP, "loss": loss - step / 10} | more
            file.append({"split": "train", "tokens_per_second": 100.0 * step} | row)
            if step in validations:
                file.append({"split": "validation"} | row | {"loss": row["loss"] + 1})
        file.close()
        return name

    return make


def tables(out):
    """Both tables, as rows by the cell of their first column."""
    found, rows = [], []
    for line in [*out.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            heads, _, *lines = rows
            found.append({cells[0]: dict(zip(heads[1:], cells[1:], strict=True)) for cells in lines})
            rows = []
    return found


def test_finished_runs_with_other_settings(cli, make_run):
    make_run("a")
    make_run("b", "model.mixer.memory=single", "optimizer.lr=1e-3", loss=7.0)
    done = cli("compare", "a", "b")
    assert done.code == 0, done.err
    results, keys = tables(done.out)
    assert results["a"] == {
        "parameters": "1.8 M",
        "step": "4",
        "tokens": "8,192",
        "training loss, nats per token": "7.7500",
        "validation loss, nats per token": "8.6000",
        "tokens/s": "250",
    }
    assert results["b"]["validation loss, nats per token"] == "7.6000"
    assert keys["model.mixer.memory.kind"] == {"a": "dynamic", "b": "single"}
    assert keys["model.mixer.memory.capacity"] == {"a": "8", "b": "-"}
    assert keys["optimizer.lr"] == {"a": "0.004", "b": "0.001"}
    assert not {"description", "seed", "training.steps"} & keys.keys()
    assert "not finished" not in done.out


def test_runs_of_other_lengths_are_compared_where_both_have_validated(cli, make_run):
    make_run("a")
    make_run("b", steps=3)
    done = cli("compare", "a", "b")
    [results] = tables(done.out)
    assert results["b"]["step"] == "3 of 4"
    assert [row["after 4,096 tokens"] for row in results.values()] == ["8.8000", "8.8000"]
    assert "not finished" in done.out
    assert "Their recipes are the same." in done.out


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_has_only_begun(cli, make_run, steps):
    make_run("a")
    make_run("b", steps=steps)
    done = cli("compare", "a", "b", "--out", "there")
    assert done.code == 0, done.err
    [results] = tables(done.out)
    assert results["b"]["validation loss, nats per token"] == "-"
    assert results["b"]["step"] == f"{steps} of 4"
    assert not any(name.startswith("after") for name in results["a"])


def test_losses_that_are_no_numbers(cli, make_run, tmp_path):
    make_run("a", loss=float("nan"))
    done = cli("compare", "a", "--out", "there")
    assert done.code == 0, done.err
    [results] = tables(done.out)
    assert results["a"]["training loss, nats per token"] == "-"
    assert results["a"]["validation loss, nats per token"] == "nan"
    [run] = json.loads((tmp_path / "there" / "comparison.json").read_text())
    assert run["training_loss"] is None
    assert run["validation"] == [[4096, None], [8192, None]]


def test_columns_that_some_runs_have(cli, make_run):
    make_run("a")
    recorded = ("boundary_rate.0", "boundary_rate.1", "slots_in_use.0", "slots_in_use.1", "answer_accuracy")
    values = {"boundary_rate.0": 0.1, "boundary_rate.1": 0.3, "slots_in_use.0": 2.0, "slots_in_use.1": 5.0}
    make_run("b", columns=recorded, device_memory_gb=3.25, answer_accuracy=0.5, **values)
    (results,) = tables(cli("compare", "a", "b").out)
    names = ("device memory, GB", "boundary rate", "slots in use", "answers right")
    assert [results["b"][name] for name in names] == ["3.25", "20.0%", "3.5", "50.0%"]
    assert [results["a"][name] for name in names] == ["-"] * 4


def test_losses_per_answer_and_per_token_are_told_apart(cli, make_run, tmp_path):
    make_run("a")
    task = "data={kind: synthetic, task: {kind: mqar, pairs: [2]}, vocab_size: 2048, window: 256}"
    make_run("b", task, "report.prompt=null")
    assert "training loss, nats per answer" in cli("compare", "b").out
    results = tables(cli("compare", "a", "b").out)[0]
    assert "training loss, nats" in results["a"]
    assert [row["per"] for row in results.values()] == ["token", "answer"]


def test_files(cli, make_run, tmp_path):
    make_run("a")
    make_run("runs/b", loss=6.0)
    done = cli("compare", "a", "runs/b", "--out", "there/deeper")
    folder = tmp_path / "there" / "deeper"
    assert "Loss curves: there/deeper/losses.png" in done.out
    assert (folder / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "comparison.md").read_text().startswith("# Comparison\n\n| run ")
    runs = json.loads((folder / "comparison.json").read_text())
    assert [(run["name"], run["tokens"]) for run in runs] == [("a", 8192), ("runs/b", 8192)]
    assert runs[1]["training"][0] == [2048, 5.9]
    again = cli("compare", "a", "--out", "there/deeper")
    assert again.code == 2
    assert "holds earlier results" in again.err


@pytest.fixture
def edit_metrics(tmp_path):
    """Change the bytes of a run's metrics."""

    def edit(name, old, new):
        path = tmp_path / name / "metrics.csv"
        path.write_bytes(path.read_bytes().replace(old, new))

    return edit


@pytest.mark.parametrize("column", ["tokens_per_second", "device_memory_gb"])
def test_a_column_that_an_older_version_did_not_write(cli, make_run, edit_metrics, column):
    make_run("a")
    edit_metrics("a", column.encode(), b"renamed")
    done = cli("compare", "a")
    assert done.code == 0, done.err
    assert tables(done.out)[0]["a"]["training loss, nats per token"] == "7.7500"


@pytest.mark.parametrize("column", [b"loss", b"tokens"])
def test_metrics_without_what_is_compared(cli, make_run, edit_metrics, column):
    make_run("a")
    edit_metrics("a", b"," + column + b",", b",renamed,")
    done = cli("compare", "a", "--out", "there")
    assert done.code == 0, done.err
    assert tables(done.out)[0]["a"]["training loss, nats per token"] == "-"
    assert tables(done.out)[0]["a"]["step"] == "4"
    assert "a: 6 rows of metrics.csv left out, without tokens or loss to read." in done.out


@pytest.mark.parametrize("damage", [b"not a number", b"\0" * 200_000])
def test_damaged_metrics(cli, make_run, edit_metrics, damage):
    make_run("a", loss=7.5)
    edit_metrics("a", b"7.4", damage)
    done = cli("compare", "a", "--out", "there")
    assert done.code == 0, done.err
    assert tables(done.out)[0]["a"]["training loss, nats per token"] == "7.2000"  # of the three other steps


def test_names_that_mean_something_to_tables_and_pictures(cli, make_run, tmp_path):
    from PIL import Image

    names = ["_old", "$x_{2}$ | y", "new\nline", "lr=1", "a cost of $5"]
    for name in names:
        make_run(name)
    done = cli("compare", *names, "--out", "there")
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0].strip("| ") for line in lines[1:]] == [
        "_old",
        "$x_{2}$ \\| y",
        "new line",
        "lr=1",
        "a cost of $5",
    ]
    assert Image.open(tmp_path / "there" / "losses.png").size[0] > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere holds no run. Give run folders, such as runs/tiny.\n"),
        (["."], "Those inside it: ./*."),
        (["a", "optimizer.lr=3"], "takes no key=value (given optimizer.lr=3)"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_wrong_usage(cli, make_run, arguments, message):
    make_run("a")
    done = cli("compare", *arguments)
    assert done.code == 2
    assert message in done.err


def test_an_export_has_no_history(cli, make_run, tmp_path):
    make_run("a")
    (tmp_path / "a" / "config.json").write_text('{"model_type": "dla"}')
    done = cli("compare", "a")
    assert done.code == 2
    assert "a holds an exported model, which has no history" in done.err


@pytest.mark.parametrize(
    ("written", "steps", "keys", "said"),
    [
        (
            ("\nseed: 0\n", "\nsead: 3\n"),
            "3 of 4",
            {"seed", "sead"},
            "this version cannot read the recipe, so its parameters are not counted, and its keys are compared as they "
            "are written there. The version that trained it can.",
        ),
        (
            ("model:", "model: ["),
            "3",
            set(),
            "the recipe cannot be read, so its parameters are not counted, and its keys are not compared.",
        ),
    ],
    ids=["another key", "no YAML"],
)
def test_a_recipe_that_this_version_cannot_read(cli, make_run, tmp_path, written, steps, keys, said):
    make_run("a")
    make_run("b", steps=3)
    recipe = tmp_path / "b" / "recipe.yaml"
    text = recipe.read_text()
    assert written[0] in text
    recipe.write_text(text.replace(*written))
    done = cli("compare", "a", "b", "--out", "there")
    assert done.code == 0, done.err
    results, *differing = tables(done.out)
    assert (results["b"]["parameters"], results["b"]["step"]) == ("-", steps)
    assert results["b"]["validation loss, nats per token"] == "8.8000"
    assert {key for table in differing for key in table} == keys
    assert "Their recipes are the same." not in done.out
    assert f"b: {said} (b/recipe.yaml:" in done.out
    assert "fit" not in done.out
    assert json.loads((tmp_path / "there" / "comparison.json").read_text())[1]["unread"]


@pytest.mark.parametrize("written", ["sead: !!binary aGVsbG8=", "sead: 2020-01-01"])
def test_values_that_no_recipe_has(cli, make_run, tmp_path, written):
    make_run("a")
    make_run("b")
    recipe = tmp_path / "b" / "recipe.yaml"
    recipe.write_text(
        recipe.read_text().replace("\nseed: 0\n", f"\n{written}\n").replace("steps: 4\n", "steps: true\n", 1)
    )
    done = cli("compare", "a", "b", "--out", "there")
    assert done.code == 0, done.err
    results, keys = tables(done.out)
    assert results["b"]["step"] == "4"
    assert set(keys) == {"seed", "sead", "training.steps"}


def test_a_long_value_is_cut_and_a_bar_does_not_break_the_table(cli, make_run):
    make_run("a", 'report.prompt="x | y"')
    make_run("b", f"report.prompt={'long ' * 20}")
    out = cli("compare", "a", "b").out
    assert "x \\| y" in out
    assert "long long long long long long long lo..." in out
