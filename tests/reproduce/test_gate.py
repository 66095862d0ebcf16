"""The gate: a right kernel passes in either layout, and each kind of wrong one does not."""

import pytest
import torch
from torch import nn

from sparsekern.models import create_model
from sparsekern.reproduce.competitors import CHANNELS_LAST, NCHW, Competitor, our_competitors, torch_competitors
from sparsekern.reproduce.deep_roots import _Bench
from sparsekern.reproduce.gate import WrongResult


@pytest.fixture(scope="module")
def bench():
    with torch.inference_mode():
        return _Bench("nin_root_8", torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("competitor", torch_competitors(), ids=lambda competitor: competitor.name)
def test_torch_passes(bench, competitor):
    with torch.inference_mode():
        stack, model = bench.checked(competitor)
        stack()
        assert model().shape == (3, 10)


@pytest.mark.parametrize("competitor", our_competitors(), ids=lambda competitor: competitor.name)
@pytest.mark.parametrize("model_name", ["nin", "nin_root_4", "nin_tree_16", "nin_col_16"])
def test_ours_passes_and_says_who_serves(model_name, competitor):
    with torch.inference_mode():
        bench = _Bench(model_name, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
        bench.checked(competitor)
    served = bench.served[competitor.name]
    assert list(served) == [f"conv{level}{layer}" for level in "123" for layer in "abc"]
    assert all(who.split()[0] in ("sparsekern", "torch", "served") for who in served.values())


class Forgetful(nn.Conv2d):
    """Leaves out the last input channel of each group: off by little, and only where there is more than one channel."""

    def forward(self, x):
        weight = self.weight.clone()
        weight[:, -1] = 0
        return self._conv_forward(x, weight, self.bias)


class Biasless(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight, None)


class HalfPrecision(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x.bfloat16(), self.weight.bfloat16(), self.bias.bfloat16()).float()


class NotANumber(nn.Conv2d):
    def forward(self, x):
        out = super().forward(x)
        out[..., -1, -1] = float("nan")
        return out


class LastImage(nn.Conv2d):
    def forward(self, x):
        out = super().forward(x)
        out[-1] = out[0]
        return out


@pytest.mark.parametrize("wrong", [Forgetful, Biasless, HalfPrecision, NotANumber, LastImage])
@pytest.mark.parametrize("layout", [NCHW, CHANNELS_LAST])
def test_a_wrong_kernel_is_stopped_by_name(bench, wrong, layout):
    sentence = "conv1a of nin_root_8 by wrong must be within the float32 bound of the float64 result; got .* beyond it"
    with torch.inference_mode(), pytest.raises(WrongResult, match=sentence):
        bench.checked(Competitor("wrong", layout, wrong))


def test_right_layers_in_a_wrong_model_are_stopped(bench):
    pools = {"pool1": nn.AvgPool2d(3, stride=2, ceil_mode=True)}
    with torch.inference_mode():
        model = create_model("nin_root_8", conv=nn.Conv2d)
        swapped = _Bench("nin_root_8", bench.images, {NCHW: pools, CHANNELS_LAST: pools})
        assert isinstance(model.pool1, nn.MaxPool2d)
        with pytest.raises(WrongResult, match=r"output of nin_root_8 by nn\.Conv2d NCHW must be within"):
            swapped.checked(torch_competitors()[0])
