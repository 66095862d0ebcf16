"""The named cases: ids are keys, sizes and FLOPs are right, selections are what was asked for."""

import re

import pytest

from sparsekern.measure import cases
from sparsekern.measure.cases import BUILDERS, ConvCase, GemmCase, LinearCase, select
from sparsekern.measure.floors import GOALS


def test_ids_are_unique_keys():
    ids = [case.id for kind in BUILDERS for case in BUILDERS[kind]()]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[\w./-]+", i) for i in ids)


def test_every_goal_is_a_quick_case():
    quick = {case.id for kind in BUILDERS for case in select(kind, quick=True)}
    assert set(GOALS) <= quick


def test_fan_in_is_whole_blocks():
    case = LinearCase("l", 4, in_features=3072, out_features=768, density=0.1, block_size=32)
    assert case.fan_in == 320
    assert case.flops == 2 * 4 * 768 * 320
    assert LinearCase("l", 4, in_features=64, out_features=8, density=0.001).fan_in == 1


def test_flops_by_hand():
    conv = ConvCase("c", 2, channels=4, out_channels=8, size=6, kernel=3, padding=1, stride=2, groups=2)
    assert conv.out_size == 3
    assert conv.dense_flops == 2 * 2 * 8 * 4 * 9 * 9
    assert conv.flops * 2 == conv.dense_flops
    assert GemmCase("g", 3, m=2, k=5, n=7).flops == 2 * 3 * 2 * 5 * 7


def test_select():
    found = select("linear", match="3072-768 block16", batches=(2, 5), densities=(0.25,), dtypes=("bfloat16",))
    assert [case.id for case in found] == [
        "sparse_linear/3072-768/0.25/block16/n2/bfloat16/rows",
        "sparse_linear/3072-768/0.25/block16/n5/bfloat16/rows",
    ]
    assert {case.layout for case in select("conv", layouts=("channels_last",))} == {"channels_last"}
    assert all(case.quick for case in select("conv", quick=True))
    with pytest.raises(ValueError, match=r"^bench: kind must be one of linear, conv, gemm; got poem$"):
        select("poem")


def test_the_papers_layers_are_there():
    ids = {case.id for case in cases.conv_cases()}
    for groups in (1, 2, 4, 8, 16):
        assert f"grouped_conv2d/nin_conv2a/g{groups}/n1/float32/nchw" in ids
    for what in ("spatial", "synapse", "synapse4"):
        assert f"sparse_conv2d/nin_conv2a/{what}/0.067/n1/float32/nchw" in ids
