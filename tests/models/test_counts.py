"""The committed counts are those of the models; `python tests/models/test_counts.py` writes them anew."""

import json
import sys
from pathlib import Path

import pytest
import torch

from sparsekern import models
from sparsekern.models import counts, create_model, list_models, model_card
from sparsekern.profile import count

FILE = Path(models.__file__).with_name("counts.json")


def count_model(name: str) -> dict[str, int]:
    with torch.device("meta"):
        model = create_model(name)
    counted = count(model, model_card(name).input_shape)
    return {"params": counted.params, "flops": counted.flops}


def test_every_model_is_listed_and_no_other():
    assert list(counts.known_counts()) == list_models(), f"run python {Path(__file__).name} to write {FILE.name} anew"


@pytest.mark.parametrize("name", list_models())
def test_the_committed_counts_are_those_of_the_model(name):
    assert counts.known_counts()[name] == count_model(name)


if __name__ == "__main__":
    rows = [f" {json.dumps(name)}: {json.dumps(count_model(name))}" for name in list_models()]
    sys.exit(FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n") == 0)
