"""StochasticConv2d: a drop-in nn.Conv2d of which a random part exists."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from sparsekern.arguments import check_dtype, check_flag, check_pairs, check_whole, said
from sparsekern.nn import asked_about
from sparsekern.nn.computed import now
from sparsekern.nn.group_weights import check_conv, dense_twin, inside_groups, spread_groups, window_of
from sparsekern.nn.planned import PlannedModule
from sparsekern.ops import backends
from sparsekern.ops.cuda_sparse_conv2d import explain
from sparsekern.ops.sparse_conv2d import (
    block_view,
    check_tables,
    dense_weight,
    explain_sparse_conv2d,
    kept_weight,
    plan_sparse_conv2d,
    run_sparse_conv2d,
)
from sparsekern.topology.conv_masks import COUNTS, conv_mask, mask_tables

GRANULARITIES = ("spatial", "synapse", "kernel", "block")
BLOCK = 16  # channels of a "block", out and in
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

_compiling = torch.compiler.is_compiling
_quick = backends.quick_call.conv_layer if backends.quick_call and backends.missing is None else None


def _check(condition: bool, arg: str, rule: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"StochasticConv2d: {arg} must be {rule}; got {got}")


def _check_channels(arg: str, channels: int, block: int, groups: int) -> None:
    in_groups = f" for blocks of {block} in {groups} groups" if groups > 1 else ""
    _check(channels > 0 and channels % (block * groups) == 0, arg, f"a positive multiple of {block * groups}{in_groups}", channels)


class StochasticConv2d(PlannedModule):
    """``nn.Conv2d`` with a fixed random mask: only the kept weights exist, in memory, in gradients and in optimisers.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias, padding_mode, device, dtype: as in ``nn.Conv2d``.
        groups: filter groups: the mask is drawn inside them, among the weights ``[out_channels, in_channels/groups, KH, KW]``.
        density: kept fraction of the mask in (0, 1]: of the weights inside the groups. Exactly one of ``density`` and ``fan_in``.
        fan_in: weights that every filter keeps, a multiple of what its mask keeps at once.
        granularity: what is kept or dropped together: ``"spatial"`` a tap of a filter for all input channels (the paper's),
            ``"synapse"`` a single weight, ``"kernel"`` all taps between two channels, ``"block"`` all taps between 16 and 16 channels
            (so 16 must divide the channels of a group).
        share: this many consecutive filters share one mask.
        count: with ``density``: ``"exact"`` or ``"bernoulli"`` (see :func:`~sparsekern.topology.conv_mask`).
        seed: draws the same mask on every machine and leaves torch's generator alone; None draws from it.

    Attributes:
        weight: ``[nnz, BO, BI, BT]``, the kept blocks.
        indptr: ``[OB+1]`` int32 buffer: the blocks of each output block. Change both with :meth:`set_topology`.
        index: ``[nnz]`` int32 buffer: input block and tap of each.

    Shape:
        ``[N, in_channels, H, W] -> [N, out_channels, OH, OW]``, or without ``N``. A channels_last input gives a channels_last output.

    Raises:
        ValueError: ``StochasticConv2d: density and fan_in must be given one without the other; got both``;
            ``StochasticConv2d: in_channels must be a positive multiple of 64 for blocks of 16 in 4 groups; got 96``

    Cost:
        ``2 * N * OH * OW * kept weights`` FLOPs; training memory O(kept weights).

    Source:
        Shafiee, Fieguth and Wong, "StochasticNet in StochasticNet".

    Example:
        >>> layer = StochasticConv2d(96, 192, 5, padding=2, density=0.25, seed=0)
        >>> layer(torch.randn(1, 96, 16, 16)).shape
        torch.Size([1, 192, 16, 16])
        >>> layer
        StochasticConv2d(96, 192, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), density=0.25, granularity=spatial, kept=115200)
    """

    indptr: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    _tables = ("index", "indptr")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        density: float | None = None,
        fan_in: int | None = None,
        granularity: str = "spatial",
        share: int = 1,
        count: str = "exact",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        both = "both" if fan_in is not None and density is not None else "neither"
        _check((fan_in is None) != (density is None), "density and fan_in", "given one without the other", both)
        _check(density is None or (isinstance(density, Real) and 0 < density <= 1), "density", "in (0, 1]", density)
        check_whole("StochasticConv2d", in_channels=in_channels, out_channels=out_channels, groups=groups, share=share)
        if fan_in is not None:
            check_whole("StochasticConv2d", fan_in=fan_in)
        check_dtype("StochasticConv2d", dtype)
        check_flag("StochasticConv2d", bias=bias)
        _check(groups > 0, "groups", "at least 1", groups)
        _check(isinstance(granularity, str) and granularity in GRANULARITIES, "granularity", f"one of {GRANULARITIES}", repr(granularity))
        _check(isinstance(count, str) and count in COUNTS, "count", f"one of {COUNTS}", repr(count))
        _check(
            isinstance(padding_mode, str) and padding_mode in PADDING_MODES, "padding_mode", f"one of {PADDING_MODES}", repr(padding_mode)
        )
        check_pairs("StochasticConv2d", kernel_size=(kernel_size, 1), stride=(stride, 1), dilation=(dilation, 1))
        if not isinstance(padding, str):
            check_pairs("StochasticConv2d", padding=(padding, 0))
        if isinstance(padding, str):
            _check(padding in ("same", "valid"), "padding", "'same', 'valid' or numbers", repr(padding))
            _check(padding == "valid" or _pair(stride) == (1, 1), "stride", "1 with padding='same'", _pair(stride))
        self.in_channels, self.out_channels, self.groups, self.kernel_size = in_channels, out_channels, groups, _pair(kernel_size)
        given: Any = stride, dilation, padding_mode, padding
        self.stride, self.dilation, self.padding_mode, self.padding = given
        self.granularity, self.share, self.count, self.seed = granularity, share, count, seed

        taps = self.kernel_size[0] * self.kernel_size[1]
        _check(share > 0, "share", "at least 1", share)
        side = BLOCK if granularity == "block" else 1
        _check_channels("in_channels", in_channels, side, groups)
        _check_channels("out_channels", out_channels, side * share, groups)
        block_in = in_channels // groups if granularity == "spatial" else side
        self.block = (side * share, block_in, 1 if granularity in ("spatial", "synapse") else taps)
        step, most = self.block[1] * self.block[2], in_channels // groups * taps
        if fan_in is not None:
            _check(0 < fan_in <= most and fan_in % step == 0, "fan_in", f"a multiple of {step} in [{step}, {most}]", fan_in)
            kept = fan_in // step * self._rows
            self._drawn: dict[str, Any] = {"fan_in": fan_in // step}
        elif density is not None:
            kept = max(1, round(density * self._rows * self._positions))
            self._drawn = {"density": density}
        self.weight = nn.Parameter(torch.empty(kept, *self.block, device=device, dtype=dtype))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None)
        self.register_buffer("indptr", torch.empty(self._rows + 1, dtype=torch.int32, device=device))
        self.register_buffer("index", torch.empty(kept, dtype=torch.int32, device=device))
        self.reset_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        """As in ``nn.Conv2d`` a window that is changed counts from the next call on; a number stands for two."""
        super().__setattr__(name, _pair(value) if name in ("stride", "dilation", "padding") and not isinstance(value, str) else value)
        if name in ("stride", "dilation", "padding", "padding_mode") and "padding" in self.__dict__:
            self._find_padding()

    def _find_padding(self) -> None:
        """What of the padding is left to the kernel: even sides of zeros; all else is put around x before it."""
        if self.padding == "same":
            self._pad_total = tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel_size))
        else:
            self._pad_total = (0, 0) if self.padding == "valid" else tuple(2 * p for p in self.padding)
        self._kernel_pads = not any(self._pad_total) or (self.padding_mode == "zeros" and not any(t % 2 for t in self._pad_total))
        self._kernel_padding = tuple(t // 2 for t in self._pad_total) if self._kernel_pads else (0, 0)

    @property
    def _rows(self) -> int:
        return self.out_channels // self.block[0]

    @property
    def _positions(self) -> int:
        """Blocks that a row can have: input blocks of its group times tap blocks."""
        return self.in_channels // self.groups * self.kernel_size[0] * self.kernel_size[1] // (self.block[1] * self.block[2])

    def _in_groups(self, indptr: Tensor, index: Tensor) -> Tensor:
        """``index`` counted inside each row's group -> counted over the whole input, as the op takes it."""
        group = torch.arange(self._rows, dtype=torch.int32, device=index.device) // (self._rows // self.groups)  # [OB]
        return index + (group * self._positions).repeat_interleave((indptr[1:] - indptr[:-1]).long())

    @property
    def density(self) -> float:
        """Kept weights over those of the layer that keeps all inside its groups; a table that was set may cross the groups."""
        return self.index.numel() / (self._rows * self._positions)

    def reset_parameters(self) -> None:
        """Draw the mask and the weights anew; the bounds follow each filter's true fan-in, as ``nn.Conv2d``'s follow its own."""
        if self.index.is_meta:
            return
        indptr, index = self.draw_topology(self.seed)
        with torch.no_grad():
            self._replace(indptr, index)
            fan_in = (indptr[1:] - indptr[:-1]).double() * (self.block[1] * self.block[2])  # [OB]
            mean = fan_in.mean().clamp_min(1).expand_as(fan_in)
            bound = torch.where(fan_in > 0, fan_in, mean).rsqrt()  # the bias of a filter without weights follows the mean
            rows = torch.arange(self._rows, device="cpu").repeat_interleave((indptr[1:] - indptr[:-1]).long())
            nn.init.uniform_(self.weight, -1, 1).mul_(bound[rows].to(self.weight)[:, None, None, None])
            if self.bias is not None:
                nn.init.uniform_(self.bias, -1, 1).mul_(bound.repeat_interleave(self.block[0]).to(self.bias))
        self._topology_changed()

    def forward(self, input: Tensor) -> Tensor:
        if _quick is not None and not _compiling():
            out = _quick(self.__dict__, input)
            if out is not NotImplemented:
                return out
        if not self._kernel_pads:
            (top, bottom), (left, right) = ((t // 2, t - t // 2) for t in self._pad_total)
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = nn.functional.pad(input, (left, right, top, bottom), mode=mode)
        own: Any  # no __getattr__: small layers feel it
        tables: Any
        own, tables = self._parameters, self._buffers
        try:
            weight, bias = own["weight"], own["bias"]
        except KeyError:  # parametrized
            weight, bias = self.weight, self.bias
        plan = self._current_plan()
        window = (*self.kernel_size, *self.stride, *self._kernel_padding, *self.dilation)
        try:
            if plan is None:  # a plan knows the number of channels
                self._check_channels_of(input)
            return run_sparse_conv2d(input, weight, bias, tables["indptr"], tables["index"], plan, window)
        except ValueError:
            self._check_channels_of(input)
            raise

    def _check_channels_of(self, x: Any) -> None:
        """More or fewer channels than the layer has are no input of it, even where its tables would be in range of them."""
        fits = not isinstance(x, Tensor) or x.dim() not in (3, 4) or x.shape[-3] == self.in_channels
        _check(fits, "x", f"[N, {self.in_channels}, H, W] or [{self.in_channels}, H, W]", list(x.shape) if isinstance(x, Tensor) else None)

    # ---- topology

    def draw_topology(self, seed: int | None) -> tuple[Tensor, Tensor]:
        """Tables ``(indptr, index)`` of another mask of this layer's kind, for :meth:`set_topology`; the layer stays as it is."""
        indptr, index = conv_mask(self._rows, self._positions, **self._drawn, count=self.count, seed=seed)
        return indptr, self._in_groups(indptr, index)

    def _check_tables(self, tables: dict[str, Tensor]) -> None:
        indptr, index = tables["indptr"], tables["index"]
        if indptr.shape == self.indptr.shape and index.dim() == 1:
            check_tables(indptr, index, self.in_channels // self.block[1] * (self.kernel_size[0] * self.kernel_size[1] // self.block[2]))

    def _make_plan(self) -> Tensor | None:
        return plan_sparse_conv2d(self.indptr, self.index, self.in_channels, self.kernel_size, self.block)

    def _replace(self, indptr: Tensor, index: Tensor) -> None:
        """Take these tables; the weight is made anew where its number of blocks changes."""
        self.indptr, self.index = self._taken(indptr), self._taken(index)
        if len(index) != len(self.weight):
            weight = self.weight.new_empty(len(index), *self.block)
            self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)

    @torch.no_grad()
    def set_topology(self, indptr: Tensor, index: Tensor, weight: Tensor | None = None) -> None:
        """Replace the mask, and the weights ``[nnz, BO, BI, BT]`` (new ones start at zero, kept ones stay)."""
        for arg, table in (("indptr", indptr), ("index", index)):
            if not isinstance(table, Tensor):
                raise TypeError(f"StochasticConv2d: {arg} must be a tensor; got {type(table).__name__}")
        _check(indptr.shape == self.indptr.shape, "indptr", f"{list(self.indptr.shape)}", list(indptr.shape))
        plan_sparse_conv2d(indptr, index, self.in_channels, self.kernel_size, self.block)  # an invalid table must not replace a valid one
        indptr, index = indptr.to(self.indptr.device), index.to(self.index.device)
        if weight is None:
            weight = kept_weight(self.weight_dense(), indptr, index, self.block)
        if not isinstance(weight, Tensor):
            raise TypeError(f"StochasticConv2d: weight must be a tensor; got {type(weight).__name__}")
        _check(tuple(weight.shape) == (len(index), *self.block), "weight", f"{[len(index), *self.block]}", list(weight.shape))
        self._replace(indptr, index)
        self.weight.copy_(weight)
        self._topology_changed()

    # ---- to and from dense

    def weight_dense(self) -> Tensor:
        """``[out_channels, in_channels, KH, KW]`` with zeros where nothing is kept; differentiable."""
        return dense_weight(now(self, "weight"), self.indptr, self.index, self.in_channels, self.kernel_size)

    def to_dense(self) -> nn.Conv2d:
        """An ``nn.Conv2d`` that computes the same."""
        return dense_twin(self, self.weight_dense(), now(self, "bias"))

    @classmethod
    def from_dense(
        cls, conv: nn.Conv2d, *, tables: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None, **options: Any
    ) -> StochasticConv2d:
        """A sparse layer from an ``nn.Conv2d``, with its weights at the kept positions.

        Without ``tables`` (``indptr``, ``index``) the blocks of largest magnitude are kept, over the whole layer for ``density``, of
        each filter for ``fan_in``; with ``mask``, bool of the weight's shape, every block of which it keeps anything. ``options`` as in
        the constructor; ``groups`` default to the layer's, of which they are a multiple.

        Example:
            >>> StochasticConv2d.from_dense(nn.Conv2d(8, 16, 3), density=0.5).weight.shape
            torch.Size([72, 1, 8, 1])
        """
        check_conv("StochasticConv2d", conv, options.get("groups"))
        groups = options.pop("groups", conv.groups)
        pair = tables is None or (isinstance(tables, tuple | list) and len(tables) == 2 and all(isinstance(t, Tensor) for t in tables))
        _check(pair, "tables", "two tensors, indptr and index", said(tables))
        fits = mask is None or (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == conv.weight.shape)
        _check(fits, "mask", f"bools of the weight's shape {list(conv.weight.shape)}", said(mask))
        if tables is not None or mask is not None:
            options = {"density": 1.0, **options}
        options |= {"seed": options.get("seed", 0), "device": conv.weight.device, "dtype": conv.weight.dtype}
        window = *window_of(conv), groups, conv.bias is not None, conv.padding_mode
        layer = cls(conv.in_channels, conv.out_channels, *window, **options)
        with torch.no_grad():
            if tables is None:
                inside = inside_groups(conv.weight if mask is None else mask, conv.in_channels, groups)  # [K, C/G, KH, KW]
                strength = block_view(inside.float(), layer.block).pow(2).sum((1, 2, 3)).reshape(layer._rows, -1)  # [OB, positions]
                keep = torch.zeros_like(strength, dtype=torch.bool)
                if mask is not None:
                    keep = strength > 0
                elif "fan_in" in layer._drawn:
                    keep.scatter_(1, strength.topk(layer._drawn["fan_in"], dim=1).indices, True)
                else:
                    keep.view(-1)[strength.flatten().topk(len(layer.index)).indices] = True
                indptr, index = mask_tables(keep)
                tables = indptr, layer._in_groups(indptr, index)
            indptr, index = (t.to(conv.weight.device) for t in tables)
            layer.set_topology(indptr, index, kept_weight(spread_groups(conv.weight, conv.groups), indptr, index, layer.block))
            if layer.bias is not None and conv.bias is not None:
                layer.bias.copy_(conv.bias)
        return layer

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, missing_keys: list[str],
        unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        if fault := self._fault_of(state_dict, prefix):
            error_msgs.append(fault)
            return
        weight, index = (value if isinstance(value := state_dict.get(prefix + name), Tensor) else None for name in ("weight", "index"))
        if weight is not None and index is None and self._is_dense(tuple(weight.shape)):
            # a dense or grouped checkpoint: its weights at this layer's kept positions
            if fault := self._no_tables():
                error_msgs.append(fault)
                return
            dense = spread_groups(weight, self.in_channels // weight.shape[1])
            kept = kept_weight(dense, self.indptr, self.index, self.block)
            tables = {prefix + "indptr": self.indptr, prefix + "index": self.index}
            state_dict = {**state_dict, prefix + "weight": kept, **tables}
        elif weight is not None and index is not None and index.shape != self.index.shape:
            fits = index.dim() == 1 and tuple(weight.shape) == (len(index), *self.block)
            if fits:  # else torch names the sizes
                self._make_room(prefix, weight, index)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def _is_dense(self, shape: tuple[int, ...]) -> bool:
        """Whether this is the weight's shape of an ``nn.Conv2d`` with this layer's groups, or fewer that its groups divide."""
        if len(shape) != 4 or (shape[0], *shape[2:]) != (self.out_channels, *self.kernel_size):
            return False
        return shape[1] > 0 and self.in_channels % shape[1] == 0 and shape[1] % (self.in_channels // self.groups) == 0

    # ---- what it is, and what runs

    def extra_repr(self) -> str:
        padding = repr(self.padding) if isinstance(self.padding, str) else self.padding
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding != (0, 0):
            text += f", padding={padding}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups > 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        share = f", share={self.share}" if self.share > 1 else ""
        return f"{text}, density={self.density:.4g}, granularity={self.granularity}{share}, kept={self.weight.numel()}"

    def explain(self, x_shape: Sequence[int] | Tensor | None = None, *, channels_last: bool = False) -> str:
        """Which kernel serves each product for an input ``[N, C, H, W]`` (default: one image of 32 x 32), and the estimate by which.

        Example:
            >>> print(StochasticConv2d(96, 192, 5, padding=2, density=0.25).explain((1, 96, 16, 16)))  # doctest: +ELLIPSIS
            StochasticConv2d 96 -> 192, 5x5, 25.0 % kept (spatial), [1, 96, 16, 16], float32, served by ...
        """
        shape, channels_last = asked_about.images("StochasticConv2d", self.in_channels, x_shape, channels_last)
        who = backends.serves("sparse_conv2d", self.weight.device)
        kernel = "x".join(str(k) for k in self.kernel_size)
        dtype = str(self.weight.dtype).removeprefix("torch.")
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        lines = [
            f"StochasticConv2d {self.in_channels} -> {self.out_channels}, {kernel}{groups}, {100 * self.density:.1f} % kept "
            f"({self.granularity}), {list(shape)}, {dtype}, served by {who}"
        ]
        if who != "reference":
            pad = _pair(self._kernel_padding)
            if not self._kernel_pads:
                shape = (*shape[:2], *(size + total for size, total in zip(shape[2:], self._pad_total)))
            window = (*self.kernel_size, *self.stride, *pad, *self.dilation)
            sizes = (shape, self.out_channels, window, self.block, len(self.index), self.weight.dtype)
            on_gpu = who in backends.GPU_PROVIDERS
            costs = explain(*sizes, self.weight.device) if on_gpu else explain_sparse_conv2d(*sizes, channels_last)
            for door, c in costs.items():
                lines.append(f"  {door:12s} {c['kernel']:10s} sparse kernels estimated at {c['relative_cost']:.2f} of dense time")
        return "\n".join(lines)
