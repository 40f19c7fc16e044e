"""Windows cut the token stream without gaps, and every target is the token after its input."""

import pickle

import pytest
import torch

from dla_data.errors import DataError
from dla_data.windows import PackedWindows


def test_windows_cover_the_stream_and_share_one_token(write_tokens) -> None:
    tokens = write_tokens([[1, 2, 3], [4, 5], [6, 7, 8]])  # 1 2 3 0 4 5 0 6 7 8 0
    windows = PackedWindows(tokens, window=5)
    assert [window.tolist() for window in windows] == [[1, 2, 3, 0, 4, 5], [5, 0, 6, 7, 8, 0]]
    assert windows[0].dtype == torch.int64


@pytest.mark.parametrize(("window", "count"), [(1, 10), (2, 5), (3, 3), (9, 1), (10, 1)])
def test_number_of_windows(write_tokens, window: int, count: int) -> None:
    windows = PackedWindows(write_tokens([list(range(1, 11))]), window)  # 11 tokens with the end of the document
    assert len(windows) == count
    assert [len(item) for item in windows] == [window + 1] * count


def test_too_few_tokens_for_a_window_names_the_way_out(write_tokens) -> None:
    tokens = write_tokens([list(range(1, 11))])
    with pytest.raises(DataError, match=r"tokens \(a test\) has 11 tokens, too few for one window of 11 .*at most 10"):
        PackedWindows(tokens, window=11)
    with pytest.raises(DataError, match="at least 1"):
        PackedWindows(tokens, window=0)


def test_windows_outside_are_index_errors(write_tokens) -> None:
    windows = PackedWindows(write_tokens([[1, 2, 3]]), window=1)
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"window {index} of 3"):
            windows[index]


def test_a_copy_for_another_process_carries_the_path_not_the_tokens(write_tokens) -> None:
    windows = PackedWindows(write_tokens([[1] * 100_000]), window=10)
    packed = pickle.dumps(windows)
    assert len(packed) < 1_000
    assert torch.equal(pickle.loads(packed)[5], windows[5])
