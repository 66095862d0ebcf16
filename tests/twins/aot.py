"""Compiles the kernels that some inputs launch, ahead of time, for a GPU that need not be there: ``aot.py 90 bfloat16 op sample ...``.

Prints a JSON line per kernel: its name, and how many matrix instructions, spilled bytes and registers the compiled code has.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparsekern.ops import OPS
from sparsekern.ops.triton import DOORS, twin

#: Of root_conv2d, which is no card: x, weight1 and weight2.
ROOTS = {"wide": ((64, 64, 56, 56), (64, 8, 3, 3), (256, 64, 1, 1))}

TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32"}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


def compiled(kernel, args, options: dict, capability: int) -> dict:
    signature, constants = {}, {}
    for parameter, value in zip(kernel.params, args, strict=True):
        if parameter.is_constexpr:
            signature[parameter.name], constants[(parameter.num,)] = "constexpr", value
        else:
            signature[parameter.name] = TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
    code = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    matrix = len(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)", code.asm["ptx"]))
    name = f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}"
    return {"kernel": name, "matrix": matrix, "spilled": found["STACK"] + found["LOCAL"], "registers": found["REG"]}


def main(capability: str, dtype: str, *samples: str) -> None:
    launched = {}
    for name, sample in zip(samples[::2], samples[1::2], strict=True):
        module = twin(name)
        module.run = lambda kernel, _, device, *args, **options: launched.setdefault(
            kernel.fn.__module__ + kernel.fn.__name__, (kernel, args, options)
        )
        if name == "root_conv2d":
            x, weight1, weight2 = (torch.empty(size, dtype=getattr(torch, dtype)) for size in ROOTS[sample])
            bias1, bias2 = (torch.empty(len(w), dtype=x.dtype) for w in (weight1, weight2))
            module.forward(x, weight1, bias1, weight2, bias2, 1, 1, 1, 1, 1, 1, x.shape[1] // weight1.shape[1], True, True)
            continue
        op = OPS[name]
        inputs = next(s.inputs for s in op.samples(torch.device("cpu"), getattr(torch, dtype)) if s.name == sample)
        for door, product in op.products.items():
            product.reference = getattr(module, door)
        op.gradients = None
        from sparsekern.ops import backends

        leaves = {k: inputs[k].detach().requires_grad_() for k in op.factors}
        with backends.use("reference"):
            out = op.function(**{**inputs, **leaves})
            torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))
    for kernel, args, options in launched.values():
        print(json.dumps(compiled(kernel, args, options, int(capability))), flush=True)


if __name__ == "__main__":
    assert DOORS
    main(*sys.argv[1:])
