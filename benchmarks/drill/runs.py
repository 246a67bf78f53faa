"""Training runs of the drill: how they are started, and when two of them ended alike."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aer_train.run.lock import LOCK

STEPS, SAVE_EVERY = 12, 3
HALF = STEPS // 2

SETTINGS = (
    "--preset countdown --rollout.group-size 4 --optim.prompts-per-step 8 --rollout.refill-rounds 1 --eval.samples 2 --eval.limit 8 "
    f"--eval.every {HALF} --reward.workers 2 --run.threads 1 --run.device cpu --run.save-every {SAVE_EVERY} --run.keep 2"
).split()
REWARD = "benchmarks.drill.rewards.slow"

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
SECONDS = 300.0
"""No run of the drill takes so long: one that does hangs."""

VOLATILE = {"time", "time_share", "perf", "memory"}
"""Groups of metrics that two equal runs need not share."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """Negative: the signal that killed it."""
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The last thing it said."""
        return (self.stderr.strip().splitlines() or [""])[-1]

    @property
    def refused(self) -> bool:
        """Whether it ended as a user's mistake does: exit code 2 and one line."""
        return self.code == 2 and self.stderr.startswith("error: ") and self.stderr.strip().count("\n") == 0


def start_arguments(run: Path, *options: str, steps: int = STEPS, reward: str = REWARD) -> list[str]:
    """Arguments of aer-train for a new run."""
    return ["train", *SETTINGS, "--reward.kind", reward, "--run.steps", str(steps), "--run.out", str(run), *options]


def resume_arguments(run: Path, *options: str, steps: int = STEPS) -> list[str]:
    """Arguments of aer-train to go on with a run."""
    return ["train", "--resume", str(run), "--run.steps", str(steps), *options]


def command(arguments: Sequence[str]) -> list[str]:
    """The command line of aer-train."""
    return [sys.executable, "-m", "aer_train", *arguments]


def launch(words: Sequence[str]) -> subprocess.Popen[str]:
    """Start a process whose output is kept."""
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=os.environ | ENVIRONMENT
    )


def finish(process: subprocess.Popen[str]) -> Ended:
    """Wait for a process; one that hangs is killed and says so."""
    try:
        stdout, stderr = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
        stderr += f"\nthe drill killed it after {SECONDS:g} s"
    return Ended(process.returncode, stdout, stderr)


def train(arguments: Sequence[str]) -> Ended:
    """Run aer-train to its end."""
    return finish(launch(command(arguments)))


def rows_so_far(run: Path) -> int:
    """Steps on record, as far as they can be counted while the run writes."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def checkpoints(run: Path) -> list[Path]:
    """Folders with the names of checkpoints, oldest first."""
    return sorted((run / "checkpoints").glob("step_*"))


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder but its lock, which says who trains in it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def final_state(run: Path) -> dict[str, Any]:
    """All that two runs that ended alike have in common, by name: weights, optimizer, controller, metrics, samples, evaluations."""
    newest = checkpoints(run)[-1]
    return {
        **{f"weights/{name}": bits for name, bits in _weights(newest).items()},
        **{f"optimizer/{name}": bits for name, bits in _optimizer(newest).items()},
        **{
            f"state/{name}": value
            for name, value in json.loads((newest / "state.json").read_text()).items()
            if name not in ("versions", "files")
        },
        **{f"metrics/{row['step']}": row for row in _rows(run)},
        **{f"files/{name}": digest for name, digest in tree(run).items() if name.startswith("samples/")},
        **{f"files/eval/{path.name}": _steady(json.loads(path.read_text())) for path in sorted((run / "eval").glob("*.json"))},
    }


def differences(run: Path, reference: dict[str, Any]) -> list[str]:
    """Names of what differs between a run and the final state of another, or is there only once."""
    found = final_state(run)
    return sorted(name for name in found.keys() | reference.keys() if found.get(name) != reference.get(name))


def _weights(checkpoint: Path) -> dict[str, str]:
    from safetensors import safe_open

    found = {}
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {name: _bits(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  not a dictionary
    return found


def _optimizer(checkpoint: Path) -> dict[str, str]:
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "optimizer.pt"
        dcp_to_torch_save(checkpoint / "optimizer", whole)
        state = torch.load(whole, weights_only=True)["state"]
    return {f"{name}/{kind}": _bits(tensor) for name, tensors in state.items() for kind, tensor in tensors.items()}


def _bits(tensor: Any) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() + f" {tuple(tensor.shape)} {tensor.dtype}"


def _rows(run: Path) -> list[dict[str, Any]]:
    return [_steady(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _steady(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name.split("/")[0] not in VOLATILE}
