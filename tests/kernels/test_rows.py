"""The row kernels themselves, where the fused functions on a CPU do not reach them: 16-bit d_logits from fp32 logits."""

import pytest
import torch

from aer_kernels import kernels, torch_rows
from aer_kernels.objectives.policy import PolicyInputs, Surrogate
from aer_kernels.statistics import RowStatistics, Tempering

N, V = 7, 9001  # more columns than one block of the launch


def inputs():
    generator = torch.Generator().manual_seed(0)
    raw = 4 * torch.randn(N, V, generator=generator)
    targets = torch.randint(V, (N,), generator=generator)
    tokens = PolicyInputs(
        torch.randn(N, generator=generator),
        torch.ones(N),
        0.1 * torch.rand(N, generator=generator),
        -9 - torch.rand(N, generator=generator),
    )
    return raw, targets, tokens


def empty_rows():
    return RowStatistics.empty(N, torch.float32, torch.device("cpu")), torch.empty(N)


def test_policy_rows_into_16_bits():
    raw, targets, tokens = inputs()
    config = Surrogate("ppo", 0.2, 0.2, None)
    expected = torch.empty_like(raw)
    stats, slopes = empty_rows()
    torch_rows.policy_rows(raw.clone(), expected, stats, slopes, targets, Tempering(), tokens, config)
    out = torch.empty_like(raw, dtype=torch.float16)
    found, found_slopes = empty_rows()
    kernels.policy_rows(raw, out, found, found_slopes, targets, Tempering(), tokens, config)
    torch.testing.assert_close(found.logprobs(), stats.logprobs(), rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(found_slopes, slopes, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.float(), expected, rtol=1e-3, atol=1e-6)


def test_d_logits_into_16_bits():
    raw, targets, _ = inputs()
    stats = RowStatistics.empty(N, torch.float32, raw.device)
    kernels.update_statistics(raw, stats, targets, Tempering(temperature=0.7), 0)
    grads = torch.randn(N), torch.randn(N)
    expected = torch.empty_like(raw)
    torch_rows.d_logits(raw.clone(), expected, stats, *grads, targets, Tempering(temperature=0.7), 0)
    out = torch.empty_like(raw, dtype=torch.float16)
    kernels.d_logits(raw, out, stats, *grads, targets, Tempering(temperature=0.7), 0)
    torch.testing.assert_close(out.float(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rows", [kernels, torch_rows], ids=["triton", "torch"])
def test_rows_of_d_logits_sum_to_zero(rows):
    """Adding a constant to a row of logits changes nothing, so its gradient sums to 0."""
    raw, targets, tokens = inputs()
    out = torch.empty_like(raw)
    rows.policy_rows(raw, out, *empty_rows(), targets, Tempering(), tokens, Surrogate("ppo", 0.2, 0.2, None))
    assert out.double().sum(1).abs().max() < 1e-5
