"""The command line: aer-train demo | train | eval | merge | compare | grade | report | doctor."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from aer_train import dist
from aer_train.config.checks import check_config
from aer_train.config.parse import base_config, parse, read_config, with_method
from aer_train.config.tree import RewardConfig, TrainConfig
from aer_train.preemption import EXIT_CODE, Preempted
from aer_train.rollout.protocol import SyncError

RunConfigFlags = Annotated[tyro.conf.FlagConversionOff[TrainConfig], tyro.conf.arg(name="")]

JOINT_COMMANDS = ("train", "eval")
"""What several processes of torchrun can do together."""

GRACE_SECONDS = 3.0
"""How long a process waits with an error that another one may have told first, whereupon torchrun ends this one."""

CHATTY = ("torchao", "torch.utils._pytree")
"""transformers imports torchao wherever it is installed, which then says what it lacks: kernels for other GPUs."""

USAGE = """usage: aer-train COMMAND [options]

commands:
  demo     train the embedded policy with and without adaptive entropy, and compare (offline, minutes on a CPU)
  train    train a policy on verifiable rewards
  eval     avg@n, pass@k and majority@k of a model, a checkpoint or a run, on files or benchmarks
  merge    the whole model of a policy with LoRA adapters, as a folder
  compare  two evaluations of the same problems, with a paired bootstrap
  grade    grade saved responses again, beside their stored verdict and a second rule
  report   HTML report of one or several runs
  doctor   versions, devices, and the memory that a configuration needs

aer-train COMMAND --help shows the options of a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 (disagreements, where asked), 2 (a user error, told in one line), 130 (interrupted),
    143 (SIGTERM; the last step is saved)."""
    args = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "demo": _demo,
        "train": _train,
        "eval": _eval,
        "merge": _merge,
        "compare": _compare,
        "grade": _grade,
        "report": _report,
        "doctor": _doctor,
    }
    if not args or args[0] in ("-h", "--help", "--version"):
        from aer_kernels import __version__

        print(f"aer-train {__version__}" if args == ["--version"] else USAGE)
        return 0
    for library in CHATTY:
        logging.getLogger(library).setLevel(logging.ERROR)
    rank = dist.launched_rank()
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the first process speaks for all
    try:
        if args[0] not in commands:
            raise ValueError(f"command must be one of {', '.join(commands)}, got {args[0]!r}")
        if dist.launched_world() > 1 and args[0] not in JOINT_COMMANDS:
            raise ValueError(f"command must be {' or '.join(JOINT_COMMANDS)} under torchrun, got {args[0]!r}")
        return commands[args[0]](args[1:])
    except KeyboardInterrupt:
        if rank == 0:
            print("interrupted", file=sys.stderr)
        return 130
    except Preempted as ended:
        if rank == 0:
            print(ended, file=sys.stderr)
        return EXIT_CODE
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError, SyncError, MemoryError) as error:
        if rank > 0 or isinstance(error, dist.RankLost):
            time.sleep(GRACE_SECONDS)
        print(f"{f'rank {rank} ' if rank else ''}error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2


@dataclasses.dataclass(frozen=True)
class TrainArgs:
    """Train a policy on verifiable rewards. --config, --preset or --resume give the settings that the other options change."""

    config: Path | None = None
    """File with the configuration tree (.toml, .json or .yaml), all keys optional."""
    preset: str | None = None
    """Settings to start from: countdown, gsm8k, qwen3_4b_dapo, qwen3_8b_dapo."""
    resume: Path | None = None
    """Run folder to go on with, from its newest checkpoint and with its own settings."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the resolved configuration and the predicted memory, and stop."""
    run_config: RunConfigFlags = dataclasses.field(default_factory=TrainConfig)


@dataclasses.dataclass(frozen=True)
class EvalArgs:
    """avg@n, unbiased pass@k and majority@k of a model, with intervals. An interrupted evaluation goes on with the same command."""

    model: str
    """Hugging Face id, folder, checkpoint, or run folder (its newest checkpoint, with the settings of the run)."""
    suites: tuple[str, ...] | None = None
    """Benchmarks: aime24, aime25, amc23, math500, minerva, olympiadbench, gsm8k."""
    suite_dir: str | None = None
    """Folder with the suites as NAME.jsonl (columns problem, answer, id). None: the hub, at pinned commits."""
    data: str | None = None
    """Prompts, in the forms of data.train. Without this and --suites: what the settings evaluate on."""
    config: Path | None = None
    """File with settings: columns, template, reward."""
    out: Path | None = None
    """Folder for the result and the samples. None: evals/NAME."""
    samples: int | None = None
    """Responses per prompt. None: eval.samples."""
    run_config: RunConfigFlags = dataclasses.field(default_factory=TrainConfig)


@dataclasses.dataclass(frozen=True)
class MergeArgs:
    """Write the whole model of a policy with LoRA adapters (float32), as an ordinary Hugging Face folder."""

    source: tyro.conf.Positional[Path]
    """Run folder (its newest checkpoint), checkpoint, or any folder with LoRA adapters."""
    out: Path
    """Folder for the model; must not exist yet."""
    trust_remote_code: tyro.conf.FlagCreatePairsOff[bool] = False
    """As model.trust_remote_code."""


@dataclasses.dataclass(frozen=True)
class CompareArgs:
    """Differences between two evaluations of the same problems (second minus first), with intervals by a paired bootstrap over problems."""

    results: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Two of: folders of aer-train eval, run folders (their last evaluation), JSON files of either."""
    out: Path = Path("comparison")
    """Folder for compare.json and compare.md."""


@dataclasses.dataclass(frozen=True)
class GradeArgs:
    """Grade saved responses again; show outcomes and what disagrees with the stored verdict or with a second rule."""

    files: tyro.conf.Positional[tuple[Path, ...]] = ()
    """.jsonl or .parquet files, run folders (all their samples), folders of such files."""
    response_column: str = "response"
    answer_column: str = "answer"
    outcome_column: str | None = None
    """Stored verdict: an outcome, true or false, or a reward. None: outcome, else reward, else there is none."""
    kind: str | None = None
    """Rule, as reward.kind. None: that of the run folder, else math."""
    lenient: tyro.conf.FlagCreatePairsOff[bool] = False
    """As reward.lenient."""
    timeout: float = 5.0
    """Seconds for one response."""
    workers: int = 2
    """Verifier processes; the second rule has as many again."""
    second: str | None = None
    """exact, math_verify, none, or a dotted path to (response_text, answer) -> float in [0, 1]. None: math_verify for kind math."""
    out: Path | None = None
    """.json, .jsonl or .parquet file for the responses that disagree."""
    fail_on_disagreement: tyro.conf.FlagCreatePairsOff[bool] = False
    """Exit with code 1 when something disagrees."""


@dataclasses.dataclass(frozen=True)
class ReportArgs:
    """Write report.html and plots of one or several runs, overlaid."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders."""
    out: Path | None = None
    """Folder for the report. None: the run folder."""


@dataclasses.dataclass(frozen=True)
class DoctorArgs:
    """Show versions, devices and extras, and the memory that a configuration needs."""

    config: Path | None = None
    """File with the configuration tree."""
    preset: str | None = None
    """Settings by name, as for train."""
    processes: int = 1
    """Processes of torchrun over which the parameters are sharded; the memory is that of each."""
    run_config: RunConfigFlags = dataclasses.field(default_factory=TrainConfig)


@dataclasses.dataclass(frozen=True)
class DemoArgs:
    """Train the embedded policy twice from the same start, with plain GRPO and with AER, and compare."""

    out: Path = Path("runs/demo")
    """Folder for both runs and the report; must not exist yet."""
    steps: int = 140
    seed: int = 0
    warmup: tyro.conf.FlagCreatePairsOff[bool] = False
    """Make the starting policy anew (about 4 more minutes) in place of the one in the package."""


def _train(args: list[str]) -> int:
    found = _sources(args)
    start = _start(found, found.resume)
    if found.resume is not None:
        start = dataclasses.replace(start, run=dataclasses.replace(start.run, out=str(found.resume)))
    parsed = parse(TrainArgs, "aer-train train", args, TrainArgs(run_config=start))
    config = parsed.run_config
    if parsed.resume is not None and Path(config.run.out) != parsed.resume:
        raise ValueError(f"run.out must not be given together with --resume, got {config.run.out}")
    check_config(config)
    if parsed.dry_run:
        print(json.dumps(dataclasses.asdict(config), indent=2))
        _print_memory(config, dist.launched_world())
        return 0
    from aer_train.trainer import train

    run = train(config, resume=parsed.resume is not None)
    if dist.launched_rank() == 0:
        _write_report([run])
    return 0


def _eval(args: list[str]) -> int:
    found = _sources(args)
    is_run = found.model is not None and (found.model / "checkpoints").is_dir() and found.config is None
    start = _start(found, found.model if is_run else None)
    parsed = parse(EvalArgs, "aer-train eval", args, EvalArgs(model=tyro.MISSING, run_config=start))
    config = parsed.run_config
    chosen: dict[str, Any] = {"samples": parsed.samples, "suite_dir": parsed.suite_dir}
    if parsed.data is not None or parsed.suites is not None:
        chosen |= {"data": parsed.data, "suites": parsed.suites or ()}
    given = {name: value for name, value in chosen.items() if value is not None or name == "data"}
    if parsed.data not in (None, start.eval.data) and config.eval.revision == start.eval.revision:
        given["revision"] = None  # the settings' revision is that of their own data
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, **given))
    check_config(config)
    from aer_train.evaluation.folder import evaluate_model

    evaluate_model(parsed.model, config, parsed.out)
    return 0


def _merge(args: list[str]) -> int:
    parsed = parse(MergeArgs, "aer-train merge", args, MergeArgs(tyro.MISSING, tyro.MISSING))
    from aer_train.run import checkpoint
    from aer_train.run.merge import merge

    merge(checkpoint.latest(parsed.source) or parsed.source, parsed.out, parsed.trust_remote_code)
    print(f"model: {parsed.out}")
    return 0


def _compare(args: list[str]) -> int:
    parsed = parse(CompareArgs, "aer-train compare", args, CompareArgs())
    if len(parsed.results) != 2:
        raise ValueError(f"compare must be given two evaluations, got {len(parsed.results)}")
    from aer_train.evaluation.compare import compare_files

    compare_files(*parsed.results, parsed.out)
    return 0


def _grade(args: list[str]) -> int:
    parsed = parse(GradeArgs, "aer-train grade", args, GradeArgs())
    if not parsed.files:
        raise ValueError("grade must be given at least one file or folder, got none")
    kind = parsed.kind
    if kind is None:
        runs = [file for file in parsed.files if (file / "config.json").is_file()]
        kinds = {read_config(run / "config.json").reward.kind for run in runs} or {"math"}
        if len(kinds) > 1:
            raise ValueError(f"--kind must be given for runs with different rules, got {', '.join(sorted(kinds))}")
        kind = kinds.pop()
    second = parsed.second or ("math_verify" if kind == "math" else "none")
    from aer_train.evaluation.grade import Columns, grade_files

    columns = Columns(parsed.response_column, parsed.answer_column, parsed.outcome_column)
    reward = RewardConfig(kind=kind, timeout=parsed.timeout, workers=parsed.workers, lenient=parsed.lenient)
    found = grade_files(parsed.files, columns, reward, None if second == "none" else second, parsed.out)
    return 1 if found and parsed.fail_on_disagreement else 0


def _report(args: list[str]) -> int:
    parsed = parse(ReportArgs, "aer-train report", args, ReportArgs())
    if not parsed.runs:
        raise ValueError("report must be given at least one run folder, got none")
    _write_report(parsed.runs, parsed.out)
    return 0


def _write_report(runs: Sequence[Path], out: Path | None = None) -> None:
    from aer_train.report import write_report

    page = write_report(runs, out)
    missing = importlib.util.find_spec("matplotlib") is None
    print(f"report: {page}" + (" (for PNG files of its charts: pip install 'aer-rl[report]')" if missing else ""))


def _demo(args: list[str]) -> int:
    parsed = parse(DemoArgs, "aer-train demo", args, DemoArgs())
    from aer_train.demo import run_demo

    run_demo(parsed.out, parsed.steps, parsed.seed, parsed.warmup)
    return 0


def _doctor(args: list[str]) -> int:
    found = _sources(args)
    start = _start(found, None)
    parsed = parse(DoctorArgs, "aer-train doctor", args, DoctorArgs(run_config=start))
    from aer_train.doctor import describe_machine

    _print_table(describe_machine())
    _print_memory(parsed.run_config, parsed.processes)
    return 0


def _sources(args: list[str]) -> argparse.Namespace:
    """Find the options that decide which settings all the others change."""
    sources = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, convert in (("config", Path), ("preset", str), ("resume", Path), ("model", Path), ("method.kind", str)):
        sources.add_argument(f"--{name}", type=convert)
    try:
        return sources.parse_known_args(args)[0]
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error


def _start(found: argparse.Namespace, run: Path | None) -> TrainConfig:
    """Return what the flags start from: the settings of a file, preset or run, with the options of the method that a flag chooses."""
    return with_method(base_config(found.config, found.preset, run), getattr(found, "method.kind"))


def _print_memory(config: TrainConfig, processes: int) -> None:
    from aer_train.doctor import predict_memory

    try:
        needs = predict_memory(config, processes)
    except LookupError as error:
        print(f"\npredicted memory of {config.model.name}: unknown, {error}")
        return
    each = "" if processes == 1 else f" on each of {processes} GPUs"
    print(f"\npredicted memory of {config.model.name}{each}")
    _print_table({name: f"{size / 2**20:12,.1f} MiB" for name, size in needs.items()})


def _print_table(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")
