"""What nvcc makes of the kernels: registers, spills and shared bytes as ptxas says, tensor-core and copy instructions as the machine
code has them. `python tests/cuda/compiled.py` writes `kernels.json`, the committed table, anew.

The instructions are read from the cubin itself (ELF; an instruction of sm_80 to sm_90 is 16 bytes with its opcode in the lowest 12
bits), so that nvcc alone is needed.
"""

from __future__ import annotations

import collections
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("sm_80", "sm_90a")
TABLE = Path(__file__).with_name("kernels.json")


def sources(architecture: str) -> list[Path]:
    """Those compiled for it: ``*_wgmma.cu`` have instructions that sm_90a alone knows."""
    return [source for source in SOURCES if architecture == "sm_90a" or not source.stem.endswith("_wgmma")]


#: opcode: name. HGMMA is wgmma; LDL and STL are spills or arrays that did not fit registers.
OPCODES = {0x23C: "HMMA", 0x9F0: "HGMMA", 0x83B: "LDSM", 0xFAE: "LDGSTS", 0x983: "LDL", 0x387: "STL"}


def nvcc() -> str | None:
    """The compiler, or None."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def version() -> str:
    """For example 13.0."""
    text = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release (\d+\.\d+)", text)[1]


def instructions(cubin: bytes) -> dict[str, dict[str, int]]:
    """Counted instructions per mangled kernel name."""
    at, size, count, names = struct.unpack_from("<Q", cubin, 0x28)[0], *struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, at + i * size) for i in range(count)]
    strings = cubin[headers[names][4] :]
    found = {}
    for header in headers:
        name = strings[header[0] : strings.index(b"\0", header[0])].decode()
        if name.startswith(".text."):
            code = cubin[header[4] : header[4] + header[5]]
            opcodes = collections.Counter(word & 0xFFF for word, _ in struct.iter_unpack("<QQ", code))
            found[name.removeprefix(".text.")] = {n: opcodes[o] for o, n in OPCODES.items() if opcodes[o]}
    return found


def plain(mangled: list[str]) -> list[str]:
    """`grouped_conv2d_kernel<bf16, 0, 8, 4>` for each mangled name."""
    text = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    names = [
        re.sub(r"\((?:anonymous namespace|sk::\w+)\)|sk::|^void |\(.*\)$", "", re.sub(r"\(sk::\w+\)", "", line))
        for line in text.splitlines()
    ]
    return [re.sub(r"\(.*$", "", name).strip() for name in names]


def compile_kernels(source: Path, architecture: str) -> dict[str, dict[str, int]]:
    """Facts of every kernel of one file: registers, stack, spills (bytes), instructions."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        command = [
            nvcc(),
            "-std=c++17",
            "-O3",
            f"-arch={architecture}",
            "-Xptxas=-v",
            f"-I{ROOT / 'csrc'}",
            "-cubin",
            "-o",
            str(cubin),
            str(source),
        ]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{run.stderr}")
        if "wgmma" in run.stderr and "serialized" in run.stderr:  # ptxas could not keep them under way: each waits for the one before
            raise RuntimeError(run.stderr)
        counted = instructions(cubin.read_bytes())
    facts = {}
    spills = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    pattern = rf"Function properties for (\S+)\s+{spills}\s+.*?Used (\d+) registers"
    for name, stack, stores, loads, registers in re.findall(pattern, run.stderr):
        facts[name] = {"registers": int(registers), "stack": int(stack), "spills": int(stores) + int(loads), **counted[name]}
    if set(facts) != set(counted):
        raise RuntimeError(f"ptxas spoke of {sorted(facts)}, the cubin holds {sorted(counted)}")
    return dict(sorted(zip(plain(list(facts)), facts.values())))


def main() -> None:
    table = {"nvcc": version()}
    for architecture in ARCHITECTURES:
        table[architecture] = {source.name: compile_kernels(source, architecture) for source in sources(architecture)}
    lines = re.sub(r"\{\s+(\"registers\"[^}]*?)\s+\}", lambda m: "{" + re.sub(r"\s+", " ", m[1]) + "}", json.dumps(table, indent=1))
    TABLE.write_text(lines + "\n")


if __name__ == "__main__":
    sys.exit(main())
