"""Root, tree and column plans against the paper's tables."""

import pytest

from sparsekern.models import group_plan


@pytest.mark.parametrize("degree", [2, 4, 8, 16])
def test_nin_plans_are_the_papers(degree):
    assert group_plan("root", degree, 2) == (degree, degree // 2)  # table 1
    assert group_plan("tree", degree, 2) == (degree, 2 * degree)  # section 4.2: 1-4-8 is a tree
    assert group_plan("column", degree, 2) == (degree, degree)  # section 4.2: 1-4-4 is a column


def test_resnet_plans_are_table_3():
    assert group_plan("root", 2, 4) == (2, 1, 1, 1)
    assert group_plan("root", 64, 4) == (64, 32, 16, 8)
    assert group_plan("root", 1, 4) == (1, 1, 1, 1)


def test_bad_arguments():
    with pytest.raises(ValueError, match="group_plan: topology must be one of root, tree, column; got 'bush'"):
        group_plan("bush", 2, 2)
    for degree in (0, -4, 6):
        with pytest.raises(ValueError, match=f"group_plan: degree must be a power of two; got {degree}"):
            group_plan("root", degree, 2)
    with pytest.raises(ValueError, match="group_plan: levels must be at least 1; got 0"):
        group_plan("root", 2, 0)
