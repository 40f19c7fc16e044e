"""MQAR, change-point recall and copy: every example read token by token against the definition in the docstrings."""

import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from dla_data.synthetic import IGNORED, ChangePoint, Copy, Mqar
from dla_data.synthetic.dataset import SyntheticExamples

INDICES = np.arange(300, dtype=np.int64)
TASKS = {
    "mqar": (Mqar(pairs=(2, 5), power=0.5), 64, 40),
    "mqar scattered": (Mqar(pairs=(2, 5), scattered=True), 64, 40),
    "change_point": (ChangePoint(segments=(2, 4), needles=2, shortest=6, themes=8), 96, 60),
    "copy": (Copy(), 32, 24),
}


@pytest.mark.parametrize("name", TASKS)
def test_an_example_depends_on_seed_and_index_only(name):
    task, vocab_size, window = TASKS[name]
    inputs, targets = task.examples(vocab_size, window, 11, INDICES)
    assert inputs.shape == targets.shape == (300, window)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.min() >= 0
    assert inputs.max() < vocab_size
    for index in (0, 7, 299):
        alone = task.examples(vocab_size, window, 11, np.array([index]))
        assert torch.equal(alone.inputs[0], inputs[index])
        assert torch.equal(alone.targets[0], targets[index])
    assert len({tuple(row) for row in inputs.tolist()}) == 300
    assert not torch.equal(task.examples(vocab_size, window, 12, INDICES).inputs, inputs)


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_counted_without_making_the_examples(name):
    task, vocab_size, window = TASKS[name]
    found = (task.examples(vocab_size, window, 11, INDICES).targets != IGNORED).sum(1)
    assert task.answers(window, 11, INDICES).tolist() == found.tolist()
    dataset = SyntheticExamples(task, vocab_size=vocab_size, window=window, seed=11, count=300)
    assert dataset.answers(np.array([3, 299])) == found[[3, 299]].sum()


@pytest.mark.parametrize("name", TASKS)
def test_another_process_makes_the_same(fork_process, name):
    task, vocab_size, window = TASKS[name]
    code = (
        "from dla_data.synthetic import *\nfrom dla_data.synthetic.dataset import *\n"
        f"print(SyntheticExamples({task!r}, vocab_size={vocab_size}, window={window}, seed=5, count=9).fingerprint())"
    )
    process = fork_process("-c", code)  # which does not share the seed of Python's hashes with this one
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    here = SyntheticExamples(task, vocab_size=vocab_size, window=window, seed=5, count=9)
    assert out.strip() == here.fingerprint()
    first = [here[index] for index in range(9)]
    stacked = b"".join(torch.stack(part).numpy().tobytes() for part in zip(*first, strict=True))
    assert here.fingerprint() == hashlib.sha256(stacked).hexdigest()


def test_mqar_asks_for_every_key_once_and_the_answer_is_its_value():
    task, vocab_size, window = TASKS["mqar"]
    sizes = []
    for row, target in zip(*task.examples(vocab_size, window, 11, INDICES), strict=True):
        asked = torch.nonzero(target != IGNORED).flatten().tolist()
        pairs = len(asked)
        sizes.append(pairs)
        keys, values = row[0 : 2 * pairs : 2].tolist(), row[1 : 2 * pairs : 2].tolist()
        assert len(set(keys)) == len(set(values)) == pairs
        assert all(1 <= key < 32 for key in keys)
        assert all(32 <= value < 64 for value in values)
        assert {row[place].item(): target[place].item() for place in asked} == dict(zip(keys, values, strict=True))
        assert all(place >= 2 * pairs and place % 2 == 0 for place in asked)
    assert set(sizes) == {2, 5}
    assert 0.4 < np.mean(np.array(sizes) == 2) < 0.6


def test_mqar_gaps_follow_the_power_law():
    many = np.arange(8000, dtype=np.int64)
    targets = Mqar(pairs=(1,), power=0.5).examples(64, 18, 0, many).targets
    places = (torch.nonzero(targets != IGNORED)[:, 1] - 2) // 2
    share = torch.bincount(places, minlength=8) / len(many)
    weights = torch.arange(1, 9) ** -0.5
    assert torch.allclose(share, weights / weights.sum(), atol=0.02)


def test_mqar_places_do_not_tell_which_pair_is_asked_for():
    """What a guess from the place of a query alone gets right, learned on one half of the examples."""
    inputs, targets = (part.numpy() for part in Mqar(pairs=(4,)).examples(64, 24, 0, np.arange(8000, dtype=np.int64)))
    values = inputs[:, 1:8:2]
    example, place = np.nonzero(targets != IGNORED)
    pair = (values[example] == targets[example, place][:, None]).argmax(axis=1)
    is_first = example < 4000
    counts = np.zeros((24, 4))
    np.add.at(counts, (place[is_first], pair[is_first]), 1)
    right = (counts.argmax(axis=1)[place[~is_first]] == pair[~is_first]).mean()
    assert right == pytest.approx(0.25, abs=0.015), "in order of drawing it was 0.32"


def test_mqar_filler_is_random_or_zero():
    plain = Mqar(pairs=(3,), random_filler=False).examples(64, 40, 0, INDICES)
    filled = Mqar(pairs=(3,)).examples(64, 40, 0, INDICES)
    assert torch.equal(plain.targets, filled.targets)
    rest = plain.inputs == 0
    assert rest.sum(dim=1).tolist() == [40 - 9] * 300
    assert torch.equal(plain.inputs[~rest], filled.inputs[~rest])
    assert len(filled.inputs[rest].unique()) == 64


def test_scattered_pairs_stand_anywhere_and_are_asked_for_at_the_end():
    task = Mqar(pairs=(2, 5), random_filler=False, scattered=True)
    places, orders = set(), set()
    for row, target in zip(*task.examples(64, 41, 11, INDICES), strict=True):
        asked = torch.nonzero(target != IGNORED).flatten().tolist()
        context = 41 - 2 * len(asked)
        assert len(asked) in (2, 5)
        assert asked == list(range(context + 1, 41, 2))
        assert (row[context::2] == 0).all()
        text = row[:context].tolist()
        at = [place for place, token in enumerate(text) if 1 <= token < 32]
        pairs = {text[place]: text[place + 1] for place in at}
        assert len(pairs) == len(set(pairs.values())) == len(asked)
        assert all(32 <= value < 64 for value in pairs.values())
        assert {row[place].item(): target[place].item() for place in asked} == pairs
        assert [place % 2 for place in at] == [0] * len(at)
        assert sum(token != 0 for token in text) == 2 * len(at), "the rest is filler"
        places.update((len(asked), place) for place in at)
        orders.add(tuple(list(pairs).index(row[place].item()) for place in asked) if len(asked) == 2 else ())
    assert places == {(2, at) for at in range(0, 36, 2)} | {(5, at) for at in range(0, 30, 2)}
    assert orders == {(), (0, 1), (1, 0)}
    filled = Mqar(pairs=(2, 5), scattered=True).examples(64, 41, 11, INDICES)
    plain = task.examples(64, 41, 11, INDICES)
    assert torch.equal(plain.targets, filled.targets)
    there = plain.inputs != 0
    assert torch.equal(plain.inputs[there], filled.inputs[there])
    assert set(filled.inputs[~there].unique().tolist()) == {0, *range(32, 64)}, "no second value for a key"


def test_packed_pairs_stay_what_they_are():
    made = SyntheticExamples(Mqar(pairs=(2, 5), power=0.5), vocab_size=64, window=40, seed=5, count=9)
    assert made.fingerprint().startswith("85817238c8b4f613")


def test_change_points_are_where_the_theme_changes():
    task, vocab_size, window = TASKS["change_point"]
    quarter, words = 24, (96 - 48) // 8
    cuts, offsets = set(), set()
    for row, target in zip(*task.examples(vocab_size, window, 11, INDICES), strict=True):
        asked = torch.nonzero(target != IGNORED).flatten().tolist()
        assert len(asked) in (4, 8)
        context = window - 2 * len(asked)
        assert asked == list(range(context + 1, window, 2))
        assert (row[context::2] == 0).all()
        text = row[:context].tolist()
        at = [place for place, token in enumerate(text) if 1 <= token < quarter]
        needles = {text[place]: text[place + 1] for place in at}
        assert len(needles) == len(at) == len(set(needles.values())) == len(asked)
        assert all(quarter <= value < 2 * quarter for value in needles.values())
        assert {row[place].item(): target[place].item() for place in asked} == needles

        themes = [(token - 2 * quarter) // words for token in text if token >= 2 * quarter]
        changes = [place for place in range(1, len(themes)) if themes[place] != themes[place - 1]]
        assert len(changes) == len(asked) // 2 - 1, "as many segments as themes, each in one piece"
        assert len(set(themes)) == len(changes) + 1
        cuts.add(tuple(changes))
        offsets.update(at)
    assert len(cuts) > 100
    assert len(offsets) > 20


def test_change_point_segments_keep_their_shortest_length_and_their_needles():
    task = ChangePoint(segments=(5,), needles=1, shortest=4, themes=9)
    text = task.examples(128, 50, 3, INDICES).inputs[:, :40]
    theme = torch.where(text >= 64, (text - 64) // 7, -1)
    for row in theme.tolist():
        order = list(dict.fromkeys(number for number in row if number >= 0))
        for number in order:
            assert sum(other == number for other in row) >= 2, "four tokens, two of them the needle"
        runs = [key for place, key in enumerate(row) if place == 0 or row[place - 1] != key]
        assert sum(run == -1 for run in runs) <= 5
        assert row.count(-1) == 10


def test_copy_gives_back_the_symbols():
    inputs, targets = Copy().examples(32, 24, 0, INDICES)
    assert (targets[:, :12] == IGNORED).all()
    assert torch.equal(targets[:, 12:], inputs[:, :12])
    assert torch.equal(inputs[:, 13:], inputs[:, :11])
    assert (inputs[:, 12] == 0).all()
    assert inputs[:, :12].min() == 1


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Mqar(pairs=()), "pairs is []; it must hold at least one number"),
        (lambda: Mqar(pairs=(4,), power=0), "power is 0; it must be above 0"),
        (lambda: Mqar(pairs=(4, 16)).check(64, 63), "pairs goes up to 16, which needs 4 x 16 = 64 tokens; window is"),
        (lambda: Mqar(pairs=(16,)).check(33, 64), "vocab_size 33 has only 15 keys; it must be at least 34"),
        (lambda: Mqar(pairs=(2,), power=1.0, scattered=True), "power is 1.0 with scattered true"),
        (lambda: ChangePoint(segments=(0,)), "segments is [0]; it must hold"),
        (lambda: ChangePoint(segments=(2,), needles=0), "needles is 0"),
        (lambda: ChangePoint(segments=(2,), needles=5), "shortest is 8; it must be at least 10"),
        (lambda: ChangePoint(segments=(17,)), "themes is 16; it must be at least 17"),
        (lambda: ChangePoint(segments=(4,)).check(256, 39), "segments goes up to 4, which needs 40 tokens"),
        (lambda: ChangePoint(segments=(4,)).check(63, 40), "4 needles and 16 themes need at least 64"),
        (lambda: Copy().check(8, 25), "window is 25; the task copy needs an even number"),
        (lambda: Copy().check(2, 24), "vocab_size is 2"),
    ],
)
def test_sizes_that_cannot_be_are_named(make, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        make()


def test_the_smallest_sizes_that_pass_the_check_work():
    Mqar(pairs=(16,)).examples(34, 64, 0, INDICES)
    ChangePoint(segments=(4,)).examples(64, 40, 0, INDICES)
    Copy().examples(3, 2, 0, INDICES)


def test_recipes_can_hold_tasks_without_waiting_for_torch():
    code = "import sys, dla_data.synthetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
