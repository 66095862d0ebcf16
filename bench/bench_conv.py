"""GroupedConv2d and StochasticConv2d against torch: ``pytest bench/bench_conv.py`` (the quick cases)."""

from functools import cache

import pytest
import torch
from runner import run_provider

from sparsekern.measure.cases import select
from sparsekern.measure.providers import conv_setup

CASES = {case.id: case for case in select("conv", quick=True)}
PROVIDERS = ("ours", "ours_packed", "dense", "grouped", "dense_prepacked", "grouped_prepacked", "masked_dense", "csr_unfold")


@cache
def checked(case_id, mode):
    setup = conv_setup(CASES[case_id], mode)
    setup.check()
    return setup


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("case_id", CASES)
def bench_forward(benchmark, case_id, provider):
    with torch.no_grad():
        run_provider(benchmark, checked(case_id, "fwd"), provider)


@pytest.mark.parametrize("provider", ["ours", "dense", "grouped", "masked_dense"])
@pytest.mark.parametrize("case_id", CASES)
def bench_training(benchmark, case_id, provider):
    run_provider(benchmark, checked(case_id, "fwd_bwd"), provider)
