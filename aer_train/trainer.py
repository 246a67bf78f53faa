"""The training loop: GRPO-family policy optimization with adaptive entropy regularization.

    collect (rollout + verification) -> credit (advantages) -> weigh (the method) -> update -> method.update -> sync -> record

Every random number is a function of (seed, step, prompt, sample), so a resumed run goes on bit for bit on a CPU, and evaluation cannot
disturb training.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import torch

from aer_kernels import EntropyControlConfig
from aer_train import dist
from aer_train.ahead import Ahead
from aer_train.clock import Clock
from aer_train.collect import collect
from aer_train.config.checks import check_config
from aer_train.config.method import method_of, needs_reference
from aer_train.config.tree import TrainConfig
from aer_train.data.difficulty import Difficulty
from aer_train.data.prompts import load_eval_sets, load_prompts, overlap
from aer_train.data.record import about_data, changes
from aer_train.data.render import UNUSED_TEMPLATE, dated, today, unused_template
from aer_train.evaluation.evaluate import evaluate, tell_unreadable
from aer_train.extras import check_extras
from aer_train.memory.errors import memory_errors
from aer_train.memory.sizes import sampling_way_out, training_way_out, with_sizes
from aer_train.model import Policy, frozen_digest, load_policy, load_reference, resolve_device, same_model
from aer_train.monitor.console import Console
from aer_train.monitor.metrics import (
    Row,
    batch_metrics,
    collected_metrics,
    method_metrics,
    peak_memory_mib,
    sample_rows,
    slope_metrics,
    time_metrics,
)
from aer_train.preemption import Notice, Preempted, awaited
from aer_train.rollout.backends import make_rollout
from aer_train.rollout.lengths import check_prompts
from aer_train.run import checkpoint
from aer_train.run.checkpoint import Progress
from aer_train.run.folder import Recorder, is_vacant, read_config, read_metrics
from aer_train.run.hub import open_repository, push
from aer_train.run.lock import RunLock
from aer_train.step.credit import assign_credit
from aer_train.step.optimizer import make_optimizer
from aer_train.step.update import update_policy
from aer_train.step.weighing import weigh_step
from aer_train.types import Prompt
from aer_train.verify.alternatives import unreadable
from aer_train.verify.failures import Failures
from aer_train.verify.rewards import Rewards
from aer_train.verify.sources import source_digests


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Train, and return the run folder. Under torchrun all its processes train one policy, and rank 0 alone writes and prints.

    Args:
        config: everything about the run.
        resume: go on from the newest checkpoint of `config.run.out` (from the start when there is none yet); so does a command that
            torchrun has restarted.
    Raises:
        ValueError - the configuration, the data or the model are not usable; FloatingPointError - the loss or its gradient is not finite;
        ChildProcessError - verification keeps failing (reward.max_failure_frac); Preempted - SIGTERM came, and the last step is saved.
    """
    check_config(config)
    run = Path(config.run.out)
    device = resolve_device(config.run.device)
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    # what use_deterministic_algorithms does, without its import of the compiler, which takes longer than the first step of a small model
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nobody reads it
    with ExitStack() as stack:
        stack.enter_context(dist.joined(device, config.run.timeout))
        check_extras(config, device)
        lock = RunLock()
        stack.callback(lock.close)
        resume = resume or dist.from_main(lambda: _is_restarted(config))
        start = dist.from_main(lambda: _start(config, resume, lock))
        repository = config.run.push_to_hub
        if repository is not None:
            dist.from_main(lambda: open_repository(repository))
        console = Console()
        stack.callback(console.close)
        policy = _load(config, start, device)
        verifier = stack.enter_context(Rewards(config.reward))
        loop = Loop(config, policy, verifier, console)
        stack.callback(loop.rollout.close)
        stack.callback(loop.ahead.close)
        if start is not None:
            loop.progress = checkpoint.restore(start, policy, loop.optimizer, loop.method, loop.difficulty, loop.frozen)
            loop.ahead.restore(start, loop.progress.step + 1, console.message)
        done = loop.progress.step
        recorder = stack.enter_context(Recorder(run, loop.config, done if resume else None, lock))
        loop.tell_changed_data(recorder)
        if done >= config.run.steps:
            console.message(f"{run} already has {done} steps; raise run.steps to go on")
        console.watch(loop.config, read_metrics(run) if done else ())
        console.start(config.run.steps, done)
        try:
            with dist.others_may_fail(), awaited() as notice:
                loop.run(recorder, notice)
        except KeyboardInterrupt:
            console.message(f"interrupted; go on from the last checkpoint with: aer-train train --resume {run}")
            raise
        if repository is not None:
            console.message(f"pushed to {dist.from_main(lambda: push(run, repository))}")
    return run


def _is_restarted(config: TrainConfig) -> bool:
    """Whether torchrun has restarted this command after it began its folder. The folder of another run, which it was refused, is not it.

    A run's config.json has what the command gives, and values in place of None.
    """
    run = Path(config.run.out)
    if not dist.restarted() or not (run / "config.json").is_file():
        return False
    return _agrees(json.loads(json.dumps(asdict(config))), read_config(run))


def _agrees(given: object, found: object) -> bool:
    if isinstance(given, dict) and isinstance(found, dict):
        return given.keys() == found.keys() and all(_agrees(given[name], found[name]) for name in given)
    return given is None or given == found


def _start(config: TrainConfig, resume: bool, lock: RunLock) -> Path | None:
    """Take the lock of the folder, if there is one; return the checkpoint to go on from, if any."""
    run = Path(config.run.out)
    file = next((parent for parent in run.parents if parent.is_file()), None)
    if file is not None:
        raise ValueError(f"run.out must be in a folder, got {run}, where {file} is a file")
    if not resume and not is_vacant(run):
        way_out = f"(or use --resume {run})" if (run / "config.json").is_file() else "(or be an empty folder)"
        raise ValueError(f"run.out must not exist yet {way_out}, got {run}")
    if run.is_dir():
        lock.take(run)
    start = checkpoint.latest(run) if resume else None
    if start is not None:
        checkpoint.check(start)
    if resume and (run / "config.json").is_file():
        _check_model(config, read_config(run)["model"], start)
    return start


def _check_model(config: TrainConfig, before: Row, start: Path | None) -> None:
    """Refuse another model than the run began with, by its name.

    What is needed beside a checkpoint that has its digest may have moved: `checkpoint.restore` compares the weights themselves.
    """
    if start is not None and (config.model.lora_rank or needs_reference(config)) and checkpoint.frozen_of(start) is not None:
        return
    name, revision = config.model.name, config.model.revision
    if not same_model(name, before["name"]):
        raise ValueError(f"model.name must be what the run began with, {before['name']!r}, got {name!r}")
    if revision != before["revision"]:
        raise ValueError(f"model.revision must be what the run began with, {before['revision']!r}, got {revision!r}")


def _load(config: TrainConfig, start: Path | None, device: torch.device) -> Policy:
    """The policy at a checkpoint, or at the start: adapters are of their model, whose weights no checkpoint holds."""
    if config.model.lora_rank:
        return load_policy(config.model, device, adapters=start, seed=config.run.seed)
    return load_policy(config.model if start is None else replace(config.model, name=str(start), revision=None), device)


def _saved(step: int, run: Path) -> str:
    what = f"step {step} is saved" if step else "no step was done"
    return f"SIGTERM: {what}; go on with: aer-train train --resume {run}"


class Loop:
    """One training run: what lives from step to step, and the step itself."""

    def __init__(self, config: TrainConfig, policy: Policy, verifier: Rewards, console: Console) -> None:
        self.config, self.policy, self.verifier, self.console = config, policy, verifier, console
        self._load_data()
        self.reference = load_reference(config.model, policy) if needs_reference(config) else None
        self.difficulty = Difficulty(config.difficulty, self.prompts, config.run.seed)
        longest = max(prompts.longest for prompts in [self.train_set, *self.eval_sets])
        self.config = config = with_sizes(self.config, policy, longest)
        self.rollout = make_rollout(config, policy, self.prompts, Path(config.run.out), console.message)
        self.ahead = Ahead(config, self.rollout, verifier, self.prompts, self.difficulty)
        self.method = method_of(config)
        if isinstance(config.method, EntropyControlConfig) and config.method.kind == "fixed" and not config.method.coef:
            self.console.hint("method.coef is 0, so there is no bonus: kind fixed needs a coefficient")
        self.optimizer = make_optimizer(config.optim, (p for p in policy.model.parameters() if p.requires_grad))
        self.frozen = frozen_digest(policy, self.reference)
        self.progress = Progress()
        self.failures = Failures(config.reward.max_failure_frac)
        self.clock = Clock()

    def _load_data(self) -> None:
        """Prompts to train and to evaluate on; the configuration gets what was used: commits of hub datasets, the date."""
        data, seed, message, tokenizer = self.config.data, self.config.run.seed, self.console.message, self.policy.tokenizer
        if data.date is None and dated(data, tokenizer):
            data = replace(data, date=dist.from_main(today))
        train = load_prompts(data, tokenizer, data.train, data.split, revision=data.revision, limit=data.limit, seed=seed, message=message)
        self.prompts, self.train_set = self._readable(train.prompts), train
        if unused_template(data, tokenizer) and not data.train.startswith("builtin:"):
            self.console.hint(UNUSED_TEMPLATE)
        data = replace(data, revision=train.origin["revision"] or data.revision)
        self.eval_sets = load_eval_sets(self.config.eval, data, tokenizer, seed=seed, message=message)
        used = [prompts.origin["revision"] for prompts in self.eval_sets if not prompts.name and prompts.origin["revision"]]
        evaluation = replace(self.config.eval, revision=used[0]) if used else self.config.eval
        self.config = replace(self.config, data=data, eval=evaluation)
        per_step = self.config.optim.prompts_per_step
        if self.config.difficulty.target is not None and per_step > len(self.prompts):
            raise ValueError(f"optim.prompts_per_step must be <= {len(self.prompts)}, the prompts to choose from, got {per_step}")
        if dist.world() > 1:
            texts = repr([self.prompts, *self.eval_sets]).encode()
            dist.check_same("the data", hashlib.blake2b(texts, digest_size=8).hexdigest())
        check_prompts(self.policy, self.config, [train, *self.eval_sets])
        self.verifier.check(self.prompts, data.train)
        for prompts in self.eval_sets:
            self.verifier.check(prompts.prompts, prompts.origin["source"])
        tell_unreadable(self.verifier, self.eval_sets, message)
        for prompts in self.eval_sets:
            shared = overlap(self.prompts, prompts.prompts)
            if shared:
                share = f"{len(shared)} of {len(prompts.prompts)}"
                message(f"{prompts.origin['source']}: {share} problems to evaluate on are also trained on (first: {shared[0].id})")

    def tell_changed_data(self, recorder: Recorder) -> None:
        """Keep what the run is given in its folder, and say what differs from what it was given before a resume."""
        about = about_data(self.config.data, self.policy.tokenizer, self.train_set, self.eval_sets)
        about["functions"] = source_digests(self.config.reward)
        before = recorder.write_data(about)
        found = [] if before is None else changes(before, about)
        if found:
            self.console.warning(f"since the run began, {'; '.join(found)}. The steps from here on use what is there now")

    def run(self, recorder: Recorder, notice: Notice) -> None:
        """The steps after `progress` up to run.steps, with their records, evaluations and checkpoints.

        Raises:
            Preempted - `notice` was given; the last step is saved.
        """
        options = self.config.run
        self.clock.lap()
        self.rollout.sync(self.progress.step)
        if self._evaluates_at(self.progress.step) and not recorder.has_eval(self.progress.step):
            self._evaluate(recorder)
        if notice.given():
            raise Preempted(_saved(self.progress.step, recorder.out))
        while self.progress.step < options.steps:
            row, step = self.step(recorder), self.progress.step
            broken = self.failures.persistent()
            last = step == options.steps
            stopping = notice.given()
            if self._evaluates_at(step) and not (stopping and not last):  # the resumed run does it
                self._evaluate(recorder)
                stopping = stopping or notice.given()
            row |= time_metrics(self.clock.lap(), row["tokens/loss"], row["tokens/generated"], self.ahead.seconds)
            recorder.log(row)
            self.console.step(row)
            saved = last or broken or stopping or (options.save_every and step % options.save_every == 0)
            if saved:
                with self.clock.part("checkpoint"):
                    state = self.progress, self.policy, self.optimizer, self.method
                    checkpoint.save(recorder.out, *state, options.keep, self.difficulty, self.frozen, self.ahead.save)
            if broken:
                raise ChildProcessError(f"{broken}; step {step} is saved, go on with: aer-train train --resume {recorder.out}")
            if not last and (stopping or (saved and notice.given())):
                raise Preempted(_saved(step, recorder.out))

    def step(self, recorder: Recorder) -> Row:
        """One step: sample, verify, weigh, update. Returns the row of metrics, without times."""
        config, clock, step = self.config, self.clock, self.progress.step + 1
        with memory_errors(sampling_way_out(config)):
            source = self.rollout, self.verifier, self.prompts
            drawn_before = self.ahead.take()
            collected = collect(*source, self.progress.prompts, step, self.method, config, clock, self.difficulty, drawn_before)
        sampled = collected_metrics(collected, config.reward.tolerance)
        self.failures.step([verdict for part in collected.rounds for group in part for verdict in group.verdicts])
        for places, groups in zip(collected.places, collected.rounds, strict=True):
            self.difficulty.update(places, groups, step)
        difficulty = self.difficulty.metrics([len(group.samples) for group in collected.rounds[0]])
        self.rollout.release()
        self.ahead.begin(step + 1, collected.position)
        batch = assign_credit(collected.groups, config)
        with memory_errors(training_way_out(config)):
            weighed, scores = weigh_step(self.policy, self.method, batch, config, step, clock, self.reference)
        if config.run.save_samples_every and step % config.run.save_samples_every == 0:
            with clock.part("record"):
                recorder.write_samples(step, sample_rows(step, weighed, collected))
        before = self.method.status()
        with memory_errors(training_way_out(config)):
            result = update_policy(self.policy, self.optimizer, weighed, config, step, clock, scores, self.method)
        self.method.update(replace(result.measured, unsolved=sampled["reward/unsolved_frac"]))
        dist.check_same("the state of the method", self.method.state_dict())
        self.ahead.finish(clock)
        with clock.part("sync"):
            synced = self.rollout.sync(step)
        self.progress = Progress(step, collected.position)
        return {
            "step": step,
            **sampled,
            **difficulty,
            **batch_metrics(weighed),
            **slope_metrics(result.slopes, weighed.terms.entropy_scale, result.num_tokens),
            **result.metrics,
            **method_metrics(before, self.method.status()),
            **synced,
            **self.ahead.metrics(step, collected.groups),
            "memory/peak_mib": max(dist.all_gather(peak_memory_mib(self.policy.device))),
        }

    def _evaluates_at(self, step: int) -> bool:
        every = self.config.eval.every
        return step in (0, self.config.run.steps) or (every > 0 and step % every == 0)

    def _readable(self, prompts: list[Prompt]) -> list[Prompt]:
        """Drop prompts whose gold answer the verifier cannot read: no response could be right."""
        bad = set(dist.from_main(lambda: unreadable(self.verifier, prompts)))
        if len(bad) == len(prompts):
            raise ValueError(
                f"data.answer_column must hold answers that reward.kind {self.config.reward.kind} can read, got {prompts[0].answer!r}"
            )
        if bad:
            example = prompts[min(bad)]
            self.console.message(
                f"{self.config.data.train}: {len(bad)} of {len(prompts)} prompts dropped, whose answer cannot be read "
                f"(prompt {example.id}: {example.answer!r})"
            )
        return [prompt for index, prompt in enumerate(prompts) if index not in bad]

    def _evaluate(self, recorder: Recorder) -> None:
        """Evaluate and record; touches neither the method nor any random number of training."""
        if not self.eval_sets:
            return
        with self.clock.part("eval"), memory_errors(sampling_way_out(self.config)):
            result, rows = evaluate(self.rollout, self.verifier, self.eval_sets, self.config)
            result = {"step": self.progress.step, **result}
            recorder.write_eval(self.progress.step, result, rows if self.config.run.save_samples_every else None)
        self.console.eval_table(result)
