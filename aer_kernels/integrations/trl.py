"""TRL's GRPOTrainer with a method of `aer_kernels.methods`. Loss, generation and options are TRL's; the method adds what its terms say.

    trainer = AERGRPOTrainer(model=..., reward_funcs=..., args=GRPOConfig(...), train_dataset=...)
    trainer = AERGRPOTrainer(..., entropy=EntropyControlConfig(tau=0.85), accuracy="accuracy_reward", head="aer")
    class Mine(AERMixin, MyGRPOTrainer): ...

The method weighs a batch of rollouts as a whole: over all ranks, before TRL shuffles and cuts it. It is updated once for that batch, at the
first optimizer step after which nothing of it is left. `trl_loss` says what its terms do to TRL's loss. Functions of the trainer are
overridden; nothing is patched but the head's function, while it is called (`trl_head`).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import trl
from torch import Tensor
from trl import GRPOTrainer

from aer_kernels.entropy_control import BELOW_START, EntropyControlConfig
from aer_kernels.integrations import trl_loss
from aer_kernels.integrations.control import Sums, group_accuracy, token_batch, unsolved_share
from aer_kernels.integrations.guard import check_parameters
from aer_kernels.integrations.trl_head import check_head, use_aer_head
from aer_kernels.integrations.trl_loss import loss_mask
from aer_kernels.integrations.trl_reference import GIVEN, compares, first_policy, mark, prepare_first_policy, restore_adapter
from aer_kernels.methods import Method, TokenBatch, TokenTerms, check_method, method_for
from aer_kernels.methods.asking import ask, restore, saved
from aer_kernels.methods.seam import needs_logprobs, reported

STATE = "aer_state.json"
"""Of the method, in each checkpoint."""

FIRST = "first_policy"
"""In that file: a number that tells the policy that the run began with from others."""

OVERRIDDEN = {
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_generate_and_score_completions": ("inputs",),
    "_get_per_token_logps_and_entropies": ("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
    "_compute_loss": ("model", "inputs"),
    "training_step": ("model", "inputs", "num_items_in_batch"),
    "_save_checkpoint": ("model", "trial"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
}
"""TRL's functions, by the arguments that they were tested with."""

for _name, _parameters in OVERRIDDEN.items():
    check_parameters(getattr(GRPOTrainer, _name), _parameters, "AERGRPOTrainer", f"TRL {trl.__version__}")

Accuracy = str | Callable[[Tensor], Tensor]
Base: Any = object  # whose functions are those of the GRPOTrainer that follows it
logger = logging.getLogger(__name__)


class AERMixin(Base):
    """A method inside a GRPOTrainer; it stands before the trainer among the bases of a class.

    Args:
        entropy: AER and its relatives, an `EntropyControlConfig`.
        method: any other one, by its configuration (`aer_kernels.methods`). Neither: `BELOW_START`, which adds nothing while entropy is
            above two fifths of its start.
        accuracy: which rewards say that a response is right, in [0, 1]: the name of a reward function, or rewards (R, F) -> (R,). None:
            the only reward function. A response whose number is NaN does not count.
        head: "trl", or "aer" for `fused_logprobs`.
    Raises:
        ValueError: two methods, two bonuses, an accuracy that cannot be found or lies outside [0, 1], terms that this loss cannot carry,
            a first policy that TRL does not keep, a checkpoint without the method's state or of a run that began with another policy.
        TypeError: `entropy` or `method` is no configuration, `accuracy` gives no tensor, or the trainer is another one or stands first.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = [base for base in cls.__mro__ if base in (AERMixin, GRPOTrainer)]
        if order[0] is GRPOTrainer:  # it would train without the method, and say nothing
            raise TypeError(f"AERMixin must stand before GRPOTrainer among the bases of a class, got {cls.__name__}, where it comes after")

    def __init__(
        self,
        *args: Any,
        entropy: EntropyControlConfig | None = None,
        method: Any = None,
        accuracy: Accuracy | None = None,
        head: str = "trl",
        **kwargs: Any,
    ) -> None:
        self._aer_config = _config(entropy, method)
        first = method_for(self._aer_config, 1)  # what is wrong with the options is told before a model is loaded
        if getattr(first, "reward_bonus", None) is not None:
            raise ValueError(f"method must leave rewards to TRL's reward functions, got {type(first).__name__}, which adds to them")
        if head not in ("trl", "aer"):
            raise ValueError(f"head must be 'trl' or 'aer', got {head!r}")
        if head == "aer":
            check_head()
        if any("unsloth" in f"{base.__module__}.{base.__qualname__}".lower() for base in type(self).__mro__):
            raise ValueError("AERMixin must stand before TRL's own GRPOTrainer, got Unsloth's: its loss has no entropy")
        if not isinstance(self, GRPOTrainer):
            raise TypeError(f"AERMixin must stand before a GRPOTrainer, got {type(self).__name__}, which is none")
        self._aer_head, self._aer_on = head, getattr(self._aer_config, "kind", None) != "off"
        self._aer_method: Method | None = None
        self._aer_state: dict[str, Any] | None = None
        self._aer_terms = TokenTerms()
        self._aer_pass: tuple[Tensor, Tensor] | None = None  # log-probs and entropies of the first pass since it was set to None
        self._aer_sums, self._aer_measured = Sums(), False
        self._aer_unsolved: list[float] = []
        self._aer_parts = 0  # batches since the last update of which the method said what is held
        super().__init__(*args, **kwargs)
        if not self._aer_on:
            return
        if self._entropy_bonus_enabled:
            raise ValueError("entropy_coef must be 0 and use_adaptive_entropy False beside entropy= or method=: there is one entropy bonus")
        check_method(first, given=GIVEN, on_policy=self._aer_generate_every == self.args.gradient_accumulation_steps)
        if compares(first):
            prepare_first_policy(self)
        self._aer_accuracy, self._aer_source = _find_accuracy(accuracy, self.reward_func_names)

    @property
    def method(self) -> Method:
        """The method. It is made when training starts: only then is the number of its updates known."""
        if self._aer_method is None:
            every = self.args.gradient_accumulation_steps
            updates = math.ceil(self.state.max_steps * every / math.lcm(every, self._aer_generate_every))
            self._aer_method = method_for(self._aer_config, max(1, updates))
            if self._aer_state is not None:
                restore(self._aer_method, self._aer_state)
        return self._aer_method

    @property
    def _aer_generate_every(self) -> int:
        """Micro-batches from one generation to the next."""
        return self.args.steps_per_generation * self.num_iterations

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._aer_rewards = super()._calculate_rewards(*args, **kwargs)
        return self._aer_rewards

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        wanted = self._aer_on and self._aer_pass is None and model is not self.ref_model
        if wanted:
            kwargs["compute_entropy"] = True  # the policy's head computes it anyway
        with use_aer_head() if self._aer_head == "aer" else nullcontext():
            found = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if wanted:
            self._aer_pass = found[0], found[1]
        return found

    # what the method says of a batch of rollouts

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self._aer_pass = None
        out = super()._generate_and_score_completions(inputs)
        if self.model.training and self._aer_on:
            self._aer_weigh(out)
        return out

    @torch.no_grad()
    def _aer_weigh(self, out: dict[str, Any]) -> None:
        """Ask the method about the rollouts of all ranks, and add what it says of this rank's to `out`, which TRL shuffles and cuts."""
        logprobs, entropy = self._aer_scores(out)
        tokens, everywhere = self._aer_tokens(out, logprobs, entropy, self._aer_reference(out) if compares(self.method) else None)
        terms = ask(self.method, tokens)
        trl_loss.refuse(self, terms)
        first = self.accelerator.process_index * len(out["advantages"])
        trl_loss.place(terms, tokens, everywhere, out, first)
        self._aer_terms, self._aer_measured = terms, entropy is not None
        self._aer_parts += terms.held is not None and bool(terms.held.any())
        if entropy is not None:
            self._aer_sums.add_entropy(entropy, loss_mask(out), out[trl_loss.HELD])
        unsolved = unsolved_share(tokens.accuracy)
        self._aer_unsolved += [] if unsolved is None else [unsolved]

    def _aer_tokens(
        self, out: dict[str, Any], logprobs: Tensor | None, entropy: Tensor | None, reference_entropy: Tensor | None
    ) -> tuple[TokenBatch, Tensor]:
        """The loss tokens of all ranks, and where they are among the padded rows of all ranks, (R, T) bool."""
        mask = loss_mask(out)
        given = {"logprobs": logprobs, "entropy": entropy, "reference_entropy": reference_entropy}
        scores = {name: values for name, values in given.items() if values is not None}
        columns = [mask, out["advantages"].view(len(mask), -1).expand(mask.shape), *scores.values()]
        padded = self.accelerator.pad_across_processes(torch.stack([x.float() for x in columns], 2), dim=1)
        counted, advantages, *gathered = self.accelerator.gather(padded).unbind(2)
        prompt = torch.arange(len(counted), device=mask.device) // self.num_generations
        accuracy = group_accuracy(self._aer_correct(), prompt, self._aer_source, "name another reward with accuracy=, or give a function")
        everywhere = (counted > 0) & ~accuracy.isnan()[prompt, None]
        tokens = token_batch(
            everywhere,
            prompt,
            accuracy,
            advantages=advantages,
            **({"logprobs": None} | dict(zip(scores, gathered, strict=True))),
            seed=self.args.seed << 31 | self.state.global_step,
        )
        return tokens, everywhere

    def _aer_correct(self) -> Tensor:
        """(R,) of all ranks, from the rewards that were just given."""
        found, shape = self._aer_accuracy(self._aer_rewards), self._aer_rewards.shape[:1]
        if not isinstance(found, Tensor):
            raise TypeError(f"accuracy must return a tensor of shape {tuple(shape)}, got {type(found).__name__}")
        if found.shape != shape:
            raise ValueError(f"accuracy must return shape {tuple(shape)}, got {tuple(found.shape)}")
        return found

    def _aer_scores(self, out: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """Log-probs and entropies (B, T) of the policy that sampled: from TRL's pass for its old log-probs, from vLLM, or from a pass of
        their own. None where the method does not look at them."""
        made, self._aer_pass = self._aer_pass, None
        if made is not None and "old_per_token_logps" in out:
            return made
        if not self.method.needs_entropy:
            if not needs_logprobs(self.method):
                return None, None
            if "sampling_per_token_logps" in out:
                return out["sampling_per_token_logps"].nan_to_num(nan=0.0), None  # vLLM gives NaN where it cannot score a token
        return self._aer_forward(self.model, out)

    def _aer_reference(self, out: dict[str, Any]) -> Tensor:
        """Entropies (B, T) of the policy that the run began with, after the same tokens."""
        with first_policy(self) as model:
            _, entropy = self._aer_forward(model, out)
        return entropy

    def _aer_forward(self, model: Any, out: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies (B, T) by a pass of their own."""
        ids, attention = (torch.cat([out[f"prompt_{x}"], out[f"completion_{x}"]], 1) for x in ("ids", "mask"))
        passed = signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
        images = {name: out[name] for name in passed if name in out}
        options = {"batch_size": self.args.per_device_train_batch_size, "compute_entropy": True} | images
        logprobs, entropy, _ = self._get_per_token_logps_and_entropies(model, ids, attention, out["completion_ids"].shape[1], **options)
        self._aer_pass = None
        return logprobs, entropy

    # what its terms add to the loss, and what it learns

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if not (self.model.training and self._aer_on):
            return super()._compute_loss(model, inputs)
        self._aer_pass = None
        with trl_loss.clip_bounds(self, self._aer_terms):
            loss = super()._compute_loss(model, inputs)
        made, self._aer_pass = self._aer_pass, None
        if made is None:
            raise ValueError(f"AERMixin must stand before a trainer whose loss makes TRL's pass, got {type(self).__name__}")
        if not self._aer_measured:
            self._aer_sums.add_entropy(made[1], loss_mask(inputs), inputs[trl_loss.HELD])
        if trl_loss.COEF in inputs:
            self._aer_sums.add_slopes(trl_loss.slopes(self, loss, inputs, *made))
        return trl_loss.added(self, loss, self._aer_terms.entropy_scale, inputs, *made)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._aer_on and self.accelerator.sync_gradients and self._step % self._aer_generate_every == 0:
            self._aer_update()
        return loss

    def _aer_update(self) -> None:
        """Tell the method what its batch showed, and log what it applied and what it aims at now."""
        shares, self._aer_unsolved = self._aer_unsolved, []
        unsolved = sum(shares) / len(shares) if shares else None
        parts, self._aer_parts = max(1, self._aer_parts), 0
        before = self.method.status()
        self.method.update(self._aer_sums.measured(lambda sums: self.accelerator.reduce(sums, reduction="sum"), unsolved, parts))
        for name, value in (reported(before, self.method.status()) | {"unsolved_frac": unsolved}).items():
            self._metrics["train"][f"aer/{name}"].append(math.nan if value is None else float(value))

    # checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self._aer_on and self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            first = {FIRST: mark(self)} if compares(self.method) else {}
            (folder / STATE).write_text(json.dumps(saved(self.method) | first))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._aer_on and checkpoint is not None:
            path = Path(checkpoint) / STATE
            if not path.exists():
                raise ValueError(f"resume_from_checkpoint must be a checkpoint of this method, with {STATE}, got {checkpoint}")
            restore_adapter(self, checkpoint)
            self._aer_state, self._aer_method = json.loads(path.read_text()), None
            began = self._aer_state.pop(FIRST, None)
            if began is not None and compares(self.method) and mark(self) not in (None, began):
                raise ValueError(f"model must be the one that the run of {checkpoint} began with, got another: the method compares with it")


class AERGRPOTrainer(AERMixin, GRPOTrainer):
    """TRL's GRPOTrainer with AER or another method: see `AERMixin`."""


def _config(entropy: EntropyControlConfig | None, method: Any) -> Any:
    """The configuration of the method that the options name."""
    if entropy is not None and method is not None:
        raise ValueError("entropy must be None where method is given, got both")
    if entropy is not None and not isinstance(entropy, EntropyControlConfig):
        raise TypeError(f"entropy must be an EntropyControlConfig, got {type(entropy).__name__}")
    if entropy is None and method is None:
        logger.warning("neither entropy= nor method= is given: BELOW_START adds nothing until entropy is below two fifths of its start")
        return BELOW_START
    if entropy is None and not hasattr(method, "kind"):
        raise TypeError(f"method must be the configuration of a method, got {type(method).__name__}")
    return method if entropy is None else entropy


def _find_accuracy(accuracy: Accuracy | None, names: list[str]) -> tuple[Callable[[Tensor], Tensor], str]:
    """How to get (R,) numbers of correctness from the rewards (R, F) of the functions with these names, and what to call them."""
    if callable(accuracy):
        return accuracy, "accuracy="
    if accuracy is None and len(names) > 1:
        raise ValueError(f"accuracy must name one of several reward functions ({', '.join(names)}), got None")
    name = names[0] if accuracy is None else accuracy
    if names.count(name) != 1:
        raise ValueError(f"accuracy must name one of the reward functions ({', '.join(names)}), got {name!r}")
    place = names.index(name)
    return lambda rewards: rewards[:, place], f"reward function {name!r}"
