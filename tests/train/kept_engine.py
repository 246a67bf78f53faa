"""vLLM's engine of this process, kept from one test to the next: to start it is most of what a test of it costs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any


class KeptEngine:
    """Stands for `vllm.LLM`. At most one engine lives, as the engines of a process share its process groups."""

    def __init__(self) -> None:
        self.started = 0
        """How many engines have been."""
        self._arguments: dict[str, Any] = {}
        self._llm: Any = None
        self._shutdown: Callable[[], None]

    def __call__(self, **arguments: Any) -> Any:
        """Return the engine that lives, if it was started with these arguments; otherwise end it and start one with them."""
        if self._llm is None or arguments != self._arguments:
            self.end()
            self._start(arguments)
        return self._llm

    def end(self) -> None:
        """Let the next one who asks have a new engine."""
        if self._llm is not None:
            self._shutdown()
            self._llm = None

    def _start(self, arguments: dict[str, Any]) -> None:
        gc.disable()  # it takes a quarter of the time of the import
        from vllm.entrypoints.llm import LLM

        gc.freeze()
        gc.enable()
        self._llm, self._arguments = LLM(**arguments), arguments
        self.started += 1
        core, llm = self._llm.llm_engine.engine_core, self._llm
        self._shutdown = core.shutdown
        core.shutdown = lambda: llm.collective_rpc("load_policy", kwargs={"weights": _noise(Path(arguments["model"]))})


def _noise(folder: Path) -> list[tuple[str, Any]]:
    """What an engine that was closed is left with, as a new one has no weights either: a model's tensors with random numbers in them."""
    import torch
    from safetensors.torch import load_file

    return [(name, 0.2 * torch.randn_like(tensor)) for name, tensor in load_file(folder / "model.safetensors").items()]
