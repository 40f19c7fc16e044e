"""A misspelled task is refused at once: without lm-evaluation-harness, and before anything of the run is read."""

import pytest
from lm_eval.tasks import TaskManager

from dla_train.errors import UsageError
from dla_train.evaluation.lm_tasks.names import TASKS, _files, require_possible


@pytest.mark.xdist_group("tasks of lm-evaluation-harness")
def test_every_task_group_and_tag_is_possible():
    names = TaskManager(include_path=str(TASKS)).all_tasks
    written = b"\n".join(_files())
    assert [name for name in names if name.encode() not in written] == []
    require_possible(["piqa", "paper-ruler", "acp_bench", names[-1]], ["needles"])
    require_possible([], [])


@pytest.mark.parametrize(
    ("name", "guess"), [("hellaswagg", "hellaswag"), ("paper-comonsense", "paper-commonsense"), ("neeedles", "needles")]
)
def test_a_misspelled_name_gets_the_nearest(name, guess):
    with pytest.raises(UsageError, match=rf"^there is no task '{name}'\. Did you mean {guess}\? Allowed are needles, "):
        require_possible(["piqa", name], ["needles"])


def test_it_is_refused_before_the_run_is_looked_for(cli, monkeypatch):
    monkeypatch.setattr(TaskManager, "__init__", None)  # an error if it were called
    for name, said in (
        ("piqqa", "there is no task 'piqqa'. Did you mean piqa?"),
        ("mine.yaml", "no task file mine.yaml"),
    ):
        done = cli("eval", "--checkpoint", "nowhere", "--tasks", f"needles,{name}")
        assert (done.code, said in done.err) == (2, True), done.err
