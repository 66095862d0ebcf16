"""A packed weight computes what the unpacked one does, for every sample, dtype and instruction set."""

from __future__ import annotations

import pytest
import torch

from sparsekern.ops import OPS, backends, pack_sparse_linear, sparse_linear_packed
from sparsekern.ops.sparse_linear_packed import unpack_sparse_linear
from sparsekern.topology import balanced_table, fan_in_table

OP = OPS["sparse_linear"]
NAMES = [s.name for s in OP.samples(torch.device("cpu"), torch.float32) if s.name != "no_outputs"]


def packed_sample(name, dtype=torch.float32):
    inputs = next(s for s in OP.samples(torch.device("cpu"), dtype) if s.name == name).inputs
    packed = pack_sparse_linear(inputs["weight"], inputs["index"], inputs["x"].shape[-1])
    bias = inputs["bias"]
    block = inputs["weight"].shape[2] if inputs["weight"].dim() == 4 else 1
    return inputs, (inputs["x"], packed, bias, inputs["weight"].shape[0] * block, inputs["weight"].numel())


@pytest.mark.parametrize("name", NAMES)
def test_pack_holds_weight_and_index(name):
    inputs, (_, packed, *_rest) = packed_sample(name)
    weight, index = unpack_sparse_linear(packed)
    assert torch.equal(weight, inputs["weight"]) and torch.equal(index, inputs["index"])


# in, out, fan-in: with places in windows, rows of 16, zeros kept, and no connections in the order of segments; words of 32 cut and whole
@pytest.mark.parametrize("sizes", [(300, 70, 20), (40, 33, 1), (64, 48, 40), (99, 37, 70), (96, 16, 96), (20, 9, 15), (700, 5, 3)])
@pytest.mark.parametrize("draw", [fan_in_table, balanced_table], ids=["random", "balanced"])
def test_pack_of_every_kind_holds_weight_and_index(sizes, draw):
    inputs, outputs, fan_in = sizes
    table = draw(inputs, outputs, fan_in, seed=1)
    weight = torch.randn(outputs, fan_in)
    kept, index = unpack_sparse_linear(pack_sparse_linear(weight, table, inputs))
    assert torch.equal(kept, weight) and torch.equal(index, table)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("provider", backends.providers())
@pytest.mark.parametrize("name", NAMES)
def test_values(name, provider, dtype):
    inputs, args = packed_sample(name, dtype)
    with backends.use(provider):
        out = sparse_linear_packed(*args)
    double = {k: v.double() if v is not None and v.is_floating_point() else v for k, v in inputs.items()}
    with backends.use("reference"):
        truth = OP.function(**double)
        size = OP.function(**{k: v.abs() if v is not None and v.is_floating_point() else v for k, v in double.items()})
    terms = inputs["weight"][0].numel() + 1
    store = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(dtype, 0.0)
    bound = ((terms + 2) * 2.0**-24 + store) * size * (1 + 1e-3) + (2.0**-24 if dtype == torch.float16 else 0)
    assert out.dtype == dtype and out.shape == truth.shape and out.stride() == OP.function(**inputs).stride()
    assert ((out.double() - truth).abs() <= bound).all()


def test_compile_export_and_flops():
    from torch.utils.flop_counter import FlopCounterMode

    _, args = packed_sample("odd_batch")
    x, packed, bias, *sizes = args
    f = lambda x: sparse_linear_packed(x, packed, bias, *sizes)  # noqa: E731
    assert torch.equal(torch.compile(f, backend="aot_eager", fullgraph=True)(x), f(x))
    torch.library.opcheck(torch.ops.sparsekern.sparse_linear_packed.default, args)
    with FlopCounterMode(display=False) as counter:
        f(x)
    assert counter.get_total_flops() == 2 * x.shape[0] * sizes[1]


def test_bad_input():
    _, (x, packed, bias, outputs, kept) = packed_sample("odd_batch")

    def says(sentence, *args, error=ValueError):
        for scope in ("reference", backends.providers()[-1]):
            with backends.use(scope), pytest.raises(error) as raised:
                sparse_linear_packed(*args)
            assert str(raised.value) == f"sparse_linear_packed: {sentence}"

    says("x must be [..., 40]; got [5, 39]", x[:, :39], packed, bias, outputs, kept)
    says("x must be float32, float16 or bfloat16; got torch.float64", x.double(), packed, bias, outputs, kept)
    says("packed must be made by pack_sparse_linear; got 64 other numbers", x, torch.zeros(64, dtype=torch.int32), bias, outputs, kept)
    says("packed must be of 24 outputs and 161 weights; got 23 and 161", x, packed, None, 24, kept)
    says("bias must be [23]; got [22]", x, packed, bias[:22], outputs, kept)
    says("x must be a tensor; got NoneType", None, packed, bias, outputs, kept, error=TypeError)
    with pytest.raises(ValueError, match="sparse_linear_packed: weight must be float32, float16 or bfloat16 on a CPU"):
        pack_sparse_linear(torch.ones(2, 2, dtype=torch.float64), torch.tensor([[0, 1]] * 2).int(), 4)
    with pytest.raises(ValueError, match=r"sparse_linear: index must be in \[0, 4\); got 4 at \[0, 1\]"):
        pack_sparse_linear(torch.ones(2, 2), torch.tensor([[0, 4]] * 2).int(), 4)


def test_autocast_gives_what_the_unpacked_op_gives():
    inputs, (x, packed, bias, *sizes) = packed_sample("one")
    with torch.autocast("cpu", torch.bfloat16):
        out, unpacked = sparse_linear_packed(x, packed, bias, *sizes), OP.function(**inputs)
        graph = torch.export.export(Packed(), (x, packed, bias, *sizes))
    assert out.dtype == unpacked.dtype == torch.bfloat16
    assert torch.allclose(out.float(), unpacked.float(), rtol=2**-6, atol=2**-6)
    assert graph.module()(x, packed, bias, *sizes).dtype == torch.bfloat16


class Packed(torch.nn.Module):
    def forward(self, x, packed, bias, out_features, kept):
        return sparse_linear_packed(x, packed, bias, out_features, kept)
