import math

import pytest

from dla_train.runs.metrics_file import TRAIN, VALIDATION, MetricsFile, read_rows


def _row(step, split=TRAIN, loss=1 / 3):
    return {"step": step, "split": split, "loss": loss}


def test_floats_come_back_to_the_last_bit(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv", ["boundary_rate.0"], 0)
    losses = [1 / 3, math.pi * 1e-300, 5e-324, 1e22, 0.1 + 0.2, math.inf]
    for step, loss in enumerate(losses, 1):
        file.append({**_row(step, loss=loss), "boundary_rate.0": loss})
    rows = read_rows(tmp_path / "metrics.csv")
    assert [row["loss"] for row in rows] == losses
    assert [row["boundary_rate.0"] for row in rows] == losses
    assert rows[0] == {"step": 1, "split": "train", "loss": 1 / 3, "boundary_rate.0": 1 / 3}, (
        "empty fields are left out"
    )


def test_rows_are_there_at_once_and_after_a_kill(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv", [], 0)
    file.append(_row(1))
    assert len(read_rows(tmp_path / "metrics.csv")) == 1, "not waiting in a buffer"


def test_going_on_drops_what_came_after_the_step(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, [], 0)
    for step in range(1, 7):
        file.append(_row(step))
    file.append(_row(6, VALIDATION))
    text = path.read_text()
    file.close()

    MetricsFile(path, [], 6).close()
    assert path.read_text() == text, "nothing to drop"
    MetricsFile(path, [], 4).close()
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4]
    assert text.startswith(path.read_text())


def test_a_torn_last_row_is_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, [], 0)
    for step in (1, 2):
        file.append(_row(step))
    file.close()
    path.write_text(path.read_text()[:-5])
    assert [row["step"] for row in read_rows(path)] == [1]
    file = MetricsFile(path, [], 2)
    file.append(_row(3))
    assert [row["step"] for row in read_rows(path)] == [1, 3]


def test_a_new_start_empties_the_file(tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsFile(path, [], 0).append(_row(1))
    MetricsFile(path, [], 0).close()
    assert read_rows(path) == []


def test_other_columns_keep_the_old_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsFile(path, ["old"], 0).append({**_row(1), "old": 2.0})
    MetricsFile(path, ["new"], 1).append({**_row(2), "new": 3.0})
    assert read_rows(path) == [_row(1), {**_row(2), "new": 3.0}]


def test_a_file_that_cannot_be_read_is_kept_beside_the_new_one(tmp_path, caplog):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"\xff\xfe garbage\n")
    MetricsFile(path, [], 4).close()
    assert read_rows(path) == []
    aside = tmp_path / "metrics.csv.unreadable"
    assert aside.read_bytes() == b"\xff\xfe garbage\n"
    assert f"{path} has no rows that can be read: it is kept as {aside}, and a new one begins." in caplog.text


@pytest.mark.parametrize("is_there", [True, False], ids=["empty", "gone"])
def test_rows_that_are_lost_are_missed(tmp_path, caplog, is_there):
    path = tmp_path / "metrics.csv"
    if is_there:
        path.touch()
    MetricsFile(path, [], 7).close()
    assert "metrics.csv is not there, or empty: a new one begins after step 7." in caplog.text
    caplog.clear()
    path.unlink()
    MetricsFile(path, [], 0).close()
    assert not caplog.text
