"""Providers: ours and every rival compute the same thing, a wrong one has no speed, a missing one says why."""

import pytest
import torch

from sparsekern.measure.cases import ConvCase, GemmCase, LinearCase
from sparsekern.measure.providers import SETUPS, Setup, relative_error
from sparsekern.measure.providers.conv import dense_grouped, dense_stochastic
from sparsekern.measure.providers.linear import condensed, dense_weight

SMALL = {
    "linear": LinearCase("small", 5, in_features=32, out_features=12, density=0.25),
    "one row": LinearCase("small", 1, in_features=32, out_features=12, density=0.25),
    "features": LinearCase("small", 5, in_features=32, out_features=12, density=0.25, layout="features"),
    "blocks": LinearCase("small", 5, in_features=64, out_features=32, density=0.5, block_size=16),
    "bfloat16": LinearCase("small", 5, in_features=32, out_features=16, density=0.25, dtype="bfloat16"),
    "grouped": ConvCase("small", 2, channels=8, out_channels=12, size=5, kernel=3, padding=1, groups=4, layout="nchw"),
    "grouped nhwc": ConvCase("small", 2, channels=8, out_channels=12, size=5, kernel=3, padding=1, groups=4, layout="channels_last"),
    "spatial": ConvCase("small", 2, channels=4, out_channels=6, size=5, kernel=3, padding=1, density=0.4, granularity="spatial"),
    "synapse": ConvCase("small", 2, channels=4, out_channels=8, size=5, kernel=3, padding=1, density=0.4, granularity="synapse", share=4),
    "gemm": GemmCase("small", 3, m=4, k=5, n=6),
}


@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL.keys())
def test_every_provider_passes_the_gate(case, mode):
    setup = SETUPS[case.op](case, mode)
    errors = setup.check()
    assert set(errors) == set(setup.available)
    assert all(p.reason for p in setup.providers if p.call is None)
    ours = setup.available.get("ours")
    if ours is not None:
        rivals = setup.gated(ours)
        assert setup.baseline in rivals
        assert not any(name.endswith("_other") for name in rivals)
        assert "dense_prepacked" not in rivals


def test_a_wrong_provider_has_no_speed():
    truth = torch.randn(4, 4, dtype=torch.float64)
    setup = Setup(SMALL["linear"], "fwd", {"out": truth}, "dense", 1.0, 1, 1, 1, torch.float32, "rows")
    setup.add("dense", lambda: lambda: truth.float())
    setup.add("wrong", lambda: lambda: truth.float() * 1.001)
    with pytest.raises(ArithmeticError, match=r"small/0.25/n5/float32/rows: wrong must be within .* in out; got 0\.001"):
        setup.check()


@pytest.mark.parametrize("value", [torch.full((2,), float("nan")), torch.zeros(3)])
def test_nan_and_wrong_shapes_do_not_pass(value):
    setup = Setup(SMALL["linear"], "fwd", {"out": torch.ones(2).double()}, "dense", 1.0, 1, 1, 1, torch.float32, "rows")
    setup.add("dense", lambda: lambda: torch.ones(2))
    setup.add("wrong", lambda: lambda: value)
    with pytest.raises(ArithmeticError, match="wrong must be within"):
        setup.check()


def test_a_rival_that_cannot_run_says_why_and_ours_must_run():
    def fail():
        raise NotImplementedError("no such kernel\nand a long story")

    setup = Setup(SMALL["linear"], "fwd", {}, "dense", 1.0, 1, 1, 1, torch.float32, "rows")
    setup.add("rival", fail)
    assert setup.providers[0].reason == "no such kernel"
    assert not setup.available
    with pytest.raises(NotImplementedError):
        setup.add("ours", fail, ours=True)


def test_dense_weight_by_hand():
    weight, index = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0, 2], [1, 2]])
    dense, mask = dense_weight(weight, index, 3)
    assert dense.tolist() == [[1, 0, 2], [0, 3, 4]]
    assert mask.tolist() == [[1, 0, 1], [0, 1, 1]]
    blocks, table = torch.arange(8.0).view(1, 2, 2, 2), torch.tensor([[0, 2]])
    assert condensed(blocks, table)[0].tolist() == [[0, 1, 4, 5]] * 2
    assert dense_weight(blocks, table, 6)[0].tolist() == [[0, 1, 0, 0, 4, 5], [2, 3, 0, 0, 6, 7]]


def test_dense_grouped_by_hand():
    dense, mask = dense_grouped(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1), groups=2)
    assert dense.flatten(1).tolist() == [[1, 0], [2, 0], [0, 3], [0, 4]]
    assert mask.sum() == 4


def test_dense_stochastic_by_hand():
    case = ConvCase("c", 1, channels=2, out_channels=2, kernel=2)
    # filter 0 keeps tap 3 for both channels, filter 1 keeps taps 0 and 1
    weight = torch.arange(1.0, 7.0).view(3, 1, 2, 1)
    dense, mask = dense_stochastic(weight, torch.tensor([0, 1, 3]), torch.tensor([3, 0, 1]), case)
    assert dense.flatten(2).tolist() == [[[0, 0, 0, 1], [0, 0, 0, 2]], [[3, 5, 0, 0], [4, 6, 0, 0]]]
    assert mask.sum() == 6


def test_relative_error():
    assert relative_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]).double()) == 0.5
    assert relative_error(torch.empty(0), torch.empty(0).double()) == 0.0
