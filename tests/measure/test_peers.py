"""Rivals of other packages: MKL called rightly (the real one, or a twin in numpy), absent ones say so, wrong ones have no speed."""

import ctypes
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsekern.measure.cases import LinearCase
from sparsekern.measure.providers import linear_setup, mkl, packages
from sparsekern.measure.providers.common import Setup, to_bsr, to_csr

CASE = LinearCase("small", 5, in_features=33, out_features=12, density=0.25)
BLOCKS = LinearCase("small", 5, in_features=64, out_features=32, density=0.5, block_size=16)


def array(at, count, kind):
    return np.ctypeslib.as_array(ctypes.cast(at, ctypes.POINTER(kind)), (count,))


class NumpyMkl:
    """The few functions of MKL that are called, on the same pointers, by the header's description of them."""

    def __init__(self):
        self.weights, self.hints, self.threads = {}, [], None

    def _keep(self, handle, weight):
        self.weights[id(weight)] = weight
        handle._obj.value = id(weight)
        return 0

    def mkl_sparse_s_create_csr(self, handle, base, rows, columns, starts, ends, index, values):
        assert (base, ends) == (0, starts + 4)
        bounds = array(starts, rows + 1, ctypes.c_int)
        index, values = array(index, bounds[-1], ctypes.c_int), array(values, bounds[-1], ctypes.c_float)
        dense = np.zeros((rows, columns), np.float32)
        dense[np.repeat(np.arange(rows), np.diff(bounds)), index] = values
        return self._keep(handle, dense)

    def mkl_sparse_s_create_bsr(self, handle, base, layout, rows, columns, block, starts, ends, index, values):
        assert (base, layout, ends) == (0, mkl.ROW_MAJOR, starts + 4)
        bounds = array(starts, rows + 1, ctypes.c_int)
        index, values = array(index, bounds[-1], ctypes.c_int), array(values, bounds[-1] * block**2, ctypes.c_float)
        dense = np.zeros((rows, columns, block, block), np.float32)
        dense[np.repeat(np.arange(rows), np.diff(bounds)), index] = values.reshape(-1, block, block)
        return self._keep(handle, dense.transpose(0, 2, 1, 3).reshape(rows * block, columns * block))

    def mkl_sparse_set_mv_hint(self, handle, operation, kind, calls):
        return 0

    def mkl_sparse_set_mm_hint(self, handle, operation, kind, layout, columns, calls):
        self.hints.append((layout, columns))
        return 0

    def mkl_sparse_optimize(self, handle):
        return 0

    def mkl_sparse_destroy(self, handle):
        del self.weights[handle.value]
        return 0

    def mkl_sparse_s_mv(self, operation, alpha, handle, kind, x, beta, y):
        weight = self.weights[handle.value]
        y = array(y, weight.shape[0], ctypes.c_float)
        y[:] = alpha * (weight @ array(x, weight.shape[1], ctypes.c_float)) + beta * y

    def mkl_sparse_s_mm(self, operation, alpha, handle, kind, layout, x, columns, x_stride, beta, y, y_stride):
        weight = self.weights[handle.value]
        assert (layout, columns) in self.hints

        def matrix(at, rows, stride):
            if layout == mkl.ROW_MAJOR:
                return array(at, rows * stride, ctypes.c_float).reshape(rows, stride)[:, :columns]
            return array(at, columns * stride, ctypes.c_float).reshape(columns, stride)[:, :rows].T

        x, y = matrix(x, weight.shape[1], x_stride), matrix(y, weight.shape[0], y_stride)
        y[:] = alpha * (weight @ x) + (beta * y if beta else 0)

    def MKL_Somatcopy(self, order, turned, rows, columns, alpha, a, a_stride, b, b_stride):
        assert (order, turned, alpha, a_stride, b_stride) == (b"R", b"T", 1.0, columns, rows)
        count = rows * columns
        array(b, count, ctypes.c_float).reshape(columns, rows)[:] = array(a, count, ctypes.c_float).reshape(rows, columns).T

    def MKL_Set_Num_Threads(self, count):
        self.threads = count


@pytest.fixture(params=["numpy", "wheel"])
def library(request, monkeypatch):
    if request.param == "numpy":
        fake = NumpyMkl()
        monkeypatch.setattr(mkl, "library", lambda: fake)
        monkeypatch.setattr(mkl.metadata, "version", lambda name: "0")
    else:
        try:
            mkl.library()
        except ImportError as error:
            pytest.skip(str(error))
    return mkl.library()


@pytest.mark.parametrize(
    "case", [CASE, CASE.with_(batch=1), CASE.with_(layout="features"), BLOCKS, BLOCKS.with_(batch=1)], ids=lambda c: c.id
)
def test_mkl_passes_the_gate_and_is_not_gated(library, case):
    setup = linear_setup(case)
    setup.check()
    like_for_like = setup.available["mkl_ie"]
    assert like_for_like.layout == (case.layout or "rows")
    for ours in ("ours", "ours_packed"):
        assert not {"mkl_ie", "mkl_ie_features"} & set(setup.gated(setup.available[ours]))
    free = "mkl_ie_features" in setup.available
    assert free == (case.batch > 1 and case.layout == "")
    assert like_for_like.memory["weight"] == setup.available["ours"].memory["weight"]


@pytest.mark.parametrize("way", [mkl.features, mkl.transposed, mkl.column], ids=lambda way: way.__name__)
@pytest.mark.parametrize("block", [1, 4])
def test_every_way_of_mkl_by_itself(library, way, block):
    weight, bias, x = torch.randn(8, 12) * (torch.rand(8, 12) < 0.4), torch.randn(8), torch.randn(5, 12)
    weight[:4, :4] = weight[4:, 8:] = 1.0
    if block == 4:  # whole blocks only
        weight = weight * torch.eye(3)[:2].repeat_interleave(4, 0).repeat_interleave(4, 1)
    call = way(to_csr(weight) if block == 1 else to_bsr(weight, block), bias, x)
    torch.testing.assert_close(call(), torch.nn.functional.linear(x, weight, bias))
    assert ("CSR" in call.served_by) == (block == 1)
    assert call().stride() == ((1, 5) if way is mkl.features else (8, 1))


def test_mkl_runs_on_torchs_threads(library, one_more_thread, monkeypatch):
    calls, before = [], library.MKL_Set_Num_Threads
    monkeypatch.setattr(library, "MKL_Set_Num_Threads", lambda count: (calls.append(count), before(count)))
    linear_setup(CASE)
    assert set(calls) == {one_more_thread}


@pytest.fixture
def one_more_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    yield before + 1
    torch.set_num_threads(before)


def absent(name):
    raise metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (absent, 'the mkl wheel is not installed (pip install "sparsekern[bench]")'),
        (lambda name: [], "the mkl wheel holds no libmkl_rt.so (x86-64 Linux only)"),
    ],
)
def test_without_mkl_its_row_says_why(monkeypatch, files, reason):
    monkeypatch.setattr(mkl.metadata, "files", files)
    monkeypatch.setattr(mkl, "library", mkl.library.__wrapped__)  # as if for the first time
    setup = linear_setup(CASE)
    setup.check()
    rows = {p.name: p for p in setup.providers}
    assert rows["mkl_ie"].call is None
    assert rows["mkl_ie"].reason == reason


@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
def test_mkl_and_packages_know_float32_only(mode):
    setup = linear_setup(CASE.with_(dtype="bfloat16"), mode)
    reasons = {p.name: p.reason for p in setup.providers if p.outside}
    assert set(reasons) == {"mkl_ie", "sparseprop", "sparselab"}
    assert all(reasons.values())


def test_without_the_packages_their_rows_say_why(monkeypatch):
    def fail(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module.split(".")[0])

    monkeypatch.setattr(packages.importlib, "import_module", fail)
    reasons = {p.name: p.reason for p in linear_setup(CASE).providers}
    assert reasons["sparseprop"] == 'sparseprop is not installed (pip install "sparsekern[peers]")'
    assert reasons["sparselab"] == 'sparselab is not installed (pip install "sparsekern[peers]")'


@pytest.mark.parametrize("package", ["sparseprop", "sparselab"])
@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
def test_packages_pass_the_gate(package, mode):
    pytest.importorskip(package)
    setup = linear_setup(CASE, mode)
    assert package in setup.check()
    assert package not in setup.gated(setup.available["ours"])


def test_a_wrong_rival_of_another_package_has_no_speed_but_stops_nothing():
    truth = torch.randn(4, 4, dtype=torch.float64)
    setup = Setup(CASE, "fwd", {"out": truth}, "dense", 1.0, 1, 1, 1, torch.float32, "rows")
    setup.add("dense", lambda: lambda: truth.float())
    setup.add("theirs", lambda: lambda: truth.float() * 1.001, outside=True, memory={"weight": 64})
    assert list(setup.check()) == ["dense"]
    assert list(setup.available) == ["dense"]
    theirs = setup.providers[1]
    assert theirs.reason.startswith("wrong: theirs must be within")
    assert theirs.memory == {}


def test_dense_training_in_bfloat16_is_printed_and_not_gated():
    setup = linear_setup(CASE, "fwd_bwd")
    errors = setup.check()
    assert 1e-4 < errors["dense_bf16"] < 4 * torch.finfo(torch.bfloat16).eps
    assert "dense_bf16" not in setup.gated(setup.available["ours"])
    assert "dense_bf16" not in linear_setup(CASE.with_(dtype="bfloat16"), "fwd_bwd").available


@pytest.mark.skipif(sys.platform != "linux", reason="the list of loaded libraries is read from /proc")
def test_every_openmp_gets_torchs_threads(one_more_thread):
    packages.same_threads()
    lines = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line and ".so" in line]
    libraries = {path for path in lines if path.rsplit("/", 1)[-1].startswith(("libgomp", "libiomp", "libomp"))}
    assert libraries
    assert {ctypes.CDLL(path).omp_get_max_threads() for path in libraries} == {one_more_thread}


def test_memory_is_what_the_layer_holds():
    providers = linear_setup(CASE).available
    assert CASE.fan_in == 8
    held = providers["ours"].memory
    assert (held["weight"], held["index"], held["bias"]) == (12 * 8 * 4, 12 * 8 * 4, 12 * 4)
    assert providers["dense"].memory == {"weight": 12 * 33 * 4, "bias": 12 * 4}
    assert providers["csr"].memory == {"weight": 12 * 8 * 4, "index": (13 + 12 * 8) * 8, "bias": 12 * 4}
    if not providers["ours"].served_by.startswith("reference"):
        assert held["plan"] > 0
        assert providers["ours_packed"].memory["pack"] > 0
