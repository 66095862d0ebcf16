"""Two profiles, module by module: two models, or two runs of one."""

from __future__ import annotations

from dataclasses import dataclass

from sparsekern.measure.protocol import judge
from sparsekern.profile.layers import Profile
from sparsekern.profile.tree import Node, build_tree


@dataclass(frozen=True)
class Difference:
    """A module that both profiles know by its path; ``first`` and ``second`` may be of different kinds."""

    depth: int
    first: Node
    second: Node

    @property
    def path(self) -> str:
        return self.first.path or self.first.name

    @property
    def fewer_flops(self) -> float | None:
        """How many times fewer FLOPs the first needs."""
        return self.second.flops / self.first.flops if self.first.flops and self.second.flops else None

    @property
    def less_time(self) -> float | None:
        """How many times less time the first takes."""
        return self.second.total_ms / self.first.total_ms if self.first.total_ms else None

    @property
    def realised(self) -> float | None:
        """The share of the FLOP reduction that became speed."""
        return self.less_time / self.fewer_flops if self.fewer_flops and self.less_time else None

    @property
    def verdict(self) -> str:
        """The first is "faster", "slower", the "same", or "ambiguous" where p20 to p80 overlap."""
        return judge(self.first.range_ms, self.second.range_ms)


def compare(found: Profile, against: Profile, depth: int | None = None) -> tuple[list[Difference], list[str], list[str]]:
    """What both know, in the first one's order, and the paths that only the first and only the second has.

    A module that is a layer in one and a container in the other is compared as a whole, and only so.
    """
    both: list[Difference] = []
    only_first: list[str] = []
    only_second: list[str] = []

    def descend(level: int, first: Node, second: Node) -> None:
        both.append(Difference(level, first, second))
        if not (first.children and second.children):
            return
        others = {child.name: child for child in second.children}
        for child in first.children:
            if child.name in others:
                descend(level + 1, child, others.pop(child.name))
            else:
                only_first.append(child.path)
        only_second.extend(child.path for child in others.values())

    descend(0, build_tree(found, depth), build_tree(against, depth))
    return both, only_first, only_second
