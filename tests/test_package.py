"""What is released: the wheel and the sdist in dist/, in environments that hold nothing else, used from a folder outside the repository.

`make package` builds them and runs this. The environments come from the package index; nothing else needs a network.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

pytestmark = pytest.mark.package

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("aer_kernels", "aer_train")
SDIST_LIMIT = 3_000_000
"""Bytes: the packages with their embedded policy, and no results."""

KERNELS = """
import importlib.metadata, importlib.util, pathlib, sys, torch
import aer_kernels
from aer_kernels import BELOW_START
from aer_kernels.methods import make_method
weight = torch.randn(11, 8, requires_grad=True)
out = aer_kernels.fused_policy_loss(torch.randn(5, 8), weight, torch.arange(5), advantages=torch.ones(5), entropy_coef=0.1)
out.loss.backward()
assert weight.grad.abs().sum() > 0
make_method(BELOW_START)
assert aer_kernels.__version__ == importlib.metadata.version("aer-rl")
assert pathlib.Path(aer_kernels.__file__).is_relative_to(sys.prefix)
assert not [name for name in ("numpy", "transformers", "datasets", "pyarrow", "tyro", "yaml", "rich") if importlib.util.find_spec(name)]
"""


def built(pattern: str) -> Path:
    found = list((ROOT / "dist").glob(pattern))
    assert len(found) == 1, f"dist/ must hold one {pattern}, as `make package` leaves it, got {[file.name for file in found]}"
    return found[0]


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the wheel, and an empty folder to work in."""

    bin: Path
    folder: Path

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TRITON", "VIRTUAL_ENV"))}
        return subprocess.run(
            [self.bin / command[0], *command[1:]], capture_output=True, text=True, cwd=self.folder, env=kept | {"HF_HUB_OFFLINE": "1"}
        )


def install(environment: Environment, extra: str) -> None:
    wanted = f"aer-rl{extra} @ {built('*.whl').as_uri()}"
    done = environment.run("python", "-m", "pip", "install", "-q", "--no-compile", "-c", ROOT / "constraints.txt", wanted)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def kernels() -> Iterator[Environment]:
    with TemporaryDirectory() as folder:
        venv.create(Path(folder) / "venv", with_pip=True)
        environment = Environment(Path(folder) / "venv" / "bin", Path(folder) / "work")
        environment.folder.mkdir()
        install(environment, "")
        yield environment


@pytest.fixture(scope="module")
def train(kernels: Environment) -> Environment:
    """The same with the extra; tests of the one without come first."""
    install(kernels, "[train]")
    return kernels


def test_wheel_holds_every_file_of_the_packages_and_no_other() -> None:
    with zipfile.ZipFile(built("*.whl")) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = message_from_bytes(next(wheel.read(name) for name in wheel.namelist() if name.endswith(".dist-info/METADATA")))
        licence = next(wheel.read(name) for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    assert names == {file.relative_to(ROOT).as_posix() for file in files}
    assert metadata["License-Expression"] == "Apache-2.0" and licence == (ROOT / "LICENSE").read_bytes()


def test_sdist_holds_what_makes_the_wheel_and_no_results() -> None:
    file = built("*.tar.gz")
    with tarfile.open(file) as sdist:
        top = {name.split("/")[1] for name in sdist.getnames()}
    assert top == {
        *PACKAGES,
        "examples",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "constraints.txt",
        "pyproject.toml",
        "PKG-INFO",
        ".gitignore",
    }
    assert file.stat().st_size < SDIST_LIMIT


def test_kernels_need_torch_alone(kernels: Environment) -> None:
    done = kernels.run("python", "-c", KERNELS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [["aer-train", "doctor"], ["python", "-m", "aer_train", "train", "--preset", "countdown"]])
def test_trainer_without_its_extra_names_it(kernels: Environment, command: list[str]) -> None:
    done = kernels.run(*command)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == 'error: aer-train needs: pip install "aer-rl[train]" (no module tyro)\n'


def test_doctor(train: Environment) -> None:
    done = train.run("aer-train", "doctor")
    assert done.returncode == 0, done.stderr
    lines = dict(line.strip().split("  ", 1) for line in done.stdout.splitlines() if line.startswith("  "))
    assert lines["extra train"].strip() == "installed" and lines["aer-rl"].strip() == built("*.whl").name.split("-")[1]


def test_demo(train: Environment) -> None:
    """Without matplotlib, which is the extra `report`."""
    done = train.run("aer-train", "demo", "--steps", "4", "--out", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Held-out prompts" in done.stdout and (train.folder / "demo" / "report.html").stat().st_size > 10_000
    assert all(len((train.folder / "demo" / run / "metrics.jsonl").read_text().splitlines()) == 4 for run in ("grpo", "aer"))


def test_example_of_the_sdist(train: Environment) -> None:
    with tarfile.open(built("*.tar.gz")) as sdist:
        sdist.extractall(train.folder / "sdist", filter="data")
    (example,) = (train.folder / "sdist").glob("*/examples/plain_loop.py")
    done = train.run("python", example, "--steps", "2")
    assert done.returncode == 0 and "step" in done.stdout, done.stderr
