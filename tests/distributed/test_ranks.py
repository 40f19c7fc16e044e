"""Deciding together, without processes: two threads with one store between them."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import pytest
from torch.distributed import HashStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from dla_train.distributed import ranks as ranks_module
from dla_train.distributed.meeting import own_part, take_leave
from dla_train.distributed.placement import Placement
from dla_train.distributed.ranks import Ranks
from dla_train.errors import RelayedError, RunError, UsageError


@pytest.fixture
def both():
    """Run a function on ranks 0 and 1; returns what each returned or raised."""

    def run(work):
        store = HashStore()
        results = [None, None]

        def one(rank):
            try:
                results[rank] = work(Ranks(rank, 2, store))
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "a rank waits for ever"
        return results

    return run


def test_rank_0_decides_and_all_know(both):
    worked = []

    def work(ranks):
        first = ranks.first(lambda: worked.append(ranks.rank) or "choice")
        return first, ranks.collect(ranks.rank * 10)

    assert both(work) == [("choice", [0, 10]), ("choice", [])]
    assert worked == [0]


def test_a_failure_of_rank_0_is_told_once_and_ends_all_with_its_exit_code(both):
    def refuse():
        raise UsageError("no such thing")

    first, second = both(lambda ranks: ranks.first(refuse))
    assert str(first) == "no such thing"
    assert isinstance(second, RelayedError)
    assert second.exit_code == UsageError.exit_code


@pytest.mark.parametrize("failing", [None, 0, 1])
def test_all_work_together_and_rank_0_says_who_failed(both, failing):
    def work(ranks):
        if ranks.rank == failing:
            raise UsageError(f"no file on {ranks.rank}")
        return ranks.rank

    first, second = both(lambda ranks: ranks.together(lambda: work(ranks)))
    if failing is None:
        assert (first, second) == (0, 1)
    else:
        assert isinstance(first, UsageError)
        assert str(first) == f"no file on {failing}"
        assert isinstance(second, RelayedError)


@pytest.mark.parametrize("failing", [0, 1])
def test_what_fails_on_one_rank_is_undone_by_rank_0_and_fails_on_all(both, failing):
    left = []

    @contextmanager
    def directory():
        try:
            yield "directory"
            left.append("kept")
        except OSError as error:
            left.append("undone")
            raise RunError(f"could not be written: {error}") from error

    def work(ranks):
        manager = directory()
        assert ranks.enter(manager) == "directory"
        ranks.leave(manager, OSError("disk full") if ranks.rank == failing else None)

    results = both(work)
    assert left == ["undone"]
    assert isinstance(results[0], RunError)
    assert "disk full" in str(results[0])
    assert isinstance(results[1], RelayedError)


def test_a_folder_that_another_rank_does_not_see_is_refused(both, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks_module, "_SHARED_FOLDER_SECONDS", 0.5)
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    first, second = both(lambda ranks: ranks.require_shared(tmp_path / str(ranks.rank)))
    assert isinstance(first, UsageError)
    assert "(rank 1) sees. All nodes must share it: put it on a network file system with --run-dir." in str(first)
    assert isinstance(second, RelayedError)
    assert both(lambda ranks: ranks.require_shared(tmp_path / "0")) == [None, None]
    assert not any((tmp_path / "0").iterdir()), "the file that all had to see is gone"


def test_other_data_on_another_rank_is_refused(both):
    first, second = both(lambda ranks: ranks.require_equal({"text": ranks.rank}, "the data"))
    assert isinstance(first, RunError)
    assert "the data of rank 1" in str(first)
    assert ": text is 1 instead of 0. Make the same files visible on all nodes" in str(first)
    assert isinstance(second, RelayedError)


def test_other_versions_on_another_rank_are_refused_with_an_advice_of_their_own(both):
    first, second = both(lambda ranks: ranks.require_equal({"torch": f"2.{ranks.rank}"}, "the software", "Install."))
    assert isinstance(first, RunError)
    assert str(first).startswith("the software of rank 1 on ")
    assert str(first).endswith(": torch is 2.1 instead of 2.0. Install.")
    assert isinstance(second, RelayedError)


@pytest.mark.parametrize(("launcher", "advice"), [("dla-train", "Start again"), ("Slurm", "MASTER_PORT=NUMBER")])
def test_a_port_in_use_is_named(launcher, advice):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        place = Placement(
            rank=0, local_rank=0, devices=1, nodes=2, address="127.0.0.1", port=port, launcher=launcher, is_child=False
        )
        with (
            pytest.raises(RunError, match=rf"^port {port} of .* is in use by another program\. .*{advice}"),
            ranks_module.joined(place, []),
        ):
            pass


def test_ranks_that_are_started_again_read_nothing_of_what_the_lost_ones_wrote():
    """As under torchrun, which keeps its store."""
    store = HashStore()
    store.set("asks/1", "a lost rank's question")
    for start in range(2):
        with ThreadPoolExecutor(2) as pool:
            parts = list(pool.map(lambda rank: own_part(store, rank, 2), range(2)))
        assert not parts[1].check(["place"])
        parts[0].set("place", str(start))
        assert parts[1].get("place") == str(start).encode()


def test_a_lost_rank_is_not_waited_for_and_the_store_does_not_complain(capfd):
    place = Placement(
        rank=0, local_rank=0, devices=2, nodes=1, address="127.0.0.1", port=0, launcher="dla-train", is_child=True
    )
    store = TCPStore(place.address, place.port, 2, is_master=True, wait_for_workers=False)
    began = time.monotonic()
    take_leave(store, place, timedelta(seconds=0.5))
    assert 0.5 <= time.monotonic() - began < 5
    assert capfd.readouterr().err == ""


def test_a_rank_that_waits_for_a_lost_rank_0_says_so(fork_process):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = """
import os, sys
from dla_train.distributed.placement import Placement
from dla_train.distributed.ranks import joined
rank, port = map(int, sys.argv[1:])
place = Placement(
    rank=rank, local_rank=rank, devices=2, nodes=1, address="127.0.0.1", port=port, launcher="Slurm", is_child=True
)
try:
    with joined(place, []) as ranks:
        ranks.first(lambda: os._exit(9))
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
    _, other = processes = [fork_process("-c", script, str(rank), str(port)) for rank in range(2)]
    _, err = other.communicate(timeout=60)
    assert [process.wait() for process in processes] == [9, 1]
    assert "RunError: rank 1 lost contact with rank 0, because that one failed or its node did" in err
