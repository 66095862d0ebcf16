"""The graph of a model, as ``torch.fx`` traces it, with our layers as its leaves."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import fx, nn

from sparsekern.nn import GroupedConv2d, SparseLinear, StochasticConv2d, UnequalGroupedConv2d

LEAVES = (GroupedConv2d, SparseLinear, StochasticConv2d, UnequalGroupedConv2d)


class Tracer(fx.Tracer):
    """Our layers are leaves, as torch's are and what derives from those; what is built of them is seen through."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, (*LEAVES, nn.Conv2d, nn.Linear)) or super().is_leaf_module(module, qualified_name)


def traced(model: nn.Module) -> fx.GraphModule:
    """A deep copy of ``model``, in eval mode, as a graph. Raises what the tracer raises where control flow follows from values."""
    model = copy.deepcopy(model).eval()
    return fx.GraphModule(model, Tracer().trace(model), class_name=type(model).__name__)


def module_of(graph: fx.GraphModule, node: fx.Node | object) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph.get_submodule(node.target)
    return None


def only_reader(node: fx.Node) -> bool:
    """Whether one node alone reads this node's value."""
    return len(node.users) == 1


def only_call(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node's module is called here and nowhere else, so that it may change."""
    return sum(other.op == "call_module" and other.target == node.target for other in graph.graph.nodes) == 1


def layers(graph: fx.GraphModule, *kinds: type[nn.Module]) -> Iterator[tuple[fx.Node, nn.Module]]:
    """The nodes, in the order they run, that call a module of one of these kinds."""
    for node in list(graph.graph.nodes):
        module = module_of(graph, node)
        if isinstance(module, kinds):
            yield node, module


def replace_module(graph: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    parent, _, name = node.target.rpartition(".")
    setattr(graph.get_submodule(parent), name, module)


def drop(graph: fx.GraphModule, node: fx.Node, value: fx.Node) -> None:
    """Whoever reads ``node`` reads ``value`` from now on."""
    node.replace_all_uses_with(value)
    graph.graph.erase_node(node)


def tidy(graph: fx.GraphModule) -> None:
    """Forget modules that nothing calls any more, and write the forward anew."""
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
