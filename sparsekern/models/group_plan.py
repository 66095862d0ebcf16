"""How many filter groups each grouped level of a network gets: root, tree and column plans.

Source: Deep Roots (arXiv 1605.06489), section 4.2 and Tables 1, 3 and 7. The degree in a model's name is that of the
*first* grouped level:

    root-8    8, 4, 2, 1 ...   grouping decreases with depth  (root-8 is the paper's 1-8-4 for NiN: conv1 has one group)
    tree-8    8, 16, 32 ...    grouping increases with depth  (tree-4 is the paper's 1-4-8)
    column-8  8, 8, 8 ...      grouping stays constant        (column-4, "col-4", is the paper's 1-4-4)
"""

from __future__ import annotations

TOPOLOGIES = ("root", "tree", "column")


def group_plan(topology: str, degree: int, levels: int) -> tuple[int, ...]:
    """Return the groups of each grouped level, first level first.

    Args:
        topology: ``"root"``, ``"tree"`` or ``"column"``.
        degree: groups of the first level, a power of two.
        levels: how many levels of the network are grouped (NiN 2, ResNet-50 4).

    Raises:
        ValueError: ``group_plan: degree must be a power of two; got 6``

    Example:
        >>> group_plan("root", 8, levels=4)
        (8, 4, 2, 1)
        >>> group_plan("tree", 8, levels=2)
        (8, 16)
    """
    if topology not in TOPOLOGIES:
        raise ValueError(f"group_plan: topology must be one of {', '.join(TOPOLOGIES)}; got {topology!r}")
    if degree < 1 or degree & (degree - 1):
        raise ValueError(f"group_plan: degree must be a power of two; got {degree}")
    if levels < 1:
        raise ValueError(f"group_plan: levels must be at least 1; got {levels}")
    if topology == "root":
        return tuple(max(1, degree >> level) for level in range(levels))
    if topology == "tree":
        return tuple(degree << level for level in range(levels))
    return (degree,) * levels
