"""The judge: what it says of a printed text and a number, whatever anybody expects."""

from fractions import Fraction

import pytest

from sparsekern.reproduce.counted.cells import STATUSES, Cell, judge, judge_draw, parse_printed, worst


@pytest.mark.parametrize(
    ("printed", "value", "status"),
    [
        ("2.22", Fraction(222_487_946, 10**8), "exact"),
        ("2.23", Fraction(222_487_946, 10**8), "off by 0.01"),
        ("2.24", Fraction(222_487_946, 10**8), "not reproduced"),
        ("13", Fraction(25, 2), "exact"),  # a tie: 12.5 may have gone either way
        ("12", Fraction(25, 2), "exact"),
        ("2.69", Fraction(959_104, 355_825), "off by 0.01"),
        ("0.1", Fraction(10_700_032, 10**9), "misprint"),  # not "off by 0.1": a factor ten explains it
        ("46%", Fraction(46_449, 1000), "exact"),
        ("2,105,344", 2_105_344, "exact"),
        ("6/8", Fraction(3, 4), "exact"),
        ("5/8", Fraction(3, 4), "off by 1/8"),
        ("more than 450", Fraction(2_105_344, 4_608), "exact"),
        ("more than 457", Fraction(2_105_344, 4_608), "not reproduced"),
        ("0.2,6.3", (Fraction(800, 4096), Fraction(25, 4)), "exact"),
        ("0.2,6.4", (Fraction(800, 4096), Fraction(25, 4)), "off by 0.1"),
        ("0.2", (Fraction(800, 4096), Fraction(25, 4)), "not reproduced"),
        ("2/17", (2, 17), "exact"),
        ("2/17", (2, 18), "off by 1"),
        ("1140", 1137, "within 0.5 %"),
        ("0", 0, "exact"),
        ("0.73", None, "printed"),
        (None, 15_007_482_856, "not printed"),
    ],
)
def test_rules(printed, value, status):
    assert judge(printed, value)[0] == status


@pytest.mark.parametrize(
    ("printed", "value", "status"),
    [
        ("1140 M", 1_137_641_216, "exact"),
        ("1140 M", 1_134_999_999, "off by 10M"),
        ("652 M", 652_151_296, "exact"),
        ("10 M", 9_665_768, "exact"),
        ("460K", 453_832, "off by 10K"),
        ("5.4M", 5_484_736, "off by 0.1M"),
        ("370K", 37_000, "misprint"),
        ("1.62M", 16_207_848, "misprint"),
        ("15740 M", 15_470_264_320, "misprint"),
        ("210", 120.44, "not reproduced"),  # two digits swapped, but of three: chance
        ("97.70", 97.49, "within 0.5 %"),
    ],
)
def test_rules_where_closing_zeros_may_be_rounding(printed, value, status):
    assert judge(printed, value, padded=True)[0] == status


def test_a_value_that_slipped_into_another_row_is_found():
    column = {"Inception v4": 15_090_184, "Inception v3": 8_968_488}
    assert judge("1.51M", 1000, column=column) == ("misprint", "this is the value of Inception v4, divided by 10")
    assert judge("8.97M", 1000, column=column) == ("misprint", "this is the value of Inception v3")
    assert judge("1.51M", 1000) == ("not reproduced", "")


def test_what_shows_a_verdict_is_said():
    assert judge("11.65", Fraction(959_104, 82_288)) == ("off by 0.01", "cut, not rounded")
    assert judge("64.63", 64.6231) == ("off by 0.01", "")
    assert judge("15740 M", 15_470_264_320, padded=True)[1] == "two digits swapped: 15470 M"


def test_draws_of_a_random_mask():
    mask = "realisation of a random mask"
    assert judge_draw("201522", 201_744, 4499.6, 3)[0] == mask
    assert judge_draw("201523", 201_744, 4499.6, 3)[0] == "not reproduced"  # no such mask has 201,523 synapses
    assert judge_draw("192744", 201_744, 4499.6, 3)[0] == "not reproduced"  # -2.0002 standard deviations
    assert judge_draw("192747", 201_744, 4499.6, 3)[0] == mask
    assert judge_draw("212544", 212_544, 0.0, 3) == ("exact", "")
    assert judge_draw("212541", 212_544, 0.0, 3)[0] != "exact"  # nothing random: no room


def test_the_worst_of_several_counts():
    assert worst([("exact", ""), ("off by 0.1", "a"), ("misprint", "b")]) == ("misprint", "b")
    assert worst([("not reproduced", "a"), ("within 0.5 %", "")]) == ("not reproduced", "a")


def test_unreadable_text_is_refused():
    with pytest.raises(ValueError, match="parse_printed: text must be a number as papers print it; got 'many'"):
        parse_printed("many")


def test_a_cell_is_ok_only_with_its_status_and_its_number():
    cell = Cell("nin/orig/flops", "Orig.", "FLOPS", "2.22", 222_487_946, "exact", expected="exact", known=222_487_946)
    assert cell.ok and cell.kind in STATUSES
    assert not Cell("a", "b", "c", "2.22", 222_487_947, "exact", expected="exact", known=222_487_946).ok
    assert not Cell("a", "b", "c", "2.22", 222_487_946, "off by 0.01", expected="exact", known=222_487_946).ok
    assert Cell("a", "b", "c", "2.23", 2, "off by 0.01").kind == "off by ..."
