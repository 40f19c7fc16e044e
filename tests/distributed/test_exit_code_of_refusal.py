"""What the batch script learns of a refusal, before srun ends the other processes because of it."""

import pytest

from dla_train.distributed.ranks import Ranks
from dla_train.errors import RunError, UsageError


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("no"), "2\n"), (RunError("no"), "1\n"), (KeyError("no"), None)]
)
def test_it_is_written_before_other_ranks_know(tmp_path, monkeypatch, error, code):
    said = tmp_path / "exit-code"
    monkeypatch.setenv("DLA_TRAIN_EXIT_CODE_FILE", str(said))
    when_told = []

    class Store:
        def set(self, key, value):
            when_told.append(said.read_text() if said.exists() else None)

    def fail():
        raise error

    with pytest.raises(type(error)):
        Ranks(0, 2, Store()).first(fail)  # type: ignore[arg-type]
    assert when_told == [code]


def test_a_wrong_recipe_is_told_by_every_process(cli, micro_recipe, tmp_path, monkeypatch):
    said = tmp_path / "exit-code"
    monkeypatch.setenv("DLA_TRAIN_EXIT_CODE_FILE", str(said))
    assert cli("fit", "--recipe", micro_recipe, "training.steps=0").code == 2
    assert said.read_text() == "2\n"


def test_a_refusal_stays_one_where_the_file_cannot_be_written(cli, micro_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("DLA_TRAIN_EXIT_CODE_FILE", str(tmp_path / "gone/exit-code"))
    done = cli("fit", "--recipe", micro_recipe, "training.steps=0")
    assert done.code == 2
    assert "training.steps is 0" in done.err
