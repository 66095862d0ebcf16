"""A graph is one path through a model: calls that would take another one are refused, not answered wrongly."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from torch import nn

from sparsekern.transform import optimize


class Optional(nn.Module):
    """What may be left out, or is a truth or a word, decides."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x, w=None, twice=False, how="sum", by=1.0, *rest, **more):
        y = self.conv(x) if w is None else self.conv(x) * w
        if more.get("noise") is not None:
            y = y + more["noise"]
        for part in rest if isinstance(rest, tuple) else ():
            y = y + part
        y = (2 * y if twice else y) * by
        return y.sum((2, 3)) if how == "sum" else y.mean((2, 3))


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x, pair):
        return self.conv(x) * (1 if pair[1] is None else pair[0] + pair[1])


def optimized(monkeypatch, model, *example):
    times = lambda calls, *_: {name: float(name != "optimized") for name in calls}  # noqa: E731
    monkeypatch.setattr(sys.modules["sparsekern.transform.optimize"], "race", times)
    fast = optimize(model.eval(), *example)
    assert fast.report.chosen == "optimized"
    return fast


IMAGES, W = torch.randn(2, 3, 6, 6), torch.rand(4, 1, 1) + 1
EXAMPLES = [(), (W,), (None,), (W, True), (None, True, "mean"), (None, False, "sum", 3.0)]
OTHERS = {
    "w must be given": [(), (None,)],
    "w must be None": [(W,)],
    "twice must be": [(W, True), (W, False), (None, True), (None, False)],
    "how must be": [(None, False, "mean"), (None, True, "sum")],
}


@pytest.mark.parametrize("example", EXAMPLES)
@torch.no_grad()
def test_calls_that_would_go_another_way_are_refused(example, monkeypatch):
    model, x = Optional().eval(), torch.randn(3, 3, 7, 7)
    fast = optimized(monkeypatch, model, IMAGES, *example)
    torch.testing.assert_close(fast(x, *example), model(x, *example))
    torch.testing.assert_close(fast(x, *example[:3], by=2.0), model(x, *example[:3], by=2.0)) if len(example) < 4 else None
    refused = 0
    for same in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        for other in (other for others in OTHERS.values() for other in others):
            try:
                torch.testing.assert_close(same(x, *other), model(x, *other))
            except ValueError as error:
                refused += 1
                assert any(f"optimize: {rule}" in str(error) for rule in OTHERS) and "the example" in str(error)
        with pytest.raises(ValueError, match=r"^optimize: \*\*more must be \{\}, as in the example; got \{"):
            same(x, *example, noise=torch.ones(1))
    assert refused >= 9


@torch.no_grad()
def test_a_part_that_is_missing_is_refused(monkeypatch):
    fast = optimized(monkeypatch, Pairs(), IMAGES, (W, W))
    with pytest.raises(ValueError, match=r"^optimize: pair must be given where the example has it; got "):
        fast(IMAGES, (W, None))
