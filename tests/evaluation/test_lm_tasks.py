"""The paper's tasks and files of one's own through the real lm-evaluation-harness, on rows of the hub's format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import nltk
import pytest
import wonderwords
import yaml
from lm_eval.api.task import Task
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.ruler.common_utils import get_tokenizer
from tokenizers import Tokenizer

from dla_data.tokenizer import END_OF_DOCUMENT, train_tokenizer
from dla_train.errors import UsageError
from dla_train.evaluation.lm_tasks import reading
from dla_train.evaluation.lm_tasks.adapter import HarnessModel
from dla_train.evaluation.lm_tasks.harness import TASKS, Harness, transformers_folder
from dla_train.evaluation.lm_tasks.published import published
from dla_train.evaluation.lm_tasks.table import table
from dla_train.models import AttentionConfig, LanguageModel, Mamba2Config, ModelConfig, SingleMemory, initialize

pytestmark = pytest.mark.xdist_group("tasks of lm-evaluation-harness")  # to read all their files takes 17 s

GROUPS = ["paper-commonsense", "paper-retrieval", "paper-ruler", "paper-longbench"]
CHOICES = {"text": ["red", "green", "blue", "black", "white"], "label": ["A", "B", "C", "D", "E"]}
READING = {"context": "[DOC] Ada lives in Rome. Ada lives in", "question": "Ada lives in", "answers": ["Rome", "roma"]}
TEXT = {"text": " Name: Ada\nTown: ", "value": " Rome "}
SITUATION = {"ctx_a": "Ada opens a door.", "ctx_b": "she", "activity_label": "Doors", "endings": ["goes in.", "sings."]}
LONG = {
    "context": "Ada lives in Rome.",
    "question": "Where?",
    "input": "Where?",
    "answers": ["Rome"],
    "all_classes": ["Rome"],
}
ROWS: dict[str, dict[str, Any]] = {
    "Xnhyacinth/LongBench": LONG,
    "EleutherAI/lambada_openai": {"text": "Ada went home to Rome"},
    "baber/piqa": {"goal": "Open a door", "sol1": "Turn the handle.", "sol2": "Sing.", "label": 0},
    "Rowan/hellaswag": SITUATION | {"label": "1", "ind": 0, "split_type": "zeroshot", "source_id": "x", "split": "val"},
    "allenai/winogrande": {
        "sentence": "Ada met Ben, for _ was lost.",
        "option1": "Ada",
        "option2": "Ben",
        "answer": "2",
    },
    "allenai/ai2_arc": {"question": "What is grass?", "choices": CHOICES, "answerKey": "B"},
    "allenai/openbookqa": {"question_stem": "Grass is", "choices": CHOICES, "answerKey": "B"},
    "tau/commonsense_qa": {"question": "Grass is?", "choices": CHOICES, "answerKey": "B"},
    "hazyresearch/based-squad": TEXT,
    "hazyresearch/based-swde-v2": TEXT,
    "hazyresearch/based-fda": TEXT,
    "hazyresearch/based_triviaqa": READING,
    "hazyresearch/based_nq_2048": READING,
    "hazyresearch/based_drop": READING,
}


@pytest.fixture(scope="module", autouse=True)
def quick_imports() -> Iterator[None]:
    """When RULER's tasks are imported, they fetch a file of NLTK, which none of these tests reads, and sort all pairs
    of an English adjective and noun, for 20 s: here of a few."""
    random_word = wonderwords.RandomWord
    few = {kind: list(words)[:40] for kind, words in random_word()._categories.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk, "download", lambda *_, **__: True)
        patch.setattr(wonderwords, "RandomWord", lambda: random_word(**few))
        yield


@pytest.fixture(scope="module")
def harness() -> Harness:
    return Harness()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["Ada lives in Rome. Ben lives in Oslo. What is grass? Grass is green.\n"] * 4, 280)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> HarnessModel:
    mixer = Mamba2Config(heads=2, head_dim=8, state_dim=6, memory=SingleMemory())
    config = ModelConfig(vocab_size=280, hidden=16, layers=1, mixer=mixer)
    return HarnessModel(initialize(LanguageModel(config), seed=0).eval(), tokenizer, end=0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every data set of `ROWS` has two rows in each split."""

    def load_dataset(path: str, name: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
        if path not in ROWS:
            raise ConnectionError(f"Couldn't reach {path!r}")
        return {split: datasets.Dataset.from_list([ROWS[path]] * 2) for split in ("train", "validation", "test")}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def task_of(harness: Harness, name: str) -> Task:
    [task] = harness.load(name).values()
    return task


def test_every_file_of_ours_is_whole(harness: Harness) -> None:
    files = [path for path in TASKS.glob("*.yaml") if not path.name.startswith("_")]
    assert len(files) == 4 + 3
    for path in files:
        config = load_yaml(path)
        assert path.stem == config.get("group", config.get("task")), path
        if "task" in config and "group" not in config:
            assert callable(config["doc_to_text"])
            assert callable(config["process_results"])
            assert config["generation_kwargs"]["until"] == ["\n"]
            assert config["dataset_path"] in ROWS


@pytest.mark.parametrize("group", GROUPS)
def test_every_member_of_a_group_is_a_task(group: str, harness: Harness) -> None:
    members = harness.members(group)
    assert len(members) == {"paper-commonsense": 8, "paper-longbench": 12}.get(group, 6)
    for name in members:
        entry = harness._manager.task_index[name]
        assert entry.kind.name in ("TASK", "PY_TASK")
        config = load_yaml(entry.yaml_path)
        assert config["task"] == name
        assert "class" in config or "metric_list" in config


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("group", [GROUPS[0], GROUPS[1], GROUPS[3]])
def test_the_harness_asks_the_model_each_of_them(group: str, harness: Harness, model: HarnessModel) -> None:
    paper = published(group, model._model.config)
    assert paper is not None
    scores = []
    for name in harness.members(group):
        found = harness.run(task_of(harness, name), model, limit=1)
        assert paper.metric in {score.metric for score in found}, name
        assert all(score.examples == 1 and score.task == name for score in found)
        scores += found
    text = table(group, scores, paper)
    assert text.count("\n| ") == 2 + len(harness.members(group)) + 1
    for task, figure in paper.columns["+ DLA"].items():
        row = next(
            line for line in text.splitlines() if line.startswith("| **mean**" if task == "average" else f"| {task} ")
        )
        assert row.endswith(f" {figure:.1f} |")


def test_prompts_of_reading_tasks_hold_the_question_once() -> None:
    assert reading.prompt(READING) == "Ada lives in Rome. Ada lives in"
    assert reading.prompt({"context": "All is well.", "question": "Ada lives in", "answers": []}) == (
        "All is well. Ada lives in"
    )
    assert reading.target(READING) == " Rome"
    assert reading.target(READING | {"answers": []}) == " unanswerable"
    for text, found in [(" rome, in Italy", 1), ("ROMA", 1), ("Oslo", 0), ("", 0)]:
        assert reading.contains(READING, [text]) == {"contains": found}
    assert reading.contains(READING | {"answers": []}, ["Rome"]) == {"contains": 0}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Task files of one's own, with their rows."""
    monkeypatch.chdir(tmp_path)
    common = {"dataset_path": "json", "validation_split": "validation"}
    mean = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    rows = {
        "towns": [
            {"q": f"{name} lives in Rome. {name} lives in", "c": ["Rome", "Oslo"], "a": 0} for name in ("Ada", "Ben")
        ],
        "last": [
            {"q": "Ada lives in", "a": "Rome"},
            {"q": "Grass is", "a": "green"},
            {"q": "Ben lives in", "a": "Oslo"},
        ],
        "read": [READING, READING | {"answers": ["a", "e", "i", "o", "n", "s", " "]}],
    }
    files: dict[str, dict[str, Any]] = {
        "towns": {"output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "c", "doc_to_target": "a"},
        "last": {"output_type": "loglikelihood", "doc_to_text": "{{q}}", "doc_to_target": " {{a}}"},
        "read": {"include": str(TASKS / "_reading.yaml")},
    }
    for name, config in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        data = {"dataset_kwargs": {"data_files": {"validation": f"{name}.jsonl"}}}
        metrics = {} if name == "read" else {"metric_list": mean}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | common | data | metrics | config))


@pytest.mark.usefixtures("folder")
def test_files_of_ones_own_are_scored_as_the_model_answers(model: HarnessModel) -> None:
    harness = Harness(ships_its_own=False)
    by_hand = {}
    for name, pairs in {
        "towns": [(f"{who} lives in Rome. {who} lives in", " Rome", " Oslo") for who in ("Ada", "Ben")],
        "last": [("Ada lives in", " Rome"), ("Grass is", " green"), ("Ben lives in", " Oslo")],
    }.items():
        right = []
        for context, *answers in pairs:
            found = model._loglikelihood_tokens(
                [(("", ""), *model._encode_pair(context, answer)) for answer in answers]
            )
            right.append(found[0][1] if len(found) == 1 else found[0][0] >= found[1][0])
        by_hand[name] = sum(right) / len(right)
    for name, count in [("towns", 2), ("last", 3)]:
        [score] = harness.run(task_of(harness, f"{name}.yaml"), model)
        assert (score.metric, score.value, score.examples) == ("acc", by_hand[name], count)
    [score] = harness.run(task_of(harness, "read.yaml"), model)
    assert (score.metric, score.examples) == ("contains", 2)


@pytest.mark.usefixtures("hub")
def test_a_group_that_changes_its_tasks_stays_whole(harness: Harness) -> None:
    assert harness.members("openllm") == ["openllm"], "it sets the number of examples in a prompt"
    assert harness.members("mathqa") == ["mathqa"]
    assert harness.members("arabicmmlu_stem") != ["arabicmmlu_stem"]
    assert harness.members("ai2_arc") == ["arc_challenge", "arc_easy"], "a tag"


@pytest.mark.usefixtures("hub")
def test_what_is_missing_is_named(harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no task 'paper-comonsense'\. Did you mean paper-commonsense\?"):
        harness.members("paper-comonsense")
    with pytest.raises(UsageError, match=r"no task file none\.yaml"):
        harness.members("none.yaml")
    for task, path in [("fda", "hazyresearch/based-fda"), ("piqa", "baber/piqa")]:
        monkeypatch.delitem(ROWS, path)
        with pytest.raises(UsageError, match=rf"data set .*of task {task} cannot be read: .*'{path}'.*HF_HOME"):
            harness.load(task)
    (tmp_path / "wrong.yaml").write_text("task: wrong\ndataset_path: allenai/openbookqa\noutput_type: guess\n")
    with pytest.raises(UsageError, match=r"wrong\.yaml cannot be loaded: .*guess"):
        harness.load(str(tmp_path / "wrong.yaml"))
    (tmp_path / "wrong.yaml").write_text("task: [wrong\n")
    with pytest.raises(UsageError, match=r"wrong\.yaml cannot be loaded: .*line 1.* docs/evaluation\.md shows") as told:
        harness.load(str(tmp_path / "wrong.yaml"))
    assert "\n" not in str(told.value)


def test_transformers_reads_the_tokenizer(tokenizer: Tokenizer) -> None:
    with transformers_folder(tokenizer, END_OF_DOCUMENT) as folder:
        theirs = get_tokenizer(str(folder))
        assert theirs("Ada lives in Rome.").input_ids == tokenizer.encode("Ada lives in Rome.").ids
        assert theirs.eos_token == END_OF_DOCUMENT


def test_other_groups_and_backbones() -> None:
    config = ModelConfig(vocab_size=280, hidden=16, layers=1, mixer=AttentionConfig(heads=2))
    assert published("mmlu", config) is None
    found = published("paper-longbench", config)
    assert found is not None
    assert found.columns == {"Transformer": {"average": 15.5}}


@pytest.mark.slow
def test_a_needle_task_of_ruler_makes_its_text_and_is_scored(tokenizer: Tokenizer, model: HarnessModel) -> None:
    with transformers_folder(tokenizer, END_OF_DOCUMENT) as folder:
        harness = Harness(folder)
        [score] = harness.run(task_of(harness, "niah_single_1"), model, limit=1)
    assert (score.metric, score.value, score.examples) == ("4096", 0, 1)


def test_the_nearest_name_may_be_no_task_of_the_harness() -> None:
    harness = Harness(ships_its_own=False, besides=("needles", "mqar"))
    with pytest.raises(UsageError, match=r"'needels'. Did you mean needles\? Allowed are needles, mqar, paper-common"):
        harness.members("needels")
    with pytest.raises(UsageError, match=r"Did you mean paper-ruler\?"):
        harness.members("paper-ruller")
