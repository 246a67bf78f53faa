"""The policy's output layer: logits = cap tanh(s (hidden weight^T + bias) / cap), with a multiplier s and a cap that most models lack."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from aer_kernels.blocked.gemm import logits_
from aer_train.model.policy import Policy

CAP = re.compile(r"^(?!.*(attn|attention|router)).*logits?_soft_?cap")
"""Names of options of a model's config that bound its final logits (Gemma 2, RecurrentGemma, xLSTM)."""

SCALE = re.compile(r"^(?!.*(attn|attention|router)).*(logits?_(mup|scal|mult)|lm_head_mult|output_(mult|scal|logits?_scal))")
"""Names of those that multiply or divide its logits (Cohere, Granite, Falcon-H1, HyperCLOVA X, heads with muP)."""

RATIOS = (("dim_model_base", "hidden_size"), ("mup_base_width", "hidden_size"))
"""Pairs whose ratio does (MiniCPM)."""


def fused_options(policy: Policy, temperature: float) -> dict[str, Any]:
    """Return the arguments of the fused functions that say what the output layer is, at a temperature.

    They know no multiplier s, but s z at temperature T under the cap c is z at T / s under c / s.
    """
    cap = None if policy.softcap is None else policy.softcap / policy.scale
    return {"bias": policy.head.bias, "softcap": cap, "temperature": temperature / policy.scale}


class Logits:
    """The output layer for sampling: float32 products of operands in the policy's dtype, as the fused functions compute them."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        weight = policy.head.weight.detach().to(policy.dtype)
        self._weight = weight.float() if policy.device.type == "cpu" else weight  # a CPU has no product of the first kind

    @torch.no_grad()
    def __call__(self, hidden: Tensor) -> Tensor:
        """(R, V) float32 of the hidden states (R, D)."""
        out = torch.empty(len(hidden), len(self._weight), device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            logits_(out, hidden.to(self.policy.dtype).to(self._weight.dtype), self._weight)
            return finish(self.policy, out if self.policy.head.bias is None else out + self.policy.head.bias.float())


def finish(policy: Policy, products: Tensor) -> Tensor:
    """Return the logits (..., V) of the products hidden weight^T + bias, float32."""
    scaled = products if policy.scale == 1 else policy.scale * products
    return scaled if policy.softcap is None else policy.softcap * torch.tanh(scaled / policy.softcap)


def candidates(policy: Policy, config: Any) -> Iterator[Policy]:
    """Yield the policy with every cap and multiplier that its config may mean: a proof has to choose.

    Args:
        config: of the text model.
    """
    numbers = {name: float(value) for name, value in vars(config).items() if type(value) in (int, float) and value > 0}
    scales = [number for name, number in numbers.items() if SCALE.search(name)]
    scales += [numbers[part] / numbers[whole] for part, whole in RATIOS if part in numbers and whole in numbers]
    caps = [number for name, number in numbers.items() if CAP.search(name)]
    for cap, scale in product([*caps, None], [1.0, *scales, *(1 / scale for scale in scales)]):
        yield replace(policy, softcap=cap, scale=scale)
