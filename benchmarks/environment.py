"""What every row says about where it was measured."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def describe(device: torch.device) -> dict[str, Any]:
    """Hardware, versions, commit and date."""
    return {
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "driver": _driver() if device.type == "cuda" else None,
        "torch": torch.__version__,
        "triton": _triton(),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _driver() -> str | None:
    return _say(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def _triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def _commit() -> str:
    if "BENCH_COMMIT" in os.environ:
        return os.environ["BENCH_COMMIT"]
    here = str(Path(__file__).parent)
    commit = _say(["git", "-C", here, "rev-parse", "--short=12", "HEAD"])
    changed = _say(["git", "-C", here, "status", "--porcelain", "--untracked-files=no"])
    return f"{commit}{' with changes' if changed else ''}" if commit else "unknown"


def _say(command: list[str]) -> str | None:
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return said.splitlines()[0] if said else None
