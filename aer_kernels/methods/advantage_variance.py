"""How uncertain an advantage is, for whoever has a critic that says how uncertain its values are; and advantages that are optimistic by
that.

The generalized advantage estimate is linear in the values, with rewards known:

    A_t = - V_t + sum_{j >= 1} c_j V_{t+j} + rewards,   c_j = gamma^j lambda^(j-1) (1 - lambda),  the last one gamma^n lambda^(n-1)

    correlated     the V_t in all k-step estimators is one number:     Var A_t = Var V_t + sum_j c_j^2 Var V_{t+j}
    independent    the k-step estimators are independent:              the first term times (1 - lambda) / (1 + lambda)

Source: EPPO, arXiv:2503.01468 (TMLR 2025), its variants "cor" and "ind", which add kappa times the standard deviation to the advantage. The
variances are derived here, as the paper's code was not obtainable, and agree with a simulation. The critic there gives the four parameters
of a normal-inverse-gamma distribution, `value_variances`. It is a method for control with a critic, not one of entropy.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from aer_kernels.validate import check_choice

Form = Literal["correlated", "independent"]


def value_variances(nu: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Return the aleatoric and the epistemic variance of values with a normal-inverse-gamma distribution.

        beta / (alpha - 1)   and   beta / (nu (alpha - 1))

    Args:
        nu: > 0, any shape.
        alpha: > 1, of that shape.
        beta: > 0, of that shape.
    Raises:
        ValueError: a parameter is out of its range.
    """
    for name, value, least in (("nu", nu, 0), ("alpha", alpha, 1), ("beta", beta, 0)):
        if not bool((value > least).all()):
            raise ValueError(f"{name} must be > {least}, got {float(value.min())}")
    aleatoric = beta / (alpha - 1)
    return aleatoric, aleatoric / nu


def advantage_variance(variances: Tensor, *, gamma: float, lam: float, form: Form = "correlated") -> Tensor:
    """Return the variance of the generalized advantage estimate at each step of a trajectory, (..., n).

    Args:
        variances: (..., n + 1) of the values of its n states and of the one after the last, >= 0.
        gamma: discount, in (0, 1].
        lam: lambda of the estimate, in (0, 1].
        form: what is known of the k-step estimators.
    Raises:
        ValueError: an option is out of its range, or there is no step.
    """
    check_choice("form", form, get_args(Form))
    for name, value in (("gamma", gamma), ("lam", lam)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {value}")
    if variances.shape[-1] < 2:
        raise ValueError(f"variances must have shape (..., n + 1) with n >= 1, got {tuple(variances.shape)}")
    steps = variances.shape[-1] - 1
    own = 1.0 if form == "correlated" else (1 - lam) / (1 + lam)
    rest, decay, found = (gamma**2) * variances[..., -1], (gamma * lam) ** 2, []
    for step in reversed(range(steps)):  # rest: what the values after this step add
        if step < steps - 1:
            rest = (gamma * (1 - lam)) ** 2 * variances[..., step + 1] + decay * rest
        found.append(own * variances[..., step] + rest)
    return torch.stack(found[::-1], dim=-1)


def optimistic(advantages: Tensor, variance: Tensor, kappa: float) -> Tensor:
    """Return advantages + kappa times their standard deviation; kappa = 0 is PPO. Shapes as given."""
    return advantages + kappa * variance.sqrt()
