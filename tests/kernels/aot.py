"""Ahead-of-time compilation of a kernel for a GPU that is not here, and what the compiler says about it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
NVIDIA_BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Resources(NamedTuple):
    """What one program uses."""

    spill_bytes: int
    shared_bytes: int
    wide_loads: int
    """128-bit global loads in the assembly."""


def compile_kernel(kernel, signature: dict[str, str], constants: dict[str, object], num_warps: int, target: str) -> Resources:
    """Compile for a target. signature values are Triton types; a suffix ':16' says divisible by 16, as the launcher would find."""
    types, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
            continue
        types[name], _, divisor = signature[name].partition(":")
        if divisor:
            attributes[(i,)] = [["tt.divisibility", int(divisor)]]
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=TARGETS[target], options={"num_warps": num_warps})
    shared = compiled.metadata.shared
    if target.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        spills = sum(int(n) for n in re.findall(r"\.[vs]gpr_spill_count:\s+(\d+)", text))
        return Resources(spills, shared, len(re.findall(r"(?:global|buffer)_load_dwordx4", text)))
    text = compiled.asm["ptx"]
    return Resources(_ptxas_spills(text), shared, len(re.findall(r"ld\.global\S*\.v4\.b32", text)))


def _ptxas_spills(ptx: str) -> int:
    architecture = re.search(r"\.target\s+(\w+)", ptx).group(1)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        tool = NVIDIA_BIN / ("ptxas-blackwell" if architecture.startswith("sm_1") else "ptxas")
        said = subprocess.run(
            [tool, "-v", f"--gpu-name={architecture}", source, "-o", f"{folder}/out"], capture_output=True, text=True, check=True
        )
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill", said.stderr))
