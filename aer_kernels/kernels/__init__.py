"""Row operations on blocks of raw logits as Triton kernels: the same functions as `aer_kernels.torch_rows`."""

from aer_kernels.kernels.d_logits import d_logits
from aer_kernels.kernels.policy_loss import policy_rows
from aer_kernels.kernels.row_floors import row_floors
from aer_kernels.kernels.row_moments import row_moments
from aer_kernels.kernels.row_stats import update_statistics
from aer_kernels.kernels.scale import scale

SCRATCH_COPIES = 0
"""Copies of a row group that these functions make."""

__all__ = ["SCRATCH_COPIES", "d_logits", "policy_rows", "row_floors", "row_moments", "scale", "update_statistics"]
