"""aer-train eval: one model on one or several sets of problems, in a folder that an interrupted evaluation goes on in.

OUT/settings.json         what the numbers depend on; another evaluation is refused the folder
    samples/SET/0000.parquet   judged responses, chunk by chunk (pyarrow reads samples/SET as one table)
    eval.json  eval.md  pass_at_k.png
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from aer_train import dist
from aer_train.config.tree import TrainConfig
from aer_train.data.prompts import PromptSet, load_eval_sets
from aer_train.data.render import UNUSED_TEMPLATE, dated, today, unused_template
from aer_train.evaluation.evaluate import CHUNK, judged_chunks, provenance, summarize, tell_unreadable
from aer_train.evaluation.tables import eval_markdown, pass_at_k_png
from aer_train.memory.errors import memory_errors
from aer_train.memory.sizes import sampling_way_out, with_sizes
from aer_train.model import Policy, load_policy, model_source, resolve_device
from aer_train.monitor.causes.responses import cut_remedy
from aer_train.monitor.console import Console
from aer_train.rollout.backends import make_rollout
from aer_train.rollout.lengths import check_prompts
from aer_train.run.checkpoint import latest
from aer_train.run.files import eval_json, num_rows, read_json, read_parquet, write_atomic, write_parquet
from aer_train.run.versions import versions
from aer_train.types import Row
from aer_train.verify.rewards import Rewards

COUNTED = ["tier", "problem_id", "answer", "extracted", "outcome", "reward", "num_tokens", "finished"]
"""Columns that the numbers are made of; prompts and responses stay on the disk."""

CUT_HINT = 0.05
"""Share of cut responses from which on the token limit decides the numbers."""


def evaluate_model(name: str, config: TrainConfig, out: Path | None = None) -> Row:
    """Evaluate a model on eval.data and eval.suites, print a table, write the folder, and return what eval.json holds.

    Under torchrun all its processes share the work, and rank 0 alone writes and prints.

    Args:
        name: hub id, folder, checkpoint, or run folder (its newest checkpoint).
        config: where the prompts come from, how they are rendered, sampled and judged.
        out: folder; it may hold an unfinished evaluation with the same settings, which goes on. None: evals/NAME.
    Raises:
        ValueError - nothing to evaluate on, a model or a checkpoint that is not there, or a folder that holds something else.
    """
    is_here = Path(model_source(name)).exists()
    if config.eval.data is None and not config.eval.suites:
        if not is_here:
            raise ValueError(f"--model must be a folder that exists, or a hub id together with --data or --suites, got {name}")
        raise ValueError("--data or --suites must be given when the settings name no eval.data or eval.suites, got neither")
    source, out = _source(name), Path("evals") / _label(name) if out is None else out
    if out.suffix == ".json" or out.is_file():
        raise ValueError(f"--out must be a folder (the result will be its eval.json), got {out}")
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    device = resolve_device(config.run.device)
    with dist.joined(device, config.run.timeout):
        return _evaluate(source, _label(name), config, out, device)


def _evaluate(source: str, label: str, config: TrainConfig, out: Path, device: torch.device) -> Row:
    console = Console()
    config = replace(config, model=replace(config.model, name=source, lora_rank=0))
    policy = load_policy(config.model, device)
    config = _with_date(config, policy, out)
    sets = load_eval_sets(config.eval, config.data, policy.tokenizer, seed=config.run.seed, message=console.message)
    about = {"model": source, **_weights(source, policy), "dtype": str(policy.dtype).removeprefix("torch."), **provenance(sets, config)}
    if dated(config.data, policy.tokenizer):
        about["date"] = config.data.date
    check_prompts(policy, config, sets)
    config = with_sizes(config, policy, max(prompts.longest for prompts in sets))
    dist.from_main(lambda: _open_folder(out, {**about, "chunk": CHUNK}))
    _hint_at_template(config, policy, console)
    try:
        with memory_errors(sampling_way_out(config)):
            _sample(out, policy, sets, config, console)
    except KeyboardInterrupt:
        console.message(f"interrupted; the same command goes on from the responses in {out}")
        raise
    finally:
        console.close()
    return dist.from_main(lambda: _write(out, label, about, sets, config, console))


def _with_date(config: TrainConfig, policy: Policy, out: Path) -> TrainConfig:
    """The configuration with the date that the prompts hold, if they do: of the option, else of the folder's beginning, else today's."""
    if config.data.date is not None or not dated(config.data, policy.tokenizer):
        return config

    def found() -> str:
        path = out / "settings.json"
        return (path.is_file() and read_json(path).get("date")) or today()

    return replace(config, data=replace(config.data, date=dist.from_main(found)))


def _write(out: Path, label: str, about: Row, sets: list[PromptSet], config: TrainConfig, console: Console) -> Row:
    """Compute the numbers from the folder's responses, print and write them."""
    rows = [row for prompts in sets for path in _chunks(out, prompts).values() for row in read_parquet(path, COUNTED)]
    result = {**about, "versions": versions(), **summarize(rows, config.eval.samples, config.run.seed)}
    console.eval_table(result)
    cut = max(numbers["truncated_frac"] for numbers in result["tiers"].values())
    if cut > CUT_HINT:
        answered = [row["extracted"] is not None for row in rows if not row["finished"]]
        remedy = cut_remedy(cut, sum(answered) / len(answered), "rollout.max_new_tokens", "rollout.stop")
        console.hint(f"{cut:.0%} of the responses of a tier were cut{remedy}. Else the limit decides the numbers")
    write_atomic(out / "eval.json", eval_json(result))
    write_atomic(out / "eval.md", eval_markdown(result))
    try:
        write_atomic(out / "pass_at_k.png", pass_at_k_png(result, label))
    except ImportError as error:
        console.message(str(error))
    console.message(f"written to {out}: eval.json, eval.md, samples/")
    return result


def _sample(out: Path, policy: Policy, sets: list[PromptSet], config: TrainConfig, console: Console) -> None:
    """Sample and judge what is not in the folder yet; every rank a share of each chunk."""
    kept = dist.from_main(lambda: {prompts.name: _chunks(out, prompts) for prompts in sets})
    done = sum(num_rows(path) for paths in kept.values() for path in paths.values())
    total = config.eval.samples * sum(len(prompts.prompts) for prompts in sets)
    if done:
        console.message(f"{out} has {done} of {total} responses")
    with ExitStack() as stack:
        verifier = stack.enter_context(Rewards(config.reward))
        for prompts in sets:
            verifier.check(prompts.prompts, prompts.origin["source"])
        tell_unreadable(verifier, sets, console.message)
        rollout = make_rollout(config, policy, [prompt for prompts in sets for prompt in prompts.prompts], out, console.message)
        stack.callback(rollout.close)
        rollout.sync(0)
        console.start(total, done, "eval")
        for prompts in sets:
            for chunk, rows in judged_chunks(rollout, verifier, prompts, config, kept[prompts.name], console.advance):
                if dist.is_main():
                    write_parquet(_folder(out, prompts) / f"{chunk:04d}.parquet", rows)


def _open_folder(out: Path, about: Row) -> None:
    """Make the folder, or make sure that it belongs to the same evaluation."""
    path = out / "settings.json"
    if path.is_file():
        known = read_json(path)
        differing = [f"{key} {known.get(key)!r}" for key in about if known.get(key) != about[key]]
        if differing:
            raise ValueError(f"--out must be a new folder or one of the same evaluation, got {out} with {'; '.join(differing)}")
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"--out must be a new folder or one of the same evaluation, got {out} with other files")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(about, indent=2))


def _folder(out: Path, prompts: PromptSet) -> Path:
    folder = out / "samples" / (prompts.name or "data")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _chunks(out: Path, prompts: PromptSet) -> dict[int, Path]:
    """The chunks that are there, in order."""
    return {int(path.stem): path for path in sorted(_folder(out, prompts).glob("[0-9]*.parquet"))}


def _source(name: str) -> str:
    if not (Path(name) / "checkpoints").is_dir():
        return name
    newest = latest(Path(name))
    if newest is None:
        raise ValueError(f"--model must be a run with a complete checkpoint, got {name}")
    return str(newest)


def _label(name: str) -> str:
    """A name for the folder: of a run, a checkpoint or a model."""
    path = Path(_source(name)).resolve()
    is_checkpoint = path.parent.name == "checkpoints"
    return f"{path.parents[1].name}-{path.name}" if is_checkpoint else re.sub(r"[^\w.-]+", "-", name).strip("-.")


def _weights(source: str, policy: Policy) -> Row:
    """Which weights these are: the commit of a hub model, or a digest of the names, sizes and times of a folder's files."""
    folder = Path(model_source(source))
    if not folder.is_dir():
        return {"model_revision": getattr(policy.model.config, "_commit_hash", None)}
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.safetensors"))]
    return {"weights": hashlib.blake2b(repr(files).encode(), digest_size=8).hexdigest()}


def _hint_at_template(config: TrainConfig, policy: Policy, console: Console) -> None:
    """Say what would spoil the numbers, before they are paid for."""
    if config.eval.suites and config.reward.kind == "math" and "boxed" not in config.data.template:
        console.hint("data.template does not ask for \\boxed{}: answers that are not marked count as no_answer")
    if config.eval.suites and unused_template(config.data, policy.tokenizer):
        console.hint(UNUSED_TEMPLATE)
