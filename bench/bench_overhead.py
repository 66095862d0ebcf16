"""What a call of each layer costs, against torch's layer: ``pytest bench/bench_overhead.py``."""

import pytest
import torch

from sparsekern.measure.overhead import MODES, PAIRS, checked_calls


@pytest.mark.parametrize("provider", ["ours", "torch"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def bench_call(benchmark, pair, mode, provider):
    if pair.packed and mode == "fwd_bwd":
        pytest.skip("packed weights have no gradient")
    calls, error = checked_calls(pair, mode)
    benchmark.group = f"overhead/{pair.name} {mode}"
    benchmark.extra_info.update(provider=provider, error=error)
    with torch.set_grad_enabled(mode == "fwd_bwd"):
        benchmark(calls[provider])
