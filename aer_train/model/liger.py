"""Liger's kernels in the layers of a model. Its own losses stay out: the head is that of the fused loss.

Liger puts some of its parts into the code of a model's family, so that every model of that family in this process has them.
"""

from __future__ import annotations

from typing import Any

from aer_train.model.policy import Policy
from aer_train.model.probes import PROBE_TOLERANCE, difference, model_logits

LOSSES = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def use_liger(policy: Policy, name: str, **parts: bool) -> None:
    """Put Liger's kernels into a policy, in place. All processes must call it together.

    Args:
        policy: of a model without Liger so far.
        parts: of Liger's own switches, such as rope; those that are not given are on.
    Raises:
        ValueError - Liger does not know the model, or gives it other logits.
    """
    from liger_kernel.transformers import monkey_patch

    kind = policy.model.config.model_type
    if kind not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(f"model.liger must be False for {name!r}, whose kind {kind} Liger does not know, got True")
    before = model_logits(policy)
    options: dict[str, Any] = {**LOSSES, **parts}
    monkey_patch._apply_liger_kernel_to_instance(policy.model, **options)
    found = difference(model_logits(policy), before)
    if not found <= PROBE_TOLERANCE[policy.dtype]:
        raise ValueError(f"model.liger must be False for {name!r}, got True: its logits with Liger differ by {found:.3g} of the largest")
