"""The samples of the next step, drawn while a step trains (rollout.ahead).

    sync(k - 1) -> draw k + 1 in a thread  |  train k  -> wait -> sync(k) -> draw k + 2 in a thread  |  train k + 1  -> ...

The draw for step k + 1 begins when the samples of step k are there, and it is over before the weights of step k go to the servers. So from
step 2 on, every step trains on samples of the weights two steps back, whatever the times are. Refill and evaluation sample with the
newest weights, in the main thread.

A checkpoint has the samples of the step after it, as the weights that drew them are gone. A draw that fails is no fault of the step that
trains meanwhile: that one is finished and recorded, and the next one raises. A checkpoint between the two has no samples: a run that is
resumed there draws them anew, with the newest weights.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path

from aer_train import dist
from aer_train.clock import Clock
from aer_train.collect import Draw, Plan, grouped, planned, sample_share
from aer_train.config.tree import TrainConfig
from aer_train.data.difficulty import Difficulty
from aer_train.rollout.protocol import Rollout
from aer_train.run.files import read_parquet, write_parquet
from aer_train.types import Group, Prompt, Row, Sample, Verdict
from aer_train.verify.rewards import Rewards

FILE = "ahead.parquet"
"""In a checkpoint."""

Share = list[tuple[Sample, Verdict]]
"""Of the samples: one rank's."""


class Closed(Exception):
    """Nobody waits for these samples any more."""


class Ahead:
    """At most one draw at a time. With rollout.ahead 0 it does nothing. All ranks call everything together."""

    def __init__(self, config: TrainConfig, rollout: Rollout, verifier: Rewards, prompts: list[Prompt], difficulty: Difficulty) -> None:
        """The last four are what the samples are drawn from, graded by, and chosen from."""
        self.config, self.rollout, self.verifier, self.prompts, self.difficulty = config, rollout, verifier, prompts, difficulty
        self.on = config.rollout.ahead > 0
        self.seconds = 0.0
        """In which the samples that were taken last were drawn; 0 where a checkpoint had them."""
        self._hidden = self._next_seconds = 0.0
        self._closed = threading.Event()
        self._running: tuple[Plan, Future[tuple[Share, dict[str, float]]], float] | None = None
        self._next: Draw | Exception | None = None

    def take(self) -> Draw | None:
        """Return the samples of the next step; None where they were not drawn ahead.

        Raises:
            Whatever the draw has raised; RankLost - it has failed on another rank.
        """
        found, self._next = self._next, None
        self.seconds, self._next_seconds = self._next_seconds, 0.0
        if isinstance(found, Exception):
            raise found
        return found

    def begin(self, step: int, position: int) -> None:
        """Start to sample for a step, unless it is behind the last one. Weights must stay as they are until `finish`.

        Args:
            position: prompts that were taken from the data before.
        """
        if not self.on or step > self.config.run.steps:
            return
        plan = planned(self.prompts, position, step, self.config, self.difficulty)
        self._running = plan, Future(), time.perf_counter()
        threading.Thread(target=self._sample, args=self._running[:2], daemon=True, name="ahead").start()  # no process waits for it to end

    def finish(self, clock: Clock) -> None:
        """Wait for the draw that was begun, if any. What has failed is told by `take`."""
        self._hidden = 0.0
        if self._running is None:
            return
        (plan, future, start), self._running = self._running, None
        with clock.part("rollout_wait"):
            trained = time.perf_counter() - start
            error = future.exception()
        mine, seconds = (None, {"rollout": 0.0}) if error is not None else future.result()
        with clock.part("exchange"):
            shares = dist.all_gather(mine)
        self._hidden, self._next_seconds = min(trained, sum(seconds.values())), seconds["rollout"]
        drawn = [pair for share in shares if share is not None for pair in share]
        if error is not None:
            self._next = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
        elif None in shares:
            self._next = dist.RankLost(f"another process has failed to sample with the names {plan.wanted.seed}")
        else:
            self._next = Draw(plan.places, grouped(plan.wanted, drawn), plan.position)

    def metrics(self, step: int, groups: list[Group]) -> Row:
        """Return how old the samples of a step are, and how much sampling it has hidden.

        Args:
            step: that is done.
            groups: it was trained on.
        Returns:
            rollout/staleness: training steps between the weights that sampled and those that are trained, mean over samples;
            time/rollout_hidden: seconds in which the step trained while the next one's samples were drawn.
        """
        if not self.on:
            return {}
        ages = [step - 1 - sample.version for group in groups for sample in group.samples]
        return {"rollout/staleness": sum(ages) / len(ages), "time/rollout_hidden": self._hidden}

    def save(self, folder: Path) -> None:
        """Write the samples of the next step, if they are there."""
        if not isinstance(self._next, Draw):
            return
        drawn = self._next
        same = {"position": drawn.position, "skipped": self.difficulty.skipped, "drawn_by": self._drawn_by(drawn.places)}
        rows = [
            {**asdict(sample), "verdict": json.dumps(asdict(verdict)), "place": place, **same}
            for place, group in zip(drawn.places, drawn.groups, strict=True)
            for sample, verdict in zip(group.samples, group.verdicts, strict=True)
        ]
        write_parquet(folder / FILE, rows)

    def restore(self, folder: Path, step: int, message: Callable[[str], None]) -> None:
        """Take the samples of a step from the checkpoint before it, unless options say now that others should be drawn.

        Args:
            message: is told that they are not used.
        """
        if not (folder / FILE).is_file():
            return
        rows = read_parquet(folder / FILE)
        parts = [list(part) for _, part in groupby(rows, key=lambda row: row["prompt"])]
        places = [part[0]["place"] for part in parts]
        if max(places) >= len(self.prompts) or rows[0]["drawn_by"] != self._drawn_by(places):
            message(f"step {step} is sampled anew: the checkpoint has samples of it that were drawn from other data or with other options")
            return
        groups = [_group(self.prompts[place], part) for place, part in zip(places, parts, strict=True)]
        self._next = Draw(places, groups, rows[0]["position"])
        self.difficulty.skipped = rows[0]["skipped"]  # by the choice of these prompts, which the step's row tells

    def close(self) -> None:
        """Give up a draw that goes on. Nobody waits for it: it ends by itself with the next answer of a server."""
        self._closed.set()

    def _sample(self, plan: Plan, future: Future[tuple[Share, dict[str, float]]]) -> None:
        clock = Clock()
        try:
            found = sample_share(self.rollout, self.verifier, plan.wanted, clock, self._check_open)
            future.set_result((found, clock.lap()))
        except BaseException as error:
            future.set_exception(error)

    def _check_open(self, count: int) -> None:
        if self._closed.is_set():
            raise Closed

    def _drawn_by(self, places: list[int]) -> str:
        """Names what decides about samples and verdicts beside the weights: the prompts at `places`, and options."""
        config = self.config
        prompts = [self.prompts[place] for place in places]
        rollout, reward = replace(config.rollout, batch_size=None), replace(config.reward, workers=1)
        text = repr((prompts, rollout, reward, config.optim.prompts_per_step, config.run.seed))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _group(prompt: Prompt, rows: list[Row]) -> Group:
    samples = [Sample(**{name: row[name] for name in Sample.__dataclass_fields__}) for row in rows]
    found = [json.loads(row["verdict"]) for row in rows]
    return Group(prompt, samples, [Verdict(**{**verdict, "failed": tuple(verdict["failed"])}) for verdict in found])
