"""The contract of the ops on the CUDA kernels, in the emulator: every sample, values and gradients, through the glue and the dispatcher."""

from __future__ import annotations

import bisect
import contextlib

import emulated
import pytest
import torch
import wide

from sparsekern.ops import OPS, cuda, cuda_cost, cuda_fits, cuda_root_conv2d, cuda_sparse_conv2d

from ops import test_root_conv2d as root
from ops.test_contract import hold_to_contract

pytestmark = [
    pytest.mark.skipif(not emulated.LIBRARY.is_file(), reason="built by `python tests/run.py cuda`"),
    pytest.mark.filterwarnings("ignore:Warning only once for all operators:UserWarning"),  # kernels replaced for a while, as meant
]

#: Samples with more multiply-adds than this only with --full: the emulator makes some hundred thousand of them per second.
MANY = 100_000

#: Of an op with many kinds of samples, those that are always run.
FEW = {"sparse_conv2d": {"odd_batch", "spatial_strided", "shared_spatial", "shared_by_many", "empty_mask"}}


def _cases():
    for op in (OPS[name] for name in cuda.SERVED):
        for sample in op.samples(torch.device("cpu"), torch.float32):
            x, weight = (sample.inputs[name] for name in op.factors)
            rows = x.numel() // max(1, x.shape[-1 if op.name in ("sparse_linear", "grouped_mm") else -3])
            each = len(weight) if op.name == "grouped_mm" else 1  # rows of one group meet one matrix
            slow = rows * weight.numel() // max(1, each) > MANY or sample.name not in FEW.get(op.name, {sample.name})
            yield pytest.param(op, sample.name, id=f"{op.name}-{sample.name}", marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize(("op", "name"), list(_cases()))
def test_values_and_gradients_on_emu(op, name, dtype):
    hold_to_contract(op, name, dtype, emulated.use, tensor_cores=True)


def _inputs(op, name, dtype=torch.float32):
    return {s.name: s.inputs for s in op.samples(torch.device("cpu"), dtype)}[name]


@pytest.mark.parametrize(
    ("op", "name"), [("grouped_conv2d", "odd_batch"), ("sparse_linear", "odd_block"), ("sparse_conv2d", "block"), ("grouped_mm", "equal")]
)
def test_tf32_is_coarser_and_within_its_bound(op, name):
    op = OPS[op]
    inputs = _inputs(op, name)
    with emulated.use():
        strict = op.function(**inputs)
    with emulated.use(tf32=True):
        coarse = op.function(**inputs)
    size = op.function(**{k: v.abs() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs.items()})
    assert not torch.equal(strict, coarse)
    assert ((strict - coarse).abs() <= 2.0**-9 * size).all()


def test_relu_runs_in_the_kernel():
    op = OPS["grouped_conv2d"]
    inputs = _inputs(op, "odd_batch")
    with emulated.use():
        plain, fused = op.function(**inputs), op.function(**inputs, activation="relu")
    assert plain.min() < 0 and torch.equal(fused, plain.relu())


def test_a_plan_serves_in_place_of_the_table():
    op = OPS["sparse_linear"]
    for name in ("odd_batch", "odd_block"):
        inputs = _inputs(op, name)
        block = tuple(inputs["weight"].shape[2:]) or (1, 1)
        plan = cuda.make_plan(inputs["index"], inputs["x"].shape[-1] // block[1], block)
        gradients = []
        for given in (None, plan):
            x = inputs["x"].detach().requires_grad_()
            with emulated.use():
                op.function(**{**inputs, "x": x, "plan": given}).square().sum().backward()
            gradients.append(x.grad)
        assert torch.equal(*gradients)
        x = inputs["x"].detach().requires_grad_()
        with emulated.use(), pytest.raises(ValueError, match="sparse_linear: plan must be made by plan_sparse_linear"):
            op.function(**{**inputs, "x": x, "plan": plan[:-1]})


def test_a_plan_serves_in_place_of_the_tables():
    op = OPS["sparse_conv2d"]
    for name in ("odd_batch", "shared_spatial"):
        inputs = _inputs(op, name)
        sizes = inputs["x"].shape[1], inputs["kernel_size"], tuple(inputs["weight"].shape[1:])
        plan, gradients = cuda_sparse_conv2d.make_plan(inputs["indptr"], inputs["index"], *sizes), []
        for given in (None, plan):
            x, weight = (inputs[k].detach().requires_grad_() for k in ("x", "weight"))
            with emulated.use():
                op.function(**{**inputs, "x": x, "weight": weight, "plan": given}).square().sum().backward()
            gradients.append((x.grad, weight.grad))
        assert all(map(torch.equal, *gradients))
        with emulated.use(), pytest.raises(RuntimeError, match="sparse_conv2d: plan"):
            op.function(**{**inputs, "plan": plan[:-1]})


@pytest.mark.parametrize("name", cuda.SERVED)
def test_bad_input_never_reaches_a_kernel(name):
    op = OPS[name]
    with emulated.use():
        for bad in op.bad_samples():
            with pytest.raises(bad.error) as raised:
                op.function(**bad.inputs)
            assert str(raised.value) == bad.sentence, bad.name


def test_a_fault_of_a_kernel_is_an_error():
    """The emulator sees what the glue hands over: a table that points outside of x is caught where it is used."""
    inputs = _inputs(OPS["sparse_linear"], "odd_batch")
    index = inputs["index"].clone()
    index[-1, -1] = 10_000
    with pytest.raises(RuntimeError, match="are outside"):
        emulated.kernels().sparse_linear(inputs["x"], inputs["weight"], inputs["bias"], index, False)


@pytest.mark.parametrize("dilation, stride", [(1, 1), (1500, 1), (4000, 1), (8000, 1), (8000, 3), (900, 7)])
def test_kernels_refuse_what_the_choice_gives_to_torch(dilation, stride):
    """A row of pixels and three taps so far apart that only some products' tiles lie in shared memory."""
    width, kernels = 2 * dilation + 9, emulated.kernels()
    window, weight = (1, stride, 0, 0, 1, dilation, 2), torch.zeros(4, 3, 1, 3)
    x, out = torch.zeros(1, 6, 1, width), torch.zeros(1, 4, 1, 8 // stride + 1)
    calls = {
        "forward": lambda: kernels.grouped_conv2d(x, weight, None, *window, False, False),
        "grad_x": lambda: kernels.grouped_conv2d_grad_x(out, weight, 1, width, *window, False),
        "grad_weight": lambda: kernels.grouped_conv2d_grad_weight(out, x, 1, 3, *window, False),
    }
    for product, call in calls.items():
        fits = cuda_fits.convolution(product, tuple(x.shape), tuple(weight.shape), window, tuple(out.shape[2:]), 4, 227 << 10)
        with contextlib.nullcontext() if fits else pytest.raises(RuntimeError, match="no tile of this shape fits"):
            call()


@pytest.mark.parametrize("block", [(1, 8, 1), (8, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_gradient_goes_by_lists_where_the_model_says_so(dtype, block):
    """Taps so far apart that tiles do not lie in shared memory, and one pixel nearer. Tensor cores make NaN of an Inf behind the last
    column, lists skip it."""
    kernels, nnz = emulated.kernels(), 8 * 8 * 3 // (block[0] * block[1])
    index = torch.arange(3 * 8 // block[1], dtype=torch.int32).repeat(8 // block[0])
    indptr = torch.arange(8 // block[0] + 1, dtype=torch.int32) * (3 * 8 // block[1])

    def way(dilation):
        sizes = (1, 8, 1, 2 * dilation + 3), 8, block, nnz, (1, 3, 1, 1, 0, 0, 1, dilation)
        return cuda_cost.sparse_convolution("grad_weight", *sizes, dtype, False, cuda_cost.H100).way

    far = bisect.bisect_left(range(20000), True, 1, key=lambda dilation: way(dilation) == "list")
    for dilation in (1, far - 1, far):
        x, grad_out = torch.ones(1, 8, 1, 2 * dilation + 3, dtype=dtype), torch.ones(1, 8, 1, 3, dtype=dtype)
        x[0, 0, 0, 3] = float("inf")
        window = (1, 3, 1, 1, 0, 0, 1, dilation)
        plan = cuda_sparse_conv2d.make_plan(indptr, index, 8, window[:2], block)
        found = kernels.sparse_conv2d_grad_weight(grad_out, x, indptr, index, plan, *block, *window, False)
        first = found[index == 0][:, :, 0]  # of the first tap and channel
        if dilation == far:
            assert torch.equal(first, torch.full_like(first, 3))
        else:
            assert first.isnan().all() and way(dilation) == ("scatter" if block[1] == 8 else "matrix")


def test_ends_of_groups_are_checked_before_a_kernel_reads_them():
    op = OPS["grouped_mm"]
    inputs = _inputs(op, "odd_batch")
    with emulated.use(), pytest.raises(ValueError, match="rising row ends"):
        op.function(**{**inputs, "offsets": inputs["offsets"].flip(0)})


@pytest.mark.parametrize("layout", ["by row", "feature-major", "three dimensions"])
def test_panels_are_served_in_every_layout(layout):
    """Outputs that share a list of single inputs, from 32 rows on; no sample of the contract is so large."""
    op, generator = OPS["sparse_linear"], torch.Generator().manual_seed(3)
    x, weight, bias = (torch.randn(size, generator=generator) for size in ((40, 24), (2, 5, 16, 1), (32,)))
    index = torch.stack([torch.randperm(24, generator=generator)[:5].sort().values for _ in range(2)]).int()
    x = {"by row": x, "feature-major": x.t().contiguous().t(), "three dimensions": x.view(4, 10, 24)}[layout]
    results = []
    for dtype, serving in ((torch.float64, contextlib.nullcontext), (torch.float32, emulated.use)):
        leaves = [t.to(dtype).requires_grad_() for t in (x, weight, bias)]
        with serving():
            out = op.function(leaves[0], leaves[1], index, leaves[2])
            results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for wanted, got in zip(*results):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    assert results[1][0].stride() == (x.stride() if layout == "feature-major" else results[1][0].contiguous().stride())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize("name", ["panels", "blocks", *(pytest.param(name, marks=pytest.mark.slow) for name in list(wide.SAMPLES)[2:])])
def test_wide_panels_and_blocks_by_wgmma(name, dtype):
    wide.hold_to_truth(emulated.kernels(), name, dtype)


def test_wgmma_does_not_serve_what_it_is_not_made_for():
    """Asked for with float32 or a weight that begins anywhere, the other kernels serve."""
    generator = torch.Generator().manual_seed(2)
    draw = lambda *size: torch.randn(size, generator=generator)  # noqa: E731
    x, weight, index = draw(40, 90), draw(1, 70, 64, 1), torch.randperm(90, generator=generator)[:70].sort().values.int()[None]
    run = emulated.kernels().sparse_linear
    shifted = torch.cat([weight.new_zeros(1), weight.flatten()]).bfloat16()[1:].view(weight.shape)
    for kind, kept in ((torch.float32, weight), (torch.bfloat16, shifted)):
        assert torch.equal(*(run(x.to(kind), kept, None, index, False, wgmma) for wgmma in (True, False)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize("name", ["odd", "wide", "empty", pytest.param("strided", marks=pytest.mark.slow)])
def test_a_root_module_is_one_kernel(name, dtype, monkeypatch):
    ran = []
    monkeypatch.setattr(cuda_root_conv2d, "serve", lambda e, d, ours, chain: ran.append(e.fits) or ours())
    with emulated.use():
        root.hold_to_truth(name, dtype, tensor_cores=True)
    assert ran == [True, True]


def test_more_than_two_convolutions_go_call_by_call(monkeypatch):
    monkeypatch.setattr(cuda_root_conv2d, "serve", lambda *_: pytest.fail("the kernel was asked"))
    with emulated.use():
        root.hold_to_truth("plain_end", torch.float32, tensor_cores=True)
