"""Which documents are held out depends on their text alone, in every version and on every platform."""

from dla_data.held_out import HeldOut

TEXTS = [f"document {number}" for number in range(2000)]


def test_golden_values_hold_in_every_version() -> None:
    # A change here moves documents that earlier runs were validated on into the training part, and the other way round.
    held_out = HeldOut(0.25)
    assert [number for number, text in enumerate(TEXTS[:40]) if held_out(text)] == [
        1,
        6,
        23,
        27,
        29,
        30,
        32,
        36,
        38,
        39,
    ]


def test_the_share_is_met_and_a_larger_one_holds_out_the_same_texts_and_more() -> None:
    few, many = ({text for text in TEXTS if HeldOut(share)(text)} for share in (0.1, 0.3))
    assert few < many
    assert 0.08 < len(few) / len(TEXTS) < 0.12
    assert 0.27 < len(many) / len(TEXTS) < 0.33
    assert not any(map(HeldOut(0.0), TEXTS))


def test_every_text_is_on_one_side() -> None:
    held_out = HeldOut(0.3)
    assert all(held_out(text) != held_out.trained_on(text) for text in [*TEXTS, "", "no valid unicode: \udcff"])
