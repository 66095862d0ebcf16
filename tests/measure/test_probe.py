"""Every layer does what a user of PyTorch expects of a layer: one test per layer and probe (``sparsekern probe``)."""

import warnings

import pytest
import torch
from torch import nn

from sparsekern.measure.probe import PROBES, DoesNotApply, Subject, run_one, subjects


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("subject", subjects(), ids=lambda s: s.name.replace(" ", "_"))
def test_probe(subject, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            PROBES[name](subject)
        except DoesNotApply:
            pytest.skip("does not apply to this layer")


class Forgetful(nn.Linear):
    """A layer with the faults that the probes look for."""

    def __init__(self):
        super().__init__(4, 4)
        self.cached = self.weight.detach().clone()

    def forward(self, x):
        return nn.functional.linear(x.float(), self.cached, self.bias)


def test_the_probes_see_faults():
    subject = Subject(
        "Forgetful", lambda seed=0, bias=True, **more: Forgetful(), lambda batch: torch.randn(batch, 4),
        lambda layer, weight: weight, nn.functional.linear, lambda layer: 99,
    )  # fmt: skip
    for name in ("forward_backward", "weights_written_behind_its_back", "float64_is_kept", "no_bias", "flop_counter"):
        assert run_one(PROBES[name], subject).startswith("FAIL: "), name
    assert run_one(PROBES["index_beyond_int16"], subject) == "-"
