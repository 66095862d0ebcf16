"""How many filter groups each grouped level of a network gets: root, tree and column plans.

Source: Deep Roots (arXiv 1605.06489), section 4.2 and Tables 1, 3 and 7. The degree in a model's name is that of the
*first* grouped level:

    root-8    8, 4, 2, 1 ...   grouping decreases with depth  (root-8 is the paper's 1-8-4 for NiN: conv1 has one group)
    tree-8    8, 16, 32 ...    grouping increases with depth  (tree-4 is the paper's 1-4-8)
    column-8  8, 8, 8 ...      grouping stays constant        (column-4, "col-4", is the paper's 1-4-4)
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsekern.arguments import as_whole
from sparsekern.models.options import check, check_numbers

TOPOLOGIES = ("root", "tree", "column")


def group_plan(
    topology: str,
    degree: int,
    levels: int | None = None,
    *,
    channels: Sequence[tuple[int, int]] | None = None,
) -> tuple[int, ...]:
    """Return the groups of each grouped level, first level first.

    Args:
        topology: ``"root"``, ``"tree"`` or ``"column"``.
        degree: groups of the first level, a power of two.
        levels: how many levels of the network are grouped (NiN 2, ResNet-50 4); default the length of ``channels``.
        channels: the (in, out) channels of each level's convolution, checked to divide into its groups. A plan for a network of
            one's own is then known to fit before any layer is built.

    Raises:
        ValueError: ``group_plan: degree must be a power of two; got 6``;
            ``group_plan: channels must divide into the groups of their level (level 1 has 16); got (24, 48)``

    Example:
        >>> group_plan("root", 8, levels=4)
        (8, 4, 2, 1)
        >>> group_plan("tree", 8, channels=[(64, 128), (128, 256)])
        (8, 16)
    """
    known = isinstance(topology, str) and topology in TOPOLOGIES
    check("group_plan", known, "topology", f"one of {', '.join(TOPOLOGIES)}", topology)
    (degree,) = as_whole("group_plan", degree=degree)
    check("group_plan", degree >= 1 and not degree & (degree - 1), "degree", "a power of two", degree)
    given = channels is None or isinstance(channels, tuple | list)
    check("group_plan", given, "channels", "one (in, out) for each level", channels)
    if levels is None:
        levels = len(channels) if channels is not None else 0
    (levels,) = as_whole("group_plan", levels=levels)
    check("group_plan", levels >= 1, "levels", "at least 1", levels)
    check("group_plan", levels < 2**10, "levels", "below 2^10", levels)
    if topology == "tree":
        check("group_plan", degree << (levels - 1) < 2**31, "levels", "so few that they have fewer than 2^31 groups", levels)
    if topology == "root":
        plan = tuple(max(1, degree >> level) for level in range(levels))
    elif topology == "tree":
        plan = tuple(degree << level for level in range(levels))
    else:
        plan = (degree,) * levels
    if channels is not None:
        _check_channels(plan, channels)
    return plan


def _check_channels(plan: tuple[int, ...], channels: Sequence[tuple[int, int]]) -> None:
    if len(channels) != len(plan):
        raise ValueError(f"group_plan: channels must be one (in, out) for each of the {len(plan)} levels; got {len(channels)} of them")
    for level, (groups, pair) in enumerate(zip(plan, channels, strict=True)):
        check_numbers("group_plan", "channels", pair, "positive (in, out) of each level", number=2)
        if any(size % groups for size in pair):
            rule = f"divide into the groups of their level (level {level} has {groups})"
            raise ValueError(f"group_plan: channels must {rule}; got {tuple(pair)}")
