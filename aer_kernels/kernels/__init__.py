"""Row operations on blocks of raw logits as Triton kernels: the same three functions as `aer_kernels.torch_rows`."""

from aer_kernels.kernels.d_logits import d_logits
from aer_kernels.kernels.policy_loss import policy_rows
from aer_kernels.kernels.row_stats import update_statistics

WRITES_IN_PLACE = True
"""Whether low-precision d_logits can overwrite the fp32 block they are made from."""

__all__ = ["WRITES_IN_PLACE", "d_logits", "policy_rows", "update_statistics"]
