"""verl's trainers with AER or another method. The method lives in the driver: one process, no collective.

    class Mine(AERTrainerMixin, PPOTrainerSync): ...        # or `AERTaskRunner`, which does it for the mode of the configuration

It stands over the five functions of verl's `PPOTrainer` in OVERRIDDEN. After the advantages it reads the batch from the queue, asks the
method, and writes a coefficient for each token back; the workers add the bonus to verl's own loss (`verl_loss`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aer_kernels.integrations.verl_version  # noqa: F401  before names that another verl does not have

# isort: split
import ray
import transfer_queue as tq
import verl
from tensordict import TensorDict
from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer, get_trainer_cls
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss

from aer_kernels.integrations.guard import check_parameters
from aer_kernels.integrations.verl_batch import FIELDS, QueueBatch, queue_batch
from aer_kernels.integrations.verl_loss import COEF, DIVERGENCE, SCALARS, SLOPES, aer_ppo_loss, scalars
from aer_kernels.integrations.verl_options import Options, batches_a_step, prepare
from aer_kernels.methods import Method, TokenTerms, method_for
from aer_kernels.methods.asking import ask, restore, saved
from aer_kernels.methods.seam import reported

STATE = "aer_state.json"
"""Of the method, in each checkpoint."""

OVERRIDDEN: dict[str, tuple[str, ...]] = {
    "_setup": (),
    "_compute_advantage": ("batch", "metrics"),
    "_update_actor": ("batch", "metrics"),
    "_save_checkpoint": (),
    "_load_checkpoint": (),
}
"""verl's functions, by the arguments that they were tested with."""

Runner: Any = TaskRunnerV1.__ray_metadata__.modified_class
"""verl's task runner, before Ray made an actor of it."""

for _name, _parameters in OVERRIDDEN.items():
    check_parameters(getattr(PPOTrainer, _name), _parameters, "AERTrainerMixin", f"verl {verl.__version__}")
check_parameters(ppo_loss, ("config", "model_output", "data", "dp_group"), "AERTrainerMixin", f"verl {verl.__version__}")
check_parameters(Runner.run, ("config",), "AERTaskRunner", f"verl {verl.__version__}")

Base: Any = object  # whose functions are those of the PPOTrainer that follows it


class AERTrainerMixin(Base):
    """A method inside a PPOTrainer; it stands before the trainer among the bases of a class. Its options are `config.aer`.

    Raises:
        ValueError, TypeError: an option of `aer`, or one of verl's beside it, is wrong (`verl_options`); an accuracy outside [0, 1]; a
        checkpoint without the method's state; it stands behind the trainer.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = [base for base in cls.__mro__ if base in (AERTrainerMixin, PPOTrainer)]
        if order[0] is PPOTrainer:  # it would train without the method, and say nothing
            raise TypeError(f"AERTrainerMixin must stand before verl's trainer among the bases of a class, got {cls.__name__}")

    def __init__(self, config: Any) -> None:
        self._aer: Options = prepare(config)
        self._aer_method: Method | None = None
        self._aer_batch: tuple[QueueBatch, TokenTerms] | None = None
        super().__init__(config)

    @property
    def method(self) -> Method:
        """The method. It is made when verl has read its data: only then is the number of its updates known."""
        if self._aer_method is None:
            self._aer_method = method_for(self._aer.method, max(1, self.total_training_steps * batches_a_step(self.config)))
        return self._aer_method

    def _setup(self) -> None:
        super()._setup()
        if self._aer.on:
            actor = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
            self.actor_rollout_wg.set_loss_fn(partial(aer_ppo_loss, config=actor))

    # what the method says of a batch

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._compute_advantage(batch, metrics)
        trained = self.config.trainer.critic_warmup <= self.global_steps
        return self._aer_weigh(batch) if self._aer.on and trained else batch

    def _aer_weigh(self, batch: Any) -> Any:
        """Ask the method about a batch, and write what it says into the queue."""
        fields = [*FIELDS, *({self._aer.correct} - {"score", "positive"})]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        found = queue_batch(data, batch.keys, batch.tags, self._aer.correct, self._aer_seed())
        terms = ask(self.method, found.tokens)
        self._aer_batch = found, terms
        given = {COEF: terms.entropy_coef, DIVERGENCE: terms.divergence_coef, "advantages": _advantages(found, terms)}
        out = {name: found.nested(values) for name, values in given.items() if values is not None}
        if not out:
            return batch
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(out, batch_size=len(batch.keys)))

    def _aer_seed(self) -> int:
        """Another one for every batch, and the same after a resume."""
        number = self.global_steps * batches_a_step(self.config) + self.local_trigger_step
        return (int(self.config.data.get("seed") or 0) << 31 | number) % (1 << 63)

    # what it learns

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        if not self._aer.on:
            return super()._update_actor(batch, metrics)
        assert self._aer_batch is not None, "verl computes advantages before each update"
        (found, terms), self._aer_batch = self._aer_batch, None
        batch.extra_info[SCALARS] = scalars(terms)
        batch = super()._update_actor(batch, metrics)
        slopes = [metrics.pop(f"actor/{name}", None) for name in SLOPES]
        before = self.method.status()
        measured = found.measured(terms.held, None if None in slopes else (slopes[0], slopes[1]))  # type: ignore[arg-type]
        self.method.update(measured)
        status = reported(before, self.method.status()) | {"unsolved_frac": measured.unsolved}
        metrics.update({f"aer/{name}": float(value) for name, value in status.items() if value is not None})
        return batch

    # checkpoints

    def _save_checkpoint(self) -> None:
        if self._aer.on:  # before verl's: a checkpoint that verl calls whole has it
            folder = _folder(self.config.trainer.default_local_dir, self.global_steps)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / STATE).write_text(json.dumps(saved(self.method)))
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if not self._aer.on or self.global_steps == 0:
            return
        trainer = self.config.trainer
        named = trainer.resume_mode == "resume_path"
        path = (Path(trainer.resume_from_path) if named else _folder(trainer.default_local_dir, self.global_steps)) / STATE
        if not path.exists():
            raise ValueError(f"trainer.resume_mode must be disable, or the checkpoint one of this method, with {STATE}, got {path.parent}")
        restore(self.method, json.loads(path.read_text()))


def _folder(checkpoints: str, step: int) -> Path:
    """verl's folder of a checkpoint."""
    return Path(checkpoints) / f"global_step_{step}"


def _advantages(found: QueueBatch, terms: TokenTerms) -> Any:
    """Weighted and shifted advantages, (N,); None where the method leaves them."""
    if terms.weight is None and terms.shift is None:
        return None
    own = found.tokens.advantages
    shifted = own if terms.shift is None else own + terms.shift
    return shifted if terms.weight is None else shifted * terms.weight


@contextmanager
def registered(mode: str) -> Iterator[None]:
    """verl's registry has the mode's trainer with the mixin before it, inside this block."""
    base = get_trainer_cls(mode)
    TRAINER_REGISTRY[mode] = type(f"AER{base.__name__}", (AERTrainerMixin, base), {})
    try:
        yield
    finally:
        TRAINER_REGISTRY[mode] = base


class _AERRunner(Runner):
    def run(self, config: Any) -> None:
        with registered(config.trainer.v1.trainer_mode):
            super().run(config)


AERTaskRunner = ray.remote(_AERRunner)
"""verl's task runner, for `run_ppo`."""
