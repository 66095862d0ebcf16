"""torch's 16-bit convolutions are handed a product only where oneDNN has kernels for them: without, torch adds gradients up in 16 bits."""

from __future__ import annotations

import pytest
import torch

from sparsekern import GroupedConv2d, StochasticConv2d
from sparsekern.ops import backends

pytestmark = pytest.mark.skipif(not backends.native, reason="built without kernels")
HAS = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


def layers():
    grouped = GroupedConv2d(64, 64, 3, padding=1, groups=2, bias=False)
    return {"grouped": grouped, "masked": StochasticConv2d(64, 64, 3, padding=1, density=0.5, bias=False, seed=0)}


@pytest.mark.parametrize("dense", ["auto", "always"])
@pytest.mark.parametrize("dtype", HAS)
@pytest.mark.parametrize("name", ["grouped", "masked"])
def test_gradients_are_rounded_once(name, dtype, dense):
    torch.manual_seed(0)
    layer, x, g = layers()[name].to(dtype), torch.randn(4, 64, 14, 14).to(dtype), torch.randn(4, 64, 14, 14).to(dtype)
    exact = layer.to_dense().double()
    x64, size = x.double().requires_grad_(), x.double().abs().requires_grad_()
    exact(x64).backward(g.double())
    with torch.no_grad():
        exact.weight.abs_()
    exact(size).backward(g.double().abs())  # the sums of the terms' sizes
    given = x.clone().requires_grad_()
    with backends.use(backends.providers()[-1], dense=dense):
        layer(given).backward(g)
    terms = 64 * 9  # a sum in float32 of so many products, and one rounding to half a unit
    bound = terms * 2.0**-24 * size.grad + torch.finfo(dtype).eps / 2 * (x64.grad.abs() + terms * 2.0**-24 * size.grad)
    assert ((given.grad.double() - x64.grad).abs() <= bound + torch.finfo(dtype).smallest_normal).all()


@pytest.mark.parametrize("dtype", HAS)
def test_explain_says_so(dtype):
    there = getattr(torch.ops.mkldnn, HAS[dtype])()
    for name, layer in layers().items():
        with backends.use(backends.providers()[-1], dense="always"):
            servers = {line.split()[1] for line in str(layer.to(dtype).explain((4, 64, 14, 14))).splitlines()[1:]}
        assert bool(servers & {"torch", "dense"}) == there, (name, servers)
