"""Names to models."""

import pytest
from torch import nn

from sparsekern.models import create_model, list_models, register_model
from sparsekern.models.registry import model_card

CARD = {"paper": "Deep Roots", "input_shape": (3, 32, 32)}


def test_the_fourteen_nin_names_in_natural_order():
    names = ["nin"] + [f"nin_{kind}_{degree}" for kind in ("col", "root", "tree") for degree in (2, 4, 8, 16)]
    names.insert(names.index("nin_root_16") + 1, "nin_root_32")
    assert list_models("nin*") == names


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"create_model: name must be a registered model; got 'nin_root_3' \(nearest: .*nin_root_"):
        create_model("nin_root_3")
    with pytest.raises(ValueError, match=r"got 'xyzzy' \(registered: .*nin, "):
        create_model("xyzzy")


def test_an_unknown_option_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"create_model: options of nin_root_8 must be among batch_norm, .*widths; got depth"):
        create_model("nin_root_8", depth=3)
    with pytest.raises(ValueError, match=r"options of nin_root_8 must be among .*; got groups"):
        create_model("nin_root_8", groups=(2, 2))  # the name already says them


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="register_model: name must be new; got 'nin'"):
        register_model(lambda: nn.Identity(), name="nin", **CARD)


def test_every_card_names_a_paper_a_dense_twin_and_an_input_no_smaller_than_the_reduced_one():
    for name in list_models():
        card = model_card(name)
        assert card.name == name and card.paper
        assert card.dense is None or model_card(card.dense).dense is None
        assert len(card.input_shape) == len(card.reduced_shape)
        assert all(small <= full for small, full in zip(card.reduced_shape, card.input_shape, strict=True)), name
