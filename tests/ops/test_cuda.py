"""Who serves tensors on a GPU: the cost model, the choice, the plan and the loading rule. None of it needs a GPU."""

from __future__ import annotations

import importlib.util
import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sparsekern as sk
from sparsekern import ops
from sparsekern.ops import OPS, backends, cuda, cuda_choice, cuda_cost, cuda_sparse_conv2d

pytestmark = pytest.mark.filterwarnings("ignore:Warning only once for all operators:UserWarning")  # kernels replaced, as meant
native_only = pytest.mark.skipif(backends.native is None, reason="the policy is set through _native")


class Asked(Exception):
    """A kernel was called."""


def asks(*arguments):
    raise Asked


ALL = SimpleNamespace(**{f"{op}{product}": asks for op in cuda.SERVED for product in ("", "_grad_x", "_grad_weight", "_grad_a", "_grad_b")})


@pytest.fixture
def served():
    """CPU tensors go where those on a GPU go; a kernel that is called raises."""
    library = cuda.register(ALL, "CPU")
    yield
    library._destroy()


def samples(name, dtype=torch.float32):
    return OPS[name].samples(torch.device("cpu"), dtype)


# ---- the library


def test_library_is_loaded_under_a_cuda_torch_only(tmp_path):
    library = tmp_path / "_C_cuda.so"
    assert "without nvcc" in backends.why_no_cuda(library, "13.0")
    library.touch()
    assert backends.why_no_cuda(library, "13.0") is None
    assert "CPU build" in backends.why_no_cuda(library, None)


def test_library_is_built_for_a_cuda_torch_or_on_demand(monkeypatch):
    pytest.importorskip("setuptools")
    path = Path(sk.__file__).resolve().parent.parent / "setup.py"
    spec = importlib.util.spec_from_file_location("sparsekern_setup", path)
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    for compiler, asked, cuda_of_torch, wanted in [
        ("/bin/nvcc", "auto", "13.0", True),
        ("/bin/nvcc", "auto", None, False),
        ("/bin/nvcc", "on", None, True),
        ("/bin/nvcc", "off", "13.0", False),
        (None, "auto", "13.0", False),
    ]:
        monkeypatch.setattr(setup, "nvcc", lambda c=compiler: c)
        monkeypatch.setenv("SPARSEKERN_CUDA", asked)
        assert setup.wants_cuda(cuda_of_torch) is wanted, (compiler, asked, cuda_of_torch)
    monkeypatch.setenv("SPARSEKERN_CUDA", "on")
    with pytest.raises(SystemExit, match="SPARSEKERN_CUDA=on needs nvcc"):
        setup.wants_cuda(None)
    monkeypatch.setenv("SPARSEKERN_CUDA", "maybe")
    with pytest.raises(SystemExit, match="must be auto, on or off; got maybe"):
        setup.wants_cuda(None)


@pytest.mark.skipif(backends.gpu is not None, reason="a GPU's kernels are here")
def test_without_the_library_the_reference_serves():
    assert not backends.has_kernels("cuda") and backends.providers("cuda") == ["reference"]
    assert backends.serves("sparse_linear", "cuda") == "reference"
    with pytest.raises(ValueError, match=r"use: provider must be one of \['reference'\]; got 'cuda'"), backends.use("cuda", "cuda"):
        pass


def test_twins_serve_a_cuda_torch_without_the_library():
    assert backends.gpu_provider(None, "13.0", True) == "cuda"
    assert backends.gpu_provider("no library", "13.0", True) == "triton"
    assert backends.gpu_provider("no library", "13.0", False) is None
    assert backends.gpu_provider("no library", None, True) is None


@pytest.mark.parametrize("provider", ["cuda", "triton"])
def test_who_serves_a_gpu(monkeypatch, provider):
    monkeypatch.setattr(backends, "gpu", provider)
    assert backends.providers("cuda") == ["reference", provider]
    library = cuda.register(ALL, "CUDA")
    try:
        assert backends.serves("sparse_linear", "cuda") == provider
        assert all(backends.serves(op, "cuda") == provider for op in cuda.SERVED)
        with backends.use("reference", "cuda"):
            assert backends.serves("sparse_linear", "cuda") == "reference"
    finally:
        library._destroy()
    assert backends.serves("sparse_linear", "cuda") == "reference"


# ---- the choice


def test_a_build_without_native_has_a_policy_on_a_gpu(monkeypatch):
    monkeypatch.setattr(backends, "native", None)
    monkeypatch.setattr(backends, "gpu", "cuda")
    monkeypatch.setattr(backends, "quick_call", None)
    with backends.use("cuda", "cuda", dense="never"):
        assert backends.dense_policy() == "never"
    assert backends.dense_policy() == "auto"
    with pytest.raises(ValueError, match="dense must be 'auto'"), backends.use(backends.providers("cpu")[-1], dense="never"):
        pass


@native_only
@pytest.mark.parametrize("name", cuda.SERVED)
def test_policy_decides_between_kernel_and_torch(name, served):
    op, inputs = OPS[name], samples(name)[4].inputs
    with backends.use(backends.providers()[-1], dense="always"):
        out = op.function(**inputs)
    with backends.use("reference"):
        torch.testing.assert_close(out, op.function(**inputs))
    with backends.use(backends.providers()[-1], dense="never"), pytest.raises(Asked):
        op.function(**inputs)


@native_only
@pytest.mark.parametrize("name", cuda.SERVED)
def test_torch_instead_of_ours_computes_the_same(name, served):
    op = OPS[name]
    gradients, op.gradients = op.gradients, None
    try:
        for sample in samples(name):
            leaves = {k: sample.inputs[k].detach().requires_grad_() for k in op.factors}
            results = []
            for provider, dense in (("reference", "auto"), (backends.providers()[-1], "always")):
                with backends.use(provider, dense=dense):
                    out = op.function(**{**sample.inputs, **leaves})
                    results.append([out, *torch.autograd.grad(out.square().sum(), list(leaves.values()))])
            for wanted, got in zip(*results):
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4, msg=lambda m, s=sample: f"{s.name}: {m}")
                assert got.stride() == wanted.stride() or not got.numel(), sample.name
    finally:
        op.gradients = gradients


@native_only
def test_measured_choice_is_kept_from_run_to_run(monkeypatch, tmp_path):
    """Each kind of call is timed once; the faster way serves, and what was measured is read again."""
    file, asked = tmp_path / "choices.json", []
    times = {"ours": 30.0, "torch": 20.0}

    def way(name):
        return lambda: asked.append(name) or name

    monkeypatch.setattr(cuda_choice, "_run_us", lambda device, call: times[call()])
    here, kind = torch.device("cpu"), cuda_cost.Estimate(1.0, 100.0, "memory", True, ("op", "forward", (1, 2)))
    serve = lambda e: cuda_choice.serve(e, here, way("ours"), way("torch"))  # noqa: E731
    assert serve(kind) == "ours" and asked == ["ours"]  # by the model
    try:
        cuda_choice.measure(file=file)
        asked.clear()
        assert serve(kind) == "torch" and asked.count("ours") == asked.count("torch") - 1 == 6
        asked.clear()
        assert serve(kind) == "torch" and asked == ["torch"] and cuda_choice.takes_torch(kind, here)
        times["torch"] = 40.0
        assert serve(replace(kind, key=("op", "forward", (1, 3)))) == "ours"
        assert serve(replace(kind, fits=False, key=("another",))) == "torch"
        cuda_choice.measure(file=file)
        asked.clear()
        assert serve(kind) == "torch" and asked == ["torch"] and len(json.loads(file.read_text())) == 2
        with backends.use(backends.providers()[-1], dense="never"):
            assert serve(kind) == "ours"
    finally:
        cuda_choice.measure(False)
    assert serve(kind) == "ours" and not cuda_choice.takes_torch(kind, here)


@pytest.mark.parametrize("name", cuda.SERVED)
def test_float64_has_no_kernel(name, served):
    inputs = samples(name, torch.float64)[4].inputs
    out = OPS[name].function(**inputs)
    with backends.use("reference"):
        assert torch.equal(out, OPS[name].function(**inputs))


@pytest.mark.parametrize("name", cuda.SERVED)
def test_bad_input_gets_the_one_sentence(name, served):
    op = OPS[name]
    for bad in op.bad_samples():
        with pytest.raises(bad.error) as raised:
            op.function(**bad.inputs)
        assert str(raised.value) == bad.sentence, bad.name


def test_tf32_follows_the_flags_of_torch():
    saved = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for allowed in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
            assert cuda._tf32(torch.backends.cuda.matmul, torch.float32) is allowed
            assert cuda._tf32(torch.backends.cudnn, torch.float32) is allowed
            assert cuda._tf32(torch.backends.cudnn, torch.bfloat16) is False
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = saved


# ---- the plan


@pytest.mark.parametrize("name", ["odd_batch", "odd_block", "fan_in_one", "no_outputs"])
def test_plan_lists_the_connections_by_input(name):
    inputs = {s.name: s.inputs for s in samples("sparse_linear")}[name]
    index, weight = inputs["index"], inputs["weight"]
    block = tuple(weight.shape[2:]) or (1, 1)
    blocks = inputs["x"].shape[-1] // block[1]
    plan = cuda.make_plan(index, blocks, block)
    assert plan.dtype == torch.int32 and plan[2:8].tolist() == [*index.shape, *block, blocks, plan.numel()]
    indptr, output, place = plan[8:].split([blocks + 1, index.numel(), index.numel()])
    flat = index.flatten().tolist()
    for i in range(blocks):
        places = place[indptr[i] : indptr[i + 1]].tolist()
        assert places == [p for p, source in enumerate(flat) if source == i]
        assert output[indptr[i] : indptr[i + 1]].tolist() == [p // index.shape[1] for p in places]


@pytest.mark.parametrize("name", ["odd_batch", "spatial", "block", "empty_mask", "empty_rows"])
def test_plan_lists_the_kept_blocks_by_input(name):
    inputs = {s.name: s.inputs for s in samples("sparse_conv2d")}[name]
    indptr, index, block, kernel = inputs["indptr"], inputs["index"], inputs["weight"].shape[1:], inputs["kernel_size"]
    channels, taps, nnz = inputs["x"].shape[1], kernel[0] * kernel[1] // block[2], index.numel()
    plan = cuda_sparse_conv2d.make_plan(indptr, index, channels, kernel, block)
    sizes = [(len(indptr) - 1) * block[0], channels, *kernel, *block, nnz]
    assert plan.dtype == torch.int32 and plan[2:16].tolist() == sizes + [0] * 6
    cells = channels // block[1] * taps + 1
    columns, column_row, column_place, row, cell, cell_place = plan[16:].split([channels // block[1] + 1, nnz, nnz, nnz, cells, nnz])
    for code in range(cells - 1):
        assert cell_place[cell[code] : cell[code + 1]].tolist() == [e for e, c in enumerate(index.tolist()) if c == code]
    assert cell[-1] == nnz
    assert row.tolist() == [ob for ob in range(len(indptr) - 1) for _ in range(indptr[ob], indptr[ob + 1])]
    for ib in range(channels // block[1]):
        places = column_place[columns[ib] : columns[ib + 1]].tolist()
        assert places == [e for e, code in enumerate(index.tolist()) if code // taps == ib]
        assert column_row[columns[ib] : columns[ib + 1]].tolist() == [row[e] for e in places]


# ---- the cost model


@pytest.mark.parametrize(
    ("groups", "channels", "out_channels", "taps", "useful"),
    [(8, 64, 64, 9, 0.9), (4, 96, 192, 25, 0.99), (8, 96, 192, 25, 0.75), (16, 64, 64, 9, 0.45), (1, 64, 64, 9, 1.0)],
)
def test_padded_products_of_known_widths(groups, channels, out_channels, taps, useful):
    issued = cuda_cost.padded_macs(out_channels, out_channels // groups, channels // groups, taps, 8)
    assert out_channels * (channels // groups) * taps / issued == pytest.approx(useful, abs=0.02)


def conv(groups, batch=64, channels=64, size=56, dtype=torch.bfloat16, product="forward", last=True, tf32=False):
    weight = channels, channels // groups, 3, 3
    window = 1, 1, 1, 1, 1, 1, groups
    return cuda_cost.convolution(product, (batch, channels, size, size), weight, window, last, dtype, tf32, 1, cuda_cost.H100)


def linear(rows, density, block=(1, 1), dtype=torch.bfloat16, size=4096, product="forward", tf32=False, card=cuda_cost.H100):
    index = size // block[0], max(1, int(size * density) // block[1])
    return cuda_cost.linear(product, rows, size, index, block, dtype, tf32, card)


def test_estimates_are_floored_by_bytes_and_grow_with_work():
    moved = 2 * (2 * 64 * 64 * 56 * 56 + 64 * 8 * 9)
    assert conv(8).ours_us >= moved / 3.0e12 * 1e6 and conv(8).bound == "memory"
    assert conv(1).ours_us > conv(64).ours_us and conv(8, batch=128).ours_us > conv(8).ours_us
    strict, tf32 = (conv(1, dtype=torch.float32, tf32=allowed).ours_us for allowed in (False, True))
    assert strict > tf32 > conv(1).ours_us
    assert conv(8, batch=1, size=7).bound == "the launch"
    for product in ("forward", "grad_x", "grad_weight"):
        assert 0 < conv(8, product=product).ours_us < 1e4 and 0 < linear(64, 0.1, product=product).torch_us < 1e4


def test_unstructured_loses_to_tensor_cores_and_wins_at_few_rows():
    assert not linear(4096, 0.25).ours and linear(1, 0.1).ours
    assert linear(4096, 0.1, dtype=torch.float32).ours  # against strict fp32
    assert linear(4096, 0.1, block=(128, 128)).ours_us < linear(4096, 0.1).ours_us


def masked(density, block, dtype=torch.float32, product="forward", tf32=False, batch=32, channels=96, filters=192, size=16, kernel=5):
    nnz = round(density * filters * channels * kernel * kernel / (block[0] * block[1] * block[2]))
    window = (kernel, kernel, 1, 1, kernel // 2, kernel // 2, 1, 1)
    x = (batch, channels, size, size)
    return cuda_cost.sparse_convolution(product, x, filters, block, nnz, window, dtype, tf32, cuda_cost.H100)


def test_masks_win_where_a_product_of_matrices_is_left():
    assert masked(0.067, (1, 1, 1)).ours and not masked(0.5, (1, 1, 1)).ours  # single weights: against strict fp32, few of them
    assert not masked(0.25, (1, 1, 1), torch.bfloat16).ours
    assert masked(0.1, (64, 16, 1), torch.bfloat16).ours_us < masked(0.1, (1, 1, 1), torch.bfloat16).ours_us
    assert masked(0.067, (1, 96, 1), product="grad_x").ours and masked(0.067, (1, 96, 1), torch.bfloat16).ours
    ways = lambda *block: [masked(0.1, block, product=p).way for p in OPS["sparse_conv2d"].products]  # noqa: E731
    assert ways(1, 96, 1) == ["scatter", "matrix", "scatter"] and ways(16, 1, 1) == ["matrix", "scatter", "matrix"]
    assert ways(64, 16, 1) == ["matrix", "matrix", "scatter"] and ways(4, 1, 1) == ways(1, 1, 25) == ["list"] * 3
    weight = masked(0.1, (1, 96, 1), torch.bfloat16, "grad_weight")  # on tensor cores, which single weights cannot use
    assert weight.ours and weight.ours_us * 3 < masked(0.1, (1, 1, 1), torch.bfloat16, "grad_weight").ours_us
    for product in OPS["sparse_conv2d"].products:
        assert 0 < masked(0.25, (1, 96, 1), product=product).ours_us < 1e5 and masked(0.25, (1, 96, 1), product=product).fits
    assert not masked(0.1, (1, 1, 1), kernel=5, size=70000, batch=1, channels=1 << 30).fits


def many(groups, rows, inner, columns, ragged=False, product="forward", dtype=torch.bfloat16):
    return cuda_cost.grouped_mm(product, groups * rows, groups, inner, columns, ragged, dtype, False, cuda_cost.H100)


def test_many_products_win_where_they_are_ragged_or_tiny():
    assert many(64, 256, 256, 256, ragged=True).ours and not many(8, 2048, 2048, 2048).ours
    assert many(4096, 16, 16, 16).ours_us < many(4096, 64, 64, 64).ours_us
    for product in OPS["grouped_mm"].products:
        assert 0 < many(128, 64, 64, 64, product=product).ours_us < 1e4
    assert not many(1, 1 << 30, 4, 4).fits


def test_a_root_module_in_one_kernel_saves_what_lies_between():
    def root(channels, size, kernel, groups, outs, batch=64):
        weight, window = (channels, channels // groups, kernel, kernel), (1, 1, kernel // 2, kernel // 2, 1, 1, groups)
        return cuda_cost.root_convolution((batch, channels, size, size), weight, outs, window, True, torch.bfloat16, False, cuda_cost.H100)

    assert root(64, 56, 3, 8, 256).ours and root(64, 56, 3, 8, 256).fits
    assert not root(512, 7, 3, 8, 2048).ours  # the second product is all the work
    assert root(64, 56, 3, 8, 256, batch=1).bound == "the launch" and not root(4096, 7, 3, 8, 64).fits


def test_panels_share_what_they_read():
    panel = {v: linear(4096, 0.1, block=(v, 1)).ours_us for v in (16, 64, 128)}
    assert panel[16] > panel[64] >= panel[128] and linear(4096, 0.1, block=(128, 1)).ours
    assert linear(4096, 0.1, block=(128, 1), product="grad_x").ours and not linear(4096, 0.1, block=(16, 1), product="grad_x").ours
    assert linear(4096, 0.1, block=(128, 1), product="grad_weight").fits and not linear(4096, 0.5, block=(16, 1)).ours
    assert cuda.explain_linear(4096, 4096, (128, 410), (32, 1), torch.bfloat16, "cpu")["forward"]["kernel"] == "picked lines"


def test_wide_panels_and_blocks_go_by_wgmma_where_a_card_has_it():
    """Never by the policy alone: 16 bits, multiples of 64, compute capability 9.x, and the shorter estimate."""

    def way(card=cuda_cost.H100, rows=4096, block=(128, 1), dtype=torch.bfloat16, product="forward"):
        index = (4096 // block[0], 410 // block[1])
        e, without = (cuda_cost.linear(product, rows, 4096, index, block, dtype, False, c) for c in (card, replace(card, wgmma=0.0)))
        assert not without.way and (e.ours_us < without.ours_us if e.way else e.ours_us == without.ours_us)
        return e.way

    assert way() == way(dtype=torch.float16) == way(block=(64, 1)) == way(rows=4097) == "wgmma"
    assert way(product="grad_weight") == way(product="grad_weight", block=(64, 1)) == "wgmma"
    for product in OPS["sparse_linear"].products:
        assert way(product=product, block=(64, 64)) == way(product=product, block=(128, 128)) == "wgmma"
    for other in (
        dict(card=cuda_cost.A100),
        dict(dtype=torch.float32),
        dict(rows=32),
        dict(block=(96, 1)),
        dict(product="grad_x"),
        dict(block=(64, 32)),
        dict(block=(32, 64), product="grad_x"),
        dict(block=(64, 64), card=cuda_cost.A100, product="grad_weight"),
        dict(block=(64, 64), rows=16),
        dict(block=(16, 16)),
    ):
        assert way(**other) == "", other
    assert [cuda_cost.tile_of_wide(rows, 6, 128, 132) for rows in (4096, 8192)] == [(128, 128), (128, 256)]
    assert cuda_cost.tile_of_wide(8192, 6, 64, 132) == (64, 256)
    explained = [cuda.explain_linear(rows, 4096, (32, 410), (128, 1), torch.bfloat16, "cpu")["forward"]["kernel"] for rows in (4096, 64)]
    assert explained == ["wgmma lines", "picked lines"]
    explained = cuda.explain_linear(4096, 4096, (32, 3), (128, 128), torch.bfloat16, "cpu")
    assert {product["kernel"] for product in explained.values()} == {"wgmma blocks"}


def test_a_weight_gradient_of_blocks_reads_more_than_the_product():
    """Its tiles are smaller where tensor cores are fed by warps."""
    forward, gradient = (linear(4096, 0.1, block=(64, 64), product=product, card=cuda_cost.A100) for product in ("forward", "grad_weight"))
    assert forward.bound == gradient.bound == "cache" and gradient.ours_us > 1.5 * forward.ours_us


def test_the_way_is_handed_to_the_kernels(monkeypatch):
    asked = []

    def kernel(*sizes):
        return lambda *arguments: asked.append(arguments[-1]) or arguments[0].new_zeros(sizes)

    kernels = {"sparse_linear": kernel(3, 64), "sparse_linear_grad_x": kernel(3, 8), "sparse_linear_grad_weight": kernel(1, 2, 64, 1)}
    library = cuda.register(SimpleNamespace(**{**vars(ALL), **kernels}), "CPU")
    together, OPS["sparse_linear"].gradients = OPS["sparse_linear"].gradients, None
    try:
        x, weight = (torch.zeros(*sizes, dtype=torch.bfloat16, requires_grad=True) for sizes in ((3, 8), (1, 2, 64, 1)))
        for estimated in ("wgmma", ""):
            monkeypatch.setattr(cuda_cost, "linear", lambda *_, e=estimated: cuda_cost.Estimate(1.0, 9.0, "memory", way=e))
            ops.sparse_linear(x, weight, torch.tensor([[1, 4]]).int()).sum().backward()
    finally:
        library._destroy()
        OPS["sparse_linear"].gradients = together
    assert asked == [True] * 3 + [False] * 3


def test_which_card_has_wgmma(monkeypatch):
    for capability, has in (((8, 0), False), ((8, 9), False), ((9, 0), True), ((10, 0), False), ((12, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=78))
        card = cuda_cost.card_of.__wrapped__(torch.device("cuda", 0))
        assert (card.wgmma > 0) is has and card.processors == 78, capability


def test_close_estimates_go_to_torch():
    assert not cuda_cost.Estimate(10.0, 10.5, "memory").ours and cuda_cost.Estimate(10.0, 12.0, "memory").ours


def test_sizes_that_no_kernel_takes_go_to_torch(served):
    blocks = dict(index=(16, 8192), block=(16, 8))  # 70000 input blocks: a grid holds 65535 along y
    few, many = (
        cuda_cost.linear("grad_x", 64, 8 * n, **blocks, dtype=torch.bfloat16, tf32=False, card=cuda_cost.H100) for n in (65000, 70000)
    )
    assert few.fits and few.ours and not many.fits and not many.ours
    assert cuda_cost.linear("forward", 64, 8 * 70000, **blocks, dtype=torch.bfloat16, tf32=False, card=cuda_cost.H100).fits

    x, weight, windows = torch.zeros(1, 4, 1, 16001), torch.zeros(4, 1, 1, 3), [(1, 1, 0, 0, 1, d, 4) for d in (1, 8000)]
    near, far = (cuda.estimate_convolution("forward", x, weight.shape, window) for window in windows)
    assert near.fits and not far.fits and not far.ours  # 16001 pixels under the narrowest tile
    with backends.use(backends.providers()[-1]):  # the kernel would raise
        assert not torch.ops.sparsekern.grouped_conv2d(x, weight, None, None, *windows[1], False).any()
    assert "no tile of these sizes fits" in cuda.explain_convolution(x.shape, weight.shape, windows[1], False, x.dtype, "cpu")["forward"][1]


def test_layers_of_networks_fit():
    for groups, dtype, product in itertools.product((1, 4, 32, 64), (torch.float32, torch.bfloat16), OPS["grouped_conv2d"].products):
        assert conv(groups, dtype=dtype, product=product).fits and conv(groups, channels=512, size=7, dtype=dtype, product=product).fits


@pytest.mark.parametrize("provider", ["cuda", "triton"])
def test_explain_on_a_gpu_prints_both_estimates(monkeypatch, provider):
    monkeypatch.setattr(backends, "serves", lambda *_: provider)
    text = sk.GroupedConv2d(96, 192, 5, padding=2, groups=16).explain((128, 96, 16, 16), channels_last=True)
    assert text.startswith("GroupedConv2d 96 -> 192") and text.count("modelled: ") == 3 and f"served by {provider}" in text
    for block, kernel in ((64, "wgmma blocks "), (32, "matrix blocks ")):
        text = sk.SparseLinear(4096, 4096, density=0.1, block_size=block).to(torch.bfloat16).explain(rows=4096)
        assert text.count("estimated") == 3 and text.count(kernel) == 3
    assert "wgmma lines    est" in sk.SparseLinear(4096, 4096, density=0.1, block_size=(128, 1)).to(torch.bfloat16).explain(rows=4096)
    assert "dense" in sk.SparseLinear(512, 512, density=0.5).to(torch.bfloat16).explain(rows=4096)
    assert "reference" in sk.SparseLinear(64, 64, density=0.5).double().explain()
    text = sk.StochasticConv2d(96, 192, 5, padding=2, density=0.067).explain((128, 96, 16, 16))
    assert text.count("estimated at") == 3 and f"served by {provider}" in text
    assert text.count(" scatter ") == 2 and text.count(" matrix ") == 1


@pytest.mark.parametrize("provider", ["cuda", "triton"])
def test_explain_of_many_products(monkeypatch, provider):
    a, b, ends = torch.zeros(4096, 16, 16), torch.zeros(4096, 16, 16), torch.arange(16, 4096 * 16 + 1, 16, dtype=torch.int32)
    assert "\n" not in ops.explain_grouped_mm(a, b)  # one line where no GPU's kernels serve
    monkeypatch.setattr(backends, "serves", lambda *_: provider)
    text = ops.explain_grouped_mm(a, b)
    assert text.startswith("grouped_mm 4096 x [16, 16] @ [16, 16], float32, served by " + provider) and text.count("modelled: ") == 3
    text = ops.explain_grouped_mm(a.flatten(0, 1), b, ends)
    assert "[65536 rows in all, 16]" in text and text.count("direct") == 3 and " torch  " not in text
    large = torch.zeros(64, 256, 256, dtype=torch.bfloat16)
    ends = torch.arange(256, 64 * 256 + 1, 256, dtype=torch.int32)
    assert ops.explain_grouped_mm(large.flatten(0, 1), large, ends).count(" tile ") == 3
    assert ops.explain_grouped_mm(a.double(), b.double()).count("reference") == 3
    with pytest.raises(ValueError, match=r"b must be \[G, K, N\]; got \[16, 16\]"):
        ops.explain_grouped_mm(a, b[0])
