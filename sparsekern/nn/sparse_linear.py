"""SparseLinear: a drop-in nn.Linear in which every output keeps the same number of inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern import topology as topologies
from sparsekern.arguments import check_dtype, check_flag, said
from sparsekern.nn import asked_about
from sparsekern.nn.computed import now
from sparsekern.nn.planned import PlannedModule
from sparsekern.ops import backends, pack_sparse_linear, sparse_linear_packed
from sparsekern.ops.cuda import explain_linear
from sparsekern.ops.define import has_tangent, readable
from sparsekern.ops.sparse_linear import (
    check,
    check_index,
    dense_weight,
    explain_packed,
    explain_sparse_linear,
    kept_weight,
    plan_sparse_linear,
    planned_balanced,
    sparse_linear,
)
from sparsekern.ops.sparse_linear_packed import packed_windows

_grad_enabled, _compiling = torch.is_grad_enabled, torch.compiler.is_compiling
# (a layer's attributes, x) -> out of the everyday call, else NotImplemented; None where it was not built for this torch
_quick = backends.quick_call.linear_layer if backends.quick_call and backends.missing is None else None


def _clash_free_table(inputs: int, outputs: int, fan_in: int, *, seed: int | None) -> Tensor:
    """As many memories as an output has inputs: it reads all of them at once, one from each."""
    return topologies.clash_free_table(inputs, outputs, fan_in, parallel=fan_in, seed=seed)


TOPOLOGIES = {
    "random": topologies.fan_in_table,
    "regular": topologies.regular_table,
    "balanced": topologies.balanced_table,
    "spread": topologies.spread_table,
    "clash_free": _clash_free_table,
}
FIXED_FAN_OUT = ("regular", "spread", "clash_free")


def _check(condition: bool, arg: str, rule: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"SparseLinear: {arg} must be {rule}; got {got}")


def _fan_in_of(fan_out: int, in_features: int, out_features: int, step: int) -> int:
    """The fan-in that gives each input ``fan_out`` outputs; it must be a multiple of ``step``."""
    whole = isinstance(fan_out, Real) and fan_out == fan_out // 1
    _check(whole and 1 <= fan_out <= out_features, "fan_out", f"a whole number in [1, {out_features}]", fan_out)
    least = -(-out_features // in_features)
    _check(fan_out >= least, "fan_out", f"at least {least}, or some of the {out_features} outputs are unconnected", fan_out)
    fan_in, rest = divmod(in_features * int(fan_out), out_features)
    why = f"fan_in = {in_features} * fan_out / {out_features} is not whole" + (" in blocks" if rest == 0 else "")
    _check(rest == 0 and fan_in % step == 0, "fan_out", f"a multiple of {step * out_features // in_features}, or {why}", fan_out)
    return fan_in


def _nearest_divisor(inputs: int, fan_in: int, step: int) -> int:
    """The multiple of ``step`` that divides ``inputs`` and is nearest to ``fan_in``; the smaller of two. ``step`` divides ``inputs``."""
    divisors = [size for size in range(step, inputs + 1, step) if inputs % size == 0]
    return min(divisors, key=lambda size: (abs(size - fan_in), size))


def _strongest(strength: Tensor, fan_in: int, balanced: bool) -> Tensor:
    """``[OB, fan_in]`` int32: the largest of each row of ``strength [OB, IB]``; balanced: of each window, as many as it gets."""
    if not balanced:
        return strength.topk(fan_in, dim=1).indices.sort(dim=1).values.int()
    counts = topologies.balanced_counts(strength.shape[1], fan_in)
    kept = [window.topk(count, dim=1).indices for window, count in zip(strength.split(32, dim=1), counts)]
    return torch.cat([32 * i + k.sort(dim=1).values for i, k in enumerate(kept)], dim=1).int()


class SparseLinear(PlannedModule):
    """``nn.Linear`` with a fixed fan-in: only the kept weights exist, in memory, in gradients and in optimisers.

    Args:
        in_features: features of the input.
        out_features: features of the output.
        bias: whether a bias is added.
        fan_in: kept inputs per output, in elements; a multiple of the block's input size. Exactly one of ``fan_in``, ``density`` and
            ``fan_out``.
        density: kept fraction in (0, 1]; the fan-in is the nearest that the topology allows, at least one block.
        fan_out: kept outputs per input, in elements; the fan-in is then ``in_features * fan_out / out_features``, which must be whole.
        block_size: an int or ``(BO, BI)``: connections come in blocks of ``BO`` outputs x ``BI`` inputs. 1 is unstructured,
            ``(V, 1)`` a panel (``V`` outputs share their inputs), ``(16, 16)`` and up block-sparse.
        topology: ``"random"``: a fixed fan-in; ``"regular"``: a fixed fan-in and a fixed fan-out; ``"balanced"``: a fixed fan-in,
            spread so that every output reads equally many inputs in each window of 32 (see
            :func:`~sparsekern.topology.balanced_counts`), which is fastest for few rows of input; only for ``block_size=1``;
            ``"spread"``: regular, and every output reads every window of inputs, every input feeds every window of outputs, equally
            often (scatter 1, see :func:`~sparsekern.topology.spread_table`); ``"clash_free"``: regular, and output by output its
            connections come from as many memories (see :func:`~sparsekern.topology.clash_free_table`), so that the fan-in divides
            the inputs. Default: ``"regular"`` with ``fan_out``, else ``"random"``.
        seed: draws the same topology on every machine and leaves torch's generator alone; None draws from it.
        device, dtype: as in ``nn.Linear``.

    Attributes:
        weight: ``[out_features, fan_in]`` for ``block_size=1``, else ``[OB, F, BO, BI]``.
        index: ``[OB, F]`` int32 buffer, the input (block) behind each weight. Change it with :meth:`set_topology`.

    Shape:
        ``[..., in_features] -> [..., out_features]``. A feature-major input (``[N, in_features]`` with strides ``(1, N)``) gives a
        feature-major output.

    Raises:
        ValueError: ``SparseLinear: fan_in, density and fan_out must be given one without the others; got fan_in and density``;
            ``SparseLinear: fan_out must be at least 16, or some of the 1024 outputs are unconnected; got 8``;
            ``SparseLinear: fan_out must be a multiple of 5, or fan_in = 64 * fan_out / 10 is not whole; got 3``;
            ``SparseLinear: block_size must be 1 with topology 'balanced'; got 16``

    Cost:
        ``2 * N * out_features * fan_in`` FLOPs; training memory O(kept weights).

    Source:
        Dey et al., "Characterizing Sparse Connectivity Patterns in Neural Networks", section 2 (pre-defined fixed fan-in and fan-out).

    Example:
        >>> layer = SparseLinear(512, 256, density=0.25, seed=0)
        >>> layer(torch.randn(8, 512)).shape
        torch.Size([8, 256])
        >>> layer
        SparseLinear(in_features=512, out_features=256, bias=True, fan_in=128, density=0.25, kept=32768)
        >>> SparseLinear(64, 1024, fan_out=128)
        SparseLinear(in_features=64, out_features=1024, bias=True, fan_in=8, fan_out=128, density=0.125, kept=8192)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        fan_in: int | None = None,
        density: float | None = None,
        fan_out: int | None = None,
        block_size: int | tuple[int, int] = 1,
        topology: str | None = None,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._packed: Tensor | None = None
        given = [name for name, value in (("fan_in", fan_in), ("density", density), ("fan_out", fan_out)) if value is not None]
        _check(len(given) == 1, "fan_in, density and fan_out", "given one without the others", " and ".join(given) or "none")
        if topology is None:
            topology = "random" if fan_out is None else "regular"
        _check(isinstance(topology, str) and topology in TOPOLOGIES, "topology", f"one of {sorted(TOPOLOGIES)}", said(topology))
        _check(fan_out is None or topology in FIXED_FAN_OUT, "topology", "'regular', 'spread' or 'clash_free' with fan_out", repr(topology))
        pair = block_size if isinstance(block_size, tuple | list) else (block_size, block_size)
        _check(len(pair) == 2 and all(isinstance(size, int) for size in pair), "block_size", "a whole number or two", said(block_size))
        block_out, block_in = pair
        _check(block_out > 0 and block_in > 0, "block_size", "at least 1", block_size)
        _check(topology != "balanced" or block_out == block_in == 1, "block_size", "1 with topology 'balanced'", block_size)
        topologies.check_whole("SparseLinear", in_features=in_features, out_features=out_features)
        if fan_in is not None:
            topologies.check_whole("SparseLinear", fan_in=fan_in)
        check_dtype("SparseLinear", dtype)
        check_flag("SparseLinear", bias=bias)
        _check(in_features > 0 and in_features % block_in == 0, "in_features", f"a positive multiple of {block_in}", in_features)
        _check(out_features > 0 and out_features % block_out == 0, "out_features", f"a positive multiple of {block_out}", out_features)
        # where the fan-out is fixed only the multiples of a step give a whole one
        step = topologies.fan_in_step(in_features // block_in, out_features // block_out) if topology in FIXED_FAN_OUT else 1
        step *= block_in
        if fan_out is not None:
            fan_in = _fan_in_of(fan_out, in_features, out_features, step)
        elif density is not None:
            _check(isinstance(density, Real) and 0 < density <= 1, "density", "in (0, 1]", density)
            fan_in = max(1, round(density * in_features / step)) * step
            if topology == "clash_free":
                fan_in = _nearest_divisor(in_features // block_in, fan_in // block_in, step // block_in) * block_in
        assert fan_in is not None
        regular = f" for a whole fan_out to {out_features} outputs" if step > block_in else ""
        _check(
            0 < fan_in <= in_features and fan_in % step == 0, "fan_in", f"a multiple of {step} in [{step}, {in_features}]{regular}", fan_in
        )
        divides = topology != "clash_free" or in_features % fan_in == 0
        _check(divides, "fan_in", f"a divisor of {in_features} with topology 'clash_free'", fan_in)

        self.in_features, self.out_features = in_features, out_features
        self.block_size = (block_out, block_in)
        self.topology, self.seed = topology, seed
        blocks = out_features // block_out, fan_in // block_in
        shape = blocks if self.block_size == (1, 1) else (*blocks, *self.block_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None)
        self.register_buffer("index", torch.empty(blocks, dtype=torch.int32, device=device))
        self.reset_parameters()

    @property
    def fan_in(self) -> int:
        """Kept inputs per output, in elements."""
        return self.index.shape[1] * self.block_size[1]

    @property
    def fan_out(self) -> int | None:
        """Kept outputs per input, in elements; None where inputs differ."""
        fan_out, rest = divmod(self.out_features * self.fan_in, self.in_features)
        if not self._topology_set or not readable(self.index):
            return fan_out if self.topology in FIXED_FAN_OUT else None
        inputs = self.in_features // self.block_size[1]
        each = torch.arange(inputs, dtype=torch.int32, device=self.index.device).repeat_interleave(fan_out // self.block_size[0])
        return fan_out if rest == 0 and torch.equal(self.index.flatten().sort().values, each) else None

    @property
    def density(self) -> float:
        return self.fan_in / self.in_features

    def reset_parameters(self) -> None:
        """Draw the topology and the weights anew; the bounds follow the true fan-in, as ``nn.Linear``'s follow its own."""
        if not self.index.is_meta:
            with torch.no_grad():
                self.index.copy_(*self.draw_topology(self.seed))
        bound = 1 / math.sqrt(self.fan_in)
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)
        self._topology_changed()

    def forward(self, input: Tensor) -> Tensor:
        if not _compiling() and _quick is not None:
            try:
                out = _quick(self.__dict__, input)
            except RuntimeError:
                self._check_features(input)  # says it in our words; falls through when the error was another one
                check(input, self.weight, self.bias, self.index, self._plan)
                raise
            if out is not NotImplemented:
                return out
        try:
            if self._packed is not None:
                return self._forward_packed(input)
            own: dict[str, Any] = self._parameters  # no __getattr__: small layers feel it
            try:
                weight, bias = own["weight"], own["bias"]
            except KeyError:  # parametrized
                weight, bias = self.weight, self.bias
            plan = self._current_plan()
            if plan is None:  # a plan knows the number of features
                self._check_features(input)
            return sparse_linear(input, weight, self._buffers["index"], bias, plan)  # type: ignore[arg-type] # it has one
        except ValueError:
            self._check_features(input)
            raise

    def _check_features(self, x: Any) -> None:
        """More or fewer features than the layer has are no input of it, even where its table would be in range of them."""
        fits = not isinstance(x, Tensor) or x.dim() == 0 or x.shape[-1] == self.in_features
        _check(fits, "x", f"[..., {self.in_features}]", list(x.shape) if isinstance(x, Tensor) else None)

    # ---- packed, on request: a frozen layer for inference

    def pack(self) -> SparseLinear:
        """Put the weights, as they are now, into the kernels' own order, and freeze the layer; returns it.

        A packed layer runs :func:`~sparsekern.ops.sparse_linear_packed`, says so in its ``repr``, refuses training, and does not see
        later writes to ``weight``. It costs the memory that :meth:`explain` prints, beside the weight. :meth:`unpack` goes back,
        and so does a move to float64 or to another device.

        Example:
            >>> SparseLinear(64, 32, density=0.25).pack()
            SparseLinear(in_features=64, out_features=32, bias=True, fan_in=16, density=0.25, kept=512, packed)
        """
        self._packed = pack_sparse_linear(now(self, "weight"), self.index, self.in_features)
        self._kept = self.weight.numel()
        return self

    def unpack(self) -> SparseLinear:
        """Read the natural weight at every call again; returns the layer."""
        self._packed = None
        return self

    def _forward_packed(self, x: Tensor) -> Tensor:
        own: dict[str, Any] = self._parameters  # no __getattr__, as in forward
        try:
            bias = own["bias"]
        except KeyError:  # parametrized
            bias = self.bias
        wants_gradient = isinstance(x, Tensor) and has_tangent(x)
        if _grad_enabled():
            weight = own.get("weight")  # None: parametrized
            of_x = isinstance(x, Tensor) and x.requires_grad
            wants_gradient = wants_gradient or of_x or (self.training and (self.weight if weight is None else weight).requires_grad)
        _check(not wants_gradient, "layer", "unpacked to be trained (call unpack())", "a packed one where a gradient is needed")
        if _grad_enabled():
            bias = bias.detach() if bias is not None and bias.requires_grad else bias
        return sparse_linear_packed(x, self._packed, bias, self.out_features, self._kept)  # type: ignore[arg-type] # it is there, or this is not called

    def _topology_changed(self) -> None:
        super()._topology_changed()
        if self._packed is not None and not self.index.is_meta:
            self.pack()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        packed, self._packed = self._packed is not None, None
        super()._apply(fn, recurse)
        return self.pack() if packed and backends.can_pack(self.weight) else self

    # ---- topology

    def draw_topology(self, seed: int | None) -> tuple[Tensor]:
        """The table ``(index,)`` of other connections of this layer's kind, for :meth:`set_topology`; the layer stays as it is."""
        draw = TOPOLOGIES[self.topology]
        return (draw(self.in_features // self.block_size[1], self.index.shape[0], self.index.shape[1], seed=seed),)

    def _check_tables(self, tables: dict[str, Tensor]) -> None:
        if tables["index"].dim() == 2:
            check_index(tables["index"], self.in_features // self.block_size[1])

    def _make_plan(self) -> Tensor | None:
        return plan_sparse_linear(self.index, self.in_features, self.block_size)

    @torch.no_grad()
    def set_topology(self, index: Tensor, weight: Tensor | None = None) -> None:
        """Replace the connections, ``index [OB, F]`` int32, and the weights (new ones start at zero, kept connections keep theirs)."""
        if isinstance(index, Tensor) and index.dim() == 2:
            rows = self.index.shape[0]
            _check(index.shape[0] == rows and index.shape[1] > 0, "index", f"[{rows}, at least 1]", list(index.shape))
        plan_sparse_linear(index, self.in_features, self.block_size)  # an invalid table must not replace a valid one
        if weight is None:
            weight = kept_weight(self.weight_dense(), index.to(self.index.device), self.block_size)
        if not isinstance(weight, Tensor):
            raise TypeError(f"SparseLinear: weight must be a tensor; got {type(weight).__name__}")
        shape = (*index.shape, *self.weight.shape[2:])
        _check(tuple(weight.shape) == shape, "weight", f"{list(shape)} like index and the layer's blocks", list(weight.shape))
        self.index = self._taken(index)
        if weight.shape == self.weight.shape:
            self.weight.copy_(weight)
        else:
            self.weight = nn.Parameter(weight.to(self.weight), requires_grad=self.weight.requires_grad)
        self._topology_changed()

    # ---- to and from dense

    def weight_dense(self) -> Tensor:
        """``[out_features, in_features]`` with zeros where nothing is connected; differentiable."""
        return dense_weight(now(self, "weight"), self.index, self.in_features)

    def to_dense(self) -> nn.Linear:
        """An ``nn.Linear`` that computes the same."""
        dense = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta", dtype=self.weight.dtype)
        dense = dense.to_empty(device=self.weight.device)
        with torch.no_grad():
            dense.weight.copy_(self.weight_dense())
            if self.bias is not None:
                dense.bias.copy_(now(self, "bias"))
        return dense

    @classmethod
    def from_dense(cls, linear: nn.Linear, *, index: Tensor | None = None, **options: Any) -> SparseLinear:
        """A sparse layer from a dense one, with its weights at the kept connections.

        Without ``index`` each output (block) keeps its inputs (blocks) of largest magnitude, in a balanced topology those of each
        window; where the fan-out is fixed too and an output cannot choose alone, the drawn connections keep their weights. ``options``
        as in the constructor (``density``, ``fan_in`` or ``fan_out``, ``block_size``, ``topology``).

        Example:
            >>> sparse = SparseLinear.from_dense(nn.Linear(64, 32), density=0.5)
            >>> sparse.weight.shape
            torch.Size([32, 32])
        """
        _check(isinstance(linear, nn.Linear), "linear", "an nn.Linear", type(linear).__name__)
        if index is not None:
            if not isinstance(index, Tensor):
                raise TypeError(f"SparseLinear: index must be a tensor; got {type(index).__name__}")
            _check(index.dim() == 2 and index.dtype == torch.int32, "index", "[OB, F] torch.int32", f"{list(index.shape)} {index.dtype}")
            size = options.get("block_size", 1)
            options["fan_in"] = index.shape[1] * (size if isinstance(size, int) else size[1])
        options |= {"seed": options.get("seed", 0), "device": linear.weight.device, "dtype": linear.weight.dtype}
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, **options)
        with torch.no_grad():
            if index is None and layer.topology in FIXED_FAN_OUT:
                index = layer.index
            elif index is None:
                block_out, block_in = layer.block_size
                blocks = linear.weight.unflatten(1, (-1, block_in)).unflatten(0, (-1, block_out))  # [OB, BO, IB, BI]
                strength = blocks.float().pow(2).sum((1, 3))
                index = _strongest(strength, layer.index.shape[1], layer.topology == "balanced")
            plan_sparse_linear(index, layer.in_features, layer.block_size)
            _check(index.shape[0] == layer.index.shape[0], "index", f"[{layer.index.shape[0]}, F]", list(index.shape))
            layer.set_topology(index, kept_weight(linear.weight, index, layer.block_size))
            if layer.bias is not None and linear.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, missing_keys: list[str],
        unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        if fault := self._fault_of(state_dict, prefix):
            error_msgs.append(fault)
            return
        weight, index = (value if isinstance(value := state_dict.get(prefix + name), Tensor) else None for name in ("weight", "index"))
        if weight is not None and index is None and tuple(weight.shape) == (self.out_features, self.in_features):
            # a dense checkpoint: its weights at this layer's connections
            if fault := self._no_tables():
                error_msgs.append(fault)
                return
            state_dict = {**state_dict, prefix + "weight": kept_weight(weight, self.index, self.block_size), prefix + "index": self.index}
        elif weight is not None and index is not None and index.shape != self.index.shape:
            fits = index.dim() == 2 and index.shape[0] == self.index.shape[0] and index.shape[1] > 0
            if fits and tuple(weight.shape) == (*index.shape, *self.weight.shape[2:]):  # else torch names the sizes
                self._make_room(prefix, weight, index)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if self._packed is not None and weight is not None and prefix + "index" not in state_dict:
            self.pack()

    # ---- what it is, and what runs

    def extra_repr(self) -> str:
        fan_out = f", fan_out={self.fan_out}" if self.topology in FIXED_FAN_OUT else ""
        block = "" if self.block_size == (1, 1) else f", block_size={self.block_size}"
        packed = "" if self._packed is None else ", packed"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"fan_in={self.fan_in}{fan_out}, density={self.density:.4g}{block}, kept={self.weight.numel()}{packed}"
        )

    def explain(self, rows: int | Tensor = 1) -> str:
        """Which kernel serves ``rows`` rows of input (or those of a tensor) in each product, and the two estimates the choice was made by.

        Example:
            >>> print(SparseLinear(3072, 768, density=0.1).explain(rows=1))  # doctest: +ELLIPSIS
            SparseLinear 3072 -> 768, 10.0 % kept, 1 row, float32, served by ...
        """
        count: int = asked_about.rows(self.in_features, rows)
        topologies.check_whole("SparseLinear", rows=count)
        _check(count >= 0, "rows", "at least 0", count)
        device = self.weight.device
        who = backends.serves("sparse_linear", device)
        plural = "row" if count == 1 else "rows"
        dtype = str(self.weight.dtype).removeprefix("torch.")
        lines = [
            f"SparseLinear {self.in_features} -> {self.out_features}, {self.density:.1%} kept, {count} {plural}, {dtype}, served by {who}"
        ]
        lines[0] = lines[0].replace("%", " %")
        sizes = count, self.in_features, self.index.shape, self.block_size, self.weight.dtype
        if who != "reference":
            on_gpu = who in backends.GPU_PROVIDERS
            choices = explain_linear(*sizes, device) if on_gpu else explain_sparse_linear(*sizes, planned_balanced(self._current_plan()))
            for door, c in choices.items():
                estimates = f"estimated {c['ours_us']:.0f} us sparse, {c['dense_us']:.0f} us dense" if "ours_us" in c else ""
                lines.append(f"  {door:12s} {c['kernel']:14s} {estimates}".rstrip())
        if self._packed is not None:
            kernel = explain_packed(*sizes, packed_windows(self._packed))
            lines = [lines[0], f"  packed       {kernel:14s} {self._packed.numel() * 4} bytes beside the weight; forward only"]
        return "\n".join(lines)
