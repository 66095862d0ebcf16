"""Layers among threads, processes and their ends: no call may see half of a write's consequences, crash, hang or keep memory."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from trust.tally import tally

from sparsekern import nn
from sparsekern.ops import backends

from nn.layers import LAYERS, Layer

LAYER = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
TESTS = Path(__file__).parent.parent


def in_threads(count: int, work, seconds: float = 600) -> None:
    """``work(number)`` in so many threads at once; the first exception of any of them is raised here."""
    failures, ready = [], threading.Barrier(count)

    def run(number: int) -> None:
        try:
            ready.wait()
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive(), "a thread hangs"
    if failures:
        raise failures[0]


def run_python(program: str, *arguments: str, seconds: float = 600) -> str:
    """What a fresh interpreter prints; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments], capture_output=True, text=True, timeout=seconds, cwd=TESTS.parent
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    return done.stdout


@LAYER
def test_many_threads_run_one_layer(layer: Layer):
    module = layer.make()
    inputs = [layer.x(rows) for rows in (1, 2, 3, 5)]

    def value_and_gradient(x):
        out = module(x)
        return out.detach(), torch.autograd.grad(out.square().sum(), module.weight)[0]

    want = [value_and_gradient(x) for x in inputs]

    def work(number: int) -> None:
        for turn in range(12):
            i = (number + turn) % len(inputs)
            with torch.no_grad():
                assert torch.equal(module(inputs[i]), want[i][0])
            assert all(map(torch.equal, value_and_gradient(inputs[i]), want[i]))

    in_threads(6, work)


@LAYER
def test_a_first_call_may_come_from_many_threads(layer: Layer):
    """Nothing is planned yet: whoever comes first plans, and all of them compute the same."""
    for turn in range(3):
        module = layer.make()
        x, results = layer.x(), [None] * 6
        if hasattr(module, "_drop_plan"):
            module._drop_plan()

        def work(number: int, module=module, x=x, results=results) -> None:
            results[number] = module(x).detach()

        in_threads(6, work)
        want = module.to_dense()(x)
        assert all(torch.equal(results[0], other) for other in results) and torch.allclose(results[0], want, atol=1e-5), turn


def changing_linear() -> tuple[nn.SparseLinear, tuple, tuple, torch.Tensor]:
    layer = nn.SparseLinear(64, 32, fan_in=6, seed=0)
    return layer, (layer.index.clone(),), (nn.SparseLinear(64, 32, fan_in=9, seed=1).index,), torch.randn(4, 64)


def changing_conv() -> tuple[nn.StochasticConv2d, tuple, tuple, torch.Tensor]:
    layer, other = (nn.StochasticConv2d(8, 16, 3, padding=1, density=density, seed=0) for density in (0.25, 0.5))
    return layer, (layer.indptr.clone(), layer.index.clone()), (other.indptr, other.index), torch.randn(4, 8, 7, 7)


@pytest.mark.parametrize("make", [changing_linear, changing_conv])
@pytest.mark.parametrize("training", [False, True])
def test_a_topology_changes_while_others_run(make, training: bool):
    """A call in the middle of a change computes one topology or the other, or is refused; the layer ends as it was told."""
    layer, first, other, x = make()
    shape, stop, interval = layer(x).shape, threading.Event(), sys.getswitchinterval()

    def work(number: int) -> None:
        if number == 0:
            for turn in range(30):
                layer.set_topology(*(other if turn % 2 == 0 else first))
            stop.set()
        while not stop.is_set():
            try:
                with torch.set_grad_enabled(training):
                    assert layer(x).shape == shape
            except ValueError as refused:
                assert " must be " in str(refused)

    sys.setswitchinterval(1e-5)  # the lock changes hands in the midst of a change, not once in many runs
    try:
        in_threads(4, work)
    finally:
        sys.setswitchinterval(interval)
    assert torch.equal(layer.index, first[-1]) and torch.allclose(layer(x), layer.to_dense()(x), atol=1e-5)


def test_threads_of_torch_change_while_others_run():
    layer, x = nn.SparseLinear(512, 256, density=0.1, seed=0), torch.randn(64, 512)
    convolution, image = nn.GroupedConv2d(16, 32, 3, padding=1, groups=4), torch.randn(4, 16, 14, 14)
    with backends.use(backends.providers()[-1], dense="never" if backends.native else "auto"), torch.no_grad():
        want = layer(x), convolution(image)

        def work(number: int) -> None:
            for turn in range(15):
                torch.set_num_threads(1 + (number + turn) % 3)
                assert torch.equal(layer(x), want[0]) and torch.equal(convolution(image), want[1])

        in_threads(3, work)


class Computed(torch.utils.data.Dataset):
    """Samples that a layer computes in the loader's processes."""

    def __init__(self) -> None:
        self.layer = nn.SparseLinear(64, 32, density=0.2, seed=0).requires_grad_(False)
        self.convolution = nn.StochasticConv2d(4, 6, 3, padding=1, density=0.5, seed=0).requires_grad_(False)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> torch.Tensor:
        x = torch.full((3, 64), float(i))
        return torch.cat([self.layer(x).flatten(), self.convolution(x.view(3, 4, 4, 4)).flatten()])


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_loaders_run_layers_in_processes_of_their_own(method):
    data = Computed()
    torch.set_num_threads(2)
    want = torch.stack([data[i] for i in range(len(data))])  # the parent's threads have worked: a fork has none of them
    loader = torch.utils.data.DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context=method, timeout=600)
    assert torch.allclose(torch.cat(list(loader)), want, atol=1e-5)


def _in_child(queue, layers, inputs) -> None:
    queue.put([layer(x).detach().numpy() for layer, x in zip(layers, inputs)])


@pytest.mark.slow
def test_layers_travel_to_another_process():
    layers, inputs = [layer.make() for layer in LAYERS], [layer.x() for layer in LAYERS]
    layers.append(nn.SparseLinear(96, 40, density=0.2).pack().requires_grad_(False))
    inputs.append(torch.randn(3, 96))
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(queue, layers, inputs))
    child.start()
    results = [torch.from_numpy(result) for result in queue.get()]
    child.join(60)
    assert child.exitcode == 0
    assert all(torch.equal(result, layer(x)) for result, layer, x in zip(results, layers, inputs))


@pytest.mark.slow
def test_an_interpreter_ends_while_layers_run():
    """It waits for threads that are no daemons; a daemon it takes down wherever that is, in torch's own layers too."""
    run_python("""
        import atexit, threading, torch
        from sparsekern import nn
        layer, x = nn.SparseLinear(256, 128, density=0.1), torch.randn(16, 256)
        convolution, image = nn.GroupedConv2d(8, 8, 3, groups=2).requires_grad_(False).pack(), torch.randn(1, 8, 9, 9)
        atexit.register(lambda: layer(x).sum().backward())  # one more when everything is coming down
        started = threading.Barrier(4)
        def work():
            started.wait()
            while threading.main_thread().is_alive():
                layer(x).sum().backward()
                convolution(image)
            for _ in range(100):  # while the interpreter waits
                layer(x).sum().backward()
                convolution(image)
        for _ in range(3):
            threading.Thread(target=work).start()
        started.wait()
        layer(x)
    """)


@pytest.mark.slow
def test_two_runs_give_the_same_bits():
    program = """
        import hashlib, sys, torch
        from sparsekern import nn
        from sparsekern.ops import backends
        torch.set_num_threads(int(sys.argv[1]))
        torch.manual_seed(0)
        found = hashlib.sha256()
        with backends.use(backends.providers()[-1], dense="never" if backends.native else "auto"):
            for dtype in (torch.float32, torch.bfloat16):
                for layer, x in (
                    (nn.SparseLinear(300, 130, density=0.1, seed=1), torch.randn(37, 300)),
                    (nn.SparseLinear(300, 130, density=0.1, seed=1), torch.randn(1, 300)),
                    (nn.SparseLinear(256, 64, density=0.25, block_size=16, seed=1), torch.randn(40, 256)),
                    (nn.StochasticConv2d(20, 12, 3, padding=1, density=0.3, seed=1), torch.randn(2, 20, 9, 9)),
                    (nn.GroupedConv2d(16, 24, 3, padding=1, groups=4), torch.randn(3, 16, 9, 9)),
                ):
                    layer, x = layer.to(dtype), x.to(dtype).requires_grad_()
                    out = layer(x)
                    out.backward(torch.ones_like(out))
                    for t in (out, x.grad, *(p.grad for p in layer.parameters())):
                        found.update(t.detach().float().numpy().tobytes())
        print(found.hexdigest())
    """
    assert len({run_python(program, threads) for threads in ("1", "2", "3")}) == 1


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def soak(calls: int) -> int:
    """Bytes that the process is larger by after so many calls of every kind."""
    layer, x = nn.SparseLinear(16, 16, fan_in=4, seed=0), torch.randn(2, 16)
    packed = nn.SparseLinear(16, 16, fan_in=4, seed=0).pack().requires_grad_(False)
    convolution, image = nn.GroupedConv2d(4, 4, 3, groups=2).requires_grad_(False), torch.randn(1, 4, 5, 5)
    masked = nn.StochasticConv2d(4, 4, 3, density=0.5, seed=0).requires_grad_(False)
    tables = [nn.SparseLinear(16, 16, fan_in=4, seed=seed).index for seed in range(2)]

    def work(count: int) -> None:
        for turn in range(count // 5):
            with torch.no_grad():
                layer(x), packed(x), convolution(image), masked(image)
            if turn % 10 == 0:
                layer(x).sum().backward()
                layer.zero_grad()
            if turn % 200 == 0:
                layer.set_topology(tables[turn // 200 % 2])
                packed.load_state_dict(packed.state_dict())
            if turn % 1000 == 0:
                with pytest.raises(ValueError):
                    layer(x[:, :3])

    work(min(10_000, calls))
    before = resident_bytes()
    work(calls)
    tally("calls of a soak", calls)
    return resident_bytes() - before


def test_memory_stays_flat():
    assert any(soak(3_000) < 4 << 20 for _ in range(3))  # what leaks does so every time


@pytest.mark.slow
def test_memory_stays_flat_over_a_million_calls():
    assert soak(1_000_000) < 8 << 20
