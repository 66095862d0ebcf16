"""SparseLinear against torch: ``pytest bench/bench_linear.py`` (a few cases; all by ``sparsekern bench``)."""

from functools import cache

import pytest
import torch
from runner import run_provider

from sparsekern.measure.cases import select
from sparsekern.measure.providers import linear_setup

CASES = {case.id: case for case in select("linear", match="3072-768 0.1", batches=(1, 64), dtypes=("float32",)) if case.block_size < 32}
PROVIDERS = ("ours", "ours_packed", "dense", "dense_prepacked", "csr", "csr_mm", "embedding_bag", "mkl_ie")


@cache
def checked(case_id, mode):
    setup = linear_setup(CASES[case_id], mode)
    setup.check()
    return setup


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("case_id", CASES)
def bench_forward(benchmark, case_id, provider):
    with torch.no_grad():
        run_provider(benchmark, checked(case_id, "fwd"), provider)


@pytest.mark.parametrize("provider", ["ours", "dense", "masked_dense"])
@pytest.mark.parametrize("case_id", CASES)
def bench_training(benchmark, case_id, provider):
    run_provider(benchmark, checked(case_id, "fwd_bwd"), provider)
