"""Every validation window counts once, whatever the number of ranks, and all ranks have as many batches."""

import pytest

from dla_train.data.validation_share import ValidationShare


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
@pytest.mark.parametrize("readers", [1, 2, 3, 8])
@pytest.mark.parametrize("windows", [0, 1, 4, 5, 17, 64])
def test_every_window_counts_once(windows, readers, micro_batch):
    shares = [ValidationShare(windows, micro_batch, reader, readers) for reader in range(readers)]
    counted = [
        window
        for share in shares
        for number, batch in enumerate(share.batches)
        if share.counts(number)
        for window in batch
    ]
    assert sorted(counted) == list(range(windows))
    (rounds,) = {len(share.batches) for share in shares}
    assert all(1 <= len(batch) <= micro_batch for share in shares for batch in share.batches)
    assert rounds == -(-windows // (readers * min(micro_batch, max(1, -(-windows // readers)))))


def test_one_reader_reads_as_without_others():
    assert ValidationShare(5, 2).batches == [[0, 1], [2, 3], [4]]
    assert all(ValidationShare(5, 2).counts(batch) for batch in range(3))


def test_few_windows_are_spread_over_all_ranks():
    assert [ValidationShare(8, 4, reader, 4).batches for reader in range(4)] == [
        [[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]],
    ]  # fmt: skip
