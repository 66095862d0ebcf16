"""An unpacked layer always reads its weight as it is: nothing that writes a weight may leave a stale copy behind.

Every writer x every layer: write, run, compare with the dense twin of the weights as they are now.
"""

from __future__ import annotations

import copy
import ctypes
import io
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from sparsekern.nn import SparseLinear, StochasticConv2d

from nn.layers import LAYERS

LAYER = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)

OPTIMISERS = {
    "sgd_foreach": lambda p: torch.optim.SGD(p, 0.1, foreach=True),
    "sgd_fused": lambda p: torch.optim.SGD(p, 0.1, fused=True),
    "sgd_momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.1, foreach=False),
    "adam_foreach": lambda p: torch.optim.Adam(p, 0.1, foreach=True),
    "adam_fused": lambda p: torch.optim.Adam(p, 0.1, fused=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, 0.1, fused=True),
    "adamax": lambda p: torch.optim.Adamax(p, 0.1),
    "nadam": lambda p: torch.optim.NAdam(p, 0.1),
    "radam": lambda p: torch.optim.RAdam(p, 0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, 0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.1),
    "rprop": lambda p: torch.optim.Rprop(p, 0.1),
    "asgd": lambda p: torch.optim.ASGD(p, 0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.1),
}


def optimiser(make):
    def write(module, x):
        optim = make(list(module.parameters()))
        for _ in range(2):
            optim.zero_grad()
            module(x).square().sum().backward()
            optim.step()

    return write


def lbfgs(module, x):
    optim = torch.optim.LBFGS(module.parameters(), max_iter=2)

    def closure():
        optim.zero_grad()
        loss = module(x).square().sum()
        loss.backward()
        return loss

    optim.step(closure)


def in_no_grad(module, x):
    with torch.no_grad():
        module.weight.mul_(-2)


def in_inference_mode(module, x):
    with torch.inference_mode():
        module.weight.data.mul_(3)


def data_write(module, x):
    module.weight.data.mul_(0.5)


def data_assign(module, x):
    module.weight.data = torch.randn_like(module.weight)


def through_numpy(module, x):
    module.weight.detach().numpy()[...] += 1


def new_parameter(module, x):
    module.weight = nn.Parameter(torch.randn_like(module.weight))


def init_in_place(module, x):
    nn.init.normal_(module.weight)


def load(assign):
    def write(module, x):
        state = {k: torch.randn_like(v) if v.is_floating_point() else v.clone() for k, v in module.state_dict().items()}
        module.load_state_dict(state, assign=assign)

    return write


def swapped(module, x):
    torch.utils.swap_tensors(module.weight, nn.Parameter(torch.randn_like(module.weight)))


def moved(module, x):
    module.double().float()
    module.weight.data.mul_(2)


def ema(module, x):
    average = torch.optim.swa_utils.AveragedModel(module)
    average.update_parameters(module)
    module.load_state_dict(average.module.state_dict())


def set_by_vector(module, x):
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(vector * 1.5, module.parameters())


WRITERS = {
    **{name: optimiser(make) for name, make in OPTIMISERS.items()},
    "lbfgs": lbfgs,
    "no_grad": in_no_grad,
    "inference_mode": in_inference_mode,
    "data_in_place": data_write,
    "data_assigned": data_assign,
    "numpy_view": through_numpy,
    "new_parameter": new_parameter,
    "init": init_in_place,
    "load_state_dict": load(False),
    "load_state_dict_assign": load(True),
    "swap_tensors": swapped,
    "to_dtype_and_back": moved,
    "averaged_model": ema,
    "vector_to_parameters": set_by_vector,
}


def assert_fresh(module, x):
    """The layer computes what its weights, as they are now, say."""
    want = copy.deepcopy(module).double().to_dense()(x.double())
    for out in (module(x), torch.no_grad()(module)(x)):
        torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-4 * float(want.detach().abs().max() + 1))


@pytest.mark.parametrize("writer", WRITERS)
@LAYER
def test_after_a_write(layer, writer):
    module, x = layer.make(), layer.x()
    assert_fresh(module, x)  # anything that could be cached is cached now
    before = module(x).detach()
    WRITERS[writer](module, x)
    assert_fresh(module, x)
    if writer not in ("averaged_model",):
        assert not torch.equal(module(x), before)


@LAYER
def test_compiled_layer_sees_writes(layer):
    module, x = layer.make(), layer.x()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    compiled(x)
    for write in (in_no_grad, data_write, through_numpy, optimiser(OPTIMISERS["adam_fused"])):
        write(module, x)
        torch.testing.assert_close(compiled(x), module(x))
        assert_fresh(module, x)


@LAYER
def test_functional_call_and_ensembles(layer):
    module, x = layer.make(), layer.x()
    module(x)
    other = {"weight": torch.randn_like(module.weight)}
    out = torch.func.functional_call(module, other, (x,))
    copied = copy.deepcopy(module)
    copied.weight.data.copy_(other["weight"])
    torch.testing.assert_close(out, copied(x))
    assert_fresh(module, x)
    # several sets of weights at once
    weights = torch.randn(3, *module.weight.shape)
    outs = torch.func.vmap(lambda w: torch.func.functional_call(module, {"weight": w}, (x,)))(weights)
    for w, out in zip(weights, outs):
        copied.weight.data.copy_(w)
        torch.testing.assert_close(out, copied(x))


@LAYER
def test_parametrized_weight(layer):
    class Twice(nn.Module):
        def forward(self, w):
            return 2 * w

    module, x = layer.make(), layer.x()
    plain = module(x)
    parametrize.register_parametrization(module, "weight", Twice())
    copied = copy.deepcopy(module)
    doubled = module(x)
    assert not torch.allclose(doubled, plain)
    module.parametrizations.weight.original.data.zero_()
    assert torch.allclose(module(x), torch.zeros_like(plain) + module(x)) and not torch.allclose(module(x), doubled)
    assert torch.equal(copied(x), doubled)
    module(x).sum().backward()
    assert module.parametrizations.weight.original.grad is not None


@LAYER
def test_copies_do_not_share(layer):
    module, x = layer.make(), layer.x()
    module(x)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(buffer, weights_only=False)]
    for copied in copies:
        assert torch.equal(copied(x), module(x))
        in_no_grad(copied, x)
        assert not torch.equal(copied(x), module(x))
        assert_fresh(copied, x)
    assert_fresh(module, x)


@LAYER
def test_autocast_reads_the_weight_each_time(layer):
    module, x = layer.make(), layer.x()
    with torch.autocast("cpu", torch.bfloat16):
        first = module(x)
        in_no_grad(module, x)
        torch.clear_autocast_cache()
        second = module(x)
    assert first.dtype == torch.bfloat16 and not torch.equal(first, second)


@LAYER
def test_one_layer_in_many_threads(layer):
    module, x = layer.make(), layer.x()
    want, errors = module(x).detach(), []

    def run():
        for _ in range(50):
            if not torch.equal(module(x), want):
                errors.append("differs")

    threads = [threading.Thread(target=run) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors


@LAYER
def test_ddp_of_one_process(layer, tmp_path):
    import torch.distributed as dist

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        module, x = layer.make(), layer.x()
        parallel = nn.parallel.DistributedDataParallel(module)
        optim = torch.optim.SGD(parallel.parameters(), 0.1)
        for _ in range(2):
            optim.zero_grad()
            parallel(x).square().sum().backward()
            optim.step()
            assert_fresh(module, x)
        with torch.no_grad():
            dist.broadcast(module.weight, 0)
        assert_fresh(module, x)
    finally:
        dist.destroy_process_group()


PAST_TORCH = {
    "numpy": lambda table, new: np.copyto(table.numpy(), new.numpy()),
    "data": lambda table, new: table.data.copy_(new),
    "another process": lambda table, new: ctypes.memmove(table.data_ptr(), new.data_ptr(), new.numel() * 4),  # dist.broadcast of gloo
}


@pytest.mark.parametrize("how", PAST_TORCH)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["SparseLinear", "SparseLinear block", "StochasticConv2d"])
def test_a_table_that_is_written_past_torch(name: str, compiled: bool, how: str):
    """What torch does not count the kernels find: values and gradients are of the table as it is."""
    make, shape = {
        "SparseLinear": (lambda seed: SparseLinear(96, 48, fan_in=12, seed=seed), (5, 96)),
        "SparseLinear block": (lambda seed: SparseLinear(96, 48, fan_in=32, block_size=8, seed=seed), (5, 96)),
        "StochasticConv2d": (lambda seed: StochasticConv2d(8, 12, 3, fan_in=16, seed=seed), (2, 8, 6, 6)),
    }[name]
    layer, other = make(0), make(1)
    run = torch.compile(layer, backend="aot_eager") if compiled else layer
    x = torch.randn(shape, requires_grad=True)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            run(x)
    PAST_TORCH[how](layer.index, other.index)
    dense = layer.to_dense()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            out, want = run(x), dense(x)
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
        if grad:
            found, expected = (torch.autograd.grad(y.square().sum(), x)[0] for y in (out, want))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
