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


def test_select_keeps_the_dtype_unless_asked():
    assert {case.dtype for case in select("linear")} == {"float32", "bfloat16"}
    assert {case.dtype for case in select("linear", dtypes=("float32",))} == {"float32"}
    tiny = select("linear", match="4096-512", densities=(0.00195,), batches=(8,))
    assert [case.fan_in for case in tiny] == [8]
    own = [case.runs for case in select("linear", match="3072-768/0.1/n", batches=(1, 2, 64), dtypes=("float32",))]
    assert own == [(("fwd", "hot"), ("fwd", "cold")), (("fwd", "hot"),), (("fwd", "hot"), ("fwd_bwd", "hot"))]


def test_linear_cases_cover_what_was_promised():
    found = {case.id: case for case in select("linear")}
    for what in ("4096-512/0.00195/n64", "784-224/0.0179/n8", "3072-768/0.1/n17", "3072-768/0.1/n1000", "1001-333/0.1/n3", "500-1/0.1/n1"):
        assert f"sparse_linear/{what}/float32/rows" in found
    assert found["sparse_linear/1000-300/0.001/n17/float32/rows"].fan_in == 1
    for dtype in ("float32", "bfloat16"):
        for block in ("", "/block32"):
            assert ("fwd_bwd", "hot") in found[f"sparse_linear/3072-768/0.1{block}/n64/{dtype}/rows"].runs
            assert ("fwd", "cold") in found[f"sparse_linear/3072-768/0.1{block}/n1/{dtype}/rows"].runs
    assert found["sparse_linear/16-16/0.25/n1/float32/rows"].runs == (("fwd", "hot"), ("fwd_bwd", "hot"))  # the call itself
    assert {case.block_size for case in found.values()} == {1, 16, 32, 64}
    assert all(case.runs[0] == ("fwd", "hot") for case in found.values())
    assert all(case.in_features % case.block_size == 0 and case.out_features % case.block_size == 0 for case in found.values())


@pytest.mark.parametrize("known", [("random",), ("random", "balanced")])
def test_balanced_cases_wait_for_the_topology(monkeypatch, known):
    monkeypatch.setattr(cases, "linear_topologies", lambda: known)
    balanced = [case for case in cases.linear_cases() if case.topology == "balanced"]
    assert bool(balanced) == ("balanced" in known)
    assert all(case.fan_in * 32 % case.in_features == 0 and "/balanced/" in case.id and not case.quick for case in balanced)
    assert {case.fan_in for case in balanced if case.in_features == 3072} == ({96, 192, 288, 768, 1536} if balanced else set())


def test_the_papers_layers_are_there():
    ids = {case.id for case in cases.conv_cases()}
    for groups in (1, 2, 4, 8, 16):
        assert f"grouped_conv2d/nin_conv2a/g{groups}/n1/float32/nchw" in ids
    for what in ("spatial", "synapse", "synapse4"):
        assert f"sparse_conv2d/nin_conv2a/{what}/0.067/n1/float32/nchw" in ids
        (trained,) = select("conv", match=f"sparse_conv2d/nin_conv2a/{what}/0.25/n32")
        assert trained.runs == (("fwd", "hot"), ("fwd_bwd", "hot"))
