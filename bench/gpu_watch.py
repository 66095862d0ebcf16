"""Keeps a long run going: the work is done by a child, and a child that dies or falls silent is followed by another.

A kernel that hangs, or leaves the device unusable for the rest of its process, then costs the case that it was begun for and no more:
whoever is begun twice and never comes back is called failed (:meth:`gpu.Rows.begin`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

#: What a child that cannot use its device any more ends with.
LOST = 75


def watch(command: list[str], files: Sequence[Path], seconds: float, silence: float = 150.0, least: float = 45.0) -> int:
    """Run ``command`` with the seconds that are left behind it, again and again as long as children are lost.

    A child is ended when none of ``files`` was written to for ``silence`` seconds, or 20 seconds after ``seconds`` are over: what it
    wrote so far is kept. None is begun in the last ``least`` seconds.
    """
    begin = time.monotonic()
    child = subprocess.Popen([*command, str(seconds)], start_new_session=True)
    heard, before = begin, None
    try:
        while True:
            try:
                status = child.wait(0.5)
            except subprocess.TimeoutExpired:
                status = None
            now = time.monotonic()
            left = seconds - (now - begin)
            written = [file.stat().st_mtime_ns for file in files if file.is_file()]
            heard, before = (now if written != before else heard), written
            if status is None and now - heard < silence and left > -20:
                continue
            if status is None:
                print(f"gpu: nothing for {now - heard:.0f} s; the child is ended", flush=True)
                _end(child)
            elif status != LOST and status >= 0:  # came to its end, well or not; below zero: a signal
                return status
            if left < least:
                print("gpu: out of time; go on with --resume", flush=True)
                return 1
            print("gpu: goes on in a new process", flush=True)
            child, heard = subprocess.Popen([*command, str(left)], start_new_session=True), now
    finally:
        if child.poll() is None:
            _end(child)


def _end(child: subprocess.Popen) -> None:
    """The child and all that it started."""
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
