"""Root, tree and column plans against the paper's tables."""

import numpy as np
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


def test_numbers_of_numpy_do_not_wrap_round():
    assert group_plan("tree", np.uint8(128), np.uint8(3)) == (128, 256, 512)


def test_bad_arguments():
    with pytest.raises(ValueError, match="group_plan: topology must be one of root, tree, column; got 'bush'"):
        group_plan("bush", 2, 2)
    for degree in (0, -4, 6):
        with pytest.raises(ValueError, match=f"group_plan: degree must be a power of two; got {degree}"):
            group_plan("root", degree, 2)
    with pytest.raises(ValueError, match="group_plan: levels must be at least 1; got 0"):
        group_plan("root", 2, 0)


def test_channels_are_checked_level_by_level():
    nin = [(96, 192), (192, 192)]
    assert group_plan("root", 16, channels=nin) == group_plan("root", 16, 2) == (16, 8)
    assert group_plan("tree", 16, 2, channels=nin) == (16, 32)
    with pytest.raises(ValueError, match=r"channels must divide into the groups of their level \(level 0 has 64\); got \(96, 192\)"):
        group_plan("root", 64, channels=nin)  # the outputs divide, the inputs do not
    with pytest.raises(ValueError, match=r"\(level 1 has 128\); got \(192, 192\)"):
        group_plan("tree", 64, channels=[(64, 64), (192, 192)])
    with pytest.raises(ValueError, match=r"channels must be one \(in, out\) for each of the 3 levels; got 2 of them"):
        group_plan("root", 16, 3, channels=nin)
    with pytest.raises(ValueError, match="group_plan: levels must be at least 1; got 0"):
        group_plan("root", 16)
