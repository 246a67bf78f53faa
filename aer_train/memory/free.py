"""How much memory this process may still take."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")
V2_FILES, V1_FILES = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
"""Limit and use of a control group."""


def free_bytes(device: torch.device) -> int:
    """Return the bytes that are free on a GPU (what PyTorch keeps but does not use included), or on the host of a CPU."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return host_free_bytes()


def host_free_bytes(proc: Path = Path("/proc"), cgroups: Path = CGROUPS) -> int:
    """Return the least of what the machine has available, what the control groups of this process leave, and its limit of addresses.

    A share for each process that torchrun started on this machine.
    """
    known = [_available(proc), *_left_in_groups(proc, cgroups), _left_of_addresses(proc)]
    return max(0, min(number for number in known if number is not None)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _available(proc: Path) -> int:
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # not Linux


def _left_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What each limited group above this process has left; files that were read could be dropped from its memory, and do not count."""
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, name = line.strip().split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, files = (cgroups, V2_FILES) if not controllers else (cgroups / "memory", V1_FILES)
        folder = root / name.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(root):
                break
            limit, used = (_number(group / file) for file in files)
            if limit is not None and used is not None:
                yield limit - used + _droppable(group)


def _left_of_addresses(proc: Path) -> int | None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    used = next((int(line.split()[1]) << 10 for line in _lines(proc / "self" / "status") if line.startswith("VmSize:")), 0)
    return limit - used


def _droppable(group: Path) -> int:
    words = [line.split() for line in _lines(group / "memory.stat")]
    return next((int(number) for name, number in words if name in ("inactive_file", "total_inactive_file")), 0)


def _number(path: Path) -> int | None:
    """The number in a file; None without one ("max"), or without the file."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
