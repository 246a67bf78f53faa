"""`python -m benchmarks.drill --out DIR`: kill, starve and feed rubbish to training runs; results.json and report.md say how each ended."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import environment
from benchmarks.drill.faults import FAULTS, Scene
from benchmarks.drill.kills import KINDS, Killer
from benchmarks.drill.outcome import Broken, Outcome
from benchmarks.drill.runs import HALF, SAVE_EVERY, STEPS, final_state, start_arguments, train


def main(arguments: list[str] | None = None) -> int:
    """Run the drill. Outcomes are written one by one; the exit code is 1 when a run did not stand a fault."""
    options = _parse(arguments)
    faults = {name: fault for name, fault in FAULTS.items() if not options.only or any(part in name for part in options.only)}
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    outcomes, begin = list[Outcome](), time.monotonic()

    def report(outcome: Outcome) -> None:
        outcomes.append(outcome)
        print(f"{outcome.verdict:37} {outcome.seconds:6.1f} s  {outcome.fault}: {'; '.join(outcome.happened)}", flush=True)
        _write(options.out, outcomes, options.seed, time.monotonic() - begin)

    with tempfile.TemporaryDirectory(prefix="drill-") as scratch:
        folder = Path(scratch)
        whole, half = folder / "whole", folder / "half"
        for run, steps in ((whole, STEPS), (half, HALF)):
            ended = train(start_arguments(run, steps=steps))
            if ended.code != 0:
                raise SystemExit(f"the undisturbed run must end well, got exit code {ended.code}: {ended.stderr}")
        reference = final_state(whole)
        for name, fault in faults.items():
            report(_stand(fault, Scene(folder / name.replace(" ", "-"), half, reference, Outcome(name))))
        if options.kills:
            killer = Killer(folder, options.seed, reference, report)
            try:
                killer.go(options.kills)
            except Broken as error:
                for outcome in killer.waiting or [Outcome("a kill")]:
                    outcome.happened.append(str(error))
                    report(outcome)
                _keep(killer.run, options.out)
    broken = [outcome.fault for outcome in outcomes if outcome.verdict == "FAILED"]
    print(f"\n{len(outcomes) - len(broken)} of {len(outcomes)} stood; report in {options.out / 'report.md'}")
    return 1 if broken else 0


def _stand(fault: object, scene: Scene) -> Outcome:
    """Let a fault happen in a folder of its own, which is removed afterwards."""
    scene.folder.mkdir()
    begin = time.monotonic()
    try:
        scene.outcome.verdict = fault(scene)  # type: ignore[operator]
    except Broken as error:
        scene.outcome.happened.append(str(error))
    scene.outcome.seconds = time.monotonic() - begin
    shutil.rmtree(scene.folder)
    return scene.outcome


def _keep(run: Path, out: Path) -> None:
    """Keep the run folder of a failed kill for whoever looks for the reason."""
    if run.exists():
        shutil.copytree(run, out / "failed-run", dirs_exist_ok=True)


def _write(out: Path, outcomes: list[Outcome], seed: int, seconds: float) -> None:
    here = environment.describe(torch.device("cpu"))
    found = {**here, "seed": seed, "seconds": seconds, "outcomes": [asdict(outcome) for outcome in outcomes]}
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    kills = sum(outcome.fault.startswith("kill ") for outcome in outcomes)
    broken = sum(outcome.verdict == "FAILED" for outcome in outcomes)
    lines = [
        "# Fault drill",
        "",
        f"{here['hardware']}, torch {here['torch']}, Python {here['python']}, commit {here['commit']}, {here['date']}, seed {seed}.",
        f"{len(outcomes)} faults, {kills} of them kills, in {seconds:.0f} s; {broken} not stood.",
        "",
        f"Runs of {STEPS} steps of the embedded policy, a checkpoint every {SAVE_EVERY}. *Same final state*: weights, optimizer,",
        "controller, metrics (without times), samples and evaluations are those of an undisturbed run, bit for bit. *Clear refusal*: exit",
        "code 2 and one line that names what is wrong; no file was changed. More: benchmarks/README.md.",
        "",
        "| fault | verdict | seconds | what happened |",
        "|---|---|---|---|",
    ]
    for outcome in outcomes:
        happened = "; ".join(outcome.happened).replace("|", "/").replace("\n", " ")
        lines.append(f"| {outcome.fault} | {outcome.verdict} | {outcome.seconds:.1f} | {happened} |")
    (out / "report.md").write_text("\n".join(lines) + "\n")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drill", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and report.md")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--kills", type=int, default=sum(KINDS.values()), help="0: only the other faults")
    parser.add_argument("--only", nargs="*", help="faults whose name contains one of these texts")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
