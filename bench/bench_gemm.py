"""grouped_mm against torch's products: ``pytest bench/bench_gemm.py``."""

from functools import cache

import pytest
import torch
from runner import run_provider

from sparsekern.measure.cases import select
from sparsekern.measure.providers import gemm_setup

CASES = {case.id: case for case in select("gemm")}


@cache
def checked(case_id):
    setup = gemm_setup(CASES[case_id], "fwd")
    setup.check()
    return setup


@pytest.mark.parametrize("provider", ["ours", "ours_ragged", "bmm", "loop", "torch_grouped_mm"])
@pytest.mark.parametrize("case_id", CASES)
def bench_forward(benchmark, case_id, provider):
    with torch.no_grad():
        run_provider(benchmark, checked(case_id), provider)
