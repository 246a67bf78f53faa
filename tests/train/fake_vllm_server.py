"""What this project uses of a vLLM 0.32 server, answered by transformers in a thread, with the failures that real ones have."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch
from safetensors.torch import load_file

from aer_train.rollout.http import socket_url
from aer_train.rollout.vllm import WORKER


class PortServer(ThreadingHTTPServer):
    """On a port; many may connect at once, also where the machine is slow to accept."""

    request_queue_size = 1024


class SocketServer(PortServer):
    """On a Unix socket."""

    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "", 0

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, _ = super().get_request()
        return connection, ("", 0)


class FakeServer:
    """Serves a model folder at `url`: on a free port, or on a Unix socket."""

    def __init__(self, folder: Path, file: Path | None = None) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.label, self.loads_weights, self.copies = "default", True, 1
        self.calls = Counter[str]()
        """By path; what is generated apart, for scores are also asked for there."""
        self.prompts: list[tuple[int, ...]] = []
        """Of the requests for a sample, in the order of their coming."""
        self.times: list[tuple[float, float, str]] = []
        """Of these requests: when each began and ended by the server's clock, seconds, and the label of its weights."""
        self.updates: list[float] = []
        """When weights have come."""
        self.failures: list[int | str] = []
        """What the next requests for a sample or a score get: an error status, a text, or a dropped connection ("")."""
        self.config: dict[str, Any] = {
            "model_config": {"logprobs_mode": "processed_logprobs", "dtype": "torch.float32", "max_model_len": 4096},
            "parallel_config": {"data_parallel_size": 1, "worker_extension_cls": WORKER},
            "weight_transfer_config": None,
        }
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.answer(json.loads(body) if body else {})

            def answer(self, body: Any) -> None:
                url = urlsplit(self.path)
                with server.lock:
                    status, found = server.reply(url.path, parse_qs(url.query), body)
                if found == "":
                    return self.connection.close()
                data = found.encode() if isinstance(found, str) else json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = PortServer(("127.0.0.1", 0), Handler) if file is None else SocketServer(str(file), Handler)  # type: ignore[arg-type]
        self.url = f"http://127.0.0.1:{self._http.server_port}" if file is None else socket_url(file)
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def reply(self, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        if path == "/inference/v1/generate":
            if self.failures:
                failure = self.failures.pop(0)
                return (failure, {"error": {"message": f"failure {failure}"}}) if isinstance(failure, int) else (200, failure)
            return 200, self.generate(body["token_ids"], body["sampling_params"])
        self.calls[path + (f"?{','.join(f'{k}={v[0]}' for k, v in query.items())}" if query else "")] += 1
        if path == "/weight_checker" and body == {"action": "reset"}:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.zero_()
            return 200, {"status": "reset"}
        if path == "/collective_rpc" and body["method"] == "load_policy":
            if self.loads_weights:
                self.updates.append(time.monotonic())
                weights = load_file(Path(body["kwargs"]["folder"]) / "model.safetensors")
                assert self.model.load_state_dict(weights, strict=False).unexpected_keys == []
            return 200, {"results": [None]}
        if path == "/update_weight_version":
            self.label = body["new_version"]
            return 200, {"success": True}
        known = {
            "/health": None,
            "/server_info": {"vllm_config": self.config},
            "/reset_prefix_cache": {"success": True},
            "/sleep": {},
            "/wake_up": {},
        }
        return (200, known[path]) if path in known else (404, {"detail": "Not Found"})

    @torch.no_grad()
    def generate(self, prompt: list[int], sampling: dict[str, Any]) -> dict[str, Any]:
        if "prompt_logprobs" in sampling:
            logprobs = torch.log_softmax(self.model(torch.tensor([prompt])).logits[0], -1)
            scores = [None, *({str(t): {"logprob": logprobs[i, t].item()}} for i, t in enumerate(prompt[1:]))]
            return {"choices": [], "prompt_logprobs": scores}
        start = time.monotonic()
        self.prompts.append(tuple(prompt))
        generator, tokens, found = torch.Generator().manual_seed(sampling["seed"]), list(prompt), []
        while len(found) < sampling["max_tokens"] and (not found or tokens[-1] not in sampling["stop_token_ids"]):
            logprobs = torch.log_softmax(self.model(torch.tensor([tokens])).logits[0, -1] / sampling["temperature"], -1)
            tokens.append(int(torch.multinomial(logprobs.exp(), 1, generator=generator)))
            found.append({"token_id": tokens[-1], "logprob": logprobs[tokens[-1]].item()})
        self.times.append((start, time.monotonic(), self.label))
        versions = [{"version": self.label, "start": 0, "end": len(found)}]
        return {"choices": [{"token_ids": tokens[len(prompt) :], "logprobs": {"content": found}, "weight_versions": versions}]}
