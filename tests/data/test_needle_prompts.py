import re

import pytest

from dla_data.errors import DataError
from dla_data.synthetic.names import names
from dla_data.synthetic.needles import NEEDLE_TASKS, NeedleTask, longest_needle_prompt, needle_prompt, sentences

BOOK = sentences("It was a bright cold day in April. The clocks\nwere striking thirteen! Was it so?  Nobody knew.")


def _words(text):
    return len(text.split())


def test_sentences():
    assert BOOK[:2] == ["It was a bright cold day in April.", "The clocks were striking thirteen!"]
    assert len(BOOK) == 4
    with pytest.raises(DataError, match="empty"):
        sentences(" \n ")


@pytest.mark.parametrize("name", NEEDLE_TASKS)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_answers_to_the_question_are_in_the_text_and_nowhere_else(name, index):
    task = NEEDLE_TASKS[name]
    made = needle_prompt(task, 3, index, 20, BOOK)
    context, question = made.prompt.rsplit("\n", 1)
    found = re.findall(r"One of the special magic (\w+) for (\S+) is: (\S+)\.", context)
    distractors = 20 if task.haystack == "needles" else 0
    assert len(found) == task.keys * task.values + distractors
    assert {kind for kind, _, _ in found} == {task.value_kind}
    assert len({value for _, _, value in found}) == len(found), "all values differ"
    assert len({key for _, key, _ in found}) == task.keys + distractors, "and all keys"
    asked = {key for _, key, _ in found if re.search(rf"\b{re.escape(key)}\b", question)}
    assert len(asked) == task.queries
    assert {value for _, key, value in found if key in asked} == set(made.answers)
    assert len(made.answers) == task.queries * task.values
    assert not any(value in question for value in made.answers)
    assert made.score(f"{', '.join(made.answers)} it is") == 1
    assert made.score(made.answers[0]) == 1 / len(made.answers)
    assert made.score("no") == 0


def test_the_whole_prompt_of_a_single_needle():
    made = needle_prompt(NEEDLE_TASKS["niah_single_2"], 3, 0, 3, BOOK)
    (key,) = re.findall(r"numbers for (\S+) is:", made.prompt)
    needle = f"One of the special magic numbers for {key} is: {made.answers[0]}."
    assert needle in made.prompt
    assert made.prompt.replace(f"{needle} ", "").replace(f" {needle}", "") == (
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about "
        f"the number afterwards.\n{BOOK[0]} {BOOK[1]} {BOOK[2]}\nWhat is the special magic number for {key} mentioned "
        f"in the provided text? The special magic number for {key} mentioned in the provided text is"
    )


def test_a_short_text_begins_again():
    made = needle_prompt(NEEDLE_TASKS["niah_single_2"], 3, 0, 9, BOOK)
    assert made.prompt.count(BOOK[0]) == 3
    assert made.prompt.count(BOOK[3]) == 2


def test_needles_move_all_over_the_text():
    task = NEEDLE_TASKS["niah_single_1"]
    places = {needle_prompt(task, 3, index, 8).prompt.split("\n").index(line) for index in range(60) for line in
              needle_prompt(task, 3, index, 8).prompt.split("\n") if line.startswith("One of")}  # fmt: skip
    assert places == set(range(1, 9))


@pytest.mark.parametrize("name", NEEDLE_TASKS)
def test_the_longest_prompt_is_just_short_enough(name):
    task = NEEDLE_TASKS[name]
    made = longest_needle_prompt(task, 3, 5, 700, _words, BOOK)
    assert made == longest_needle_prompt(task, 3, 5, 700, _words, BOOK)
    assert made == needle_prompt(task, 3, 5, made.units, BOOK)
    answers = len(made.answers)
    assert _words(made.prompt) + answers <= 700
    longer = needle_prompt(task, 3, 5, made.units + 1, BOOK)
    assert longer.answers == made.answers
    assert _words(longer.prompt) + answers > 700


def test_the_longest_prompt_may_take_most_of_the_names():
    task = NEEDLE_TASKS["niah_multikey_2"]  # of whose names, 10,000 words, doubling the units asks for too many
    almost_all = needle_prompt(task, 3, 5, 9_998)
    length = _words(almost_all.prompt) + len(almost_all.answers)
    assert longest_needle_prompt(task, 3, 5, length, _words) == almost_all
    with pytest.raises(DataError, match=r"1,000,000 tokens are too many: .* at most 9,999 .* and takes 1\d\d,\d\d\d t"):
        longest_needle_prompt(task, 3, 5, 1_000_000, _words)


def test_what_does_not_fit_is_said():
    with pytest.raises(DataError, match="a length of 50 is too short: needles and question alone take"):
        longest_needle_prompt(NEEDLE_TASKS["niah_multiquery"], 3, 5, 50, _words, BOOK)
    with pytest.raises(DataError, match="no places for 4 needles"):
        needle_prompt(NEEDLE_TASKS["niah_multikey_1"], 3, 5, 3, BOOK)
    with pytest.raises(DataError, match="no sentences"):
        needle_prompt(NEEDLE_TASKS["niah_single_2"], 3, 5, 3, [])
    with pytest.raises(ValueError, match="queries is 2; it must be at most keys, 1"):
        NeedleTask(haystack="repeat", queries=2)


def test_names_are_distinct_and_beginnings_agree():
    for kind in ("words", "numbers", "uuids"):
        many = names(kind, 1, "keys", 4, 10_000)
        assert len(set(many)) == 10_000
        assert names(kind, 1, "keys", 4, 5) == many[:5] != names(kind, 1, "keys", 5, 5)
    with pytest.raises(DataError, match="10,001 different words"):
        names("words", 1, "keys", 4, 10_001)
    assert re.fullmatch(
        r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", names("uuids", 1, "k", 0, 1)[0]
    )
    assert re.fullmatch(r"\d{7}", names("numbers", 1, "k", 0, 1)[0])
