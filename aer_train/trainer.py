"""The training loop: GRPO-family policy optimization with adaptive entropy regularization.

    collect (rollout + verification) -> judge (advantages, entropy coefficients) -> update -> controller -> sync -> record

Left out of GRPO: the KL penalty to a reference model (verifiable rewards need none, and it would hold a second model).
Every random number is a function of (seed, step, prompt, sample), so a resumed run goes on bit for bit on a CPU, and evaluation cannot
disturb training.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from aer_kernels import AdaptiveEntropyController
from aer_train import checkpoint, dist
from aer_train.checkpoint import Progress
from aer_train.checks import check_config
from aer_train.clock import Clock
from aer_train.collect import collect
from aer_train.config import TrainConfig
from aer_train.console import Console
from aer_train.data import load_eval_sets, load_prompts, overlap
from aer_train.evaluate import evaluate, tell_unreadable
from aer_train.judge import judge
from aer_train.metrics import (
    Row,
    batch_metrics,
    collected_metrics,
    controller_metrics,
    peak_memory_mib,
    sample_rows,
    slope_metrics,
    time_metrics,
)
from aer_train.model import Policy, load_policy, resolve_device
from aer_train.record import Recorder, read_metrics
from aer_train.rollout.backends import make_rollout
from aer_train.types import Prompt
from aer_train.update import update_policy
from aer_train.verify import Verifier
from aer_train.verify.failures import Failures


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Train, and return the run folder. Under torchrun all its processes train one policy, and rank 0 alone writes and prints.

    Args:
        config: everything about the run.
        resume: go on from the newest checkpoint of `config.run.out` (from the start when there is none yet); so does a command that
            torchrun has restarted.
    Raises:
        ValueError - the configuration, the data or the model are not usable; FloatingPointError - the loss or its gradient is not finite;
        ChildProcessError - verification keeps failing (reward.max_failure_frac).
    """
    check_config(config)
    run, resume = Path(config.run.out), resume or dist.restarted()
    device = resolve_device(config.run.device)
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    # what use_deterministic_algorithms does, without its import of the compiler, which takes longer than the first step of a small model
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nobody reads it
    with ExitStack() as stack:
        stack.enter_context(dist.joined(device, config.run.timeout))
        start = dist.from_main(lambda: _start(run, resume))
        console = Console()
        stack.callback(console.close)
        policy = load_policy(config.model if start is None else replace(config.model, name=str(start), revision=None), device)
        reward = config.reward
        verifier = stack.enter_context(Verifier(reward.kind, reward.timeout, reward.workers, reward.lenient))
        loop = Loop(config, policy, verifier, console)
        stack.callback(loop.rollout.close)
        if start is not None:
            loop.progress = checkpoint.restore(start, policy, loop.optimizer, loop.controller)
        done = loop.progress.step
        recorder = stack.enter_context(Recorder(run, loop.config, done if resume else None))
        if done >= config.run.steps:
            console.message(f"{run} already has {done} steps; raise run.steps to go on")
        console.watch(config, read_metrics(run) if done else ())
        console.start(config.run.steps, done)
        try:
            with dist.others_may_fail():
                loop.run(recorder)
        except KeyboardInterrupt:
            console.message(f"interrupted; go on from the last checkpoint with: aer-train train --resume {run}")
            raise
    return run


def _start(run: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from, if any."""
    if run.exists() and not resume:
        raise ValueError(f"run.out must not exist yet (or use --resume {run}), got {run}")
    start = checkpoint.latest(run) if resume else None
    if start is not None:
        checkpoint.check(start)
    return start


class Loop:
    """One training run: what lives from step to step, and the step itself."""

    def __init__(self, config: TrainConfig, policy: Policy, verifier: Verifier, console: Console) -> None:
        self.config, self.policy, self.verifier, self.console = config, policy, verifier, console
        self._load_data()
        self.rollout = make_rollout(config, policy, self.prompts, Path(config.run.out), console.message)
        self.controller = AdaptiveEntropyController(replace(config.entropy, updates=config.entropy.updates or config.run.steps))
        optim = config.optim
        self.optimizer = torch.optim.AdamW(policy.model.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
        self.progress = Progress()
        self.failures = Failures(config.reward.max_failure_frac)
        self.clock = Clock()

    def _load_data(self) -> None:
        """Prompts to train and to evaluate on; the configuration gets the commits of the hub datasets that were used."""
        data, seed, message, tokenizer = self.config.data, self.config.run.seed, self.console.message, self.policy.tokenizer
        train = load_prompts(data, tokenizer, data.train, data.split, revision=data.revision, limit=data.limit, seed=seed, message=message)
        self.prompts = self._readable(train.prompts)
        data = replace(data, revision=train.origin["revision"] or data.revision)
        self.eval_sets = load_eval_sets(self.config.eval, data, tokenizer, seed=seed, message=message)
        used = [prompts.origin["revision"] for prompts in self.eval_sets if not prompts.name and prompts.origin["revision"]]
        evaluation = replace(self.config.eval, revision=used[0]) if used else self.config.eval
        self.config = replace(self.config, data=data, eval=evaluation)
        if dist.world() > 1:
            texts = repr([self.prompts, *self.eval_sets]).encode()
            dist.check_same("the data", hashlib.blake2b(texts, digest_size=8).hexdigest())
        tell_unreadable(self.verifier, self.eval_sets, message)
        for prompts in self.eval_sets:
            shared = overlap(self.prompts, prompts.prompts)
            if shared:
                share = f"{len(shared)} of {len(prompts.prompts)}"
                message(f"{prompts.origin['source']}: {share} problems to evaluate on are also trained on (first: {shared[0].id})")

    def run(self, recorder: Recorder) -> None:
        """The steps after `progress` up to run.steps, with their records, evaluations and checkpoints."""
        options = self.config.run
        self.clock.lap()
        self.rollout.sync(self.progress.step)
        if self.progress.step == 0:
            self._evaluate(recorder)
        while self.progress.step < options.steps:
            row, step = self.step(recorder), self.progress.step
            broken = self.failures.persistent()
            last = step == options.steps
            if last or (self.config.eval.every and step % self.config.eval.every == 0):
                self._evaluate(recorder)
            row |= time_metrics(self.clock.lap(), row["tokens/loss"], row["tokens/generated"])
            recorder.log(row)
            self.console.step(row)
            if last or broken or (options.save_every and step % options.save_every == 0):
                with self.clock.part("checkpoint"):
                    checkpoint.save(recorder.out, self.progress, self.policy, self.optimizer, self.controller, options.keep)
            if broken:
                raise ChildProcessError(f"{broken}; step {step} is saved, go on with: aer-train train --resume {recorder.out}")

    def step(self, recorder: Recorder) -> Row:
        """One step: sample, verify, update, adapt the entropy coefficient. Returns the row of metrics, without times."""
        config, clock, step = self.config, self.clock, self.progress.step + 1
        collected = collect(self.rollout, self.verifier, self.prompts, self.progress.prompts, step, self.controller, config, clock)
        drawn = collected_metrics(collected, config.reward.tolerance)
        self.failures.step([verdict for part in collected.rounds for group in part for verdict in group.verdicts])
        batch = judge(collected.groups, self.controller, config)
        if config.run.save_samples_every and step % config.run.save_samples_every == 0:
            with clock.part("record"):
                recorder.write_samples(step, sample_rows(step, batch, collected))
        alpha, saturated = self.controller.alpha, self.controller.saturated
        self.rollout.release()
        result = update_policy(self.policy, self.optimizer, batch, config, step, clock)
        slopes = (result.slopes["policy"], result.slopes["bonus"])
        self.controller.update(result.entropy_sum, result.entropy_count, slopes, drawn["reward/unsolved_frac"])
        dist.check_same("the entropy controller", self.controller.state_dict())
        with clock.part("sync"):
            synced = self.rollout.sync(step)
        self.progress = Progress(step, collected.position)
        return {
            "step": step,
            **drawn,
            **batch_metrics(batch),
            "entropy/coef": alpha,
            "entropy/saturated": int(saturated),
            **slope_metrics(result.slopes, alpha, result.num_tokens),
            **result.metrics,
            **controller_metrics(self.controller),
            **synced,
            "memory/peak_mib": max(dist.all_gather(peak_memory_mib(self.policy.device))),
        }

    def _readable(self, prompts: list[Prompt]) -> list[Prompt]:
        """Drop prompts whose gold answer the verifier cannot read: no response could be right."""
        bad = set(dist.from_main(lambda: self.verifier.unparseable([prompt.answer for prompt in prompts])))
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
        """Evaluate and record; touches neither the controller nor any random number of training."""
        if not self.eval_sets:
            return
        with self.clock.part("eval"):
            result, rows = evaluate(self.rollout, self.verifier, self.eval_sets, self.config)
            result = {"step": self.progress.step, **result}
            recorder.write_eval(self.progress.step, result, rows if self.config.run.save_samples_every else None)
        self.console.eval_table(result)
