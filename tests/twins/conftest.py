"""The twins run under Triton's interpreter here: it must be asked for before Triton is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.append(str(Path(__file__).resolve().parent.parent / "ops"))  # the contract's truth and bounds
