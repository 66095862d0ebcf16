"""The call overhead: every layer and its twin run, wrong ones are refused, rows are read back, the table says both times."""

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.cli import main
from sparsekern.measure.overhead import PAIRS, Pair, measure_overhead
from sparsekern.measure.rows import read_rows

FAST = {"rounds": 2, "min_time_ms": 0.05}


def test_every_layer_has_a_pair_of_its_own_shape():
    kinds = {type(pair.ours()) for pair in PAIRS}
    assert {sk.SparseLinear, sk.GroupedConv2d, sk.StochasticConv2d, sk.SpatialBasisConv2d, sk.RootModule} <= kinds
    for pair in PAIRS:
        x = torch.randn(pair.shape)
        with torch.no_grad():
            assert pair.ours()(x).shape == pair.torch()(x).shape, pair.name


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_rows(pair):
    rows = measure_overhead(pair, "fwd", **FAST)
    assert [row.provider for row in rows] == ["ours", "torch"] and rows[0].ratios["torch"][1] > 0 and rows[0].error < 1e-5
    assert len(measure_overhead(pair, "fwd_bwd", **FAST)) == (0 if pair.packed else 2)


def test_a_wrong_layer_has_no_time():
    class Wrong(nn.Linear):
        def to_dense(self):
            return nn.Linear(4, 4)

    with pytest.raises(ArithmeticError, match="overhead/wrong: ours must be within"):
        measure_overhead(Pair("wrong", lambda: Wrong(4, 4), lambda: nn.Linear(4, 4), (1, 4)), **FAST)


def test_command(tmp_path, capsys):
    pytest.importorskip("rich")
    file = str(tmp_path / "rows.jsonl")
    fast = ["--rounds", "2", "--min-time-ms", "0.05"]
    assert main(["bench", "overhead", "--case", "linear_blocks", *fast, "--json", file]) == 0
    said = capsys.readouterr().out
    assert "linear_blocks" in said and "more µs" in said and "fwd_bwd" in said
    assert {row.mode for row in read_rows(file)} == {"fwd", "fwd_bwd"}
    assert main(["bench", "overhead", "--list"]) == 0
    assert capsys.readouterr().out.split() == [pair.name for pair in PAIRS]
    assert main(["bench", "overhead", "--case", "pudding"]) == 2
    assert "bench: --case must match a case of overhead; got 'pudding'" in capsys.readouterr().err
    assert main(["bench", "overhead", "--mode", "sideways"]) == 2
