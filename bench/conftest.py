"""The machine card goes into every pytest-benchmark file; timings are of one thread."""

import pytest

from sparsekern.measure import machine_card, one_thread


def pytest_benchmark_update_machine_info(config, machine_info):
    """Replace what pytest-benchmark collects (it names the host) by the machine card."""
    machine_info.clear()
    machine_info.update(machine_card())


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield
