"""What is special to sparse_conv2d: a convolution worked by hand, one plan for every image, layouts, rows without weights."""

from __future__ import annotations

import pytest
import torch

from sparsekern.ops import backends
from sparsekern.ops.sparse_conv2d import block_view, dense_weight, kept_weight, plan_sparse_conv2d, sparse_conv2d


def table(*values):
    return torch.tensor(values, dtype=torch.int32)


def random_bank(filters, channels, kernel, block, density=0.3):
    codes = channels // block[1] * (kernel[0] * kernel[1] // block[2])
    keep = torch.rand(filters // block[0], codes) < density
    indptr = torch.cat([torch.zeros(1), keep.sum(1).cumsum(0)]).int()
    index = keep.nonzero()[:, 1].int()
    return torch.randn(len(index), *block), indptr, index


def test_by_hand():
    x = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    # filter 0: top left + 10 * bottom right; filter 1: nothing; filter 2: 100 * top right
    weight, indptr, index = torch.tensor([1.0, 10.0, 100.0]).reshape(3, 1, 1, 1), table(0, 2, 2, 3), table(0, 3, 1)
    out = sparse_conv2d(x, weight, indptr, index, 2, bias=torch.tensor([0.0, 7.0, 0.5]))
    assert out[0, 0].tolist() == [[51.0, 62.0], [84.0, 95.0]]
    assert out[0, 1].tolist() == [[7.0, 7.0], [7.0, 7.0]]
    assert out[0, 2].tolist() == [[200.5, 300.5], [500.5, 600.5]]


@pytest.mark.parametrize("block", [(1, 1, 1), (1, 32, 1), (1, 1, 6), (4, 1, 1), (16, 16, 6), (8, 32, 1)])
def test_dense_weight_and_back(block):
    weight, indptr, index = random_bank(32, 32, (2, 3), block)
    dense = dense_weight(weight, indptr, index, 32, (2, 3))
    assert (dense != 0).sum() == weight.numel()
    assert torch.equal(kept_weight(dense, indptr, index, block), weight)
    assert torch.equal((block_view(dense, block) != 0).flatten(1).any(1).sum(), torch.tensor(len(index)))


@pytest.mark.skipif(not backends.has_kernels("cpu"), reason="needs the compiled kernels")
@pytest.mark.parametrize("block", [(1, 1, 1), (1, 32, 1), (4, 1, 1)])
def test_one_plan_serves_every_image_and_window(block):
    weight, indptr, index = random_bank(16, 32, (3, 3), block)
    plan = plan_sparse_conv2d(indptr, index, 32, (3, 3), block)
    for size, window in [((8, 8), (1, 1, 1)), ((17, 5), (2, 0, 1)), ((16, 33), (1, (1, 2), (1, 2)))]:
        x = torch.randn(2, 32, *size)
        stride, padding, dilation = window
        options = dict(stride=stride, padding=padding, dilation=dilation)
        with backends.use(backends.providers()[-1], dense="never" if backends.native else "auto"):
            with_plan = sparse_conv2d(x, weight, indptr, index, 3, plan=plan, **options)
            assert torch.equal(with_plan, sparse_conv2d(x, weight, indptr, index, 3, **options))
        want = torch.nn.functional.conv2d(x, dense_weight(weight, indptr, index, 32, (3, 3)), **options)
        torch.testing.assert_close(with_plan, want, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not backends.has_kernels("cpu"), reason="needs the compiled kernels")
def test_a_plan_keeps_the_tables_it_was_made_from():
    """Kernels follow a plan and never the caller's tables, so those cannot send them outside a tensor; of other tables a few places tell
    (csrc/core/alike.h), and those are looked through."""
    weight, indptr, index = random_bank(4, 3, (3, 3), (1, 1, 1))
    plan, x = plan_sparse_conv2d(indptr, index, 3, (3, 3), (1, 1, 1)), torch.randn(1, 3, 6, 6)
    want = sparse_conv2d(x, weight, indptr, index, 3, plan=plan)
    compared = {i * (len(index) - 1) // 7 for i in range(8)}
    unseen = index.clone()
    unseen[[i for i in range(len(index)) if i not in compared]] = 2**30
    assert (unseen == 2**30).any() and torch.equal(sparse_conv2d(x, weight, indptr, unseen, 3, plan=plan), want)
    with pytest.raises(ValueError, match=r"^sparse_conv2d: index must be in \[0, 27\); got 1073741824 at \[0\]$"):
        sparse_conv2d(x, weight, indptr, torch.full_like(index, 2**30), 3, plan=plan)


@pytest.mark.parametrize("provider", ["reference", "kernels"])
def test_layout_follows_the_input(provider):
    weight, indptr, index = random_bank(8, 4, (3, 3), (1, 4, 1))
    x = torch.randn(2, 4, 6, 6)
    with backends.use("reference" if provider == "reference" else backends.providers()[-1]):
        for layout in (torch.contiguous_format, torch.channels_last):
            leaf = x.to(memory_format=layout).requires_grad_()
            out = sparse_conv2d(leaf, weight, indptr, index, 3, padding=1)
            assert out.is_contiguous(memory_format=layout)
            (grad,) = torch.autograd.grad(out, leaf, torch.ones_like(out))
            assert grad.is_contiguous(memory_format=layout)
