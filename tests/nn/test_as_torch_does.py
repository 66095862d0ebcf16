"""What users of torch do with a layer beside calling it and its backward: each comes to what the dense layer's gives, or is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.func import functional_call, jacfwd, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sparsekern.nn import GroupedConv2d, RootModule, SparseLinear, SpatialBasisConv2d, StochasticConv2d
from sparsekern.ops import backends
from sparsekern.transform import to_dense

IMAGE = (2, 8, 6, 6)
LAYERS = {
    "SparseLinear": (lambda: SparseLinear(24, 12, fan_in=5, seed=0), (3, 24)),
    "SparseLinear block": (lambda: SparseLinear(24, 12, fan_in=8, block_size=4, seed=0), (3, 24)),
    "GroupedConv2d": (lambda: GroupedConv2d(8, 12, 3, groups=4), IMAGE),
    "GroupedConv2d relu": (lambda: GroupedConv2d(8, 12, 3, groups=4, activation="relu"), IMAGE),
    "GroupedConv2d unequal": (lambda: GroupedConv2d(8, 12, 3, group_sizes=[(2, 4), (6, 8)]), IMAGE),
    "StochasticConv2d": (lambda: StochasticConv2d(8, 12, 3, density=0.4, seed=0), IMAGE),
    "SpatialBasisConv2d": (lambda: SpatialBasisConv2d(8, 12, 3, padding=1), IMAGE),
    "RootModule": (lambda: RootModule(8, 12, 10, 3, groups=4), IMAGE),
}


def twin(layer: nn.Module) -> nn.Module:
    return nn.Sequential(*map(twin, layer)) if isinstance(layer, RootModule) else layer.to_dense()  # type: ignore[operator]


@pytest.fixture(params=LAYERS)
def made(request) -> tuple[nn.Module, nn.Module, Tensor]:
    """(a layer, its dense twin, an input), in float64."""
    make, shape = LAYERS[request.param]
    layer = make().double()
    return layer, twin(layer), torch.randn(shape, dtype=torch.float64)


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)  # float64: far above rounding, far below any mistake


# ---- autocast


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name: str, grad: bool, dtype: torch.dtype):
    make, shape = LAYERS[name]
    layer, x = make(), torch.randint(-1, 2, shape).float()
    for parameter in layer.parameters():
        parameter.data = torch.randint(-1, 2, parameter.shape).float()  # sums in front of a ReLU are exact: no sign is a rounding's
    exact, bound = copy.deepcopy(layer).double(), copy.deepcopy(layer).double()
    for parameter in bound.parameters():
        parameter.data.abs_()  # what it gives and its gradients: sums of absolute values
    with torch.set_grad_enabled(grad):
        want, most = exact(x.double()), bound(x.double().abs())
        with torch.autocast("cpu", dtype):
            out = layer(x)
    # each of at most two stages forwards, and two backwards, rounds its two factors and its result; and float32's sums of under 2^8
    rounding = (1 + torch.finfo(dtype).eps / 2) ** 13 - 1
    assert out.dtype == dtype
    assert ((out.double() - want).abs() <= rounding * most).all()
    if grad:
        out.float().sum().backward()
        want.sum().backward()
        most.sum().backward()
        for found, true, largest in zip(layer.parameters(), exact.parameters(), bound.parameters()):
            assert found.grad is not None and found.grad.dtype == torch.float32
            assert ((found.grad.double() - true.grad).abs() <= rounding * largest.grad).all()


# ---- derivatives of derivatives, by torch's older vmap and by tangents of a cotangent


def test_vectorized_jacobian_with_a_graph(made):
    layer, dense, x = made

    def penalty(net: nn.Module) -> Tensor:
        found = torch.autograd.functional.jacobian(lambda x: net(x[:1]).tanh(), x, vectorize=True, create_graph=True)
        assert found.requires_grad
        loss = found.square().sum() + net(x).square().sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [p for n, p in net.named_parameters() if "bias" in n])])

    same(penalty(layer), penalty(dense))


def test_a_cotangent_with_a_tangent(made):
    layer, dense, x = made
    tangents = []
    for net in (layer, dense):
        given = x.clone().requires_grad_()
        out = net(given)
        with forward_ad.dual_level():
            cotangent = forward_ad.make_dual(torch.ones_like(out), torch.linspace(0, 1, out.numel(), dtype=out.dtype).view_as(out))
            (grad,) = torch.autograd.grad(out, given, cotangent)
            tangents.append(forward_ad.unpack_dual(grad).tangent)
    assert tangents[0] is not None
    same(*tangents)


@pytest.mark.parametrize("name", ["SparseLinear", "GroupedConv2d relu"])
def test_a_packed_layer_refuses_tangents(name: str):
    make, shape = LAYERS[name]
    layer, x = make().requires_grad_(False).pack(), torch.randn(shape)
    for derive in (lambda: jvp(layer, (x,), (x,)), lambda: jacfwd(layer)(x), lambda: dual(layer, x)):
        with pytest.raises(
            ValueError, match=r"layer must be unpacked to be trained \(call unpack\(\)\); got a packed one where a gradient"
        ):
            derive()
    with forward_ad.dual_level():
        assert torch.equal(layer(x), layer(x.clone()))  # no tangent, no refusal


def test_the_input_goes_by_torchs_name(made):
    layer, dense, x = made
    same(layer(input=x), dense(input=x))


def dual(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), forward_ad.dual_level():
        return layer(forward_ad.make_dual(x, x))


def test_vmap_over_weights_of_channels_last_images(made):
    layer, _, x = made
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    weights = {name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in layer.named_parameters()}
    found = vmap(lambda own: functional_call(layer, own, (x,)))(weights)
    for i, own in enumerate(found):
        same(own, functional_call(layer, {name: w[i] for name, w in weights.items()}, (x,)))
    same(vmap(layer, in_dims=-1)(torch.stack([x, -x], -1))[1], layer(-x))


# ---- what is kept for the backward pass


def test_a_bias_written_before_the_backward_pass(made):
    layer, dense, x = made
    found = []
    for net in (layer, dense):
        given = x.clone().requires_grad_()
        out = net(given)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if "bias" in name:
                    parameter.mul_(3)
        out.square().sum().backward()
        found.append(given.grad)
    same(*found)


@pytest.mark.parametrize("counted", ["forward", "backward"])
def test_checkpoints_with_a_counter_around_one_half(made, counted: str):
    """What is kept must be the same with and without it: its mode takes another door."""
    layer, _, x = made
    given, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(plain).sum().backward()
    with FlopCounterMode(display=False) if counted == "forward" else torch.enable_grad():
        out = checkpoint(layer, given, use_reentrant=False)
    with FlopCounterMode(display=False) if counted == "backward" else torch.enable_grad():
        out.sum().backward()
    same(given.grad, plain.grad)


@pytest.mark.parametrize("provider", ["reference", None])
def test_a_result_may_be_written_in_place(made, provider):
    layer, _, x = made
    if isinstance(layer, RootModule) or getattr(layer, "activation", "none") == "relu":
        pytest.skip("a ReLU needs its own result, as torch's does")
    for given in (x, x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.t().contiguous().t()):
        with backends.use(provider) if provider else torch.enable_grad():
            want = layer(given).relu().square().sum()
            out = torch.relu_(layer(given)).square().sum()
            same(out, want)
            grads = [torch.autograd.grad(loss, list(layer.parameters())) for loss in (out, want)]
        for one, other in zip(*grads):
            same(one, other)


# ---- a root module of which parts were replaced


def doubled(module: nn.Module, *_args) -> Tensor:
    return 2 * _args[-1]


CHANGES = {
    "reflect": lambda root: setattr(root, "grouped", GroupedConv2d(8, 12, 3, padding=1, groups=4, padding_mode="reflect")),
    "appended": lambda root: root.append(GroupedConv2d(10, 10, 1)),
    "pointwise with a stride": lambda root: setattr(root, "pointwise", GroupedConv2d(12, 10, 1, stride=2)),
    "pointwise with padding": lambda root: setattr(root, "pointwise", GroupedConv2d(12, 10, 1, padding=1)),
    "pointwise in groups": lambda root: setattr(root, "pointwise", GroupedConv2d(12, 10, 1, groups=2)),
    "3x3 in its place": lambda root: setattr(root, "pointwise", GroupedConv2d(12, 10, 3)),
    "a forward of its own": lambda root: setattr(root.grouped, "forward", lambda x: 2 * GroupedConv2d.forward(root.grouped, x)),
    "a hook": lambda root: root.grouped.register_forward_hook(doubled),
    "another order": lambda root: root._modules.update(grouped=root._modules.pop("grouped")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_root_module_runs_what_it_holds(change: str):
    root = RootModule(8, 12, 8 if change == "another order" else 10, 3, groups=4, padding=1)
    if change == "another order":
        root.pointwise = GroupedConv2d(8, 8, 1)
    CHANGES[change](root)
    x = torch.randn(IMAGE)
    want = x
    for layer in root:
        want = layer(want)
    with torch.no_grad():
        torch.testing.assert_close(root(x), want.detach(), rtol=1e-5, atol=1e-5)


def test_a_hook_of_all_modules_hears_the_parts_of_a_root_module():
    root, heard = RootModule(8, 12, 10, 3, groups=4), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: heard.append(type(module).__name__))
    try:
        with torch.no_grad():
            root(torch.randn(IMAGE))
    finally:
        handle.remove()
    assert heard == ["GroupedConv2d", "GroupedConv2d", "RootModule"]


# ---- a window that is changed


@pytest.mark.parametrize(
    "values",
    [
        {"padding": (2, 2), "dilation": (2, 2)}, {"stride": 2}, {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"},
        {"dilation": 2}, {"padding": (1, 0)},
    ],
)  # fmt: skip
def test_a_window_that_is_changed_counts(values: dict):
    layer = StochasticConv2d(6, 12, 3, padding=1, density=0.4, seed=0)
    x = torch.randn(1, 6, 8, 8)
    layer(x)
    for name, value in values.items():
        setattr(layer, name, value)
    fresh = StochasticConv2d(6, 12, 3, **{"padding": 1, **values}, density=0.4, seed=0)
    fresh.load_state_dict(layer.state_dict())
    for one in (layer, copy.deepcopy(layer)):
        torch.testing.assert_close(one(x), fresh(x))
        assert repr(one) == repr(fresh)
    same(layer.double()(x.double()), layer.to_dense()(x.double()))


@pytest.mark.parametrize("name", ["SpatialBasisConv2d", "GroupedConv2d unequal"])
@pytest.mark.parametrize(
    "arg, value", [("padding", (2, 2)), ("stride", 2), ("dilation", 2), ("padding_mode", "reflect"), ("activation", "relu")]
)
def test_parts_that_were_made_for_a_window_refuse_another(name: str, arg: str, value):
    layer = LAYERS[name][0]()
    with pytest.raises(ValueError, match=rf"{type(layer).__name__}: {arg} must be the one that the layer was made with, .*; got "):
        setattr(layer, arg, value)
    assert getattr(copy.deepcopy(layer), arg) == getattr(layer, arg)


# ---- devices, tracing and memory without values


def test_another_default_device(made):
    layer, _, x = made
    want = layer(x)
    with torch.device("meta"):
        same(layer(x), want)
        for own in layer if isinstance(layer, RootModule) else [layer]:
            assert "served by" in own.explain()


@pytest.mark.parametrize("name", ["SparseLinear", "GroupedConv2d"])
def test_packs_under_another_default_device(name: str):
    make, shape = LAYERS[name]
    layer, x = make().requires_grad_(False), torch.randn(shape)
    want = layer(x)
    with torch.device("meta"):
        torch.testing.assert_close(layer.pack()(x), want)


def test_from_dense_under_another_default_device():
    with torch.device("meta"):
        linear, conv = nn.Linear(24, 12, device="cpu"), nn.Conv2d(8, 12, 3, device="cpu")
        for layer in (SparseLinear.from_dense(linear, density=0.5), StochasticConv2d.from_dense(conv, density=0.5)):
            assert {t.device.type for t in layer.state_dict().values()} == {"cpu"}


def test_a_first_call_may_be_traced(made):
    layer, dense, x = made
    same(make_fx(layer)(x)(2 * x), dense(2 * x))
    out, along = torch.func.linearize(copy.deepcopy(layer), x)
    same(out, dense(x))
    same(along(x), jvp(dense, (x,), (x,))[1])


@pytest.mark.parametrize("name", ["SparseLinear", "StochasticConv2d"])
def test_to_empty_of_a_layer_with_values(name: str):
    make, shape = LAYERS[name]
    layer, state = make(), make().state_dict()
    want = layer(torch.ones(shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty_like", lambda t, **_: torch.full_like(t, 77 if t.dtype == torch.int32 else float("nan")))
        layer.to_empty(device="cpu")
    with pytest.raises(ValueError, match=r"index must be set after to_empty\(\)"):
        layer(torch.ones(shape))
    layer.load_state_dict(state)
    assert layer(torch.ones(shape)).shape == want.shape


# ---- checkpoints


def test_a_packed_layer_packs_what_it_loads():
    layer, other = (SparseLinear(24, 12, fan_in=5, seed=0).requires_grad_(False) for _ in range(2))
    layer.pack()
    layer.load_state_dict({"weight": other.weight, "bias": other.bias}, strict=False)
    x = torch.randn(3, 24)
    torch.testing.assert_close(layer(x), other(x))


@pytest.mark.parametrize("name", ["SparseLinear", "StochasticConv2d"])
def test_a_topology_drawn_in_inference_mode_trains(name: str):
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    with torch.inference_mode():
        layer.set_topology(*layer.draw_topology(1))
    layer(x).sum().backward()
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


def test_a_packed_layer_that_is_drawn_anew():
    layer, x = SparseLinear(24, 12, fan_in=5).requires_grad_(False).pack(), torch.randn(3, 24)
    layer.reset_parameters()
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


# ---- weights that a hook computes before each call

COMPUTED = {
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.25),
    "pruned bias": lambda layer: prune.random_unstructured(layer, "bias", 0.5),
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("computed", COMPUTED)
@pytest.mark.parametrize("name", ["SparseLinear", "GroupedConv2d", "StochasticConv2d"])
@pytest.mark.parametrize("keep_groups", [False, True])
def test_dense_twins_and_packs_of_a_computed_weight(name: str, computed: str, keep_groups: bool):
    """After a step the attribute is what the last call used, in torch's layers too."""
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    COMPUTED[computed](layer)
    model = nn.Sequential(layer)
    model(x).square().sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad)
    model.eval()  # no power iteration
    dense = to_dense(model, keep_groups=keep_groups)
    twins = [layer.to_dense()] if not keep_groups else []
    if hasattr(layer, "pack"):
        twins.append(copy.copy(layer).requires_grad_(False).pack())
    for other in (dense, *twins):
        torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-4)
    assert not dense[0]._forward_pre_hooks


@pytest.mark.parametrize("name", ["SparseLinear", "StochasticConv2d"])
def test_a_dense_checkpoint_needs_a_topology(name: str):
    dense = LAYERS[name][0]().to_dense()
    with torch.device("meta"):
        layer = LAYERS[name][0]()
    with pytest.raises(RuntimeError, match=f"{name}: index must be set before a dense weight is loaded; got memory without values"):
        layer.load_state_dict(dense.state_dict(), assign=True)
