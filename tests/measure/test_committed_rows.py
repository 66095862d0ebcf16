"""The committed rows keep the goals, and today's dispatcher chooses what they were measured with."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from statistics import median

import pytest
import torch

from sparsekern.measure import cases
from sparsekern.measure.floors import GOALS, MUSTS
from sparsekern.measure.providers.common import served_by
from sparsekern.measure.providers.conv import _layer
from sparsekern.measure.providers.linear import make_layer
from sparsekern.measure.rows import read_rows
from sparsekern.ops import backends

FILES = sorted((Path(__file__).resolve().parents[2] / "bench" / "results").glob("*.jsonl"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_goals_are_met(file):
    rows = {row.case: row for row in read_rows(file) if row.provider == "ours" and row.key[1:4] == ("fwd", "hot", "1t")}
    assert rows
    for case, floors in GOALS.items():
        for rival, floor in floors.items():
            _, middle, _ = rows[case].ratios[rival]
            assert middle >= floor, f"{case}: {middle:.2f}x {rival}, goal {floor}"


@pytest.mark.parametrize("case", MUSTS)
def test_musts_hold_in_the_median_of_all_runs(case):
    files = [*FILES, *sorted((FILES[0].parent / "repeats").glob("*.jsonl"))]
    runs = [row.ratios for f in files for row in read_rows(f) if row.key == (case, "fwd", "hot", "1t", "ours")]
    assert runs
    for rival, must in MUSTS[case].items():
        assert median(ratios[rival][1] for ratios in runs) >= must, f"{case}: {rival}"


@cache
def layers(case):
    return make_layer(case).to(getattr(torch, case.dtype))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_dispatcher_chooses_what_was_measured(file):
    known = {case.id: case for kind in ("linear", "conv") for case in cases.select(kind)}
    torch.set_num_threads(1)
    checked = 0
    for row in read_rows(file):
        provider = f"cpu/{row.machine['isa']}"
        if row.key[1:] != ("fwd", "hot", "1t", "ours") or row.case not in known or provider not in backends.providers():
            continue
        case = known[row.case]
        if row.op == "sparse_linear":
            layer = layers(case.with_(batch=1, runs=()))
            x = torch.empty(case.batch, case.in_features, dtype=layer.weight.dtype)
        else:
            layer = _layer(case, 0)
            x = torch.empty(case.batch, case.channels, case.size, case.size)
            if case.layout == "channels_last":
                x = x.contiguous(memory_format=torch.channels_last)
        with backends.use(provider):
            now = served_by(row.op, layer, x, "fwd").partition("estimated")[0]
        assert row.served_by.startswith(now), f"{row.case}: measured {row.served_by}, now {now}"
        checked += 1
    if not checked:
        pytest.skip("rows of another instruction set")
