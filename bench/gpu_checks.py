"""What `bench/gpu.py` holds to float64: every op by the CUDA kernels, and by Triton's twins, forward and backward.

A check is one sample of one op in one type: odd sizes, both layouts, out of poisoned memory, twice. A row names the kernels that ran in
it, and the last row of a step fails if there is a kernel that none of them called.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu_watch
import torch

from sparsekern import ops
from sparsekern.ops import OPS, backends, cuda

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "cuda")]
import emulated  # noqa: E402
import wide  # noqa: E402

from ops import test_root_conv2d as root  # noqa: E402
from ops.test_contract import hold_to_contract  # noqa: E402

#: Whose kernels each step checks, and the types they take: "tf32" is float32 where ten bits of fraction are allowed.
STEPS = {"correctness": "cuda", "twins": "triton"}
TYPES = {"cuda": ("float32", "tf32", "bfloat16", "float16"), "triton": ("float32", "bfloat16", "float16")}

#: These first, and only these in a dry run and under the sanitizer: every kernel, odd sizes, both layouts.
FEW = {
    "grouped_conv2d": ("odd_batch", "last_stride"),
    "sparse_linear": ("odd_batch", "odd_block", "panel_many_rows", "feature_major"),
    "sparse_conv2d": ("odd_batch", "spatial_strided", "shared_spatial", "shared_by_many"),
    "grouped_mm": ("odd_batch", "tiles"),
    "root_conv2d": ("odd", "wide"),
    "wgmma": ("panels", "blocks"),
}
#: Of root_conv2d, which is no card, those with two convolutions: what the kernel takes.
ROOTS = ("odd", "wide", "root", "strided", "empty", "nchw", "sliced")
#: What wgmma takes: products of sparse_linear that are asked for by name, as the cost model gives no sample to it.
HALVES = ("bfloat16", "float16")


class Recorder:
    """Kernels by name, and which of them were called."""

    def __init__(self, kernels: Any, names: set[str]) -> None:
        self.kernels, self.names, self.called = kernels, names, set[str]()

    def __getattr__(self, name: str) -> Callable[..., torch.Tensor]:
        def call(*args: Any) -> torch.Tensor:
            self.called.add(name)
            return getattr(self.kernels, name)(*args)

        return call


def kernels_of(who: str, dry: bool) -> Recorder | None:
    """Of the CUDA library (in a dry run of the emulator; None where that was not built), or Triton's twins."""
    if who == "triton":
        from sparsekern.ops import triton

        twins = triton.kernels()
        return Recorder(twins, set(vars(twins)))
    if dry and not emulated.LIBRARY.is_file():
        return None
    library = emulated.kernels() if dry else torch.ops.sparsekern_cuda
    space = f"{library.name}::"
    return Recorder(library, {n.removeprefix(space) for n in torch._C._dispatch_get_all_op_names() if n.startswith(space)})


@contextlib.contextmanager
def served_by(kernels: Recorder | None, device: str) -> Iterator[None]:
    """Calls reach these kernels through what chooses between them and torch, and that chooses them."""
    if kernels is None:
        with backends.use(backends.providers()[-1]):
            yield
    elif device == "cpu":
        with emulated.sent_to(kernels):
            yield
    else:
        ops._on_cuda._destroy()
        registered = cuda.register(kernels, "CUDA")
        try:
            with backends.use(str(backends.gpu), device, dense="never"):
                yield
        finally:
            registered._destroy()
            ops._on_cuda = cuda.register(torch.ops.sparsekern_cuda, "CUDA")


@contextlib.contextmanager
def poisoned(device: str) -> Iterator[None]:
    """Fresh tensors begin as NaN (or as the largest integer), as does memory that the next ones are likely to be put in."""
    if device == "cuda":
        held = [torch.full((size,), float("nan"), device=device) for size in (128, 4096, 1 << 16, 1 << 20, 1 << 24) for _ in range(4)]
        del held
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)  # fills what it allocates
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextlib.contextmanager
def float32(tf32: bool) -> Iterator[None]:
    """Whether float32 may be multiplied with ten bits of fraction, in convolutions and products of matrices alike."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def lost() -> bool:
    """Whether this process can use the device no more: an access outside of memory, for example, is for ever."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
        return False
    except RuntimeError:
        return True


def checks(who: str, small: bool) -> Iterator[tuple[str, str, str]]:
    """``(op, sample, type)``, the few before all others."""
    names = {op: [sample.name for sample in OPS[op].samples(torch.device("cpu"), torch.float32)] for op in cuda.SERVED}
    names["root_conv2d"] = list(ROOTS)
    if who == "cuda":
        names["wgmma"] = list(wide.SAMPLES)
    for few in (True,) if small else (True, False):
        for op, samples in names.items():
            for kind in TYPES[who] if op != "wgmma" else HALVES:
                yield from ((op, sample, kind) for sample in samples if (sample in FEW[op]) is few)


def check(who: str, op: str, sample: str, kind: str, kernels: Recorder | None, device: str) -> None:
    """Raises AssertionError where a value, a gradient or its second computation is not what it should be."""
    dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    interpreted = who == "triton" and device == "cpu"
    arithmetic = {"tf32": kind == "tf32", "cut": interpreted and dtype == torch.bfloat16, "tensor_cores": not interpreted}
    serving = lambda: served_by(kernels, device)  # noqa: E731
    with poisoned(device), float32(tf32=kind == "tf32"):
        if op == "wgmma":
            if kernels:
                wide.hold_to_truth(kernels, sample, dtype, device)
        elif op == "root_conv2d":
            with serving():
                root.hold_to_truth(sample, dtype, device=device, **arithmetic)
        else:
            hold_to_contract(OPS[op], sample, dtype, serving, device=device, **arithmetic)


def run(rows: Any, step: str, dry: bool, left: Callable[[], float], small: bool) -> None:
    """A row for each check of a step; ``rows`` and ``left`` (seconds) are gpu.py's."""
    who = STEPS[step]
    if (step, f"{who}, every kernel") in rows.done:
        return None
    if who == "triton" and not importlib.util.find_spec("triton"):
        return rows.write(step, "triton, every kernel", ok=None, failure="", kernels=[], note="triton is not installed")
    if who == "triton" and dry and os.environ.get("TRITON_INTERPRET") != "1":
        return _in_an_interpreter(rows, step, left)
    kernels, device = kernels_of(who, dry), "cpu" if dry else "cuda"
    for op, sample, kind in checks(who, dry or small):
        key = f"{who} {op}/{sample}/{kind}"
        if (step, key) in rows.done:
            continue
        if left() < 10:
            print("gpu: out of time; go on with --resume", flush=True)
            return None
        failure = "" if rows.begin(step, key) else "two processes did not survive it"
        if kernels:
            kernels.called.clear()
        try:
            if failure:
                raise RuntimeError(failure)
            check(who, op, sample, kind, kernels, device)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"[:400]
        rows.write(step, key, ok=not failure, failure=failure, kernels=sorted(kernels.called) if kernels else [])
        if failure:
            print(f"WRONG {key}: {failure}", flush=True)
            if lost():
                raise SystemExit(gpu_watch.LOST)
    if kernels:
        missing = sorted(kernels.names.difference(*(row["kernels"] for row in rows.of(step))))
        failure = f"nothing called {', '.join(missing)}" if missing else ""
        rows.write(step, f"{who}, every kernel", ok=not missing, failure=failure, kernels=sorted(kernels.names))
    return None


def _in_an_interpreter(rows: Any, step: str, left: Callable[[], float]) -> None:
    """In a process of its own: Triton must be told before it is imported."""
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--worker", "--dry-run", "--resume", "--steps", step]
    command += ["--budget", str(left()), "--out", str(rows.path)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    rows.read()
    if not rows.of(step):
        rows.write(step, "triton, its process", ok=False, failure=done.stderr[-400:].replace(str(ROOT), ""), kernels=[])
