"""The client of vLLM servers against a small server that answers as vLLM does."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aer_train.config.tree import DataConfig, ModelConfig, RolloutConfig, TrainConfig, VLLMConfig
from aer_train.model import Policy, load_policy
from aer_train.rollout import http
from aer_train.rollout.backends import make_rollout
from aer_train.rollout.engine import EngineRollout
from aer_train.rollout.hf import HFRollout
from aer_train.rollout.http import Refused, ask, call, concurrently
from aer_train.rollout.protocol import SyncError
from aer_train.rollout.server_process import private_folder, wait_until_healthy
from aer_train.types import Prompt
from tests.ranks import free_port
from tests.train.fake_vllm_server import FakeServer

PROMPTS = [Prompt(str(i), f"{i}+{7 * i % 10}=?", str(i)) for i in range(5)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSE", 0.001)


@pytest.fixture
def servers(model_folder: Path) -> Iterator[list[FakeServer]]:
    """One on a port and one on a Unix socket."""
    folder = private_folder()
    found = [FakeServer(model_folder), FakeServer(model_folder, folder / "http")]
    yield found
    for server in found:
        server.close()
    shutil.rmtree(folder)


def rollout_of(policy: Policy, servers: list[FakeServer], folder: Path, **options: Any) -> EngineRollout:
    vllm = VLLMConfig(urls=tuple(server.url for server in servers), start_timeout=5.0, **options)
    rollout = RolloutConfig(backend="vllm_server", max_new_tokens=6, temperature=0.8)
    config = TrainConfig(model=ModelConfig(name=str(folder)), rollout=rollout, vllm=vllm, data=DataConfig(max_prompt_tokens=20))
    found = make_rollout(config, policy, PROMPTS, folder, lambda text: None)
    assert isinstance(found, EngineRollout)
    return found


@pytest.mark.slow
def test_samples_of_the_present_policy(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    """Through two updates: each server has the weights, gets whole groups in turn, and samples are in their places."""
    rollout = rollout_of(policy, servers, tmp_path)
    for version in range(2):
        found = rollout.sync(version)
        assert found["rollout/version"] == version and found["rollout/probe_max"] < 1e-5
        samples = rollout.generate(PROMPTS, 3, (0, version))
        assert [(s.prompt, s.index, s.version) for s in samples] == [(p, i, version) for p in range(5) for i in range(3)]
        for s in samples:
            logits = policy.model(torch.tensor([s.prompt_tokens + s.tokens])).logits[0, len(s.prompt_tokens) - 1 : -1] / 0.8
            expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(s.tokens)[:, None])[:, 0]
            assert s.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
            assert s.finished == (s.tokens[-1] in policy.eos_ids)
        with torch.no_grad():
            policy.head.weight += 0.1 * torch.randn_like(policy.head.weight)
    sent = [{tuple(policy.tokenizer.encode(PROMPTS[p].text)) for p in places} for places in ((0, 2, 4), (1, 3))]
    assert [set(server.prompts) for server in servers] == sent
    for server in servers:
        assert server.calls == {
            "/health": 1, "/server_info?config_format=json": 1, "/weight_checker": 1, "/collective_rpc": 2, "/reset_prefix_cache": 2, "/update_weight_version": 2,
        }  # fmt: skip
    assert (tmp_path / "vllm" / "weights").is_dir()
    rollout.close()
    assert not (tmp_path / "vllm" / "weights").exists()


def test_adapters_are_served_within_their_model(servers: list[FakeServer], model_folder: Path, tmp_path: Path) -> None:
    """The probe, which compares the servers' log-probs with those of the policy, sees the adapters; a server that keeps the model alone is
    found."""
    policy = load_policy(ModelConfig(name=str(model_folder), lora_rank=4), torch.device("cpu"))
    rollout = rollout_of(policy, servers, tmp_path)
    for version in range(2):
        assert rollout.sync(version)["rollout/probe_max"] < 1e-5
        with torch.no_grad():
            for parameter in policy.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    servers[1].loads_weights = False
    with pytest.raises(SyncError, match="vLLM still has older weights after step 2"):
        rollout.sync(2)


@pytest.mark.slow
def test_the_same_names_give_the_same_samples(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    one, two = rollout_of(policy, servers[:1], tmp_path), rollout_of(policy, servers, tmp_path)
    one.sync(0)
    alone = one.generate(PROMPTS, 2, (0,))
    two.sync(0)
    assert [s.tokens for s in two.generate(PROMPTS, 2, (0,))] == [s.tokens for s in alone]
    assert [s.tokens for s in two.generate(PROMPTS[3:], 2, (0,), first=3)] == [s.tokens for s in alone if s.prompt >= 3]


def test_failures_that_pass(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    """Overload, a dropped connection, an answer of something in between: asked again, elsewhere, for the same sample."""
    rollout = rollout_of(policy, servers, tmp_path)
    rollout.sync(0)
    expected = rollout.generate(PROMPTS, 2, (0,))
    servers[0].failures = [503, "", "<html>busy</html>", 500]
    assert rollout.generate(PROMPTS, 2, (0,)) == expected
    assert not servers[0].failures


def test_failures_that_stay(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    rollout = rollout_of(policy, servers[:1], tmp_path)
    rollout.sync(0)
    servers[0].failures = [503] * 4
    with pytest.raises(
        ConnectionError, match=rf"no answer in 4 attempts, last: {servers[0].url}/inference/v1/generate answered 503: failure 503"
    ):
        rollout.generate(PROMPTS[:1], 1, (0,))
    servers[0].failures = [400, 503]
    with pytest.raises(Refused, match="answered 400: failure 400"):
        rollout.generate(PROMPTS[:1], 1, (0,))
    assert servers[0].failures == [503], "what is wrong with the request will stay wrong"
    servers[0].failures = ['{"choices": []}', '{"choices": [{"token_ids": [], "logprobs": {"content": []}, "weight_versions": []}]}']
    with pytest.raises(ConnectionError, match=r"must answer as vLLM 0.32 does, got .*choices"):
        rollout.generate(PROMPTS[:1], 1, (0,))
    with pytest.raises(ConnectionError, match="must answer with tokens and as many log-probs, got 0 and 0"):
        rollout.generate(PROMPTS[:1], 1, (0,))
    servers[0].close()
    with pytest.raises(ConnectionError, match=r"no answer in 4 attempts, last: .*/inference/v1/generate cannot be reached"):
        rollout.generate(PROMPTS[:1], 1, (0,))


def test_a_server_that_hangs(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    rollout = rollout_of(policy, servers[:1], tmp_path, request_timeout=0.2)
    rollout.sync(0)
    with servers[0].lock, pytest.raises(TimeoutError, match=r"/inference/v1/generate did not answer within 0.2 s"):
        rollout.generate(PROMPTS[:1], 1, (0,))


def test_a_server_that_lost_its_weights(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    """Restarted by its keeper, or updated by another run, since the last update: seen in the first answer."""
    rollout = rollout_of(policy, servers, tmp_path)
    rollout.sync(2)
    servers[1].label = "default"
    with pytest.raises(SyncError, match=r"a server has answered with the weights default in place of \w+-2: it was restarted"):
        rollout.generate(PROMPTS, 1, (0,))


def test_one_server_of_two_that_stays_behind(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    rollout = rollout_of(policy, servers, tmp_path)
    rollout.sync(0)
    servers[1].loads_weights = False
    with torch.no_grad():
        policy.head.weight += 1e-4
    with pytest.raises(SyncError, match="vLLM still has older weights after step 1"):
        rollout.sync(1)


def test_a_server_that_has_the_weights_from_elsewhere_and_takes_no_update(
    policy: Policy, servers: list[FakeServer], tmp_path: Path
) -> None:
    """It was started from the policy's own folder: without the reset before the first update, the first probe would see nothing."""
    servers[0].loads_weights = False
    with pytest.raises(SyncError, match="vLLM does not have the policy's weights after step 0"):
        rollout_of(policy, servers[:1], tmp_path).sync(0)


@pytest.mark.parametrize(
    ("section", "name", "value", "match"),
    [
        ("model_config", "logprobs_mode", "raw_logprobs", r"must run with --logprobs-mode processed_logprobs, got raw_logprobs"),
        ("model_config", "dtype", "torch.bfloat16", r"must run with --dtype float32, got bfloat16"),
        ("model_config", "max_model_len", 25, r"must run with --max-model-len >= 26, got 25"),
        (
            "parallel_config",
            "worker_extension_cls",
            "",
            rf"must run with --worker-extension-cls {'aer_train.rollout.vllm_worker.PolicyWeights'}",
        ),
        ("model_config", None, None, r"vllm.urls must be vLLM servers in development mode"),
    ],
)
def test_servers_that_do_not_fit(
    policy: Policy, servers: list[FakeServer], tmp_path: Path, section: str, name: str, value: Any, match: str
) -> None:
    if name is None:
        del servers[1].config[section]
    else:
        servers[1].config[section][name] = value
    with pytest.raises(
        ConnectionError, match=match + r"[^\n]* A server that fits: VLLM_SERVER_DEV_MODE=1 vllm serve .*--logprobs-mode processed_logprobs"
    ):
        rollout_of(policy, servers, tmp_path).sync(0)


def test_copies_behind_one_url_are_all_probed(
    policy: Policy, servers: list[FakeServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers[0].config["parallel_config"]["data_parallel_size"] = 3
    seen = []
    real = call

    def recording(url: str, body: Any = None, **options: Any) -> Any:
        seen.append((options.get("headers") or {}).get("X-data-parallel-rank"))
        return real(url, body, **options)

    monkeypatch.setattr("aer_train.rollout.vllm_server.call", recording)
    rollout_of(policy, servers, tmp_path).sync(0)
    assert {rank: seen.count(rank) for rank in ("0", "1", "2")} == dict.fromkeys("012", 5)


def test_jobs_in_threads() -> None:
    together = threading.Barrier(4, timeout=10)
    assert sorted(concurrently([together.wait] * 4, 4)) == [(place, pytest.approx(1.5, abs=1.5)) for place in range(4)], "four at a time"
    assert dict(concurrently([lambda place=place: place**2 for place in range(50)], 3)) == {place: place**2 for place in range(50)}
    ran = []
    jobs = [lambda place=place: time.sleep(0.001) or ran.append(place) or 1 // (place != 3) for place in range(2000)]
    with pytest.raises(ZeroDivisionError):
        list(concurrently(jobs, 1))
    count = len(ran)
    time.sleep(0.05)
    assert len(ran) <= count + 1 < 2000, "after an error no new job is begun"


def test_nobody_at_home() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionError, match=f"{url}/x cannot be reached: .*refused"):
        call(url + "/x", timeout=1.0)
    with pytest.raises(ConnectionError, match="no answer in 4 attempts"):
        ask([url], 0, "/x", {}, timeout=1.0)
    with pytest.raises(TimeoutError, match=r"vLLM must answer within vllm.start_timeout = 0.1 s, got: .* cannot be reached"):
        wait_until_healthy(url, 0.1, lambda text: None)


def test_sleep_around_training(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    """The order of calls to a server that shares the GPU: asleep from release to the next update, its cache back after the weights."""
    rollout = rollout_of(policy, servers[:1], tmp_path)
    rollout.sync(0)
    order: list[str] = []
    servers[0].calls = SimpleNamespace(__getitem__=None)  # type: ignore[assignment]

    class Recorder(dict):  # type: ignore[type-arg]
        def __missing__(self, key: str) -> int:
            return 0

        def __setitem__(self, key: str, value: int) -> None:
            order.append(key)

    servers[0].calls = Recorder()  # type: ignore[assignment]
    rollout.engine._sleeps = True  # as on a GPU
    rollout.release()
    rollout.release()
    rollout.sync(1)
    rollout.sync(2)
    update = ["/collective_rpc", "/reset_prefix_cache", "/update_weight_version"]
    assert order == ["/sleep?level=1", "/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache", *update[1:], *update]


@pytest.mark.slow
def test_the_backends_draw_from_the_same_distribution(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    """First tokens of the server's backend and of transformers', which have nothing in common but the protocol."""
    rollout = rollout_of(policy, servers, tmp_path)
    rollout.sync(0)
    config = replace(rollout.config, max_new_tokens=1)
    rollout.config = config
    counts = [
        torch.bincount(torch.tensor([s.tokens[0] for s in source.generate(PROMPTS[:1], 400, (0,))]), minlength=17)
        for source in (rollout, HFRollout(policy, config))
    ]
    both = (counts[0] + counts[1]).double()
    usual = both > 10
    chi_square = ((counts[0] - counts[1]).double()[usual] ** 2 / both[usual]).sum().item()
    freedom = int(usual.sum()) - 1
    assert freedom >= 4 and chi_square < freedom + 4 * (2 * freedom) ** 0.5
