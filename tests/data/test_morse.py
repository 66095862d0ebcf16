"""The Morse generator: its codebook, what its samples can look like, and the same draws everywhere."""

from __future__ import annotations

import hashlib

import pytest
import torch

from sparsekern.data import morse
from sparsekern.data.morse import CODEBOOK, PER_CLASS

NAMES = list(CODEBOOK)


def runs(row) -> list[tuple[bool, int]]:
    """Lit and dark stretches with their lengths, dark ends cut off."""
    out: list[tuple[bool, int]] = []
    for lit in (row > 0).tolist():
        out = [*out[:-1], (lit, out[-1][1] + 1)] if out and out[-1][0] == lit else [*out, (lit, 1)]
    while out and not out[-1][0]:
        out.pop()
    return out[1:] if out and not out[0][0] else out


def test_codebook():
    assert len(CODEBOOK) == 64 == sum(PER_CLASS.values()) // 7000 * 64
    by_length = {n: {code for code in CODEBOOK.values() if len(code) == n} for n in range(1, 7)}
    assert {n: len(codes) for n, codes in by_length.items()} == {1: 2, 2: 4, 3: 8, 4: 16, 5: 21, 6: 12}  # all up to 4 symbols
    assert CODEBOOK["S"] == "..." and CODEBOOK["O"] == "---" and CODEBOOK["Q"] == "--.-" and CODEBOOK["7"] == "--..."
    # the published trap: 63 codewords for 64 classes
    assert len(set(CODEBOOK.values())) == 63 and CODEBOOK["H^"] == CODEBOOK["("] == "-.--."


@pytest.mark.parametrize("options, dash", [(dict(), (4, 9)), (dict(variant="difficult", noise_sd=0.0), (3, 9)), (dict(style="bw"), (4, 9))])
def test_samples_spell_their_codeword(options, dash):
    data = morse("val", per_class=40, **options)
    assert data.x.shape == (2560, 64) and data.x.dtype == torch.float32 and torch.bincount(data.y).tolist() == [40] * 64
    widths = {".": set(), "-": set(), " ": set()}
    for row, label in zip(data.x, data.y.tolist()):
        code = " ".join(CODEBOOK[NAMES[label]])
        stretches = runs(row)
        assert len(stretches) == len(code)
        for symbol, (lit, width) in zip(code, stretches):
            assert lit == (symbol != " ")
            widths[symbol].add(width)
    assert widths == {".": {1, 2, 3}, "-": set(range(dash[0], dash[1] + 1)), " ": {1, 2, 3}}
    starts = (data.x > 0).float().argmax(1)
    assert (starts > 0).any() == ("variant" in options)


def test_levels():
    x = morse("train", per_class=300).x
    lit = x[x > 0]
    assert (x >= 0).all() and (x <= 1).all() and torch.equal(x, (x.double() * 1000).round().div(1000).float())
    assert abs(lit.mean() * 16 - 12) < 0.02 and abs(lit.std() * 16 - 1.34) < 0.02
    noisy = morse("train", "difficult", per_class=300, leading=False).x
    last = noisy[:, -1] * 16  # nearly always empty: N(0, 4), cut at 0
    assert abs((last == 0).float().mean() - 0.5) < 0.02 and abs(last[last > 0].square().mean() - 16) < 1
    assert morse("train", per_class=5, style="bw").x.unique().tolist() == [0, 1]


def test_flips():
    clean, flipped = (morse("test", per_class=200, style="bw", max_flip=n, seed=3) for n in (0, 4))
    assert torch.equal(clean.y, flipped.y)
    number = (clean.x != flipped.x).sum(1)
    counts = torch.bincount(number, minlength=5)
    assert len(counts) == 5 and ((counts - 2560).abs() < 5 * (12800 * 0.16) ** 0.5).all()  # 0 to 4, equally likely


def test_dilation():
    data = morse("val", per_class=3, dilation=2)
    assert data.x.shape == (192, 128)
    widths = {width for row in data.x for lit, width in runs(row) if lit}
    assert min(widths) >= 2 and max(widths) <= 18 and max(widths) > 9


def test_splits_and_seeds_are_draws_of_their_own_and_pinned():
    one = morse("train", "difficult", per_class=4)
    again = morse("train", "difficult", per_class=4)
    assert torch.equal(one.x, again.x) and torch.equal(one.y, again.y)
    for other in (morse("test", "difficult", per_class=4), morse("train", "difficult", per_class=4, seed=1)):
        assert not torch.equal(one.x, other.x)
    assert hashlib.md5(one.x.mul(1000).round().short().numpy().tobytes()).hexdigest() == "6dac9b1f80cf6b6fea6a8cf3f6f1c638"
    state = torch.get_rng_state()
    morse("val", per_class=1)
    assert torch.equal(state, torch.get_rng_state())


def test_default_sizes():
    assert len(morse("val", style="bw")) == 64000 and PER_CLASS == {"train": 5000, "val": 1000, "test": 1000}


@pytest.mark.parametrize(
    "options, sentence",
    [
        (dict(split="valid"), "split must be one of ['test', 'train', 'val']; got 'valid'"),
        (dict(variant="hard"), "variant must be one of ['baseline', 'difficult']; got 'hard'"),
        (dict(style="rgb"), "style must be one of ['bw', 'gray']; got 'rgb'"),
        (dict(dash=(9, 4)), "dash must be a shortest and a longest length, of at least 1 cell; got (9, 4)"),
        (dict(dash=(4, 20)), "dot, dash and space must be short enough for every codeword to fit 64 cells; got one of up to 112"),
        (dict(per_class=-1), "per_class must be at least 0; got -1"),
        (dict(max_flip=65), "max_flip must be in [0, 64]; got 65"),
        (dict(seed=-1), "seed must be at least 0; got -1"),
        (dict(dilation=0), "dilation must be at least 1; got 0"),
    ],
)
def test_bad_arguments(options, sentence):
    with pytest.raises(ValueError) as raised:
        morse(**options)
    assert str(raised.value) == f"morse: {sentence}"
