"""vLLM servers: one that is started here and ends with the run, or several that run somewhere; prompts go to them in turn.

They are asked for tokens, not text. Every answer says which weights it was drawn with, by the label that the last update has left; another
one means that the server was restarted since, or is shared with somebody who updates it, too.
"""

from __future__ import annotations

import importlib.util
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from aer_train import dist
from aer_train.config.tree import MOST_ROWS, TrainConfig
from aer_train.model import Policy
from aer_train.rollout.engine import SCORING, Completion, Request
from aer_train.rollout.http import Refused, ask, call, concurrently
from aer_train.rollout.protocol import SyncError
from aer_train.rollout.server_command import server_command, server_environment, server_line, transfer_route
from aer_train.rollout.server_process import ServerProcess, wait_until_healthy
from aer_train.rollout.transfer import CONTROL_TIMEOUT, DiskTransfer, EngineTransfer, Transfer, tell_all
from aer_train.rollout.vllm import WORKER, engine_arguments, max_model_len

GENERATE = "/inference/v1/generate"


class ServerEngine:
    """See `engine.Engine`."""

    def __init__(self, config: TrainConfig, policy: Policy, folder: Path, message: Callable[[str], None]) -> None:
        """
        Args:
            folder: for the log of a server that is started, and the weights that go over the disk.
            message: is told what takes long.
        Raises:
            ImportError - a server shall be started, and vLLM is not installed.
        """
        if not config.vllm.urls and importlib.util.find_spec("vllm") is None:
            raise ImportError('rollout.backend vllm_server without vllm.urls needs: pip install "aer-rl[vllm]"')
        self.config, self.policy, self.folder, self.message = config, policy, folder, message
        self.max_model_len = max_model_len(config, policy)
        self.route = transfer_route(config, policy)
        self._sleeps = engine_arguments(config, policy)["enable_sleep_mode"]
        self._asleep = False
        self._process: ServerProcess | None = None
        self._transfer: Transfer | None = None
        self._urls: list[str] = []
        self._copies: list[tuple[str, int | None]] = []
        """Every copy of the model: a server, and its number there if there are several."""
        self._label = ""

    def start(self) -> None:
        """Start a server, or wait for those that are given; their weights are noise or zeros then."""
        self._urls, self._copies = dist.from_main(self._start)
        if self.route == "disk":
            self._transfer = DiskTransfer(self.policy, self._urls, self.folder / "weights")
        else:
            self._transfer = EngineTransfer(self.route, self.policy, self._urls)

    def complete(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
        """Answer all requests, and yield the answers as they come."""
        jobs = [partial(self._complete, place, request) for place, request in enumerate(requests)]
        for _, completion in concurrently(jobs, (self.config.rollout.batch_size or MOST_ROWS) * len(self._urls)):
            yield [completion]

    def score(self, sequences: list[list[int]]) -> list[list[list[float]]]:
        """Return the log-probs of every token but the first of each sequence, by each copy; only on the main process."""
        if not dist.is_main():
            return []
        jobs = [partial(self._score, url, rank, text) for url, rank in self._copies for text in sequences]
        found = dict(concurrently(jobs, self.config.rollout.batch_size or MOST_ROWS))
        size = len(sequences)
        return [[found[copy * size + place] for place in range(size)] for copy in range(len(self._copies))]

    def release(self) -> None:
        """A server on the same GPUs sleeps."""
        if self._sleeps and not self._asleep:
            dist.from_main(lambda: tell_all(self._urls, "/sleep?level=1"))
            self._asleep = True

    def update(self, version: int) -> None:
        """Send the weights, forget all that was computed with the old ones, and give the new ones a label."""
        assert self._transfer is not None, "start comes first"
        if self._asleep:
            dist.from_main(lambda: tell_all(self._urls, "/wake_up?tags=weights"))
        self._transfer.send()
        if self._asleep:
            dist.from_main(lambda: tell_all(self._urls, "/wake_up?tags=kv_cache"))
            self._asleep = False
        self._label = dist.from_main(lambda: self._finish(version))

    def close(self) -> None:
        """End the server that was started."""
        if self._transfer is not None:
            self._transfer.close()
            self._transfer = None
        if self._process is not None:
            self._process.close()
            self._process = None

    def _start(self) -> tuple[list[str], list[tuple[str, int | None]]]:
        options = self.config.vllm
        urls = [url.rstrip("/") for url in options.urls]
        if not urls:
            command, env = partial(server_command, self.config, self.policy), server_environment(self.config, self.policy)
            self._process = ServerProcess(command, env, self.folder / "server.log")
            urls = [self._process.url]
        for url in urls:
            wait_until_healthy(url, options.start_timeout, self.message, self._process)
        copies = [(url, rank) for url in urls for rank in self._checked(url)]
        if options.urls:
            tell_all(urls, "/weight_checker", {"action": "reset"})  # so that weights which the first update does not reach are seen
        return urls, copies

    def _checked(self, url: str) -> Sequence[int | None]:
        """Make sure that the server can do what is needed; returns the numbers of its copies of the model."""
        try:
            served = call(f"{url}/server_info?config_format=json", post=False, timeout=CONTROL_TIMEOUT)["vllm_config"]
            model, parallel, transfer = (served[f"{name}_config"] for name in ("model", "parallel", "weight_transfer"))
        except (Refused, KeyError, TypeError) as error:
            reason = f"vllm.urls must be vLLM servers in development mode, got {url} ({error})"
            raise ConnectionError(f"{reason}. {self._advice(url)}") from error
        found = {
            "--logprobs-mode": (model["logprobs_mode"], "processed_logprobs"),
            "--dtype": (model["dtype"].removeprefix("torch."), str(self.policy.dtype).removeprefix("torch.")),
        }
        if self.route == "disk":
            found["--worker-extension-cls"] = (parallel["worker_extension_cls"], WORKER)
        else:
            found["--weight-transfer-config backend"] = ((transfer or {}).get("backend"), self.route)
        for name, (has, needs) in found.items():
            if has != needs:
                raise ConnectionError(f"{url} must run with {name} {needs}, got {has}. {self._advice(url)}")
        if model["max_model_len"] < self.max_model_len:
            raise ConnectionError(
                f"{url} must run with --max-model-len >= {self.max_model_len}, got {model['max_model_len']}. {self._advice(url)}"
            )
        copies = parallel["data_parallel_size"]
        return range(copies) if copies > 1 else [None]

    def _advice(self, url: str) -> str:
        return f"A server that fits: {server_line(self.config, self.policy, url)}"

    def _finish(self, version: int) -> str:
        for url, answer in zip(self._urls, tell_all(self._urls, "/reset_prefix_cache"), strict=True):
            if not answer["success"]:
                raise SyncError(f"{url} must have no request in progress while its weights are replaced: who else uses it?")
        label = f"{uuid.uuid4().hex[:12]}-{version}"
        tell_all(self._urls, "/update_weight_version", {"new_version": label})
        return label

    def _complete(self, place: int, request: Request) -> Completion:
        body = {"token_ids": request.tokens, "sampling_params": request.sampling}
        answer = ask(self._urls, request.prompt, GENERATE, body, timeout=self.config.vllm.request_timeout)
        try:
            choice = answer["choices"][0]
            tokens, logprobs = choice["token_ids"], [content["logprob"] for content in choice["logprobs"]["content"]]
            labels = {span["version"] for span in choice["weight_versions"]}
        except (KeyError, IndexError, TypeError) as error:
            raise ConnectionError(f"{GENERATE} must answer as vLLM 0.32 does, got {json.dumps(answer)[:300]}") from error
        if not tokens or len(tokens) != len(logprobs):
            reason = choice.get("finish_reason")
            raise ConnectionError(
                f"{GENERATE} must answer with tokens and as many log-probs, got {len(tokens)} and {len(logprobs)} ({reason})"
            )
        if labels != {self._label}:
            raise SyncError(
                f"a server has answered with the weights {', '.join(sorted(labels))} in place of {self._label}: it was restarted, or "
                "somebody else updates it, too. Resume the run to begin with fresh weights"
            )
        return Completion(place, tokens, logprobs)

    def _score(self, url: str, copy: int | None, text: list[int]) -> list[float]:
        body = {"token_ids": text, "sampling_params": SCORING}
        headers = {} if copy is None else {"X-data-parallel-rank": str(copy)}
        answer = call(url + GENERATE, body, timeout=CONTROL_TIMEOUT, headers=headers)
        try:
            return [found[str(token)]["logprob"] for token, found in zip(text[1:], answer["prompt_logprobs"][1:], strict=True)]
        except (KeyError, TypeError, ValueError) as error:
            raise ConnectionError(f"{url} must answer with the log-probs of a prompt, got {json.dumps(answer)[:300]}") from error
