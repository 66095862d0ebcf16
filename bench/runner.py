"""How one provider of a checked setup becomes one pytest-benchmark measurement."""

import pytest


def run_provider(benchmark, setup, name):
    """Time one provider of a checked setup; FLOPs and error travel as extra information."""
    if name not in setup.available:
        pytest.skip(f"{name} is not available for this case")
    provider = setup.available[name]
    benchmark.group = f"{setup.case.id} {setup.mode}"
    benchmark.extra_info.update(
        provider=name,
        served_by=provider.served_by,
        flops=setup.flops,
        dense_flops=setup.dense_flops,
        density=setup.density,
        error=setup.errors[name],
    )
    benchmark(provider.call)
