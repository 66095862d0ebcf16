"""Which nodes of a graph write into what they read, and who shares that memory."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from sparsekern.transform.graph import module_of, only_reader
from sparsekern.transform.tracing import IN_PLACE, hooked, in_place

# results in memory of their own; whatever is not named may be a view
_FRESH_MODULES = tuple(f"torch.nn.modules.{room}" for room in ("activation", "batchnorm", "conv", "instancenorm", "linear",
                                                               "normalization", "pooling", "rnn", "sparse"))  # fmt: skip
_FRESH = {
    "abs", "adaptive_avg_pool2d", "adaptive_max_pool2d", "add", "avg_pool2d", "batch_norm", "bmm", "cat", "clamp", "clone", "concat",
    "concatenate", "conv2d", "dim", "div", "exp", "ge", "gelu", "group_norm", "gt", "layer_norm", "le", "leaky_relu", "len", "linear",
    "log", "log_softmax", "lt", "matmul", "max_pool2d", "mean", "mul", "neg", "numel", "pow", "relu", "relu6", "rsqrt", "sigmoid", "silu",
    "size", "softmax", "sqrt", "stack", "sub", "sum", "tanh", "truediv", "zeros_like",
}  # fmt: skip


def _name(node: fx.Node) -> str:
    """What the node calls, without the module it is from."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "").partition(".")[0]


def _known(module: nn.Module) -> bool:
    """Whether the module is torch's or ours as it was written: no class of somebody else's, no hooks, also inside."""
    ours = all(type(m).__module__.startswith(("torch.nn.", "sparsekern.")) and not hooked(m) for m in module.modules())
    return ours and not any(getattr(m, "inplace", False) for m in module.modules())


def writes(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node may change what it reads."""
    if node.op == "call_module":
        return not _known(module_of(graph, node))
    if node.op not in ("call_function", "call_method"):
        return False
    name = _name(node)
    if node.target in (in_place, operator.setitem) or name == "__setitem__" or name.strip("_") in IN_PLACE:
        return True
    return (name.endswith("_") and not name.endswith("__")) or node.kwargs.get("out") is not None or _asked_to(node)


def _asked_to(node: fx.Node) -> bool:
    """Whether ``inplace`` is given, by name or by place, and not False."""
    if "inplace" in node.kwargs or node.op != "call_function":
        return bool(node.kwargs.get("inplace"))
    try:
        places = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type] # a function, by its op
    except (TypeError, ValueError):  # torch's own take no such flag
        return False
    return "inplace" in places and any(node.args[places.index("inplace") :][:1])


def written(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """What the node may change."""
    if not writes(graph, node):
        return []
    out, first = node.kwargs.get("out"), node.args[0] if node.args else None
    if isinstance(out, fx.Node):
        return [out]
    simple = isinstance(first, fx.Node) and (node.op != "call_module" or type(module_of(graph, node)).__module__.startswith("torch.nn."))
    return [first] if simple and isinstance(first, fx.Node) else node.all_input_nodes


def fresh(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node's value is in memory that nothing it reads is in."""
    if writes(graph, node):
        return False
    if node.op == "call_module":
        module = module_of(graph, node)
        return type(module) is not nn.Identity and type(module).__module__.startswith((*_FRESH_MODULES, "sparsekern."))
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device")
    room = "torch" if node.op == "call_method" else getattr(node.target, "__module__", None) or "torch"
    known = node.op in ("call_function", "call_method") and room.startswith(("torch", "_operator", "sparsekern"))
    return known and _name(node) in _FRESH


def alone(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether only the node's one reader can see its memory: neither the caller nor any other node."""
    if node.op in ("placeholder", "get_attr") or not only_reader(node):
        return False
    return fresh(graph, node) or all(alone(graph, read) for read in node.all_input_nodes)


def sharing(graph: fx.GraphModule, values: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes whose values may be in the same memory as one of these, themselves too."""
    views: dict[fx.Node, list[fx.Node]] = {node: [] for node in graph.graph.nodes}
    for node in graph.graph.nodes:
        for read in [] if node.op == "output" or fresh(graph, node) else node.all_input_nodes:
            views[node].append(read)
            views[read].append(node)
    found: set[fx.Node] = set()
    waiting: list[Any] = list(values)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += views[node]
    return found


def with_own_tensors(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph itself, which hands out a copy of each tensor that ``forward`` makes: the tracer makes it once, the model at every call.

    Raises:
        ValueError: ``forward writes into a tensor that it makes`` or keeps: what reads that one has been computed while tracing
    """
    constants = [n for n in graph.graph.nodes if n.op == "get_attr" and not isinstance(operator.attrgetter(n.target)(graph), nn.Parameter)]
    if _written_by(graph, graph.graph.nodes) & set(constants):
        raise ValueError("forward writes into a tensor that it makes")
    returned = sharing(graph, next(node for node in graph.graph.nodes if node.op == "output").all_input_nodes)
    for node in constants:
        if node in returned and node.target.startswith("_tensor_constant"):
            with graph.graph.inserting_after(node):
                own = graph.graph.call_method("clone", (node,))
            node.replace_all_uses_with(own, delete_user_cb=lambda user, keep=own: user is not keep)
    graph.recompile()
    return graph


def _written_by(graph: fx.GraphModule, nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes whose memory one of these may change."""
    changed = [value for node in nodes for value in written(graph, node)]
    return sharing(graph, changed) if changed else set()


def may_be_a_copy(graph: fx.GraphModule, view: fx.Node) -> bool:
    """Whether a view could be a copy, and nobody would see it: no write follows, or what it is a view of has no other reader."""
    order = list(graph.graph.nodes)
    return view not in _written_by(graph, order[order.index(view) + 1 :]) or all(alone(graph, read) for read in view.all_input_nodes)


def written_between(graph: fx.GraphModule, value: fx.Node, first: fx.Node, last: fx.Node) -> bool:
    """Whether a node between these two may change ``value``, so that reading it at the last is not reading it at the first."""
    order = list(graph.graph.nodes)
    return value in _written_by(graph, order[order.index(first) + 1 : order.index(last)])
