"""One cell of a paper's table, and the judge that says how a recount stands to what is printed.

The judge knows only the printed text and the recomputed number (and, for one rule, the other numbers of the column). Which status a
cell is *expected* to have stands in the data beside this file, with its reason; a cell is :attr:`Cell.ok` if both agree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

Number = int | float | Fraction
Value = Number | tuple[Number, ...]  # several where one cell prints a list: "0.2,6.3"

STATUSES = {
    "exact": "the recomputed number rounds to the printed digits",
    "off by ...": "the printed number is one unit of its last digit away: the difference follows, '0.01'",
    "within 0.5 %": "closer than 0.5 %, but not by rounding",
    "misprint": "a slip explains the printed number: a factor 10, two digits swapped, another row's value",
    "misworded": "the number is right for another statement than the printed one",
    "realisation of a random mask": "one draw of a random mask, within two standard deviations of the expected count",
    "not reproduced": "none of these: the paper's own number follows from nothing that it says",
    "not printed": "no printed number; counted here because the row would mislead without it",
    "printed": "as printed: needs training, the paper's machine, or belongs to another paper",
}

SUFFIXES = {"": 1, "%": 1, "K": 10**3, "M": 10**6, "B": 10**9}
BOUND = "more than "
NEAR = Fraction(1, 200)
SWAP_DIGITS = 4  # two swapped digits are believed only in numbers this long: among three digits chance does as much


@dataclass(frozen=True)
class Cell:
    """A cell of a printed table; ``status`` is what the judge found, ``expected`` what the data says."""

    id: str  # "resnet50/root-8/flops"
    row: str
    column: str
    printed: str | None  # exactly as printed; None where the paper prints nothing
    recomputed: Value | None  # None where nothing can be recounted
    status: str
    reason: str = ""
    expected: str = ""
    known: Value | None = None  # the integers the recount must give, where they are known
    where: str = ""  # in the paper, for a number of the text

    @property
    def ok(self) -> bool:
        """The judge found the expected status, and the recount is the known number."""
        return self.status == self.expected and self.known in (None, self.recomputed)

    @property
    def kind(self) -> str:
        """The status without its difference: ``"off by 0.01"`` is of kind ``"off by ..."``."""
        return "off by ..." if self.status.startswith("off by ") else self.status


class Printed(NamedTuple):
    """A printed number: its value, one unit of its last digit, what follows it, and its digits."""

    value: Fraction
    unit: Fraction
    suffix: str
    digits: str


def parse_printed(text: str) -> Printed:
    """Read ``"2.22"``, ``"652 M"``, ``"5.48m"``, ``"46%"`` or ``"6/8"``.

    Raises:
        ValueError: ``parse_printed: text must be a number as papers print it; got 'many'``

    Example:
        >>> parse_printed("0.838M")[:2]
        (Fraction(838000, 1), Fraction(1000, 1))
    """
    found = re.fullmatch(r"(\d+(?:\.(\d+))?|\d+/(\d+)) ?([KMB%]?)", text.strip().replace(",", ""), re.IGNORECASE)
    if found is None:
        raise ValueError(f"parse_printed: text must be a number as papers print it; got {text!r}")
    number, decimals, denominator, suffix = found.groups()
    factor = SUFFIXES[suffix.upper()]
    unit = Fraction(1, int(denominator)) if denominator else Fraction(1, 10 ** len(decimals or ""))
    return Printed(Fraction(number) * factor, unit * factor, suffix.upper(), number)


def rounds_to(value: Number, printed: Printed) -> bool:
    """Whether ``value`` lies within half a unit of the printed number; a tie may have gone either way."""
    return abs(_exactly(value) - printed.value) <= printed.unit / 2


def judge(
    text: str | None,
    value: Value | None,
    *,
    padded: bool = False,
    column: Mapping[str, Number] | None = None,
) -> tuple[str, str]:
    """Say how the printed ``text`` stands to the recomputed ``value``: a status of ``STATUSES``, and what shows it.

    The rules in order: exact; a factor 10 or two swapped digits; one unit of the last digit away; another row's value, or a tenth of
    it; within 0.5 %; not reproduced.

    Args:
        text: as printed; ``"more than 20"`` is a bound; a list like ``"0.2,6.3"`` goes with a tuple of values and is as good as its
            worst number.
        value: the recomputed number in full, not in the printed unit: 861339936 for "861 M".
        padded: closing zeros of integers may stand for digits that were rounded away: 1137641216 is "1140 M".
        column: the recomputed numbers of the column by row, for values that slipped into another row.

    Example:
        >>> judge("2.22", Fraction(222487946, 10**8))
        ('exact', '')
        >>> judge("11.65", Fraction(959104, 82288))
        ('off by 0.01', 'cut, not rounded')
        >>> judge("15740 M", 15470264320, padded=True)
        ('misprint', 'two digits swapped: 15470 M')
    """
    if text is None:
        return "not printed", ""
    if value is None:
        return "printed", ""
    if isinstance(value, tuple):
        texts = re.split("[,/]", text)
        if len(texts) != len(value):
            return "not reproduced", f"{len(texts)} numbers printed, {len(value)} recomputed"
        return worst(judge(one, number, padded=padded) for one, number in zip(texts, value))
    if text.startswith(BOUND):
        return ("exact" if _exactly(value) > parse_printed(text.removeprefix(BOUND)).value else "not reproduced"), ""
    printed, value = parse_printed(text), _exactly(value)
    unit = _coarse(printed) if padded else printed.unit
    coarse = printed._replace(unit=unit)
    if rounds_to(value, coarse):
        return "exact", ""
    if slip := _slip(value, coarse):
        return "misprint", slip
    rounded = _round(value, unit)
    if abs(rounded - printed.value) == unit:
        cut = math.floor(value / unit) * unit == printed.value
        return f"off by {_show(unit, printed)}", "cut, not rounded" if cut else ""
    for row, other in (column or {}).items():
        for factor, words in ((1, ""), (Fraction(1, 10), ", divided by 10")):
            if other != value and rounds_to(_exactly(other) * factor, coarse):
                return "misprint", f"this is the value of {row}{words}"
    if value and abs(printed.value / value - 1) <= NEAR:
        return "within 0.5 %", f"{float(printed.value / value - 1):+.2%}"
    return "not reproduced", ""


def judge_draw(text: str, expected: Number, sd: float, divisor: int = 1) -> tuple[str, str]:
    """Say whether the printed count can be one draw of a random mask with this expected count and standard deviation.

    Args:
        text: the printed count.
        expected: the mean over draws.
        sd: their standard deviation; 0 for a mask that drops nothing.
        divisor: every possible count is a multiple of it.

    Example:
        >>> judge_draw("201522", 201744, 4499.6, divisor=3)
        ('realisation of a random mask', 'expected 201,744, sd 4,500: z = -0.05; divisible by 3')
    """
    if not sd:
        return judge(text, expected)
    count = int(text)
    z = float(count - expected) / sd
    words = f"expected {round(expected):,}, sd {sd:,.0f}: z = {z:+.2f}; {'' if count % divisor == 0 else 'not '}divisible by {divisor}"
    return ("realisation of a random mask" if abs(z) <= 2 and count % divisor == 0 else "not reproduced"), words


def worst(verdicts: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The least flattering of several verdicts."""
    order = list(STATUSES)
    return max(verdicts, key=lambda verdict: order.index("off by ..." if verdict[0].startswith("off by ") else verdict[0]))


def _exactly(value: Number) -> Fraction:
    return Fraction(value)


def _round(value: Fraction, unit: Fraction) -> Fraction:
    return math.floor(value / unit + Fraction(1, 2)) * unit


def _coarse(printed: Printed) -> Fraction:
    """One unit of the last digit that is not a closing zero of an integer."""
    zeros = len(printed.digits) - len(printed.digits.rstrip("0")) if printed.digits.isdigit() else 0
    return printed.unit * 10 ** min(zeros, len(printed.digits) - 1)


def _slip(value: Fraction, printed: Printed) -> str:
    """Which slip of the pen turns ``value`` into what is printed; empty if none does."""
    for factor, words in ((10, "10 times too large"), (Fraction(1, 10), "10 times too small")):
        if rounds_to(value * factor, printed):
            return words
    meant = _show(_round(value, printed.unit), printed)
    digits, suffix = meant.removesuffix(printed.suffix), printed.suffix
    if len(digits.replace(".", "")) >= SWAP_DIGITS:
        for i in range(len(digits) - 1):
            swapped = digits[:i] + digits[i + 1] + digits[i] + digits[i + 2 :]
            if swapped == printed.digits and digits[i] != digits[i + 1]:
                return f"two digits swapped: {digits}{f' {suffix}' * bool(suffix)}"
    return ""


def _show(value: Fraction, printed: Printed) -> str:
    """``value`` in the notation of ``printed``: "0.01", "10K"."""
    if "/" in printed.digits:
        return str(value)
    decimals = len(printed.digits.partition(".")[2])
    return f"{float(value / SUFFIXES[printed.suffix]):.{decimals}f}{printed.suffix.removesuffix('%')}"
