"""How a model becomes a graph: ``torch.fx``'s tracer, which also sees writes in place, hooks and tensors that ``forward`` makes."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import partialmethod
from typing import Any

from torch import Tensor, fx, nn

from sparsekern.nn import GroupedConv2d, SparseLinear, StochasticConv2d, UnequalGroupedConv2d

LEAVES = (GroupedConv2d, SparseLinear, StochasticConv2d, UnequalGroupedConv2d)
IN_PLACE = (
    "iadd", "iand", "ifloordiv", "ilshift", "imatmul", "imod", "imul", "ior", "ipow", "irshift", "isub", "itruediv", "ixor",
)  # fmt: skip


def in_place(value: Any, other: Any, how: str) -> Any:
    """``value += other``, or what else ``how`` of ``operator`` says.

    A function of our own: in the code that ``torch.fx`` writes for ``operator.iadd`` the old name of a number has the new value.
    """
    if isinstance(value, fx.Proxy):
        return value.tracer.create_proxy("call_function", in_place, (value, other, how), {})
    return getattr(operator, how)(value, other)


class _Writable(fx.Proxy):
    """A value whose writes are nodes of the graph: ``torch.fx`` takes ``x += y`` for ``x + y``."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __getattr__(self, name: str) -> Any:
        return _Attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "root", "attr", "_node"):
            raise fx.proxy.TraceError(f"forward sets {name} of a tensor")
        super().__setattr__(name, value)


for _how in IN_PLACE:
    setattr(_Writable, f"__{_how}__", partialmethod(in_place, how=_how))


class _Attribute(_Writable, fx.proxy.Attribute):
    """``x.T``, or a method that is about to be called."""


class Tracer(fx.Tracer):
    """Our layers are leaves, as torch's are and what derives from those; what is built of them is seen through, unless it has hooks.

    Args:
        held: arguments of ``forward`` that the graph takes for constants, by name.
    """

    def __init__(self, held: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.held = held or {}
        self.made: dict[str, tuple[Tensor, int]] = {}  # tensors that forward made: name -> itself and how often it had been written

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        leaf = isinstance(module, (*LEAVES, nn.Conv2d, nn.Linear)) or super().is_leaf_module(module, qualified_name)
        return leaf or hooked(module)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Writable(node, self)

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        function, given = super().create_args_for_root(*args, **kwargs)
        return function, [self.held.get(str(a.node.target), a) if isinstance(a, fx.Proxy) else a for a in given]

    def create_arg(self, a: Any) -> Any:
        made = super().create_arg(a)
        if isinstance(a, Tensor) and isinstance(made, fx.Node) and str(made.target).startswith("_tensor_constant"):
            self.made.setdefault(str(made.target), (a, _writes_to(a)))
        return made

    def rewritten(self) -> list[str]:
        """Tensors that ``forward`` made, and wrote again after the graph had read them."""
        return [name for name, (tensor, writes) in self.made.items() if _writes_to(tensor) != writes]


def _writes_to(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def hooked(module: nn.Module) -> bool:
    """Whether somebody sees, or changes, what the module reads or gives."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
