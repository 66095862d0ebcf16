"""The graph of a model, as ``torch.fx`` traces it, with our layers as its leaves."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsekern.transform.held import arguments_of, held
from sparsekern.transform.tracing import Tracer, hooked


def traced(model: nn.Module, example: tuple | None = None) -> fx.GraphModule:
    """A deep copy of ``model``, in eval mode, as a graph; with an ``example`` for calls that leave out the same arguments. Raises what
    the tracer raises where control flow follows from values."""
    if hooked(model) or nn.modules.module._has_any_global_hook():
        raise ValueError("hooks would not see what the model reads and gives")
    model = copy.deepcopy(model).eval()
    tracer = Tracer({} if example is None else held(arguments_of(model, example)))
    graph = fx.GraphModule(model, tracer.trace(model), class_name=type(model).__name__)
    if tracer.rewritten():
        raise ValueError("forward writes into a tensor that it makes")
    _pass_by_position(graph)
    return graph


def _pass_by_position(graph: fx.GraphModule) -> None:
    """The first argument of every call, which all that follows reads, by position where the model names it: ``conv(input=x)``."""
    for node in graph.graph.nodes:
        if node.op in ("call_module", "call_function") and not node.args and node.kwargs:
            first = _first_parameter(node.target if node.op == "call_function" else module_of(graph, node).forward)
            name = next((name for name in node.kwargs if name in first), None)
            if name is not None:
                node.args, node.kwargs = (node.kwargs[name],), {k: v for k, v in node.kwargs.items() if k != name}
    graph.recompile()


def _first_parameter(function: Any) -> tuple[str, ...]:
    """What the first parameter may be called."""
    try:
        first = next(iter(inspect.signature(function).parameters.values()), None)
    except ValueError:  # torch's own say nothing
        return ("input", "tensors")
    return (first.name,) if first is not None and first.kind is first.POSITIONAL_OR_KEYWORD else ()


# ---- what went by when the graph ran


class _Recorder(fx.Interpreter):
    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        node.meta["seen"] = (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else None
        return value


@torch.no_grad()
def record(graph: fx.GraphModule, example: tuple) -> None:
    """Run the graph once; afterwards :func:`seen` knows what each node gave."""
    _Recorder(graph).run(*copied(example))


def seen(node: fx.Node | object) -> tuple[tuple[int, ...], torch.dtype] | None:
    """``(shape, dtype)`` of what the node gave on the example; None for what is no tensor or never ran."""
    return node.meta.get("seen") if isinstance(node, fx.Node) else None


def seen_dim(node: fx.Node | object) -> int | None:
    """Number of dimensions of what the node gave on the example."""
    found = seen(node)
    return None if found is None else len(found[0])


def copied(example: Any) -> Any:
    """The inputs, for a model that may write into them."""
    return torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, example)


def follows_inputs(node: fx.Node) -> bool:
    """Whether the value depends on an input of the graph, as a parameter's does not."""
    done, waiting = set(), [node]
    while waiting:
        other = waiting.pop()
        if other.op == "placeholder":
            return True
        waiting += [read for read in other.all_input_nodes if read not in done]
        done.update(other.all_input_nodes)
    return False


# ---- who calls, who reads


def module_of(graph: fx.GraphModule, node: fx.Node | object) -> Any:
    """The module that a node calls, if it calls one, of whatever class; else None."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph.get_submodule(str(node.target))
    return None


def only_reader(node: fx.Node) -> bool:
    """Whether one node alone reads this node's value."""
    return len(node.users) == 1


def only_call(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node's module is called here and nowhere else, by no other module either, and has no hooks: it may change."""
    module = module_of(graph, node)
    called = [module_of(graph, other) for other in graph.graph.nodes if other.op == "call_module"]
    return sum(module is part for other in called for part in other.modules()) == 1 and not hooked(module)


def one_argument(node: fx.Node) -> bool:
    return len(node.args) == 1 and not node.kwargs


def layers(graph: fx.GraphModule, *kinds: type[nn.Module]) -> Iterator[tuple[fx.Node, Any]]:
    """The nodes, in the order they run, that call a module of one of these kinds."""
    for node in list(graph.graph.nodes):
        module = module_of(graph, node)
        if isinstance(module, kinds):
            yield node, module


def replace_module(graph: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    parent, _, name = str(node.target).rpartition(".")
    setattr(graph.get_submodule(parent), name, module)


def add_module(graph: fx.GraphModule, parent: str, name: str, module: nn.Module) -> str:
    """Put the module under ``parent``, by this name or, where it is taken, one like it; returns the whole name."""
    owner, free, count = graph.get_submodule(parent), name, 1
    while hasattr(owner, free):
        free, count = f"{name}_{count}", count + 1
    owner.add_module(free, module)
    return f"{parent}.{free}" if parent else free


def drop(graph: fx.GraphModule, node: fx.Node, value: fx.Node) -> None:
    """Whoever reads ``node`` reads ``value`` from now on."""
    node.replace_all_uses_with(value)
    graph.graph.erase_node(node)


def tidy(graph: fx.GraphModule) -> None:
    """Forget modules that nothing calls any more, and write the forward anew."""
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
