"""The operators that PyTorch's autograd and compiler see: what they take, what they save, what they return.

Each is a `torch.library` operator with fixed output shapes, so that `torch.compile(fullgraph=True)` treats it as one opaque node. The
work is in `aer_kernels.blocked` and the row backends.
"""

from aer_kernels.operators.arguments import HeadArguments, LogitsArguments, PolicyArguments
from aer_kernels.operators.logits import logits_statistics
from aer_kernels.operators.logprobs import logprobs
from aer_kernels.operators.policy_loss import policy_loss

__all__ = ["HeadArguments", "LogitsArguments", "PolicyArguments", "logits_statistics", "logprobs", "policy_loss"]
