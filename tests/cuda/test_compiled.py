"""Every CUDA kernel compiles for every architecture without spills, and to what the committed table says."""

from __future__ import annotations

import json

import compiled
import pytest

TABLE = json.loads(compiled.TABLE.read_text())
pytestmark = pytest.mark.skipif(
    not compiled.nvcc(), reason="no nvcc: the CUDA kernels are not compiled (their source still runs in the emulator)"
)

#: The newest architecture always; the older one, which takes as long, and the kernels that take longest, only with --full.
LONG = {
    "grouped_conv2d.cu",
    "grouped_conv2d_weight.cu",
    "grouped_mm.cu",
    "root_conv2d.cu",
    "sparse_conv2d_list.cu",
    "sparse_conv2d_matrix.cu",
    "sparse_conv2d_scatter.cu",
    "sparse_conv2d_weight.cu",
    "sparse_linear_blocks_wgmma.cu",
    "sparse_linear_panels.cu",
    "sparse_linear_panels_input.cu",
    "sparse_linear_panels_wgmma.cu",
}
CASES = [
    pytest.param(
        source,
        architecture,
        id=f"{source.name}-{architecture}",
        marks=[] if architecture == compiled.ARCHITECTURES[-1] and source.name not in LONG else pytest.mark.slow,
    )
    for architecture in compiled.ARCHITECTURES
    for source in compiled.sources(architecture)
]


@pytest.mark.parametrize(("source", "architecture"), CASES)
def test_kernels_compile_as_committed(source, architecture):
    found = compiled.compile_kernels(source, architecture)
    committed = TABLE[architecture][source.name]
    hint = "after a change of the kernels: python tests/cuda/compiled.py"
    assert set(found) == set(committed), hint
    for name, facts in found.items():
        assert not facts["spills"] and not facts["stack"] and "LDL" not in facts and "STL" not in facts, f"{name} spills: {facts}"
        tensor_core = bool(facts.get("HMMA") or facts.get("HGMMA"))
        assert tensor_core == bool(committed[name].get("HMMA") or committed[name].get("HGMMA")), f"{name} lost its tensor-core instructions"
    if compiled.version() == TABLE["nvcc"]:  # another compiler may allot registers in another way
        assert found == committed, hint


def test_table_names_all_sources():
    for architecture in compiled.ARCHITECTURES:
        assert list(TABLE[architecture]) == [source.name for source in compiled.sources(architecture)]


def test_no_kernel_spills_in_the_table():
    for architecture in compiled.ARCHITECTURES:
        for kernels in TABLE[architecture].values():
            assert all(facts["spills"] == 0 and facts["registers"] <= 255 for facts in kernels.values())


def test_wgmma_kernels_keep_two_stages_under_way():
    """As the source has it: four products a stage, one loop, so that nothing was unrolled, left out or given to mma.sync."""
    for source in compiled.SOURCES:
        if source.stem.endswith("_wgmma"):
            kernels = TABLE["sm_90a"][source.name]
            assert kernels and all(facts["HGMMA"] == 4 and "HMMA" not in facts for facts in kernels.values())


def test_emulated_primitives_are_instructions():
    found = compiled.compile_kernels(compiled.TABLE.with_name("planted.cu"), "sm_90a")
    by_kernel = {name.split("::")[-1].split("<")[0]: facts for name, facts in found.items()}
    assert by_kernel["warpgroup_kernel"]["HGMMA"] and by_kernel["product_kernel"]["HMMA"] and by_kernel["product_kernel"]["LDSM"]
    assert by_kernel["tail_kernel"]["LDGSTS"]
