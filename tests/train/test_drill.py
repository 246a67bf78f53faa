"""The fault drill's own tools: it must see every difference, believe no traceback, and kill where it says."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aer_train.config.tree import DataConfig, ModelConfig, OptimConfig, RewardConfig, RolloutConfig, RunConfig, TrainConfig
from aer_train.trainer import train
from benchmarks.drill import faults, runs
from benchmarks.drill.disk import SmallDisk
from benchmarks.drill.outcome import Broken, Outcome
from benchmarks.drill.runs import Ended, differences, final_state

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(model_folder: Path, tmp_path: Path) -> Path:
    config = TrainConfig(
        model=ModelConfig(name=str(model_folder)),
        data=DataConfig(limit=96),
        rollout=RolloutConfig(group_size=2, max_new_tokens=3),
        reward=RewardConfig(kind="countdown"),
        optim=OptimConfig(prompts_per_step=2),
        run=RunConfig(out=str(tmp_path / "run"), steps=2, threads=1),
    )
    return train(config)


def test_every_difference_has_a_name(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    reference = final_state(run)
    assert {name.split("/")[0] for name in reference} == {"weights", "optimizer", "state", "metrics", "files"}
    assert differences(run, reference) == []
    (run / "samples" / "step_000001.parquet").write_bytes(b"other")
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace('"tokens/loss": ', '"tokens/loss": 1', 1))
    weights = run / "checkpoints" / "step_000002" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"][3] += 1e-7
    save_file(tensors, weights, metadata={"format": "pt"})
    assert differences(run, reference) == ["files/samples/step_000001.parquet", "metrics/1", "weights/model.norm.weight"]
    assert "state/step" in differences(run, {name: value for name, value in reference.items() if name != "state/step"})


@pytest.mark.parametrize(
    ("ended", "refused"),
    [
        (Ended(2, "", "error: run.out must not exist yet, got runs/a\n"), True),
        (Ended(1, "", "error: run.out must not exist yet, got runs/a\n"), False),
        (Ended(2, "", "Traceback (most recent call last):\n  ...\nOSError: disk full\n"), False),
        (Ended(2, "", "error: one\nerror: two\n"), False),
        (Ended(-9, "", ""), False),
    ],
)
def test_what_counts_as_a_clear_refusal(ended: Ended, refused: bool) -> None:
    assert ended.refused == refused


def test_a_refusal_that_wrote_something_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = faults.Scene(tmp_path, tmp_path, {}, Outcome("test"))

    def refuse(_: object) -> Ended:
        (tmp_path / "rubbish").touch()
        return Ended(2, "", "error: data must name an existing file, got x\n")

    monkeypatch.setattr(faults, "train", refuse)
    with pytest.raises(Broken, match=r"expected a message that names \('line 3',\)"):
        scene.refused([], "line 3", untouched=tmp_path)
    (tmp_path / "rubbish").unlink()
    with pytest.raises(Broken, match=r"expected nothing to be written or overwritten, got \['rubbish'\]"):
        scene.refused([], "existing file", untouched=tmp_path)


def test_a_process_dies_in_the_operation_that_was_drawn(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = f"""
from pathlib import Path
from benchmarks.drill.child import watch
watch({str(folder)!r}, 4, {str(tmp_path / "log")!r})
folder = Path({str(folder)!r})
Path({str(tmp_path / "elsewhere")!r}).write_text("not counted")
folder.mkdir()
(folder / "a").write_text("whole")
(folder / "a").read_text()
(folder / "a").rename(folder / "b")
(folder / "c").write_text("never")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL and (tmp_path / "log").read_text() == "open c\n"
    assert [path.name for path in folder.iterdir()] == ["b"] and (folder / "b").read_text() == "whole"


def test_a_small_disk_gets_full(tmp_path: Path) -> None:
    why = SmallDisk.missing()
    if why is not None:
        pytest.skip(f"no tmpfs can be mounted here: {why}")
    with SmallDisk(tmp_path / "disk", mib=1) as disk:
        write = ["sh", "-c", f"head -c 1500000 /dev/zero > {tmp_path}/disk/file"]
        assert b"No space left" in subprocess.run(disk.inside(write), capture_output=True).stderr
        disk.resize(2)
        assert subprocess.run(disk.inside(write), capture_output=True).returncode == 0
        assert (disk.seen / "file").stat().st_size == 1_500_000 and not list((tmp_path / "disk").iterdir())


def test_stuck_answers_are_some_but_not_all() -> None:
    from aer_train.tasks import make_prompts, task
    from benchmarks.drill.rewards import stuck

    share = sum(stuck(prompt.answer) for prompt in make_prompts(task("countdown"), "train", 200)) / 200
    assert 0.02 < share < 0.3 and runs.HALF * 8 * share > 1
