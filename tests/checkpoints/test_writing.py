"""A checkpoint that is written while training goes on holds the step it is of, and is there only when all of it is."""

import threading

import pytest
import torch
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from dla_train.callbacks import checkpointing
from dla_train.callbacks.step_metrics import StepMetrics
from dla_train.checkpoints import state_file
from dla_train.checkpoints.manifest import RunIdentity
from dla_train.checkpoints.shards import Shard
from dla_train.checkpoints.state_file import StateFileIO
from dla_train.checkpoints.store import CheckpointStore
from dla_train.checkpoints.writing import Writing, in_main_memory
from dla_train.distributed import ranks
from dla_train.distributed.ranks import Ranks
from dla_train.errors import RunError

TENSORS = torch.arange(12.0).view(3, 4)


def test_a_copy_is_not_reached_by_what_training_changes():
    base = TENSORS.clone()
    shard = Shard((3, 4), 4, base.view(-1)[4:8])
    tree = {"a": base, "same": base.view(3, 4), "rows": [base[1:]], "t": base.T, "shards": (shard, shard), "n": 3}
    copy = in_main_memory(tree)
    base.zero_()
    tree["rows"].append(1)
    assert torch.equal(copy["a"], TENSORS)
    assert copy["same"] is copy["a"], "a tensor of two names is written once"
    assert torch.equal(copy["t"], TENSORS.T)
    assert copy["t"].is_contiguous()
    assert len(copy["rows"]) == 1
    assert torch.equal(copy["rows"][0], TENSORS[1:])
    assert copy["rows"][0].untyped_storage().nbytes() == 8 * 4, "nothing of what lay around it"
    assert copy["shards"][0] is copy["shards"][1]
    assert copy["shards"][0].values.tolist() == [4, 5, 6, 7]
    assert copy["n"] == 3


def test_a_part_that_is_not_seen_on_the_first_rank_s_node_is_missed_and_named(tmp_path, monkeypatch):
    """As on a network file system that shows a new file late, or never."""
    monkeypatch.setattr(ranks, "_SHARED_FOLDER_SECONDS", 0.1)

    class TwoNodes(Ranks):
        def collect(self, value):
            return [value, ["shard-00001-of-00002.ckpt"] if isinstance(value, list) else None]

    store = CheckpointStore(tmp_path)
    identity = RunIdentity(recipe={"model": {}}, data={}, world_size=2)
    for is_seen in (False, True):
        writing = Writing(TwoNodes(0, 2), store.new(4, identity))
        (folder,) = tmp_path.iterdir()
        writing.start(
            lambda: {"a": 1}, lambda state, folder: torch.save(state, folder / "own.ckpt"), in_background=True
        )
        if is_seen:
            (folder / "shard-00001-of-00002.ckpt").touch()
            writing.finish()
        else:
            with pytest.raises(RunError, match=r"shard-00001-of-00002\.ckpt, which rank 1 has written, does not"):
                writing.finish()
            assert list(tmp_path.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_many_ranks_finish_a_checkpoint_telling_each_only_its_own_files_and_leave_nothing_in_the_store(
    tmp_path, monkeypatch
):
    count, meeting, told = 8, HashStore(), []
    collect = Ranks.collect

    def noted(self, value):
        if isinstance(value, list):
            told.append((self.rank, value))
        return collect(self, value)

    monkeypatch.setattr(Ranks, "collect", noted)
    checkpoints, errors = CheckpointStore(tmp_path), []

    def one(rank):
        try:
            here = Ranks(rank, count, meeting)
            for step in (4, 8):
                writing = Writing(here, checkpoints.new(step, RunIdentity(recipe={"model": {}}, data={})))
                writing.start(
                    lambda: {"a": Shard((count,), rank, torch.ones(1))},
                    lambda state, folder: state_file.write_shards(state, folder / "state.ckpt", rank, count),
                    in_background=True,
                )
                writing.finish()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a rank waits for ever"
    assert errors == []
    names = [f"shard-{rank:05d}-of-{count:05d}.ckpt" for rank in range(count)]
    for rank, files in told:
        assert files == ([names[rank], f"{names[rank]}.sha256"] if rank else [])
    assert len(told) == 2 * count
    for step in (4, 8):
        files = {path.name for path in (tmp_path / f"step-{step:08d}").iterdir()}
        assert files == {*names, "state.ckpt", "manifest.json"}
    assert meeting.num_keys() <= 1, "but for what rank 0 has said last"


@pytest.fixture
def steps(monkeypatch):
    """Waits until the run has finished a step: `steps(7)`."""
    done, changed = [0], threading.Condition()
    note = StepMetrics.on_train_batch_end

    def noted(self, trainer, *arguments):
        note(self, trainer, *arguments)
        with changed:
            done[0] = trainer.global_step
            changed.notify_all()

    def wait(step):
        with changed:
            assert changed.wait_for(lambda: done[0] >= step, timeout=60), f"step {step} waits for a checkpoint"

    monkeypatch.setattr(StepMetrics, "on_train_batch_end", noted)
    return wait


def _kept(folder):
    """Name and state of each checkpoint."""
    io = StateFileIO()
    return {path.name: io.load_checkpoint(path / "state.ckpt") for path in sorted(folder.glob("checkpoints/step-*"))}


def _require_equal(one, other):
    torch.testing.assert_close(one["state_dict"], other["state_dict"], rtol=0, atol=0)
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, other)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert one["lr_schedulers"] == other["lr_schedulers"]
    assert one["global_step"] == other["global_step"]


def test_steps_go_on_while_it_is_written_and_it_is_that_of_its_own_step(
    cli, micro_recipe, tmp_path, monkeypatch, steps
):
    arguments = ["fit", "--recipe", micro_recipe, "checkpoint.keep_last=9", "training.threads=1"]
    assert cli(*arguments, "checkpoint.background=false", "--run-dir", "waited").code == 0

    write, seen = state_file._write, []

    def write_late(content, path):
        step = content["global_step"]
        if step == 8:
            steps(11)
            seen.append(sorted(other.name[:25] for other in path.parent.parent.iterdir()))
        write(content, path)

    monkeypatch.setattr(state_file, "_write", write_late)
    done = cli(*arguments, "--run-dir", "run")
    assert done.code == 0, done.err
    assert seen == [[".unfinished-step-00000008", "step-00000004"]], "not there before it is whole"
    waited, run = _kept(tmp_path / "waited"), _kept(tmp_path / "run")
    assert list(run) == list(waited) == [f"step-{step:08d}" for step in range(4, 21, 4)]
    for name in run:
        _require_equal(run[name], waited[name])


def test_without_background_no_step_is_begun_before_it_is_there(cli, micro_recipe, tmp_path, monkeypatch):
    write, threads = state_file._write, []

    def noted(content, path):
        threads.append(threading.current_thread())
        write(content, path)

    monkeypatch.setattr(state_file, "_write", noted)
    assert cli("fit", "--recipe", micro_recipe, "checkpoint.background=false").code == 0
    assert set(threads) == {threading.main_thread()}


def test_what_fails_in_the_background_ends_the_run_with_the_checkpoint_before(cli, micro_recipe, tmp_path, monkeypatch):
    write = state_file._write

    def fail(content, path):
        if content["global_step"] == 8:
            raise OSError(28, "No space left on device")
        write(content, path)

    monkeypatch.setattr(state_file, "_write", fail)
    done = cli("fit", "--recipe", micro_recipe, "--run-dir", "run")
    assert done.code == 1
    assert "the checkpoint of step 8 could not be written to run/checkpoints: [Errno 28] No space left" in done.err
    assert "The newest checkpoint is that of step 4." in done.err
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000004"]


def test_a_run_that_fails_while_one_is_written_still_has_it(cli, micro_recipe, tmp_path, monkeypatch):
    """Steps 9 and 10 are lost, not the hundred before."""
    from dla_train.training.module import LanguageModelTraining

    step, write, failed = LanguageModelTraining.training_step, state_file._write, threading.Event()

    def training_step(self, *arguments):
        if self.global_step == 10:
            failed.set()
            raise RuntimeError("something else broke")
        return step(self, *arguments)

    def write_late(content, path):
        if content["global_step"] == 8:
            assert failed.wait(60)
        write(content, path)

    monkeypatch.setattr(LanguageModelTraining, "training_step", training_step)
    monkeypatch.setattr(state_file, "_write", write_late)
    done = cli("fit", "--recipe", micro_recipe, "--run-dir", "run")
    assert done.code == 1
    assert "something else broke" in done.err
    assert "step-00000008" in {path.name for path in (tmp_path / "run/checkpoints").iterdir()}


def test_a_disk_that_is_too_slow_for_the_interval_is_said_once(cli, micro_recipe, tmp_path, monkeypatch):
    write, finish, waiting = state_file._write, Writing.finish, threading.Semaphore(0)

    def write_late(content, path):
        assert waiting.acquire(timeout=60)
        write(content, path)

    def finish_after(self):
        waiting.release()
        finish(self)

    monkeypatch.setattr(state_file, "_write", write_late)
    monkeypatch.setattr(Writing, "finish", finish_after)
    monkeypatch.setattr(checkpointing, "_NOTICEABLE_SECONDS", 0.0)
    done = cli("fit", "--recipe", micro_recipe, "training.steps=12")
    assert done.code == 0, done.err
    assert done.err.count("waited") == 1
    assert "for the checkpoint before it: writing one takes longer than checkpoint.every (4) steps." in done.err
