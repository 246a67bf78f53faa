"""The fused head in TRL's trainers: fp32 statistics whatever the dtype, and tokens without a gradient cost nothing backward.

    with use_aer_head():
        SFTTrainer(...).train()

TRL's models compute log-probs and entropy through one function, which they look up in `trl.trainer.utils` at each call. Inside the block
ours stands in its place; nothing else is patched, and nothing after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import trl
from torch import Tensor
from trl.trainer import utils as trl_utils

from aer_kernels.api import fused_logprobs
from aer_kernels.inputs import autocast
from aer_kernels.integrations.guard import check_parameters, check_version, looks_up

OLDEST = "1.16"
"""The oldest TRL whose head runs on a CPU, and whose trainers are what the adapter was written for."""

NAME = "_ChunkedLogProbFunction"
"""What TRL's models look up in `trl.trainer.utils`."""

HEAD = ("hidden", "weight", "bias", "targets", "temperature", "chunk_size", "final_logit_softcapping", "logit_scale", "outputs")

check_version("trl", trl.__version__, OLDEST, None, "pip install 'aer-rl[trl]'")


class AERHead:
    """Takes the place of TRL's `ChunkedLogProbFunction`."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None,
        logit_scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[Tensor | None, ...]:
        """Return what TRL's function returns: log-probs, entropy, log_sum_sq_probs, mean_logits, is_top1; None where not asked for.

            z = softcap tanh(logit_scale (hidden weight^T + bias) / softcap) / temperature

        The last three come from TRL's own function, without a gradient, in a pass of its own: 2 N V D more.
        """
        if hasattr(weight, "ds_id"):
            raise ValueError("head must be 'trl' with DeepSpeed ZeRO-3 (the weight is not whole in the backward pass), got 'aer'")
        if not logit_scale > 0:
            raise ValueError(f"head must be 'trl' for a model whose logit scale is not > 0, got 'aer' and {logit_scale}")
        extra = tuple(name for name in outputs if name not in ("log_probs", "entropy"))
        others: tuple[Tensor | None, ...] = (None, None, None)
        if extra:
            from trl.kernels import ChunkedLogProbFunction

            with torch.no_grad():
                given = (hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping, logit_scale)
                others = ChunkedLogProbFunction.apply(*given, extra)[2:]
        hidden, weight = autocast(hidden, weight)
        found = fused_logprobs(
            hidden,
            weight.to(hidden.dtype),
            targets,
            bias=bias,
            softcap=None if final_logit_softcapping is None else final_logit_softcapping / logit_scale,
            temperature=temperature / logit_scale,
        )
        return found.logprobs, found.entropy if "entropy" in outputs else None, *others


@contextmanager
def use_aer_head() -> Iterator[None]:
    """Let all of TRL's trainers compute log-probs and entropy with `fused_logprobs` inside this block.

    SFT, DPO and KTO also log numbers that the fused head does not give (see `AERHead.apply`); those cost a pass more.

    Raises:
        ImportError: a TRL that is too old, or whose head takes other arguments.
        ValueError: on use: DeepSpeed ZeRO-3.
    """
    check_head()
    before = getattr(trl_utils, NAME)
    setattr(trl_utils, NAME, AERHead)
    try:
        yield
    finally:
        setattr(trl_utils, NAME, before)


def check_head() -> None:
    """Raise ImportError unless TRL's models call the head by the name and with the arguments that `AERHead` stands in for."""
    from trl.kernels import ChunkedLogProbFunction

    check_parameters(ChunkedLogProbFunction.forward, HEAD, "head='aer'", f"TRL {trl.__version__}")
    if not looks_up(trl_utils.add_fused_lm_head.__code__, NAME):
        raise ImportError(f"head='aer' must be used with a tested version: TRL {trl.__version__} does not look up its head by name")
