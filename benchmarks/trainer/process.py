"""What either trainer's process measures of itself."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

from benchmarks.trainer.cases import Job

MIB = 2**20


class Watch:
    """Collects what the steps of one run say, and writes it as the result of the process."""

    def __init__(self, job: Job) -> None:
        """Make it when everything is imported, and before anything is loaded."""
        self.job = job
        self.imports_mib = _resident_mib()
        self.rows: list[dict[str, Any]] = []

    def step(self, **numbers: Any) -> None:
        """A step has ended. numbers: tokens, reward, entropy, and parts (seconds by name)."""
        if self.job.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.rows.append({"clock": time.perf_counter(), "cpu": time.process_time(), **numbers})

    def write(self, version: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
        found = {"version": version, "peak_mib": peak, "imports_mib": self.imports_mib, "steps": self.rows}
        if self.job.device == "cuda":
            import torch

            found["gpu_peak_mib"] = torch.cuda.max_memory_allocated() / MIB
        self.job.result.write_text(json.dumps(found))


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB
