import json
import os
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import pytest

from dla_train import atomic_files
from dla_train.checkpoints.config import CheckpointConfig
from dla_train.checkpoints.manifest import DamagedCheckpoint, RunIdentity, checksum
from dla_train.checkpoints.resume import newest_sound
from dla_train.checkpoints.state_file import write_shards
from dla_train.checkpoints.store import Checkpoint, CheckpointStore
from dla_train.errors import RunError

IDENTITY = RunIdentity(recipe={"model": {"hidden": 16}, "seed": 0}, data={"tokenizer": "abc"})


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def _write(store, step, content=b"weights"):
    with store.new(step, IDENTITY) as folder:
        (folder / "state.ckpt").write_bytes(content)
        (folder / "shards").mkdir()
        (folder / "shards" / "rank-0").write_bytes(b"optimizer")


def _steps(store):
    return [checkpoint.step for checkpoint in store.all()]


def test_a_checkpoint_describes_every_file_and_whose_it_is(store):
    _write(store, 20)
    (checkpoint,) = store.all()
    manifest = checkpoint.verify()
    assert checkpoint.folder.name == "step-00000020"
    assert manifest.step == 20
    assert manifest.identity == IDENTITY
    assert manifest.files["state.ckpt"]["bytes"] == 7
    assert set(manifest.files) == {"state.ckpt", "shards/rank-0"}
    assert len(manifest.fingerprints["architecture"]) == 16


def test_a_checkpoint_is_invisible_until_it_is_complete(store):
    with store.new(20, IDENTITY) as folder:
        (folder / "state.ckpt").write_bytes(b"half")
        assert store.all() == []
        assert folder.parent == store.folder, "a rename within one file system"
    assert _steps(store) == [20]


def test_everything_reaches_the_disk_before_the_name_does(store, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda number: (events.append(Path(os.readlink(f"/proc/self/fd/{number}"))), fsync(number))
    )
    monkeypatch.setattr(os, "rename", lambda old, new: (events.append("rename"), rename(old, new)))
    with store.new(20, IDENTITY) as folder:
        (folder / "shards").mkdir()
        for name in ("state.ckpt", "shards/rank-0"):
            (folder / name).write_bytes(b"weights")
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    assert {folder / "state.ckpt", folder / "shards" / "rank-0", folder / "shards", folder} <= {*before}
    assert before[-2].name.startswith(".manifest.json"), "the manifest last, and then that it is there"
    assert after == [store.folder]


def test_each_state_file_reaches_the_disk_where_it_is_written(tmp_path, monkeypatch):
    """A rank on another node cannot sync it."""
    synced = []
    monkeypatch.setattr(atomic_files, "sync", synced.append)
    write_shards({"state_dict": {}}, tmp_path / "state.ckpt", 0, 2)
    write_shards({"state_dict": {}}, tmp_path / "state.ckpt", 1, 2)
    assert [path.name for path in synced] == ["shard-00000-of-00002.ckpt", "state.ckpt", "shard-00001-of-00002.ckpt"]


def test_a_store_that_is_not_held_any_more_is_not_changed(tmp_path):
    """Another process has taken over the run folder, and may keep other checkpoints."""
    is_held = [True]

    def require_held():
        if not is_held[0]:
            raise RunError("taken over")

    store = CheckpointStore(tmp_path / "checkpoints", require_held)
    for step in (10, 20):
        _write(store, step)
    with pytest.raises(RunError, match="taken over"), store.new(30, IDENTITY):
        is_held[0] = False
    for change in (lambda: store.prune(CheckpointConfig(keep_last=1)), lambda: store.require_room(1)):
        with pytest.raises(RunError, match="taken over"):
            change()
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-00000010", "step-00000020"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failed_save_leaves_nothing(store, error):
    def save():
        with store.new(20, IDENTITY) as folder:
            (folder / "state.ckpt").write_bytes(b"half")
            raise error

    _write(store, 10)
    with pytest.raises(error):
        save()
    assert [path.name for path in store.folder.iterdir()] == ["step-00000010"]


def test_a_full_disk_is_a_clear_failure_that_leaves_nothing(store):
    _write(store, 10)
    message = r"checkpoint of step 20 could not be written .*No space left.* The newest checkpoint is that of step 10\."
    with pytest.raises(RunError, match=message), store.new(20, IDENTITY):
        raise OSError(28, "No space left on device")
    with pytest.raises(RunError, match=r" 20 .*: Parent directory of it does not exist\. The"), store.new(20, IDENTITY):
        raise RuntimeError("Parent directory of it does not exist.")  # as torch says when the folder was removed
    assert [path.name for path in store.folder.iterdir()] == ["step-00000010"]


def test_room_is_asked_for_before_writing(store, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 9 * 10**8, 10**8))
    store.require_room(5 * 10**7)
    with pytest.raises(
        RunError, match=r" 200 MB, .* needs 217 MB in .* 100 MB are free\. There is no checkpoint yet\."
    ):
        store.require_room(2 * 10**8)
    _write(store, 10)
    with pytest.raises(RunError, match=r" 90 MB, .* needs 107 MB in .* 100 MB are free\. .* removing the oldest check"):
        store.require_room(9 * 10**7)


@pytest.mark.parametrize("where", ["in the middle of the state", "before the manifest", "after the manifest"])
def test_a_kill_while_saving_leaves_the_checkpoints_before(store, fork_process, where):
    _write(store, 10)
    script = """
import os, signal, sys
from dla_train.checkpoints import store as module
from dla_train.checkpoints.manifest import RunIdentity
def die(*arguments): os.kill(os.getpid(), signal.SIGKILL)
where, folder = sys.argv[1:]
if where == "before the manifest": module.describe_files = die
if where == "after the manifest": module.os.rename = die
with module.CheckpointStore(module.Path(folder)).new(20, RunIdentity(recipe={"model": {}}, data={})) as unfinished:
    file = (unfinished / "state.ckpt").open("wb", buffering=0)
    file.write(b"weig")
    if where == "in the middle of the state": die()
    file.write(b"hts")
"""
    process = fork_process("-c", script, where, store.folder)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(list(store.folder.iterdir())) == 2, "the kill did leave something behind"

    assert _steps(store) == [10]
    point = newest_sound(store)
    assert point is not None
    assert point.checkpoint.step == 10
    store.remove_leftovers()
    assert [path.name for path in store.folder.iterdir()] == ["step-00000010"]
    _write(store, 20)
    assert _steps(store) == [20, 10]


def _truncate(folder):
    path = folder / "state.ckpt"
    path.write_bytes(path.read_bytes()[:-3])


def _flip_a_bit(folder):
    path = folder / "shards" / "rank-0"
    content = bytearray(path.read_bytes())
    content[4] ^= 1
    path.write_bytes(content)


def _put_a_file_in_its_place(folder):
    shutil.rmtree(folder)
    folder.write_text("half a copy")


def _edit_manifest(**changes):
    """As a program would that writes another manifest: with the checksum of its own fields."""

    def edit(folder):
        path = folder / "manifest.json"
        content = {**json.loads(path.read_text()), **changes}
        head = {name: content.pop(name) for name in ("format", "version", "checksum")}
        path.write_text(json.dumps({**head, "checksum": checksum(content), **content}))

    return edit


def _flip_a_digit_of_the_manifest(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))


DAMAGE = {
    "truncated": (_truncate, r"state.ckpt has 4 bytes instead of 7"),
    "bit flipped": (_flip_a_bit, r"the content of shards/rank-0 does not match its checksum"),
    "file missing": (lambda folder: (folder / "state.ckpt").unlink(), r"state.ckpt is missing"),
    "directory missing": (lambda folder: shutil.rmtree(folder / "shards"), r"shards/rank-0 is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), r"manifest.json is missing"),
    "half a manifest": (
        lambda folder: (folder / "manifest.json").write_text('{"format"'),
        r"manifest.json is not JSON",
    ),
    "manifest changed": (
        _flip_a_digit_of_the_manifest,
        r"the content of manifest.json does not match its checksum",
    ),
    "another file": (
        lambda folder: (folder / "manifest.json").write_text("[]"),
        r"is not that of a checkpoint of dla-train",
    ),
    "later version": (_edit_manifest(version=2), r"it has format version 2, and this program reads 1"),
    "unknown field": (_edit_manifest(color="red"), r"does not have the fields of version 1"),
    "a file": (_put_a_file_in_its_place, r"it is a file, and a checkpoint is a directory"),
    "another step": (_edit_manifest(step=30), r"its manifest says step 30"),
    "file outside": (
        _edit_manifest(files={"../x": {"bytes": 1, "sha256": ""}}),
        r"names the file ../x, which lies outside",
    ),
    "file anywhere": (
        _edit_manifest(files={"/etc/x": {"bytes": 1, "sha256": ""}}),
        r"names the file /etc/x, which lies outside",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(store, caplog, damage):
    spoil, reason = DAMAGE[damage]
    _write(store, 10)
    _write(store, 20)
    spoil(store.folder / "step-00000020")
    with pytest.raises(DamagedCheckpoint, match=reason):
        store.all()[0].verify()
    point = newest_sound(store)
    assert point is not None
    assert point.checkpoint.step == 10
    assert [checkpoint.step for checkpoint in point.damaged] == [20]
    assert "step-00000020 is damaged" in caplog.text
    assert "trying the one before" in caplog.text


def test_a_manifest_without_a_checksum_of_an_earlier_version_is_read(store):
    _write(store, 10)
    path = store.folder / "step-00000010/manifest.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    path.write_text(json.dumps(content))
    assert store.all()[0].verify().identity == IDENTITY


def test_starting_from_nothing_in_place_of_damaged_checkpoints_is_refused(store):
    _write(store, 10)
    _truncate(store.folder / "step-00000010")
    with pytest.raises(RunError, match=r"every checkpoint in .* is damaged \(step-00000010: state.ckpt has 4 bytes"):
        newest_sound(store)


def test_an_empty_or_missing_folder_has_no_checkpoint(store):
    assert newest_sound(store) is None
    store.folder.mkdir()
    (store.folder / "step-x").mkdir()
    assert newest_sound(store) is None


def test_a_damaged_checkpoint_is_set_aside_and_replaced(store):
    _write(store, 20)
    _truncate(store.folder / "step-00000020")
    store.set_aside(store.all()[0])
    assert store.all() == []
    _write(store, 20, b"new")
    assert store.all()[0].verify().files["state.ckpt"]["bytes"] == 3
    assert (store.folder / "damaged-step-00000020").is_dir()


def test_a_file_with_the_name_of_a_checkpoint_goes_the_ways_of_one(store):
    file = store.folder / "step-00000020"
    _write(store, 10)
    for content in ("copy", "another copy"):
        file.write_text(content)
        assert store.set_aside(store.all()[0]).read_text() == content
    _write(store, 20)
    _truncate(file)
    assert store.set_aside(store.all()[0]).is_dir(), "in place of the file"
    file.write_text("copy")
    _write(store, 30)
    store.prune(CheckpointConfig(keep_last=1))
    assert sorted(path.name for path in store.folder.iterdir()) == ["damaged-step-00000020", "step-00000030"]


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (CheckpointConfig(keep_last=1), [60]),
        (CheckpointConfig(keep_last=2), [60, 50]),
        (CheckpointConfig(keep_last=1, keep_every=20), [60, 40, 20]),
        (CheckpointConfig(keep_last=9), [60, 50, 40, 30, 20, 10]),
    ],
)
def test_old_checkpoints_go(store, config, kept):
    for step in (10, 20, 30, 40, 50, 60):
        _write(store, step)
    store.prune(config)
    assert _steps(store) == kept
    assert len(list(store.folder.iterdir())) == len(kept), "nothing else stays"


def test_steps_are_numbers_not_text(store):
    for step in (99_999_999, 100_000_000):
        _write(store, step)
    assert _steps(store) == [100_000_000, 99_999_999]
    assert Checkpoint(99_999_999, store.folder / "step-99999999").verify().step == 99_999_999
