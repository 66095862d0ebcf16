"""The machine card says what a number depends on, and nothing about whose machine it is."""

import getpass
import json
import socket

import pytest

from sparsekern.measure import machine
from sparsekern.measure.machine import machine_card, machine_kind
from sparsekern.measure.roof import Roof, _measure_with_torch, measure_roof


def test_card_can_be_published(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/home/somebody/lib/libjemalloc.so.2:/opt/x/libother.so")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_max=0")
    card = machine_card()
    text = json.dumps(card)
    assert card["allocator"] == "GLIBC_TUNABLES=glibc.malloc.mmap_max=0 preload:libjemalloc.so.2 preload:libother.so"
    for private in ("/home", "somebody", "/opt", socket.gethostname() + '"', f'"{getpass.getuser()}"'):
        assert private not in text
    assert {"cpu", "cores", "threads", "isa", "torch", "numpy", "sparsekern", "git", "caches", "os"} <= set(card)


def test_card_names_the_plain_allocator(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert machine_card()["allocator"] == "default"


@pytest.mark.parametrize(
    ("cpu", "features", "cores", "gpu", "kind"),
    [
        ("AMD EPYC 7763 64-Core Processor", ["fma", "avx2"], 8, None, "amd-epyc-7763-avx2-8c"),
        ("Intel(R) Xeon(R) Platinum 8488C", ["avx2", "avx512f", "amx_bf16"], 4, None,
         "intel-xeon-platinum-8488c-avx512-amx-4c"),
        ("aarch64", ["asimd"], 4, None, "aarch64-4c"),
        ("Intel(R) Core(TM) i7 CPU @ 2.20GHz", ["avx2"], 8, "NVIDIA H100", "intel-core-i7-avx2-8c-nvidia-h100"),
    ],
)  # fmt: skip
def test_kind_is_a_file_name(cpu, features, cores, gpu, kind):
    assert machine_kind({"cpu": cpu, "features": features, "cores": cores, "gpu": gpu}) == kind


def test_git_revision_is_short_or_absent():
    revision = machine.git_revision()
    assert revision is None or len(revision.removesuffix("+")) <= 16


def test_roof():
    for roof in (measure_roof(0.01), _measure_with_torch(0.01)):
        assert roof.gflops > 0.5
        assert roof.read_gbytes > 0.1
        assert roof.source


def test_roofline():
    roof = Roof(200.0, 10.0, "given")
    assert roof.attainable_gflops(flops=4, bytes_moved=1) == 40.0
    assert roof.attainable_gflops(flops=400, bytes_moved=1) == 200.0
    assert roof.attainable_gflops(flops=4, bytes_moved=0) == 200.0
