"""Morse code, drawn: 64 classes of 64 cells, the data set on which connection patterns show most.

A codeword becomes a row of cells. A dot is 1 to 3 cells long, a dash 4 to 9, with 1 to 3 empty cells between two symbols; each cell of
a symbol has a level drawn from N(12, 1.34); the rest of the 64 cells is empty. Noise is added to every cell; levels are cut to [0, 16],
divided by 16 and rounded to three decimals.

Source: Dey, Chugg and Beerel, "Morse Code Datasets for Machine Learning", 2018, and the parameters of its published generator.
Two of its 64 classes, ``H^`` and ``(``, have the same codeword ``-.--.``: no net can tell them apart, and one of the two is always
wrong, so the expected accuracy of the best possible net is 63/64 = 98.4 %. Both are kept, for the numbers to be comparable.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import torch

from sparsekern.arguments import is_whole
from sparsekern.data.samples import Samples

#: Codeword of each class; a class's label is its place here.
CODEBOOK: dict[str, str] = {
    "0": "-----", "1": ".----", "2": "..---", "3": "...--", "4": "....-",
    "5": ".....", "6": "-....", "7": "--...", "8": "---..", "9": "----.",
    "A": ".-", "B": "-...", "C": "-.-.", "D": "-..", "E": ".", "F": "..-.", "G": "--.", "H": "....", "I": "..",
    "J": ".---", "K": "-.-", "L": ".-..", "M": "--", "N": "-.", "O": "---", "P": ".--.", "Q": "--.-", "R": ".-.",
    "S": "...", "T": "-", "U": "..-", "V": "...-", "W": ".--", "X": "-..-", "Y": "-.--", "Z": "--..",
    "CH": "----", "O..": "---.", "A..": ".-.-", "U..": "..--", "N~": "--.--", "G^": "--.-.", "H^": "-.--.", "(": "-.--.", "C,": "-.-..",
    "/": "-..-.", "=": "-...-", "J^": ".---.", "+": ".-.-.", "D-": "..--.", "E`": "..-..", "S^": "...-.", ":": "---...", ",": "--..--",
    ")": "-.--.-", "!": "-.-.--", ";": "-.-.-.", "-": "-....-", "'": ".----.", "@": ".--.-.", ".": ".-.-.-", '"': ".-..-.",
    "_": "..--.-", "?": "..--..",
}  # fmt: skip

FRAME = 64  # cells
LEVELS, MEAN, DEVIATION = 16, 12.0, 1.34
PER_CLASS = {"train": 5000, "val": 1000, "test": 1000}
VARIANTS = {"baseline": {}, "difficult": {"noise_sd": 4.0, "leading": True, "dash": (3, 9)}}


def morse(
    split: str = "train",
    variant: str = "baseline",
    *,
    per_class: int | None = None,
    noise_sd: float | None = None,
    leading: bool | None = None,
    dot: tuple[int, int] = (1, 3),
    dash: tuple[int, int] | None = None,
    space: tuple[int, int] = (1, 3),
    dilation: int = 1,
    style: str = "gray",
    max_flip: int = 0,
    seed: int = 0,
) -> Samples:
    """Draw a split of the Morse code data set.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``: draws of their own.
        variant: ``"baseline"``: no noise, no leading spaces; ``"difficult"``: noise 4, leading spaces, dashes of 3 to 9 cells.
        per_class: samples per class; default 5000, 1000, 1000.
        noise_sd: deviation of the noise on every cell, in levels (of 16); gray only.
        leading: a random part of the empty cells comes before the codeword, not all after it.
        dot, dash, space: shortest and longest, in cells.
        dilation: multiplies all lengths and the frame.
        style: ``"gray"`` levels, or ``"bw"``: cells of 0 and 1.
        max_flip: with ``"bw"``: up to so many cells, a number drawn uniformly, are inverted.
        seed: the same samples on every machine.

    Returns:
        :class:`~sparsekern.data.Samples`, ``[64 * per_class, 64 * dilation]`` float32 in [0, 1], shuffled; labels as in ``CODEBOOK``.

    Raises:
        ValueError: ``morse: variant must be one of ['baseline', 'difficult']; got 'hard'``

    Cost:
        Seconds for the full training split of 320,000 samples.

    Example:
        >>> data = morse("val", per_class=10)
        >>> data.x.shape, data.classes
        (torch.Size([640, 64]), 64)
    """
    _check(isinstance(split, str) and split in PER_CLASS, "split", f"one of {sorted(PER_CLASS)}", repr(split))
    _check(isinstance(variant, str) and variant in VARIANTS, "variant", f"one of {sorted(VARIANTS)}", repr(variant))
    _check(isinstance(style, str) and style in ("gray", "bw"), "style", "one of ['bw', 'gray']", repr(style))
    told = {"noise_sd": noise_sd, "leading": leading, "dash": dash}
    options: dict[str, Any] = {"noise_sd": 0.0, "leading": False, "dash": (4, 9), **VARIANTS[variant]}
    options |= {k: v for k, v in told.items() if v is not None}
    count = PER_CLASS[split] if per_class is None else per_class
    for name, number in {"per_class": count, "dilation": dilation, "max_flip": max_flip, "seed": seed}.items():
        _check(is_whole(number, 2**31 - 1 if name == "per_class" else 2**63 - 1), name, "a whole number", repr(number))
    noise: Any = options["noise_sd"]
    _check(isinstance(noise, Real) and 0 <= float(noise) < float("inf"), "noise_sd", "a finite number of at least 0", noise)
    _check(count >= 0, "per_class", "at least 0", count)
    _check(dilation >= 1, "dilation", "at least 1", dilation)
    _check(dilation < 2**20, "dilation", "below 2^20", dilation)
    _check(leading is None or isinstance(leading, bool), "leading", "None, True or False", repr(leading))
    _check(seed >= 0, "seed", "at least 0", seed)
    for name, lengths in {"dot": dot, "dash": options["dash"], "space": space}.items():
        pair = isinstance(lengths, tuple | list) and len(lengths) == 2 and all(isinstance(n, int) for n in lengths)
        _check(pair, name, "two whole numbers", repr(lengths))
        low, high = lengths
        _check(1 <= low <= high, name, "a shortest and a longest length, of at least 1 cell", (low, high))
    frame = FRAME * dilation
    lengths = {".": dot, "-": options["dash"], " ": space}
    dilated = {symbol: (low * dilation, high * dilation) for symbol, (low, high) in lengths.items()}
    longest = max(sum(dilated[symbol][1] for symbol in " ".join(code)) for code in CODEBOOK.values())
    _check(longest <= frame, "dot, dash and space", f"short enough for every codeword to fit {frame} cells", f"one of up to {longest}")
    _check(0 <= max_flip <= frame, "max_flip", f"in [0, {frame}]", max_flip)

    x = np.empty((len(CODEBOOK), count, frame), np.float32)
    for label, code in enumerate(CODEBOOK.values()):
        draw = np.random.default_rng([seed, sorted(PER_CLASS).index(split), label])
        lit = _lit_cells(
            draw, code, count, {s: (low * dilation, high * dilation) for s, (low, high) in lengths.items()}, frame, options["leading"]
        )
        if style == "bw":
            x[label] = lit ^ _flips(draw, count, frame, max_flip)
        else:
            level = np.where(lit, draw.normal(MEAN, DEVIATION, lit.shape), 0.0)
            if options["noise_sd"]:
                level += draw.normal(0.0, options["noise_sd"], lit.shape)
            x[label] = np.around(level.clip(0, LEVELS) / LEVELS, 3)
    order = np.random.default_rng([seed, sorted(PER_CLASS).index(split), len(CODEBOOK)]).permutation(len(CODEBOOK) * count)
    labels = np.repeat(np.arange(len(CODEBOOK)), count)[order]
    return Samples(torch.from_numpy(x.reshape(-1, frame)[order]), torch.from_numpy(labels), len(CODEBOOK))


def _lit_cells(
    draw: np.random.Generator, code: str, count: int, lengths: dict[str, tuple[int, int]], frame: int, leading: bool
) -> np.ndarray:
    """``[count, frame]`` bool: which cells belong to a dot or a dash."""
    parts = " ".join(code)  # dot, dash and the space between two of them: every other part is lit
    widths = np.stack([draw.integers(*lengths[part], count, endpoint=True) for part in parts], axis=1)  # [count, parts]
    ends = widths.cumsum(axis=1)
    start = draw.integers(0, frame - ends[:, -1], endpoint=True) if leading else np.zeros(count, np.int64)
    cells = np.arange(frame) - start[:, None]  # [count, frame], counted from the codeword's first
    part = (ends[:, None, :] <= cells[:, :, None]).sum(axis=2)
    return (cells >= 0) & (part < len(parts)) & (part % 2 == 0)


def _flips(draw: np.random.Generator, count: int, frame: int, max_flip: int) -> np.ndarray:
    """``[count, frame]`` bool: a uniform number up to ``max_flip`` of different cells each."""
    number = draw.integers(0, max_flip, count, endpoint=True)
    rank = draw.random((count, frame)).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return rank < number[:, None]


def _check(condition: bool, arg: str, rule: str, got: object) -> None:
    if not condition:
        raise ValueError(f"morse: {arg} must be {rule}; got {got}")
