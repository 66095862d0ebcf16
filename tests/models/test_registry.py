"""Names to models."""

import pytest
from torch import nn

from sparsekern.models import create_model, list_models, register_model


def test_the_thirteen_nin_names_in_natural_order():
    names = ["nin"] + [f"nin_{kind}_{degree}" for kind in ("col", "root", "tree") for degree in (2, 4, 8, 16)]
    assert list_models("nin*") == names


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"create_model: name must be a registered model; got 'nin_root_3' \(nearest: .*nin_root_"):
        create_model("nin_root_3")
    with pytest.raises(ValueError, match=r"got 'xyzzy' \(registered: nin, "):
        create_model("xyzzy")


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="register_model: name must be new; got 'nin'"):
        register_model(lambda: nn.Identity(), name="nin")
