"""More than 2^31 elements in x, in the output and in the weight, and 10^8 connections: indices in 64 bits everywhere. Within 16 GiB."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsekern.ops import OPS, backends, grouped_conv2d_packed, pack_grouped_conv2d
from sparsekern.ops.sparse_linear import plan_sparse_linear
from sparsekern.topology import fan_in_table

sparse_linear, grouped_conv2d, sparse_conv2d = (OPS[name].function for name in ("sparse_linear", "grouped_conv2d", "sparse_conv2d"))
MANY, GIB = 2**31, 1 << 30


def free_bytes() -> int:
    """Of memory, by what the machine says and what a group of processes may have."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(free_bytes() < 12 * GIB, reason="less than 12 GiB of memory are free"),
    pytest.mark.skipif(not backends.has_kernels("cpu"), reason="built without kernels"),
]


@pytest.fixture(autouse=True)
def our_kernels():
    with backends.use(backends.providers()[-1], dense="never" if backends.native else "auto"), torch.no_grad():
        yield


def pattern(*size: int) -> torch.Tensor:
    """Small whole numbers, so that sums are exact, which repeat after a prime: what lies 2^31 or 2^32 away is another one."""
    out, period = torch.empty(size), 1_000_003
    numbers = torch.randint(-3, 4, (period,), generator=torch.Generator().manual_seed(0)).float()
    flat = out.view(-1)
    whole = flat.numel() // period * period
    flat[:whole].view(-1, period).copy_(numbers)
    flat[whole:].copy_(numbers[: flat.numel() - whole])
    return out


def test_rows_of_x():
    rows, inputs = 2**16 + 3, 2**15
    x, index = pattern(rows, inputs), fan_in_table(inputs, 5, 40, seed=0)
    weight = pattern(5, 40)
    assert x.numel() > MANY
    out = sparse_linear(x, weight, index)
    for row in (0, 1, rows // 2, rows - 2, rows - 1):
        assert torch.equal(out[row], (x[row][index.long()] * weight).sum(1)), row


def test_rows_of_the_output():
    rows, outputs = 2**15 + 3, 2**16
    x, index, weight = pattern(rows, 16), fan_in_table(16, outputs, 2, seed=0), pattern(outputs, 2)
    out = sparse_linear(x, weight, index)
    assert out.numel() > MANY
    for row in (0, 1, rows // 2, rows - 2, rows - 1):
        assert torch.equal(out[row], (x[row][index.long()] * weight).sum(1)), row


def test_numbers_in_a_weight_of_blocks():
    in_blocks, out_blocks, fan_in = 1030, 8200, 1024
    index = fan_in_table(in_blocks, out_blocks, fan_in, seed=0)
    weight = pattern(out_blocks, fan_in, 16, 16)
    assert weight.numel() > MANY
    plan, x = plan_sparse_linear(index, in_blocks * 16, (16, 16)), pattern(1, in_blocks * 16)
    out = sparse_linear(x, weight, index, None, plan).view(out_blocks, 16)
    for block in (0, 1, out_blocks // 2, out_blocks - 1):
        read = x.view(in_blocks, 16)[index[block].long()]
        assert torch.equal(out[block], torch.einsum("foi,fi->o", weight[block], read)), block


def test_a_hundred_million_connections():
    inputs, outputs, fan_in = 1 << 20, 100_000, 1000
    index = fan_in_table(inputs, outputs, fan_in, seed=0)
    weight, x = pattern(outputs, fan_in), pattern(2, inputs)
    plan = plan_sparse_linear(index, inputs)
    x.requires_grad_(), weight.requires_grad_()
    with torch.enable_grad():
        out = sparse_linear(x, weight, index, None, plan)
        grad_out = pattern(2, outputs)
        grad_x, grad_weight = torch.autograd.grad(out, (x, weight), grad_out)
    x, weight = x.detach(), weight.detach()
    for row in (0, outputs // 2, outputs - 1):
        read = x[:, index[row].long()]
        assert torch.equal(out[:, row].detach(), (read * weight[row]).sum(1)), row
        assert torch.equal(grad_weight[row], (grad_out[:, row, None] * read).sum(0)), row
    for at in (0, inputs // 2, inputs - 1):
        where = (index == at).nonzero()
        want = (grad_out[:, where[:, 0]] * weight[where[:, 0], where[:, 1]]).sum(1)
        assert torch.equal(grad_x[:, at], want), at


def test_every_input_of_a_wide_layer():
    """A fan-in of all inputs, 4 million."""
    inputs = 1 << 22
    index, x = torch.arange(inputs, dtype=torch.int32).expand(3, inputs), pattern(1, inputs)
    weight = pattern(3, inputs)
    assert torch.equal(sparse_linear(x, weight, index), (x * weight).sum(1, keepdim=True).t())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels_last"])
def test_pixels_of_an_image(layout):
    channels, size = 16, 11600
    x = pattern(1, size, size, channels).permute(0, 3, 1, 2) if layout == torch.channels_last else pattern(1, channels, size, size)
    weight = pattern(4, 4, 1, 1)
    assert x.numel() > MANY
    window = dict(stride=29, groups=4)
    packed = pack_grouped_conv2d(weight, stride=29, groups=4)
    results = [grouped_conv2d(x, weight, **window), grouped_conv2d_packed(x, packed, None, 4, 1, **window)]
    for row, column in ((0, 0), (399, 0), (0, 399), (399, 399), (200, 131)):
        read = x[0, :, row * 29, column * 29].view(4, 4)
        for out in results:
            assert torch.equal(out[0, :, row, column], (weight.view(4, 4) * read).sum(1)), (row, column)
