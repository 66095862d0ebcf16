"""What a layer becomes: a rule per kind of structure, a small record that makes the sparse layer of a dense one."""

from __future__ import annotations

from dataclasses import KW_ONLY, asdict, dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sparsekern.arguments import check_real, check_whole
from sparsekern.nn import GroupedConv2d, RootModule, SparseLinear, StochasticConv2d
from sparsekern.nn.sparse_linear import FIXED_FAN_OUT, TOPOLOGIES
from sparsekern.nn.stochastic_conv2d import GRANULARITIES
from sparsekern.topology.conv_masks import COUNTS

CHOSEN = ("magnitude", "mask", "random")  # where connections and weights come from
SLICED = ("dense", "random")


def _check(rule: Rule, condition: bool, arg: str, says: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"{type(rule).__name__}: {arg} must be {says}; got {got}")


def _check_amount(rule: FanIn | Stochastic) -> None:
    """Density or fan-in, never both; a mask may say it by itself."""
    _check(rule, rule.source in CHOSEN, "source", f"one of {CHOSEN}", repr(rule.source))
    given = (rule.density is not None) + (rule.fan_in is not None)
    enough = given == 1 or (given == 0 and rule.source == "mask")
    _check(rule, enough, "density and fan_in", "given one without the other", "both" if given else "neither")
    if rule.density is not None:
        check_real(type(rule).__name__, "in (0, 1]", lambda d: 0 < d <= 1, density=rule.density)
    if rule.fan_in is not None:
        check_whole(type(rule).__name__, fan_in=rule.fan_in)
        _check(rule, rule.fan_in > 0, "fan_in", "at least 1", rule.fan_in)


class Rule:
    """A rule of a plan for :func:`sparsekern.convert`; use :class:`FanIn`, :class:`Groups`, :class:`Root` or :class:`Stochastic`."""

    takes: ClassVar[type[nn.Module]]
    source: str

    def make(self, layer: Any, mask: Tensor | None, seed: int | None) -> nn.Module:
        """The sparse layer of a dense one, whose weights may be kept as ``mask`` (bool, of their shape) says. ValueError if none can be."""
        raise NotImplementedError

    def describe(self, made: Any) -> str:
        """What the layer that was made is, in a few words."""
        raise NotImplementedError

    def as_made(self, made: Any) -> Rule:
        """The rule that gives a fresh layer of the same shapes, whatever the weights: a ``state_dict`` of the made one loads into it."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        return {"rule": type(self).__name__, **{key: value for key, value in asdict(cast(Any, self)).items() if value is not None}}


@dataclass(frozen=True)
class FanIn(Rule):
    """``nn.Linear`` to :class:`~sparsekern.nn.SparseLinear`: every output keeps equally many inputs, one by one, in blocks or panels.

    Args:
        density: kept fraction in (0, 1]. Exactly one of ``density`` and ``fan_in``; with ``source="mask"`` also neither: then the
            fan-in is that of the output with most connections, and all others get connections of weight 0 beside their own.
        fan_in: kept inputs per output.
        block_size: as in ``SparseLinear``: 1, ``(BO, BI)``, or ``(V, 1)`` for panels, ``V`` outputs that share their inputs.
        topology: as in ``SparseLinear``. Where connections are chosen, ``"random"`` (any inputs) or ``"balanced"``.
        source: ``"magnitude"``: the largest weights (blocks) of each output stay; ``"mask"``: what a mask of
            ``torch.nn.utils.prune`` keeps, or, without one, the weights that are not 0; ``"random"``: drawn connections and fresh weights.

    Raises:
        ValueError: ``FanIn: density and fan_in must be given one without the other; got both``

    Example:
        >>> FanIn(density=0.1).make(nn.Linear(300, 20), None, seed=0)
        SparseLinear(in_features=300, out_features=20, bias=True, fan_in=30, density=0.1, kept=600)
    """

    takes: ClassVar[type[nn.Module]] = nn.Linear
    density: float | None = None
    _: KW_ONLY
    fan_in: int | None = None
    block_size: int | tuple[int, int] = 1
    topology: str = "random"
    source: str = "magnitude"

    def __post_init__(self) -> None:
        _check_amount(self)
        _check(
            self,
            isinstance(self.topology, str) and self.topology in TOPOLOGIES,
            "topology",
            f"one of {sorted(TOPOLOGIES)}",
            repr(self.topology),
        )
        free = self.source == "random" or self.topology not in FIXED_FAN_OUT
        _check(self, free, "topology", "'random' or 'balanced' where connections are chosen", repr(self.topology))
        _check(self, self.source != "mask" or self.topology == "random", "topology", "'random' with source='mask'", repr(self.topology))

    def make(self, layer: nn.Linear, mask: Tensor | None, seed: int | None) -> SparseLinear:
        amount: dict[str, Any] = {"fan_in": self.fan_in} if self.density is None else {"density": self.density}
        if self.source == "mask":
            index = _masked_index(layer.weight, cast(Tensor, mask), self.block_size, self.density, self.fan_in)
            return SparseLinear.from_dense(layer, index=index, block_size=self.block_size)
        options = {**amount, "block_size": self.block_size, "topology": self.topology, "seed": seed}
        if self.source == "magnitude":
            return SparseLinear.from_dense(layer, **options)
        like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        return SparseLinear(layer.in_features, layer.out_features, layer.bias is not None, **options, **like)

    def describe(self, made: SparseLinear) -> str:
        block_out, block_in = made.block_size
        if made.block_size == (1, 1):
            return f"fan-in {made.fan_in}" + ("" if self.topology == "random" else f", {self.topology}")
        return f"panels of {block_out}" if block_in == 1 else f"blocks {block_out}x{block_in}"

    def as_made(self, made: SparseLinear) -> FanIn:
        return replace(self, density=None, fan_in=made.fan_in, source="random")


@dataclass(frozen=True)
class _InGroups(Rule):
    """What the rules for filter groups share."""

    takes: ClassVar[type[nn.Module]] = nn.Conv2d
    groups: int
    _: KW_ONLY
    source: str = "dense"

    def __post_init__(self) -> None:
        _check(self, isinstance(self.groups, int) and self.groups > 0, "groups", "at least 1", self.groups)
        _check(self, self.source in SLICED, "source", f"one of {SLICED}", repr(self.source))

    def as_made(self, made: nn.Module) -> Rule:
        return replace(self, source="random")


@dataclass(frozen=True)
class Groups(_InGroups):
    """``nn.Conv2d`` to :class:`~sparsekern.nn.GroupedConv2d`, in more filter groups than it has.

    Args:
        groups: filter groups, a multiple of the layer's own.
        source: ``"dense"``: the weights inside the groups stay, those between groups go; ``"random"``: fresh weights.

    Example:
        >>> Groups(4).make(nn.Conv2d(8, 16, 3), None, seed=0)
        GroupedConv2d(8, 16, kernel_size=(3, 3), stride=(1, 1), groups=4)
    """

    def make(self, layer: nn.Conv2d, mask: Tensor | None, seed: int | None) -> GroupedConv2d:
        made: Any = GroupedConv2d.from_dense(layer, groups=self.groups, activation=getattr(layer, "activation", "none"))
        if self.source == "random":
            made.reset_parameters()
        return made

    def describe(self, made: GroupedConv2d) -> str:
        return f"{made.groups} groups"


@dataclass(frozen=True)
class Root(_InGroups):
    """``nn.Conv2d`` to :class:`~sparsekern.nn.RootModule`: the convolution in filter groups, a ReLU, and a 1x1 that mixes the groups again.

    For a network whose ``k x k`` convolutions are not followed by a 1x1 of their own (else use :class:`Groups`). What follows the
    convolution in the model, its batch-norm or ReLU, stays behind the root module.

    Args:
        groups: filter groups.
        source: ``"dense"``: the weights inside the groups stay, and the 1x1 begins as the identity; ``"random"``: fresh weights.

    Example:
        >>> Root(4).make(nn.Conv2d(8, 16, 3), None, seed=0)
        RootModule(
          (grouped): GroupedConv2d(8, 16, kernel_size=(3, 3), stride=(1, 1), groups=4, activation=relu)
          (pointwise): GroupedConv2d(16, 16, kernel_size=(1, 1), stride=(1, 1))
        )
    """

    def make(self, layer: nn.Conv2d, mask: Tensor | None, seed: int | None) -> RootModule:
        plain = layer.padding_mode == "zeros" and tuple(layer.dilation) == (1, 1) and layer.groups == 1
        _check(self, plain, "layer", "a dense convolution without dilation, padded with zeros", layer)
        window: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
        made = RootModule(
            layer.in_channels, layer.out_channels, layer.out_channels, cast(Any, layer.kernel_size), groups=self.groups, **window,
            bias=layer.bias is not None, device=layer.weight.device, dtype=layer.weight.dtype,
        )  # fmt: skip
        made.pointwise.activation = getattr(layer, "activation", "none")
        if self.source == "dense":
            made.grouped.load_state_dict({key: value.detach() for key, value in layer.state_dict().items()})
            with torch.no_grad():
                nn.init.dirac_(made.pointwise.weight)
                if made.pointwise.bias is not None:
                    made.pointwise.bias.zero_()
        return made

    def describe(self, made: RootModule) -> str:
        return f"root module, {made.grouped.groups} groups"


@dataclass(frozen=True)
class Stochastic(Rule):
    """``nn.Conv2d`` to :class:`~sparsekern.nn.StochasticConv2d`: a mask of which only the kept weights exist.

    Args:
        density: kept fraction in (0, 1], over the whole layer. Exactly one of ``density`` and ``fan_in``; with ``source="mask"`` also
            neither: then every block of weights stays of which the mask keeps one.
        fan_in: weights that every filter keeps.
        granularity, share, count: as in ``StochasticConv2d``; ``granularity`` is ``"synapse"`` by default where a mask is taken, else
            ``"spatial"``.
        source: ``"magnitude"``, ``"mask"`` or ``"random"``, as in :class:`FanIn`.

    Raises:
        ValueError: ``Stochastic: density must be in (0, 1]; got 0``

    Example:
        >>> Stochastic(density=0.25).make(nn.Conv2d(8, 16, 3, bias=False), None, seed=0).weight.shape
        torch.Size([36, 1, 8, 1])
    """

    takes: ClassVar[type[nn.Module]] = nn.Conv2d
    density: float | None = None
    _: KW_ONLY
    fan_in: int | None = None
    granularity: str | None = None
    share: int = 1
    count: str = "exact"
    source: str = "magnitude"

    def __post_init__(self) -> None:
        _check_amount(self)
        known = self.granularity is None or self.granularity in GRANULARITIES
        _check(self, known, "granularity", f"one of {GRANULARITIES}", repr(self.granularity))
        _check(self, self.count in COUNTS, "count", f"one of {COUNTS}", repr(self.count))
        check_whole("Stochastic", share=self.share)
        _check(self, self.share > 0, "share", "at least 1", self.share)

    def make(self, layer: nn.Conv2d, mask: Tensor | None, seed: int | None) -> StochasticConv2d:
        relu = getattr(layer, "activation", "none") != "none"
        _check(self, not relu, "layer", "a convolution without a ReLU of its own", layer)
        _check(self, self.source != "mask" or mask is None or bool(mask.any()), "layer", "one that keeps a weight", "a mask of zeros")
        granularity = self.granularity or ("synapse" if self.source == "mask" else "spatial")
        amount: dict[str, Any] = {"fan_in": self.fan_in} if self.density is None else {"density": self.density}
        options: dict[str, Any] = {"granularity": granularity, "share": self.share}
        if self.source == "mask" and self.density is self.fan_in is None:
            return StochasticConv2d.from_dense(layer, mask=mask, **options)
        if self.source != "random":
            return StochasticConv2d.from_dense(layer, seed=seed, **amount, **options)
        window: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        return StochasticConv2d(
            layer.in_channels, layer.out_channels, cast(Any, layer.kernel_size), groups=layer.groups, bias=layer.bias is not None,
            padding_mode=layer.padding_mode, count=self.count, seed=seed, **window, **like, **amount, **options,
        )  # fmt: skip

    def describe(self, made: StochasticConv2d) -> str:
        return f"{made.granularity} mask" + (f", shared by {made.share}" if made.share > 1 else "")

    def as_made(self, made: StochasticConv2d) -> Stochastic:
        density = made.density if self.fan_in is None else None
        return replace(self, density=density, granularity=made.granularity, count="exact", source="random")


def _masked_index(weight: Tensor, mask: Tensor, block_size: int | tuple[int, int], density: float | None, fan_in: int | None) -> Tensor:
    """``[OB, F]`` int32: the blocks of each row of blocks that the mask keeps, largest first where they are more than asked for; where
    they are fewer, others beside them, whose weights are 0."""
    block_out, block_in = (block_size, block_size) if isinstance(block_size, int) else block_size
    outputs, inputs = weight.shape
    if outputs % block_out or inputs % block_in:
        raise ValueError(f"FanIn: block_size must be a divisor of {outputs} outputs and {inputs} inputs; got {block_size}")
    blocks = lambda t: t.unflatten(1, (-1, block_in)).unflatten(0, (-1, block_out))  # noqa: E731  [OB, BO, IB, BI]
    kept = blocks(mask).any(3).any(1)  # [OB, IB]
    strength = blocks(weight.detach().float()).pow(2).sum((1, 3))
    if density is not None:
        many = max(1, round(density * inputs / block_in))
    elif fan_in is not None:
        many = fan_in // block_in
    else:
        many = max(1, int(kept.sum(1).max()))
    if not 1 <= many <= inputs // block_in or (fan_in is not None and fan_in % block_in):
        raise ValueError(f"FanIn: fan_in must be a multiple of {block_in} in [{block_in}, {inputs}]; got {fan_in}")
    order = torch.where(kept, 1 + strength / strength.max().clamp_min(torch.finfo(torch.float32).tiny), 0)
    return order.topk(many, dim=1).indices.sort(dim=1).values.int()
