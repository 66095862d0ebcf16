"""One command for a machine with a GPU: builds, proves and times the CUDA kernels, in ten minutes, a row after each step.

    python bench/gpu.py                    # build, facts, ceilings, correctness, timing, sanitizer -> bench/results/gpu/rows.jsonl
    python bench/gpu.py --resume           # what an interrupted run left out; --earlier FILE: of a run whose rows are elsewhere
    python bench/gpu.py --dry-run          # every step on the CPU, small: proves this script, times nothing

Nothing is timed that is not right: a provider whose result is not close to float64 gets a row that says so, and no time; if it
is ours, the exit status says so too, as it does where a call of ours cannot be captured in a graph.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # the package that was just built here: an installation is seen by later processes only
LIBRARY = ROOT / "sparsekern" / "_C_cuda.so"
COMPILED = {"max_autotune": 180.0, "triton": 60.0, "bsr_tuned": 60.0}  # with --compiled, and only where so many seconds are left
OTHERS = ("two_of_four", "dense_twin")  # other functions
NO_RIVALS = (*OTHERS, "triton")  # the last: ours in another language
STEPS = ("build", "facts", "ceilings", "correctness", "timing", "twins", "sanitizer")


class Rows:
    """A file of JSON lines, one per thing that was done; what is in it already is not done again."""

    def __init__(self, path: Path, resume: bool) -> None:
        self.path, self.done = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            path.unlink(missing_ok=True)
        elif path.is_file():
            self.read()
            path.write_text("".join(json.dumps(row) + "\n" for row in self.done.values()))
        self.begun = path.with_suffix(".begun")
        if not resume:
            self.begun.unlink(missing_ok=True)

    def read(self) -> None:
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
                self.done[row["step"], row["key"]] = row
            except (json.JSONDecodeError, KeyError):
                continue  # the line at which the last run was cut off

    def begin(self, step: str, key: str) -> bool:
        """To be said before something that the process may not survive; False if two did not."""
        at, times = f"{step} {key}", 1
        if self.begun.is_file():
            last, _, count = self.begun.read_text().rpartition(" ")
            times += int(count) if last == at and count.isdigit() else 0
        self.begun.write_text(f"{at} {times}")
        return times <= 2

    def write(self, step: str, key: str, **values) -> None:
        row = {"step": step, "key": key, **values}
        self.done[step, key] = row
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def drop(self, *steps: str) -> None:
        self.done = {at: row for at, row in self.done.items() if at[0] not in steps}
        self.path.write_text("".join(json.dumps(row) + "\n" for row in self.done.values()))

    def of(self, step: str) -> list[dict]:
        return [row for (s, _), row in self.done.items() if s == step]


def sources() -> str:
    """What the library is built from, as a short hash."""
    digest = hashlib.sha1()
    for path in (ROOT / "CMakeLists.txt", *sorted((ROOT / "csrc").rglob("*"))):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def build(rows: Rows, dry: bool, seconds: float = 420.0) -> None:
    """The package with its CUDA library, into this tree."""
    if dry:
        return rows.write("build", "package", seconds=0.0, ok=True, sources=sources(), note="dry run: not built")
    ask = "import torch; print(*torch.cuda.get_device_capability(), sep='')"
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    if asked.returncode:
        raise SystemExit(f"gpu: no GPU here; --dry-run goes through the steps on the CPU\n{asked.stderr[-500:]}")
    number = asked.stdout.split()[-1]
    architecture = f"{number}a-real" if int(number) >= 90 else f"{number}-real"  # this card's only: quicker
    # tools of this environment need not be on the path of who started it
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    environment = {**os.environ, "PATH": path, "SPARSEKERN_CUDA": "on", "SPARSEKERN_QUICK_CALL": "off"}
    environment["CMAKE_ARGS"] = f"-DSPARSEKERN_CUDA_ARCHITECTURES={architecture}"
    install = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-q", "-e", str(ROOT)]
    in_place = [sys.executable, str(ROOT / "setup.py"), "build_ext", "--inplace"]  # where nothing may be installed
    begin, said = time.monotonic(), ""
    for command in (install, in_place):
        try:
            left = seconds - (time.monotonic() - begin)
            done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"gpu: the build took longer than {seconds:.0f} s") from None
        said += done.stdout[-3000:] + done.stderr[-3000:]
        if done.returncode == 0 and LIBRARY.is_file():
            break
    ok = done.returncode == 0 and LIBRARY.is_file()
    rows.write(
        "build",
        "package",
        seconds=round(time.monotonic() - begin, 1),
        ok=ok,
        sources=sources(),
        by=command[2],
        tail="" if ok else said[-500:],
    )
    if not ok:
        raise SystemExit(f"gpu: the build failed\n{said}")


def facts(rows: Rows, dry: bool) -> None:
    """Everything about this machine that a number depends on."""
    import torch

    from sparsekern.measure.machine import machine_card
    from sparsekern.ops import backends

    card = {k: v for k, v in machine_card().items() if k not in ("affinity", "allocator")}
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        card |= {"multiprocessors": p.multi_processor_count, "l2_bytes": getattr(p, "L2_cache_size", None), "memory_bytes": p.total_memory}
        card |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw", "--format=csv,noheader"]
        card["smi"] = subprocess.run(query, capture_output=True, text=True).stdout.strip() if shutil.which("nvidia-smi") else None
    rows.write("facts", "machine", card=card, missing_cuda=backends.missing_cuda, dry=dry)


def ceilings(rows: Rows, dry: bool) -> None:
    import gpu_timing

    rows.write("ceilings", "card", dry=dry, **gpu_timing.ceilings())


def correctness(rows: Rows, step: str, dry: bool, left, small: bool) -> None:
    import gpu_checks

    gpu_checks.run(rows, step, dry, left, small)


def kernels_of_twins() -> set[str]:
    """The names of Triton's kernels, as compute-sanitizer prints them."""
    files = (ROOT / "sparsekern" / "ops" / "triton").glob("*.py")
    return {name for file in files for name in re.findall(r"^@triton\.jit\ndef (\w+)", file.read_text(), re.M)}


def clean(check: str, log: str) -> bool:
    """Whether compute-sanitizer's log ends without a complaint, or with complaints about other people's kernels alone.

    racecheck has a summary of its own. Every CUDA kernel of ours is in the namespace ``sk``.
    """
    if not re.search(r"(RACECHECK|ERROR) SUMMARY: \d+", log):
        return False
    summary = r"RACECHECK SUMMARY: 0 hazards displayed" if check == "racecheck" else r"ERROR SUMMARY: 0 errors"
    blamed, twins = re.findall(r"^=+ +(?:at|by|in) (.*)$", log, re.M), kernels_of_twins()
    ours = any("sk::" in kernel or re.split(r"\W", kernel)[0] in twins for kernel in blamed)
    return re.search(summary, log) is not None or bool(blamed and not ours)


def run_limited(command: list[str], seconds: float, environment: dict[str, str] | None = None) -> int | None:
    """The exit status; None if it took longer, and then nothing that it started is left."""
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **nowhere)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def sanitizer(rows: Rows, dry: bool, left) -> None:
    """The few samples again, under compute-sanitizer: accesses, races, memory that nobody wrote, barriers."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if ("sanitizer", "all") in rows.done:
        return
    if dry or not tool:
        return rows.write("sanitizer", "all", ok=None, note="dry run" if dry else "compute-sanitizer is not installed")
    for key, command, environment, log in sanitizer_runs(tool, rows.path):
        if ("sanitizer", key) in rows.done:
            continue
        limit = min(120.0, left())
        if limit < 20:
            print("gpu: no time for the sanitizer; go on with --resume", flush=True)
            return
        log.unlink(missing_ok=True)
        status = run_limited(command, limit, environment)
        said = log.read_text() if log.is_file() else ""
        if status is not None:
            rows.write("sanitizer", key, ok=status == 0 and clean(key.split()[0], said), tail=said[-400:])
        elif limit == 120:  # else it is begun again with --resume
            rows.write("sanitizer", key, ok=None, note="took longer than two minutes")


def sanitizer_runs(tool: str, path: Path):
    """``(key, command, environment, log)`` of each; Triton's twins were compiled before and wait in its cache."""
    for step in ("correctness", "twins"):
        for check in ("memcheck", "racecheck", "initcheck", "synccheck"):
            key = f"{check} {step}"
            log = path.with_suffix(f".{check}_{step}.txt")
            inner = [sys.executable, __file__, "--worker", "--steps", step, "--small"]
            inner += ["--out", str(path.with_suffix(f".{check}_{step}.jsonl"))]
            options = ["--report-api-errors", "no"] if check == "memcheck" else []  # torch asks for what a driver may not have
            command = [tool, "--tool", check, *options, "--log-file", str(log), *inner]
            yield key, command, {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, log


def timing(rows: Rows, dry: bool, left, compiled: bool = False) -> None:
    """Ours and every rival, in one run; a row after each case. All may multiply float32 as tf32; the row says so."""
    import gpu_checks

    with gpu_checks.float32(tf32=True):
        _timing(rows, dry, left, compiled)


def _timing(rows: Rows, dry: bool, left, compiled: bool) -> None:
    import gpu_cases
    import gpu_checks
    import gpu_timing
    import gpu_watch
    import torch

    from sparsekern.ops import backends

    torch.backends.cudnn.benchmark = True

    def give_up(key: str, why: str, **row) -> None:
        print(f"WRONG {key}: {why}", flush=True)
        rows.write(
            "timing",
            key,
            **{"case": key, "times": {}, "dry": dry, **row, "refused": {**row.get("refused", {}), "ours": why}, "failed": ["ours"]},
        )

    for key, make in gpu_cases.cases(dry):
        if ("timing", key) in rows.done:
            continue
        if left() < 15:
            print("gpu: out of time; go on with --resume", flush=True)
            return
        if not rows.begin("timing", key):
            give_up(key, "two processes did not survive it")
            continue
        try:
            setup = make()
            truth = setup.truth()
        except Exception as error:  # too large for this card's memory, for example
            give_up(key, f"{type(error).__name__}: {error}"[:200])
            if gpu_checks.lost():
                raise SystemExit(gpu_watch.LOST) from None
            torch.cuda.empty_cache()
            continue
        op = setup.key.split("/")[0]
        served = backends.serves("grouped_conv2d" if op == "network" else op, gpu_timing.DEVICE)
        row = {"case": setup.key, "served_by": served, "flops": setup.flops, "bytes": setup.bytes, "modelled": setup.estimates}
        row |= {"tf32": "float32" in setup.key, "hot": gpu_timing.is_hot(setup.sets, setup.bytes)}
        ready, refused, errors = {}, dict(setup.refused), {}
        for name, seconds in COMPILED.items():
            if (not compiled or left() < seconds) and setup.providers.pop(name, None):
                refused[name] = "no time to compile" if compiled else "not asked for"
        for name, provider in setup.providers.items():
            try:
                calls = [provider(i) for i in range(setup.sets)]
                result = calls[0]()
                if name not in OTHERS:
                    errors[name] = error_of(result if isinstance(result, tuple) else (result,), truth)
                    if not errors[name] < (3e-2 if "float16" in setup.key else 2e-3) * setup.depth**0.5:
                        raise ArithmeticError(f"off by {errors[name]:.3g}")
                ready[name] = calls
            except Exception as error:
                refused[name] = f"{type(error).__name__}: {error}"[:200]
                if gpu_checks.lost():
                    give_up(key, f"the device was lost in {name}", **row, refused=refused)
                    raise SystemExit(gpu_watch.LOST) from None
        taken = gpu_timing.samples_us(ready)
        times = {name: {**gpu_timing.spread(t["us"]), "by": t["by"]} for name, t in taken.items()}
        refused |= {name: f"no graph, {t['by']}" for name, t in times.items() if name.startswith("ours") and t["by"].startswith("events")}
        for name in times:
            times[name] |= gpu_timing.cold(ready[name][0]) if left() > 60 else {"cold_us": None, "not_cold": "no time left"}
        row |= {
            "sets": setup.sets,
            "times": times,
            "errors": errors,
            "refused": refused,
            "floor_us": _floor(rows, setup, row["hot"]),
            "dry": dry,
        }
        row["failed"] = [name for name in refused if name.startswith("ours")]
        mine = {name: t["p50_us"] for name, t in times.items() if name.startswith("ours")}
        rivals = {name: t["p50_us"] for name, t in times.items() if name not in mine and name not in NO_RIVALS}
        if mine and rivals and not dry:
            best = min(rivals, key=rivals.get)
            row |= {"best_rival": best, "ratio": rivals[best] / min(mine.values())}
            ours = f"ours {min(mine.values()):8.2f} us"
            print(f"{left():4.0f} s  {setup.key:64s} {ours}  {best} {rivals[best]:8.2f} us  {row['ratio']:.2f}", flush=True)
        rows.write("timing", key, **row)


def error_of(results, truth) -> float:
    """The largest error, relative to the largest magnitude; a dense rival's gradient of a dense weight is left out."""
    pairs = [(r.double(), t) for r, t in zip(results, truth) if r.shape == t.shape]
    return max(((r - t).abs().max() / t.abs().max()).item() if not r.isnan().any() else float("inf") for r, t in pairs)


def _floor(rows: Rows, setup, hot: bool) -> float | None:
    """Microseconds that no kernel of this card can beat: its bytes (if they come from memory), its FLOPs, a launch."""
    card = next(iter(rows.of("ceilings")), None)
    if not card:
        return None
    rate = card["bf16_flops_per_s" if "float16" in setup.key else "tf32_flops_per_s"]
    return max(0 if hot else setup.bytes / card["copy_bytes_per_s"] * 1e6, setup.flops / rate * 1e6, card["launch_us"])


def summary(rows: Rows) -> int:
    checked = [r for step in ("correctness", "twins") for r in rows.of(step)]
    wrong = [r for r in checked if r["ok"] is False]
    bad = [r["key"] for r in rows.of("sanitizer") if r["ok"] is False]
    ratios = [r["ratio"] for r in rows.of("timing") if "ratio" in r]
    print(f"correctness: {sum(r['ok'] is True for r in checked)} passed, {len(wrong)} failed; sanitizer: {len(bad)} failed {bad or ''}")
    print(f"timing: {len(rows.of('timing'))} cases" + (f", median {statistics.median(ratios):.2f} times the best rival" if ratios else ""))
    failed = [(row["case"], name, row["refused"][name]) for row in rows.of("timing") for name in row.get("failed", ())]
    for case, name, why in failed:
        print(f"FAILED {case}: {name}: {why}")
    return bool(wrong or bad or failed)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, small")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there, do the rest")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--small", action="store_true", help="few samples only (what the sanitizer runs)")
    parser.add_argument(
        "--compiled", action="store_true", help="also torch.compile's and Triton's kernels: each shape takes seconds to compile"
    )
    parser.add_argument("--earlier", type=Path, help="rows of an earlier run, to go on from where --out has none")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # who does the work; the other one watches
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for all of it")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "gpu" / "rows.jsonl")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    left = lambda: options.budget - (time.monotonic() - begin)  # noqa: E731
    if options.earlier and not options.out.is_file():
        options.out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(options.earlier, options.out)
    rows = Rows(options.out, options.resume or options.earlier is not None)
    if "build" in options.steps and not options.worker:
        built = rows.of("build")
        same = built and all(row.get("ok") and row.get("sources", sources()) == sources() for row in built)
        if built and not same:
            rows.drop("build", "correctness", "timing", "twins", "sanitizer")  # what an older library did
        if not same or not (options.dry_run or LIBRARY.is_file()):
            build(rows, options.dry_run, left() - 60)
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit("gpu: no GPU here; --dry-run goes through the steps on the CPU")
    from sparsekern.ops import backends

    if not options.dry_run and backends.missing_cuda:  # twins are not what is measured here
        raise SystemExit(f"gpu: {backends.missing_cuda}")
    if not (options.worker or options.dry_run):
        import gpu_watch

        steps = [step for step in options.steps if step != "build"]
        flags = ["--small"] * options.small + ["--compiled"] * options.compiled + ["--out", str(options.out)]
        command = [sys.executable, __file__, "--worker", "--resume", *flags, "--steps", *steps, "--budget"]
        status = gpu_watch.watch(command, (rows.path, rows.begun), left()) if steps else 0
        try:
            import gpu_plot

            print(*gpu_plot.draw(rows.path), sep="\n", flush=True)
        except Exception as error:  # pictures can be drawn from the rows at any time
            print(f"gpu: no pictures: {type(error).__name__}: {error}", flush=True)
        return status
    for step in options.steps:
        if step in ("facts", "ceilings") and not rows.of(step):
            {"facts": facts, "ceilings": ceilings}[step](rows, options.dry_run)
        elif step in ("correctness", "twins"):
            correctness(rows, step, options.dry_run, left, options.small)
        elif step == "sanitizer":
            sanitizer(rows, options.dry_run, left)
        elif step == "timing":
            timing(rows, options.dry_run, left, options.compiled)
    return summary(rows)


if __name__ == "__main__":
    sys.exit(main())
