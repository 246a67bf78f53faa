"""What vLLM's workers learn for this trainer (`--worker-extension-cls aer_train.rollout.vllm_worker.PolicyWeights`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor


class PolicyWeights:
    """Mixed into the class of vLLM's workers."""

    reload_weights: Any
    model_runner: Any

    def load_policy(self, weights: Iterable[tuple[str, Tensor]] | None = None, folder: str | None = None) -> None:
        """Replace all weights, named as transformers does: by these tensors, or by those in the safetensors files of a folder."""
        assert (weights is None) != (folder is None), "weights or folder"
        self.reload_weights(weights_iterator=_stored(Path(folder)) if folder is not None else weights)
        _repack_heads(self.model_runner.get_model())


def _stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"folder must hold the policy's safetensors, got {folder}")
    for file in files:
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (it has no iterator)
                yield name, stored.get_tensor(name)


def _repack_heads(model: Any) -> None:
    """On a CPU, products use packed copies. vLLM 0.32 packs an lm_head anew after a reload, unless it is tied to the embedding."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
