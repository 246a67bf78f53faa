"""The policy: a transformers causal LM split into hidden states and lm_head, so that the fused loss never needs logits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from aer_train import dist, sharding
from aer_train.config import ModelConfig

P = ParamSpec("P")
T = TypeVar("T")

COUNTDOWN_POLICY = Path(__file__).parent / "tasks" / "countdown_policy"

PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
"""Largest allowed difference of two logits or hidden states by the dtype of the products, relative to the largest (1 would be a different
model)."""


@dataclass(frozen=True)
class Policy:
    """A model with its tokenizer. Parameters are float32; products run in `dtype` (autocast)."""

    model: Any
    """transformers causal LM, dropout off."""
    tokenizer: Any
    head: nn.Linear
    """The lm_head; its weight may be tied to the embedding."""
    softcap: float | None
    """Final logit softcap of the model (Gemma 2), or None."""
    dtype: torch.dtype
    eos_ids: frozenset[int]
    """Every token that ends a response: those of the generation config and the tokenizer's own."""
    generation_config: Any
    """As published, for the checkpoints. The model itself holds a neutral one: penalties or top-k would bend the rollouts."""
    unpad: bool = False
    """Whether `hidden` leaves out the padding."""

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which forward passes, sampling and training alike, run."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, dtype=self.dtype)

    def gathered(self) -> AbstractContextManager[None]:
        """Context in which `model` may be called at will, a different number of times on every rank; without gradients."""
        return sharding.gathered(self.model)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the final hidden states (B, T, D) of right-padded input_ids (B, T)."""
        # transformers recomputes activations in training mode only; dropout is 0 in either mode
        self.model.train(self.model.is_gradient_checkpointing and torch.is_grad_enabled())
        if self.unpad:
            return self._unpadded(input_ids, attention_mask)
        return self.model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state

    def _unpadded(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`hidden`, 0 at padding: positions that begin again tell the model where the next sequence starts."""
        real = attention_mask.flatten().nonzero().squeeze(1)
        positions = (attention_mask.cumsum(1) - 1).flatten()[real]
        body = self.model.base_model(input_ids=input_ids.flatten()[real][None], position_ids=positions[None], use_cache=False)
        states = body.last_hidden_state[0]
        return states.new_zeros(input_ids.numel(), states.shape[1]).index_copy(0, real, states).view(*input_ids.shape, -1)


def forward_pass(function: Callable[Concatenate[Policy, P], T]) -> Callable[Concatenate[Policy, P], T]:
    """Decorate a function of a policy that uses its hidden states and its head: with a sharded policy, both are whole only inside.

    All ranks must call it together. Its result is a dataclass or tuple of tensors, some of them differentiable.
    """

    @wraps(function)
    def wrapped(policy: Policy, *args: P.args, **kwargs: P.kwargs) -> T:
        return sharding.forward_pass(policy.model, lambda: function(policy, *args, **kwargs))

    return wrapped


def load_policy(config: ModelConfig, device: torch.device) -> Policy:
    """Load model and tokenizer, and prove on a few tokens that hidden states and lm_head reproduce the model's logits.

    With several processes the parameters are sharded over them, and all must call this together.

    Args:
        config: `name` may be a hub id, a folder, or builtin:countdown.
        device: where the parameters live.
    Raises:
        ValueError - the model cannot be found or read, has no tokenizer usable for padding, or has no readable lm_head.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()  # of every load and save of weights; downloads still show theirs
    if not dist.is_main():
        set_verbosity_error()

    source = model_source(config.name)
    try:
        model_config = AutoConfig.from_pretrained(source, revision=config.revision)
        options = {} if config.attn_implementation is None else {"attn_implementation": config.attn_implementation}
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, revision=config.revision, config=_without_dropout(model_config), dtype=torch.float32, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(source, revision=config.revision)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model.name must be a Hugging Face model id or folder, got {config.name!r}: {reason}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model.name must have a tokenizer with an end-of-sequence token, got {config.name!r}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    dtype = compute_dtype(config.dtype, device)
    if dist.world() > 1:
        sharding.shard(model, device, dtype)
    else:
        model.to(device)
    model.eval()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"model.name must be a model with a readable lm_head, got {config.name!r} with {type(head).__name__}")
    softcap = getattr(model_config.get_text_config(), "final_logit_softcapping", None)
    published, ends = model.generation_config, model.generation_config.eos_token_id
    eos_ids = frozenset([tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [] if ends is None else [ends])])
    model.generation_config = GenerationConfig(eos_token_id=sorted(eos_ids), pad_token_id=tokenizer.pad_token_id)
    policy = Policy(model, tokenizer, head, softcap, dtype, eos_ids, published, config.unpad)
    _probe_head(policy, config.name)
    if config.unpad:
        _probe_unpadded(policy, config.name)
    return policy


def model_source(name: str) -> str:
    """Return what transformers loads for `model.name`; a name that can only be a folder must exist.

    Raises:
        ValueError - the folder is missing.
    """
    if name == "builtin:countdown":
        return str(COUNTDOWN_POLICY)
    if name.startswith("builtin:"):
        raise ValueError(f"model.name must be builtin:countdown, a Hugging Face model id or a folder, got {name!r}")
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ValueError(f"model.name must be an existing folder or a Hugging Face model id, got {name!r}")
    return name


def resolve_device(name: str) -> torch.device:
    """Return the device for `run.device`.

    Raises:
        ValueError - cuda is asked for and there is none, or there are more processes than GPUs.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device must be auto or cpu on a machine without a CUDA GPU, got cuda")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if dist.local_rank() >= gpus:
        raise ValueError(f"--nproc-per-node must be at most the number of GPUs, {gpus}, got local rank {dist.local_rank()}")
    return torch.device("cuda", dist.local_rank())


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the products for `model.dtype`."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _without_dropout(config: Any) -> Any:
    """Set every dropout probability to 0: the policy that is trained must be the one that sampled."""
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for name, value in vars(part).items():
            if isinstance(value, float) and ("dropout" in name or name.endswith("_pdrop")):
                setattr(part, name, 0.0)
    return config


@torch.no_grad()
@forward_pass
def _probe_head(policy: Policy, name: str) -> None:
    """Compare cap(hidden @ head.T + bias) with the model's own logits: a scaled head would otherwise train a wrong policy silently."""
    ids = _probe_tokens(policy)[:1]
    mask = torch.ones_like(ids)
    with policy.autocast():  # flash attention computes in bfloat16 only
        ours = policy.head(policy.hidden(ids, mask)).float()
        theirs = policy.model.forward(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    if policy.softcap is not None:
        ours = policy.softcap * torch.tanh(ours / policy.softcap)
    if not theirs.isfinite().all():
        raise ValueError(f"model.name must be a model with finite weights, got {name!r}, whose logits are NaN or infinite")
    difference = _difference(ours, theirs)
    if not difference <= PROBE_TOLERANCE[policy.dtype]:
        raise ValueError(
            f"model.name must be a model with a readable lm_head, got {name!r}: "
            f"hidden states times lm_head differ from its logits by {difference:.3g} of the largest"
        )


@torch.no_grad()
@forward_pass
def _probe_unpadded(policy: Policy, name: str) -> None:
    """Compare hidden states without padding with those of padded sequences: not every model keeps the sequences apart."""
    ids = _probe_tokens(policy)
    mask = (torch.arange(ids.shape[1], device=ids.device) < torch.tensor([[5], [8], [3]], device=ids.device)).long()
    with policy.autocast():
        together, apart = policy.hidden(ids, mask), replace(policy, unpad=False).hidden(ids, mask)
    difference = _difference(together.float(), (apart * mask[..., None]).float())
    if not difference <= PROBE_TOLERANCE[policy.dtype]:
        raise ValueError(
            f"model.unpad must be False for {name!r}, got True: its hidden states without padding differ by {difference:.3g} of the largest"
        )


def _probe_tokens(policy: Policy) -> Tensor:
    """(3, 8), all sequences different."""
    return torch.arange(24, device=policy.device).mul(7).add(3).remainder(policy.head.weight.shape[0]).view(3, 8)


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value (or to 1)."""
    if found.shape != expected.shape:
        return torch.inf
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))
