"""The faults that are no kills. Each is a function that does the damage, watches what happens, and returns the verdict."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.drill import processes
from benchmarks.drill.disk import SmallDisk
from benchmarks.drill.kills import ORPHAN_SECONDS
from benchmarks.drill.outcome import Outcome, Verdict, expect
from benchmarks.drill.runs import (
    HALF,
    Ended,
    checkpoints,
    command,
    differences,
    final_state,
    finish,
    launch,
    resume_arguments,
    rows_so_far,
    start_arguments,
    train,
    tree,
)

SAME: Verdict = "same final state"
REFUSED: Verdict = "clear refusal"
MENDED: Verdict = "clear refusal, then same final state"


@dataclass
class Scene:
    """What a fault has to work with."""

    folder: Path
    """Of this fault alone."""
    half: Path
    """A run that has done half of its steps; to be copied."""
    reference: dict[str, Any]
    """The final state of the undisturbed run."""
    outcome: Outcome

    def copy(self) -> Path:
        """A half-done run of this fault's own."""
        run = self.folder / "run"
        shutil.copytree(self.half, run)
        return run

    def say(self, sentence: str) -> None:
        self.outcome.happened.append(sentence)

    def refused(self, arguments: Sequence[str], *words: str, untouched: Path) -> Ended:
        """Run aer-train: it must refuse in one line that names these words, and leave every file as it was."""
        before = tree(untouched)
        ended = train(arguments)
        self.told(ended, *words)
        changed = sorted(name for name, _ in tree(untouched).items() ^ before.items())
        expect(not changed, "nothing to be written or overwritten", changed)
        return ended

    def told(self, ended: Ended, *words: str) -> None:
        """The run must have ended in one line that names these words."""
        expect(ended.refused, "exit code 2 and one line of error", f"exit code {ended.code}: {ended.stderr.strip()[-600:]}")
        expect(all(word in ended.error for word in words), f"a message that names {words}", ended.error)
        self.say(ended.error.replace(str(self.folder), ""))

    def same(self, run: Path, arguments: Sequence[str], but: Sequence[str] = (), reference: dict[str, Any] | None = None) -> None:
        """Run aer-train to its end: the run must be like the undisturbed one, but for what was damaged."""
        ended = train(arguments)
        expect(ended.code == 0, "the run to go on to its end", f"exit code {ended.code}: {ended.stderr.strip()[-600:]}")
        self.compare(run, but, reference)

    def compare(self, run: Path, but: Sequence[str] = (), reference: dict[str, Any] | None = None) -> None:
        different = [name for name in differences(run, self.reference if reference is None else reference) if name not in but]
        expect(not different, "the final state of the undisturbed run", f"differences in {different[:8]}")
        self.say("went on to the end, equal to the undisturbed run" + (f" but for {', '.join(but)}" if but else ""))


def _cut(path: Path) -> None:
    """Lose the second half of a file."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def torn_last_metrics(scene: Scene) -> Verdict:
    run = scene.copy()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": {HALF + 1}, "reward/me')
    scene.same(run, resume_arguments(run))
    return SAME


def torn_metrics_before_the_checkpoint(scene: Scene) -> Verdict:
    run = scene.copy()
    path, good = run / "metrics.jsonl", (run / "metrics.jsonl").read_text()
    lines = good.splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1][:40] + "\n", *lines[2:]]))
    scene.refused(resume_arguments(run), "metrics.jsonl", "line 2", untouched=run)
    path.write_text(good)
    scene.same(run, resume_arguments(run))
    return MENDED


def metrics_missing(scene: Scene) -> Verdict:
    run = scene.copy()
    good = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").unlink()
    scene.refused(resume_arguments(run), "metrics.jsonl", untouched=run)
    (run / "metrics.jsonl").write_text(good)
    scene.same(run, resume_arguments(run))
    return MENDED


def _damaged_checkpoint(scene: Scene, damage: Callable[[Path], Path]) -> Verdict:
    """The newest checkpoint is damaged: refused by name; as the message says, deleting it goes back to the one before."""
    run = scene.copy()
    newest = checkpoints(run)[-1]
    damaged = damage(newest)
    scene.refused(resume_arguments(run), damaged.name, str(newest), "delete", untouched=run)
    shutil.rmtree(newest)
    scene.same(run, resume_arguments(run))
    return MENDED


def weights_cut(scene: Scene) -> Verdict:
    def damage(checkpoint: Path) -> Path:
        path = next(checkpoint.glob("*.safetensors"))
        _cut(path)
        return path

    return _damaged_checkpoint(scene, damage)


def weights_flipped(scene: Scene) -> Verdict:
    def damage(checkpoint: Path) -> Path:
        path = next(checkpoint.glob("*.safetensors"))
        with path.open("r+b") as file:
            file.seek(-1000, os.SEEK_END)
            byte = file.read(1)
            file.seek(-1000, os.SEEK_END)
            file.write(bytes([byte[0] ^ 1]))
        return path

    return _damaged_checkpoint(scene, damage)


def optimizer_cut(scene: Scene) -> Verdict:
    def damage(checkpoint: Path) -> Path:
        path = max((checkpoint / "optimizer").iterdir(), key=lambda path: path.stat().st_size)
        _cut(path)
        return path

    return _damaged_checkpoint(scene, damage)


def file_missing(scene: Scene) -> Verdict:
    def damage(checkpoint: Path) -> Path:
        path = checkpoint / "tokenizer.json"
        path.unlink()
        return path

    return _damaged_checkpoint(scene, damage)


def state_garbled(scene: Scene) -> Verdict:
    def damage(checkpoint: Path) -> Path:
        path = checkpoint / "state.json"
        path.write_text('{"step": ')
        return path

    return _damaged_checkpoint(scene, damage)


def state_missing(scene: Scene) -> Verdict:
    """A folder without it is not a checkpoint: the one before counts."""
    run = scene.copy()
    (checkpoints(run)[-1] / "state.json").unlink()
    scene.same(run, resume_arguments(run))
    return SAME


def config_garbled(scene: Scene) -> Verdict:
    run = scene.copy()
    good = (run / "config.json").read_text()
    _cut(run / "config.json")
    scene.refused(resume_arguments(run), "config.json", untouched=run)
    (run / "config.json").write_text(good)
    scene.same(run, resume_arguments(run))
    return MENDED


def samples_cut(scene: Scene) -> Verdict:
    """Samples of an earlier step: training does not read them, and a report does not either."""
    run = scene.copy()
    damaged = run / "samples" / "step_000002.parquet"
    _cut(damaged)
    scene.same(run, resume_arguments(run), but=["files/samples/step_000002.parquet"])
    scene.told(finish(launch(command(["grade", str(damaged)]))), damaged.name)
    return SAME


def evaluation_cut(scene: Scene) -> Verdict:
    run = scene.copy()
    damaged = run / "eval" / "step_000000.json"
    good = damaged.read_text()
    _cut(damaged)
    scene.told(train(resume_arguments(run)), damaged.name)
    damaged.write_text(good)
    scene.compare(run)
    return MENDED


def bad_data_row(scene: Scene) -> Verdict:
    data = scene.folder / "data.jsonl"
    data.write_text('{"problem": "123=6?", "answer": "123=06"}\n{"problem": "124=7?", "answer": \n')
    scene.refused(start_arguments(scene.folder / "run", "--data.train", str(data)), "data.jsonl", "line 2", untouched=scene.folder)
    return REFUSED


def parquet_cut(scene: Scene) -> Verdict:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = scene.folder / "data.parquet"
    pq.write_table(pa.Table.from_pylist([{"problem": f"12{i}=6?", "answer": "123=06"} for i in range(100)]), data)
    _cut(data)
    scene.refused(start_arguments(scene.folder / "run", "--data.train", str(data)), "data.parquet", untouched=scene.folder)
    return REFUSED


def poisoned_weight(scene: Scene) -> Verdict:
    """A model with one weight that is not a number."""
    import torch
    from safetensors.torch import load_file, save_file

    model = scene.folder / "model"
    shutil.copytree(checkpoints(scene.half)[-1], model)
    path = next(model.glob("*.safetensors"))
    weights = load_file(path)
    name = next(name for name in weights if "mlp" in name)
    weights[name].view(-1)[5] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    scene.refused(start_arguments(scene.folder / "run", "--model.name", str(model)), "model.name", "finite weights", untouched=scene.folder)
    return REFUSED


def divergence(scene: Scene) -> Verdict:
    """A learning rate that makes the gradient NaN in the midst of a run; the run then goes on with the right one."""
    run = scene.copy()
    kept = [path.name for path in checkpoints(run)]
    right = json.loads((run / "config.json").read_text())["optim"]["lr"]
    scene.told(train(resume_arguments(run, "--optim.lr", "1e5")), "finite", "optim.lr")
    expect([path.name for path in checkpoints(run)] == kept, f"the checkpoints {kept}", [p.name for p in checkpoints(run)])
    scene.same(run, resume_arguments(run, "--optim.lr", str(right)))
    return MENDED


def hanging_reward(scene: Scene) -> Verdict:
    """Some answers never come back from the reward function: they cost the deadline, count 0, and a kill in the midst loses nothing."""
    deadline = ("--reward.timeout", "0.3")
    plain, run = scene.folder / "plain", scene.folder / "run"
    ended = train(start_arguments(plain, *deadline, steps=HALF, reward="benchmarks.drill.rewards.without_stuck"))
    expect(ended.code == 0, "the run without hanging answers to end", ended.error)
    process = launch(command(start_arguments(run, *deadline, steps=HALF, reward="benchmarks.drill.rewards.hanging")))
    seen: set[int] = set()
    while process.poll() is None and rows_so_far(run) < 2:
        seen |= set(processes.workers(process.pid))
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    finish(process)
    left = processes.orphans(seen, ORPHAN_SECONDS)
    expect(not left, "no hanging worker to outlive its trainer", left)
    scene.say(f"{len(seen)} workers seen, none outlived the killed trainer")
    ended = train(resume_arguments(run, steps=HALF))
    expect(ended.code == 0, "the run with hanging answers to end", ended.error)
    timeouts = [json.loads(line).get("outcome/timeout", 0.0) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expect(any(timeouts), "timeouts on record", timeouts)
    learnt = {name: value for name, value in final_state(plain).items() if name.startswith(("weights/", "optimizer/", "state/"))}
    different = [name for name, value in learnt.items() if final_state(run)[name] != value]
    expect(not different, "weights, optimizer and controller as if the stuck answers had got 0 at once", different[:8])
    scene.say(f"{max(timeouts):.0%} of a step's answers timed out; weights, optimizer and controller as if they had got 0 at once")
    return SAME


def _full_disk(scene: Scene, mib: float, ballast: bool) -> Verdict:
    """Start on a small disk; when it is full, make room and go on.

    Args:
        mib: size of the disk.
        ballast: fill it from outside as soon as the first step is on record, so that samples and metrics find no room.
    """
    why = SmallDisk.missing()
    if why is not None:
        return _file_limit(scene, why)
    disk_folder = scene.folder / "disk"
    run = disk_folder / "run"
    with SmallDisk(disk_folder, mib) as disk:
        process = launch(disk.inside(command(start_arguments(run))))
        while ballast and process.poll() is None:
            if rows_so_far(disk.seen / "run") >= 1:
                _fill(disk.seen / "ballast")
                break
            time.sleep(0.005)
        ended = finish(process)
        scene.told(ended, "No space left")
        rubbish = [str(p.relative_to(disk.seen)) for p in disk.seen.rglob(".*") if p.name != ".metadata"]
        expect(not rubbish, "no temporary files on the full disk", rubbish)
        scene.say(f"full after {rows_so_far(disk.seen / 'run')} steps, checkpoints {[p.name for p in checkpoints(disk.seen / 'run')]}")
        (disk.seen / "ballast").unlink(missing_ok=True)
        disk.resize(200)
        if not (disk.seen / "run").exists():
            ended = finish(launch(disk.inside(command(start_arguments(run)))))
        else:
            ended = finish(launch(disk.inside(command(resume_arguments(run)))))
        expect(ended.code == 0, "the run to go on to its end", f"exit code {ended.code}: {ended.stderr.strip()[-600:]}")
        scene.compare(disk.seen / "run")
    return MENDED


def _fill(path: Path) -> None:
    """Write until nothing more fits."""
    size = 1 << 20
    with path.open("wb", buffering=0) as file:
        while size >= 1:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


def _file_limit(scene: Scene, why: str) -> Verdict:
    """Where no small disk can be mounted: a limit on the size of a file stops the writing of the checkpoint in the same places."""
    scene.say(f"no tmpfs here ({why}); the size of a file was limited in its place")
    run = scene.folder / "run"
    with _limited(1 << 20):
        scene.told(train(start_arguments(run)), "File too large")
    scene.same(run, resume_arguments(run))
    return MENDED


@contextmanager
def _limited(size: int) -> Iterator[None]:
    """Limit the files that children write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def disk_full_from_the_start(scene: Scene) -> Verdict:
    return _full_disk(scene, 0.004, ballast=False)


def disk_full_in_the_first_checkpoint(scene: Scene) -> Verdict:
    return _full_disk(scene, 4, ballast=False)


def disk_full_in_the_second_checkpoint(scene: Scene) -> Verdict:
    return _full_disk(scene, 12, ballast=False)


def disk_full_in_samples_or_metrics(scene: Scene) -> Verdict:
    return _full_disk(scene, 40, ballast=True)


FAULTS: dict[str, Callable[[Scene], Verdict]] = {
    function.__name__.replace("_", " "): function
    for function in (
        torn_last_metrics,
        torn_metrics_before_the_checkpoint,
        metrics_missing,
        weights_cut,
        weights_flipped,
        optimizer_cut,
        file_missing,
        state_garbled,
        state_missing,
        config_garbled,
        samples_cut,
        evaluation_cut,
        bad_data_row,
        parquet_cut,
        poisoned_weight,
        divergence,
        hanging_reward,
        disk_full_from_the_start,
        disk_full_in_the_first_checkpoint,
        disk_full_in_the_second_checkpoint,
        disk_full_in_samples_or_metrics,
    )
}
"""By name."""
