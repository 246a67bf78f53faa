"""vLLM inside the training process, on the same device: its weights are replaced without leaving the process.

With several processes each has an engine of its own, which sees their process group but asks nothing of the others.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from aer_train import dist
from aer_train.config.named import named_values
from aer_train.config.tree import MOST_ROWS, TrainConfig
from aer_train.model import Policy, model_source
from aer_train.model.lora import base_of, served_tensors
from aer_train.model.positions import positions
from aer_train.rollout.engine import SCORING, Completion, Request
from aer_train.rollout.protocol import SyncError

WORKER = "aer_train.rollout.vllm_worker.PolicyWeights"


class LocalEngine:
    """`vllm.LLM` in this process. See `engine.Engine`."""

    def __init__(self, config: TrainConfig, policy: Policy) -> None:
        """
        Raises:
            ImportError - vLLM is not installed.
        """
        if importlib.util.find_spec("vllm") is None:
            raise ImportError('rollout.backend vllm needs: pip install "aer-rl[vllm]"')
        self.policy = policy
        self.max_model_len = max_model_len(config, policy)
        self._arguments = {"disable_log_stats": True, **engine_arguments(config, policy)}
        if dist.world() > 1:
            self._arguments["distributed_executor_backend"] = "external_launcher"
        self._llm: Any = None
        self._asleep = False
        self._calls = 0

    def start(self) -> None:
        """Load the model with random weights."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # tensors cannot be handed to another process
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it warns of much that is as it should be
        if self.policy.device.type == "cpu":
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the threads are the trainer's, too
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
        set_threads, threads = torch.set_num_threads, torch.get_num_threads()
        from vllm import LLM

        gc.collect()
        gc.freeze()  # of what is there by now nothing is rubbish, and vLLM looks for some five times while it starts
        try:
            self._llm = LLM(**self._arguments)
        finally:
            torch.set_num_threads = set_threads  # vLLM replaces it
            torch.set_num_threads(threads)

    def complete(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
        """Answer all requests, and yield the answers as they come."""
        for part in self._run([request.tokens for request in requests], [request.sampling for request in requests]):
            yield [_completion(place, output.outputs[0]) for place, output in part]

    def score(self, sequences: list[list[int]]) -> list[list[list[float]]]:
        """Return the log-probs (nats, temperature 1) of every token but the first of each sequence, by this one copy."""
        answers = dict(answer for part in self._run(sequences, [SCORING] * len(sequences)) for answer in part)
        return [
            [
                [found[token].logprob for token, found in zip(text[1:], answers[place].prompt_logprobs[1:], strict=True)]
                for place, text in enumerate(sequences)
            ]
        ]

    def release(self) -> None:
        """Sleep, where that frees memory."""
        if self._arguments["enable_sleep_mode"] and not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True

    def update(self, version: int) -> None:
        """Hand over the policy's weights, and forget all that was computed with the old ones."""
        if self._asleep:
            torch.cuda.empty_cache()  # what training no longer needs, vLLM does
            self._llm.wake_up(tags=["weights"])
        weights = served_tensors(self.policy.model, self.policy.dtype)
        self._llm.collective_rpc("load_policy", kwargs={"weights": weights})
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        if not self._llm.reset_prefix_cache():
            raise SyncError("vLLM must have no request in progress while its weights are replaced, got some")

    def close(self) -> None:
        """Stop the engine. It takes the process group of torch.distributed down with it: nothing can be said to other processes after."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def _run(self, prompts: Sequence[list[int]], sampling: Sequence[dict[str, Any]]) -> Iterator[list[tuple[int, Any]]]:
        """Yield vLLM's finished outputs, each with the place of its prompt; what nobody waits for any more is aborted."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine, places = self._llm.llm_engine, dict[str, int]()
        self._calls += 1
        try:
            for place, (tokens, options) in enumerate(zip(prompts, sampling, strict=True)):
                name = f"{self._calls}-{place}"
                parameters = SamplingParams(**options, output_kind=RequestOutputKind.FINAL_ONLY, flat_logprobs=True)
                engine.add_request(name, {"prompt_token_ids": tokens}, parameters)
                places[name] = place
            while places:
                finished = [output for output in engine.step() if output.finished]
                if finished:
                    yield [(places.pop(output.request_id), output) for output in finished]
        finally:
            if places:
                engine.abort_request(list(places))


def max_model_len(config: TrainConfig, policy: Policy) -> int:
    """Return the longest sequence for the engine, tokens."""
    if config.vllm.max_model_len is not None:
        return config.vllm.max_model_len
    wanted = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    most = positions(policy.model.config)
    return wanted if most is None else min(wanted, most)


def engine_arguments(config: TrainConfig, policy: Policy) -> dict[str, Any]:
    """Return vLLM's engine arguments: the model of the policy without its weights, and log-probs as they are sampled from.

    Raises:
        ValueError - vllm.engine_args has one that belongs to the trainer.
    """
    on_gpu, base = policy.device.type == "cuda", base_of(config.model)
    ours = {
        "model": model_source(base.name),
        "revision": base.revision,
        "trust_remote_code": config.model.trust_remote_code,
        "dtype": str(policy.dtype).removeprefix("torch."),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "max_model_len": max_model_len(config, policy),
        "worker_extension_cls": WORKER,
        "enable_sleep_mode": on_gpu and config.vllm.sleep_level > 0 and not config.vllm.urls,
    }
    defaults = {
        "max_num_seqs": config.rollout.batch_size or MOST_ROWS,
        "gpu_memory_utilization": config.vllm.gpu_memory_utilization,
        "enforce_eager": not on_gpu,
        "seed": config.run.seed,
    }
    given = named_values(config.vllm.engine_args)
    taken = sorted(ours.keys() & given.keys())
    if taken:
        raise ValueError(f"vllm.engine_args must not name what the trainer decides, got {', '.join(taken)}")
    if policy.dtype != torch.float32:  # float32 logits of the head, as the trainer's
        given["hf_overrides"] = {"head_dtype": "float32", **given.get("hf_overrides", {})}
    return {**ours, **defaults, **given}


def _completion(place: int, output: Any) -> Completion:
    """What vLLM drew; of the log-probs of a position, the first is that of the token."""
    if not output.token_ids:
        raise RuntimeError(f"vLLM must answer every request with at least one token, got none ({output.finish_reason})")
    flat = output.logprobs
    return Completion(place, list(output.token_ids), [flat.logprobs[start] for start in flat.start_indices])
