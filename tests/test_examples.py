"""The example scripts run, and what they print holds."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

#: What each prints beside its reports; those that take longer than a second or two are run by the full tests.
SAID = {
    "export_dense": ["convert: 2 of 2 layers swapped", "the exported file differs"],
    "mlp": ["dense:   accuracy 0.9", "sparse:  accuracy 0.9", "layers swapped (if_faster; training step"],
    "resnet50_root": ["layers swapped (if_faster; inference", "layer1.0.conv2  16 groups", "Conv2d again", "-> 18,744,104"],
    "sis_nin": ["convert: 3 of 3 layers swapped", "spatial mask", "step 4"],
    "vit_feed_forward": ["layers swapped (if_faster; inference", "MultiheadAttention reads its weight", "blocks 16x16"],
}


def test_every_example_is_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SAID)


@pytest.mark.parametrize("name", [name if name == "export_dense" else pytest.param(name, marks=pytest.mark.slow) for name in SAID])
def test_an_example_runs(name, capsys):
    if name == "mlp":
        pytest.importorskip("sklearn")
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    text = capsys.readouterr().out
    for words in SAID[name]:
        assert words in text, text
    differences = [float(number) for number in re.findall(r"differs .*by (\S+)", text)]
    assert all(difference < 1e-4 for difference in differences) and (differences or name == "sis_nin"), text
