"""Stochastic forming: any network becomes a StochasticNet of the same layers, each connection kept with a given probability.

Source: Shafiee, Fieguth and Wong, "StochasticNet in StochasticNet", section 2.2: "the synaptic connectivities are grouped into two
different types", those of convolutional layers and those of the micro networks between them (1x1 convolutions), each with its own
probability. Which connections exist is drawn once, before training, and "does not utilize any prior knowledge about the synaptic
strengths".
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from sparsekern.arguments import check_real, check_seed
from sparsekern.models.options import check
from sparsekern.nn import GroupedConv2d, SparseLinear, StochasticConv2d
from sparsekern.nn.group_weights import window_of
from sparsekern.nn.stochastic_conv2d import GRANULARITIES
from sparsekern.topology.conv_masks import COUNTS
from sparsekern.topology.draw import named_seed

FORWARDS = (nn.Linear.forward, nn.Conv2d.forward, GroupedConv2d.forward)  # what the sparse layers compute


class StochasticConvReLU2d(StochasticConv2d):
    """A :class:`~sparsekern.nn.StochasticConv2d` in the place of a convolution that computed its own ReLU.

    Same arguments, attributes and ``state_dict``, so that the names in a model stay as they were.
    """

    activation = "relu"

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu_()

    def to_dense(self) -> nn.Sequential:  # type: ignore[override] # as the other layers with a ReLU
        """An ``nn.Conv2d`` and an ``nn.ReLU`` that compute the same."""
        return nn.Sequential(super().to_dense(), nn.ReLU())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"


def form_stochastic(
    model: nn.Module,
    *,
    conv: float = 1.0,
    pointwise: float = 1.0,
    linear: float = 1.0,
    layers: Mapping[str, float] | None = None,
    granularity: str = "spatial",
    pointwise_granularity: str = "synapse",
    count: str = "exact",
    seed: int | None = 0,
) -> nn.Module:
    """Replace convolutions and linear layers by sparse ones of the same shape and name, in place, and return the model.

    A convolution becomes a :class:`~sparsekern.nn.StochasticConv2d`, filter groups included, with its ReLU where it computes one; one
    made of parts (unequal groups, spatial basis) part by part; an ``nn.Linear`` becomes a :class:`~sparsekern.nn.SparseLinear`. What
    is sparse already stays. Nothing is replaced unless all of it can be. Made for a network before training: the kept weights are the
    dense layer's, scaled by ``sqrt(dense fan-in / true fan-in)`` of their filter, so that whatever rule drew them (He's
    ``2 / fan_in``, xavier) holds for the fan-in that is left. Biases are kept. Optimisers and hooks of the replaced layers do not
    follow.

    A layer stays dense where a sparse one could not stand in for it: a module reads its weight without calling it (the ``out_proj`` of
    ``nn.MultiheadAttention``, the ``linear1`` and ``linear2`` of ``nn.TransformerEncoderLayer``); it has a forward of its own; it holds
    more than a weight and a bias, as one that is parametrized, pruned or weight-normed does; it shares a parameter with another module;
    its weight has no shape yet. ``conv``, ``pointwise`` and ``linear`` pass it over; a pattern of ``layers`` that asks for it raises.

    Args:
        model: any module, on any device; on meta only the shapes are formed.
        conv: kept fraction of each convolution with more than one tap, in (0, 1]; 1 leaves the layer as it is.
        pointwise: the same of each 1x1 convolution.
        linear: the same of each ``nn.Linear``; its fan-in is fixed, and exact whatever ``count`` says.
        layers: shell pattern of module names (``"conv2?"``) to kept fraction; wins over the three kinds, the last match counts. A layer
            that stands in several places goes by each of its names, and is replaced in all of them.
        granularity: of convolutions with more than one tap, as in ``StochasticConv2d``. ``"spatial"`` is the paper's.
        pointwise_granularity: of 1x1 convolutions. A 1x1 filter has one tap, so that ``"spatial"`` would keep or lose it whole.
        count: ``"exact"`` keeps the expected number; ``"bernoulli"`` draws each connection by itself, as the paper does.
        seed: gives each layer a seed of its own that depends on this one and the layer's (first) name only, and leaves torch's generator
            alone; None draws from it.

    Raises:
        ValueError: ``form_stochastic: conv must be in (0, 1]; got 0``;
            ``form_stochastic: layers must match convolutions or linear layers (conv1a, conv1b, ...); got 'conv9*'``;
            ``form_stochastic: layers must match layers that a sparse one can stand in for; got 'attn*', which matches attn.out_proj:
            MultiheadAttention reads its weight without calling it``

    Cost:
        One pass over the weights.

    Source:
        Shafiee, Fieguth and Wong, "StochasticNet in StochasticNet", section 2.2.

    Example:
        >>> from sparsekern.models.registry import create_model
        >>> net = form_stochastic(create_model("nin"), conv=0.25, layers={"conv1a": 1.0})
        >>> net.conv2a.density, net.conv2a.weight.numel(), type(net.conv1a).__name__
        (0.25, 115200, 'GroupedConv2d')
    """
    kinds, layers = {"conv": conv, "pointwise": pointwise, "linear": linear}, {} if layers is None else layers
    check("form_stochastic", isinstance(model, nn.Module), "model", "an nn.Module", model)
    named = isinstance(layers, Mapping) and all(isinstance(pattern, str) for pattern in layers)
    check("form_stochastic", named, "layers", "a mapping of patterns to kept fractions", layers)
    fractions = {**kinds, **{f"layers[{pattern!r}]": density for pattern, density in layers.items()}}
    check_real("form_stochastic", "in (0, 1]", lambda density: 0 < density <= 1, **fractions)
    check_seed("form_stochastic", seed)
    choices = {"granularity": (granularity, GRANULARITIES), "pointwise_granularity": (pointwise_granularity, GRANULARITIES)}
    for arg, (value, known) in {**choices, "count": (count, COUNTS)}.items():
        check("form_stochastic", isinstance(value, str) and value in known, arg, f"one of {known}", value)

    formed: dict[nn.Module, nn.Module] = {}
    with torch.random.fork_rng(devices=[], enabled=seed is not None):  # the sparse layers draw weights, which are overwritten
        for layer, (name, density) in _chosen(model, kinds, layers).items():
            mask = {"conv": granularity, "pointwise": pointwise_granularity}.get(_kind(layer), "")
            formed[layer] = _form(layer, density, mask, count, named_seed(seed, name))
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() would skip a second name of a shared layer
            if child in formed:
                setattr(parent, name, formed[child])
    return formed.get(model, model)


def _chosen(model: nn.Module, kinds: Mapping[str, float], layers: Mapping[str, float]) -> dict[Any, tuple[str, float]]:
    """The layers to be replaced, each with its first name and the fraction that is kept."""
    named = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, Any] = {name: layer for name, layer in named.items() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    first = {layer: name for name, layer in reversed(found.items())}
    fractions = {layer: kinds[_kind(layer)] for layer in found.values()}
    asked: dict[Any, str] = {}
    for pattern, density in layers.items():
        matched = [found[name] for name in fnmatch.filter(found, pattern)]
        if not matched:
            there = ", ".join(first[layer] for layer in fractions) or "of which there are none"
            raise ValueError(f"form_stochastic: layers must match convolutions or linear layers ({there}); got {pattern!r}")
        fractions |= dict.fromkeys(matched, density)
        asked |= dict.fromkeys(matched, pattern)
    chosen = {layer: (first[layer], density) for layer, density in fractions.items() if density < 1}
    for layer, reason in _kept_dense(model, chosen).items():
        name, _ = chosen.pop(layer)
        rule = f"match layers that a sparse one can stand in for; got {asked.get(layer)!r}, which matches {name}: {reason}"
        if layer in asked:
            raise ValueError(f"form_stochastic: layers must {rule}")
    return chosen


def _kept_dense(model: nn.Module, layers: Iterable[Any]) -> dict[Any, str]:
    """The layers that a sparse one cannot stand in for, and why: what they compute is not theirs alone, or not all that they are."""
    readers: dict[nn.Module, nn.Module] = {}
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            readers |= dict.fromkeys(module.children(), module)
        elif isinstance(module, nn.TransformerEncoderLayer):  # its fused inference reads them
            readers |= dict.fromkeys((module.linear1, module.linear2), module)
        for parameter in module._parameters.values():
            owners.setdefault(id(parameter), []).append((name, module))

    def reason(layer: Any) -> str:
        kind: Any = type_before_parametrizations(layer)
        if layer in readers:
            return f"{type(readers[layer]).__name__} reads its weight without calling it"
        same = kind.forward in FORWARDS and getattr(kind, "_conv_forward", nn.Conv2d._conv_forward) is nn.Conv2d._conv_forward
        if not same or "forward" in vars(layer):
            return f"{kind.__name__} has a forward of its own"
        more = {*layer._parameters, *layer._buffers, *layer._modules} - {"weight", "bias"}
        if more:
            return f"it holds more than a weight and a bias ({', '.join(sorted(more))})"
        if layer._parameters.get("weight") is None or is_lazy(layer.weight):
            return "its weight has no shape yet" if "weight" in layer._parameters else "its weight is no parameter"
        own = [parameter for parameter in layer._parameters.values() if parameter is not None]
        others = [name for parameter in own for name, module in owners[id(parameter)] if module is not layer]
        return f"it shares a parameter with {others[0] or 'the model itself'}" if others else ""

    return {layer: why for layer in layers if (why := reason(layer))}


def _kind(layer: nn.Conv2d | nn.Linear) -> str:
    if isinstance(layer, nn.Linear):
        return "linear"
    return "pointwise" if set(layer.kernel_size) == {1} else "conv"


def _form(layer: nn.Conv2d | nn.Linear, density: float, granularity: str, count: str, seed: int | None) -> nn.Module:
    """The sparse twin of one layer, with its weights where they are kept."""
    weight = layer.weight
    like: dict[str, Any] = dict(bias=layer.bias is not None, device=weight.device, dtype=weight.dtype, density=density, seed=seed)
    if isinstance(layer, nn.Linear):
        sparse: SparseLinear | StochasticConv2d = SparseLinear(layer.in_features, layer.out_features, **like)
    else:
        make = StochasticConvReLU2d if getattr(layer, "activation", "none") == "relu" else StochasticConv2d
        sparse = make(
            layer.in_channels, layer.out_channels, *window_of(layer), layer.groups,
            padding_mode=layer.padding_mode, granularity=granularity, count=count, **like,
        )  # fmt: skip
    if not weight.is_meta:
        dense = {"weight": weight, "bias": layer.bias}
        sparse.load_state_dict({key: value.detach() for key, value in dense.items() if value is not None})
        _scale_to_true_fan_in_(sparse, weight[0].numel())
    for parameter, twin in zip((layer.weight, layer.bias), (sparse.weight, sparse.bias)):
        if twin is not None and parameter is not None:
            twin.requires_grad_(parameter.requires_grad)
    return sparse.train(layer.training)


@torch.no_grad()
def _scale_to_true_fan_in_(sparse: SparseLinear | StochasticConv2d, dense_fan_in: int) -> None:
    if isinstance(sparse, SparseLinear):
        sparse.weight.mul_((dense_fan_in / sparse.fan_in) ** 0.5)
        return
    blocks = sparse.indptr.diff().long()  # [OB] kept blocks of each output block
    fan_in = blocks * (sparse.weight.shape[2] * sparse.weight.shape[3])
    scale = (dense_fan_in / fan_in.clamp_min(1)).sqrt().repeat_interleave(blocks)  # [nnz]
    sparse.weight.mul_(scale.to(sparse.weight)[:, None, None, None])
