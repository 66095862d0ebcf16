"""A profile as the tree of its modules, with totals at every container: what the table, the page and the comparison show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from sparsekern.profile.layers import LayerProfile, Profile

ITSELF = "(itself)"  # a container's own work, beside its children


@dataclass
class Node:
    """A module: its own work if it is a layer, and everything below it."""

    path: str
    name: str  # the last part of the path
    kind: str
    layer: LayerProfile | None = None
    children: list[Node] = field(default_factory=list)
    folded: list[LayerProfile] = field(default_factory=list)  # of modules below that are not shown

    def layers(self) -> Iterator[LayerProfile]:
        if self.layer:
            yield self.layer
        yield from self.folded
        for child in self.children:
            yield from child.layers()

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Node]]:
        """This node and all below it, with their depth under it."""
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)

    def _sum(self, name: str) -> float:
        return sum(getattr(layer, name) or 0 for layer in self.layers())

    @property
    def params(self) -> int:
        return int(self._sum("params"))

    @property
    def flops(self) -> int:
        return int(self._sum("flops"))

    @property
    def dense_flops(self) -> int:
        return int(self._sum("dense_flops"))

    @property
    def bytes(self) -> int:
        return int(self._sum("bytes"))

    @property
    def ms(self) -> float:
        return self._sum("ms")

    @property
    def backward_ms(self) -> float | None:
        return None if all(layer.backward_ms is None for layer in self.layers()) else self._sum("backward_ms")

    @property
    def total_ms(self) -> float:
        return self._sum("total_ms")

    @property
    def peak_bytes(self) -> int | None:
        return max((layer.peak_bytes for layer in self.layers() if layer.peak_bytes is not None), default=None)

    @property
    def gflops(self) -> float:
        return self.flops / self.total_ms / 1e6 if self.total_ms else 0.0

    @property
    def effective_gflops(self) -> float:
        """GF/s of a dense layer that would take as long."""
        return self.dense_flops / self.total_ms / 1e6 if self.total_ms else 0.0

    @property
    def intensity(self) -> float:
        """FLOPs per byte of inputs, parameters, tables and outputs."""
        return self.flops / self.bytes if self.bytes else 0.0

    @property
    def speedup(self) -> float | None:
        """Times faster than with dense twins in place of the sparse layers; None where there is none."""
        layers = list(self.layers())
        if not any(layer.speedup for layer in layers) or not self.total_ms:
            return None
        return sum(layer.total_ms * (layer.speedup[1] if layer.speedup else 1.0) for layer in layers) / self.total_ms

    @property
    def range_ms(self) -> tuple[float, float, float]:
        """p20, median and p80 over the rounds."""
        rounds = [layer.samples_ms for layer in self.layers() if layer.samples_ms]
        if not rounds:
            return self.total_ms, self.total_ms, self.total_ms
        p20, p50, p80 = np.quantile(np.sum(rounds, axis=0), [0.2, 0.5, 0.8])
        return float(p20), float(p50), float(p80)


def build_tree(found: Profile, depth: int | None = None) -> Node:
    """The model's node; below ``depth`` levels modules are folded into the one that holds them.

    Raises:
        ValueError: ``profile: depth must be None or at least 0; got -1``

    Example:
        >>> from sparsekern.profile import profile
        >>> inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> found = profile(nn.Sequential(inner, nn.Linear(4, 2)), torch.randn(1, 4), rounds=1)
        >>> [(depth, node.name, node.kind) for depth, node in build_tree(found).walk() if node.name != ITSELF]
        [(0, '(model)', 'Sequential'), (1, '0', 'Sequential'), (2, '0', 'Linear'), (2, '1', 'ReLU'), (1, '1', 'Linear')]
        >>> [(node.name, node.flops) for _, node in build_tree(found, depth=1).walk() if node.flops]
        [('(model)', 48), ('0', 32), ('1', 16)]
    """
    if depth is not None and depth < 0:
        raise ValueError(f"profile: depth must be None or at least 0; got {depth}")
    nodes: dict[str, Node] = {"": Node("", "(model)", found.containers.get("", ""))}
    for layer in found.layers:
        path = "" if layer.name == "(model)" else layer.name
        node = _reach(nodes, path, found)
        node.kind = layer.kind
        if path in found.containers:
            node.children.append(Node(f"{path}.{ITSELF}".lstrip("."), ITSELF, layer.kind, layer))
        else:
            node.layer = layer
    root = nodes[""]
    if depth is not None:
        _fold(root, depth)
    return root


def _reach(nodes: dict[str, Node], path: str, found: Profile) -> Node:
    if path not in nodes:
        above, _, name = path.rpartition(".")
        nodes[path] = Node(path, name, found.containers.get(path, ""))
        _reach(nodes, above, found).children.append(nodes[path])
    return nodes[path]


def _fold(node: Node, depth: int) -> None:
    if depth == 0:
        node.folded, node.children = [layer for child in node.children for layer in child.layers()], []
    for child in node.children:
        _fold(child, depth - 1)


#: What ``--sort`` knows, largest first but for names; "order" is that of the first call.
SORTS: dict[str, Callable[[Node], float | str]] = {
    "time": lambda node: -node.total_ms,
    "flops": lambda node: -node.flops,
    "params": lambda node: -node.params,
    "bytes": lambda node: -node.bytes,
    "memory": lambda node: -(node.peak_bytes or 0),
    "gflops": lambda node: -node.gflops,
    "intensity": lambda node: -node.intensity,
    "speedup": lambda node: -(node.speedup or 0.0),
    "name": lambda node: node.path,
}


def sort_tree(node: Node, by: str = "order") -> Node:
    """Put the children of every node in order of one of :data:`SORTS`; "order" leaves them."""
    if by != "order":
        node.children.sort(key=SORTS[by])
        for child in node.children:
            sort_tree(child, by)
    return node
