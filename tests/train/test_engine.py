"""What is asked of an engine with weights of its own, and how one is found out that does not have the policy's. The engine here is a copy of
the model, whose updates can be made to fail in the ways in which real ones do."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aer_train.cli import main
from aer_train.config.checks import check_config
from aer_train.config.tree import ModelConfig, RolloutConfig, TrainConfig, VLLMConfig
from aer_train.model import Policy, load_policy
from aer_train.rollout import vllm
from aer_train.rollout.backends import make_rollout
from aer_train.rollout.engine import Completion, EngineRollout, Request
from aer_train.rollout.probe import Probe
from aer_train.rollout.protocol import SyncError
from aer_train.rollout.server_command import server_line
from aer_train.seeds import sample_seed
from aer_train.types import Prompt
from tests.train.conftest import save_byte_model

PROMPTS = [Prompt(str(i), text, answer) for i, (text, answer) in enumerate([("12=?", "12"), ("7", "7"), ("345+6=?", "351"), ("98", "98")])]


class FakeEngine:
    """A copy of the model with random weights, which draws with a torch generator for each request."""

    max_model_len = 64

    def __init__(self, policy: Policy) -> None:
        self.policy, self.calls = policy, list[str]()
        self.model = copy.deepcopy(policy.model)
        self.arrives: Callable[[str], bool] = lambda name: True
        self.requests: list[Request] = []

    @torch.no_grad()
    def start(self) -> None:
        self.calls.append("start")
        for parameter in self.model.parameters():
            parameter.uniform_(-1e-3, 1e-3)

    @torch.no_grad()
    def update(self, version: int) -> None:
        self.calls.append(f"update {version}")
        for name, parameter in self.model.named_parameters():
            if self.arrives(name):
                parameter.copy_(self.policy.model.get_parameter(name))

    def release(self) -> None:
        self.calls.append("release")

    def close(self) -> None:
        self.calls.append("close")

    @torch.no_grad()
    def logprobs(self, tokens: list[int]) -> torch.Tensor:
        return torch.log_softmax(self.model(torch.tensor([tokens])).logits[0], -1)

    def score(self, sequences: list[list[int]]) -> list[list[list[float]]]:
        self.calls.append("score")
        return [[self.logprobs(s)[range(len(s) - 1), s[1:]].tolist() for s in sequences]]

    def complete(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
        self.requests = list(requests)
        for place, request in reversed(list(enumerate(requests))):
            generator = torch.Generator().manual_seed(request.sampling["seed"])
            tokens, found = list(request.tokens), []
            while len(found) < request.sampling["max_tokens"] and (not found or tokens[-1] not in request.sampling["stop_token_ids"]):
                logprobs = torch.log_softmax(self.logprobs(tokens)[-1] / request.sampling["temperature"], -1)
                tokens.append(int(torch.multinomial(logprobs.exp(), 1, generator=generator)))
                found.append(logprobs[tokens[-1]].item())
            yield [Completion(place, tokens[len(request.tokens) :], found)]


def make(policy: Policy, tolerance: float | None = None, **options: Any) -> EngineRollout:
    return EngineRollout(policy, RolloutConfig(**{"max_new_tokens": 7, **options}), FakeEngine(policy), Probe(policy, PROMPTS, tolerance))


def move(policy: Policy, size: float) -> None:
    """Every parameter a step in a direction of its own, as an optimizer makes it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator).sign()


def test_samples_are_those_of_the_protocol(policy: Policy) -> None:
    """As transformers' backend: order, places, the end token within the response, the text without it, and the version."""
    rollout = make(policy)
    rollout.sync(4)
    samples = rollout.generate(PROMPTS[1:], 3, (0, "train", 5), first=1)
    assert [(s.prompt, s.index) for s in samples] == [(p, i) for p in (1, 2, 3) for i in range(3)]
    assert (
        samples == rollout.generate(PROMPTS[1:], 3, (0, "train", 5), first=1) != rollout.generate(PROMPTS[1:], 3, (0, "train", 6), first=1)
    )
    assert {s.finished for s in samples} == {True, False}
    for s in samples:
        assert s.prompt_tokens == policy.tokenizer.encode(PROMPTS[s.prompt].text) and s.version == 4
        assert s.finished == (s.tokens[-1] in policy.eos_ids) and not policy.eos_ids & set(s.tokens[:-1])
        assert len(s.tokens) == len(s.logprobs) <= 7 and s.text == policy.tokenizer.decode([t for t in s.tokens if t > 1])
    assert rollout.generate([], 3, (0,)) == []


def test_what_is_asked_for(policy: Policy) -> None:
    rollout = make(policy, temperature=0.7)
    rollout.sync(0)
    rollout.generate(PROMPTS[:2], 2, (3, "eval"))
    requests = rollout.engine.requests
    assert [(r.prompt, r.tokens) for r in requests] == [(p, policy.tokenizer.encode(PROMPTS[p].text)) for p in (0, 0, 1, 1)]
    assert [r.sampling["seed"] for r in requests] == [sample_seed(3, "eval", p, i) >> 1 for p in (0, 1) for i in (0, 1)]
    assert requests[0].sampling == {
        "temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": requests[0].sampling["seed"], "max_tokens": 7,
        "stop_token_ids": sorted(policy.eos_ids), "ignore_eos": True, "logprobs": 0, "detokenize": False,
    }  # fmt: skip


def test_the_life_of_an_engine(policy: Policy) -> None:
    rollout = make(policy)
    assert rollout.engine.calls == [], "nothing is started before the run folder exists"
    rollout.sync(0)
    rollout.release()
    rollout.sync(1)
    rollout.close()
    assert rollout.engine.calls == ["start", "update 0", "score", "release", "update 1", "score", "close"]


def test_what_is_told_of_the_start(policy: Policy) -> None:
    rollout, told = make(policy), list[str]()
    rollout.message = told.append
    rollout.sync(0)
    rollout.sync(1)
    assert told[0] == "starting vLLM" and len(told) == 2
    assert re.fullmatch(
        r"vLLM is ready after \d+ s, .* probed in \d+\.\d s: mean difference of its log-probs [\d.e-]+ nats, tolerance 0.001", told[1]
    )


def test_prompts_that_do_not_fit(policy: Policy) -> None:
    rollout = make(policy, max_new_tokens=60)
    rollout.sync(0)
    with pytest.raises(
        ValueError, match=r"vllm.max_model_len must hold a prompt of 7 tokens and a response of rollout.max_new_tokens 60, got 64"
    ):
        rollout.generate(PROMPTS, 2, (0,))


def test_a_diverged_policy_is_reported(policy: Policy) -> None:
    rollout = make(policy)
    rollout.sync(0)
    rollout.engine.complete = lambda requests: iter([[Completion(0, [3], [float("nan")])]])
    with pytest.raises(FloatingPointError, match=r"log-probs must be finite, .* lower optim.lr"):
        rollout.generate(PROMPTS, 2, (0,))
    with torch.no_grad():
        policy.head.weight[3] = torch.nan
    with pytest.raises(SyncError, match=r"after step 1: its log-probs .* by nan nats"):
        rollout.sync(1)


def test_probe_figures(policy: Policy, model_folder: Path) -> None:
    """Against full logits of the model before and after a step."""
    rollout, other = make(policy), load_policy(ModelConfig(name=str(model_folder)), torch.device("cpu"))
    sequences = rollout.probe.sequences
    assert sequences == [policy.tokenizer.encode(p.text + p.answer) for p in PROMPTS]
    first = rollout.sync(0)
    assert first["rollout/probe_moved"] is None and first["rollout/probe_followed"] is None
    move(policy, 1e-3)
    second = rollout.sync(1)
    distances = []
    for tokens in sequences:
        logits = [
            p.model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)[range(len(tokens) - 1), tokens[1:]] for p in (policy, other)
        ]
        distances += (logits[0] - logits[1]).abs().tolist()
    assert second["rollout/probe_moved"] == pytest.approx(sum(distances) / len(distances), rel=1e-3)
    assert second["rollout/probe_followed"] == pytest.approx(second["rollout/probe_moved"], rel=1e-3)
    assert 0 <= second["rollout/probe_mean"] <= second["rollout/probe_max"] < 1e-5


def body(name: str) -> bool:
    return "embed" not in name


def no_norms(name: str) -> bool:
    return "norm" not in name


@pytest.mark.parametrize("arrives", [lambda name: False, body, no_norms], ids=["nothing", "all but the (tied) head", "all but the norms"])
def test_what_the_first_update_does_not_reach_is_seen_at_once(policy: Policy, arrives: Callable[[str], bool]) -> None:
    """Though the policy has not moved since the engine could have loaded it."""
    rollout = make(policy)
    rollout.engine.arrives = arrives
    with pytest.raises(
        SyncError, match=r"vLLM does not have the policy's weights after step 0: .* vllm.probe_tolerance is 0.001.*rollout.backend hf"
    ):
        rollout.sync(0)


def test_a_stale_head_is_seen_when_it_matters(policy: Policy) -> None:
    rollout = make(policy)
    rollout.sync(0)
    rollout.engine.arrives = body
    move(policy, 1e-2)
    with pytest.raises(SyncError, match="vLLM does not have the policy's weights after step 1"):
        rollout.sync(1)


def test_an_engine_that_stays_behind_is_seen_long_before_the_tolerance(policy: Policy) -> None:
    """Steps far smaller than the tolerance: updates that do nothing are found by the engine's standing still."""
    rollout = make(policy, tolerance=0.05)
    rollout.sync(0)
    for version in range(1, 4):
        move(policy, 1e-5)
        found = rollout.sync(version)
        assert found["rollout/probe_moved"] > 0 and found["rollout/probe_followed"] == pytest.approx(found["rollout/probe_moved"], rel=0.05)
    rollout.engine.arrives = lambda name: False
    with pytest.raises(
        SyncError, match=r"vLLM still has older weights after step \d+: the trainer's log-probs .* have moved by 0.00\d+ nats"
    ):
        for version in range(4, 100):
            move(policy, 1e-5)
            assert rollout.sync(version)["rollout/probe_mean"] < 2e-3


def test_rounding_is_no_alarm(policy: Policy) -> None:
    """A policy that stands still, or moves less than can be told from rounding, beside an engine with noise of its own."""
    rollout, noise = make(policy, tolerance=0.05), torch.Generator().manual_seed(0)
    exact = rollout.engine.score
    rollout.engine.score = lambda s: [[[x + 0.015 * float(torch.randn(1, generator=noise)) for x in row] for row in exact(s)[0]]]
    for version in range(30):
        assert rollout.sync(version)["rollout/probe_mean"] < 0.03
        move(policy, 1e-6 if version % 2 else 0.0)


def test_the_worst_of_several_copies_counts(policy: Policy) -> None:
    """One copy that has missed an update, among others that have not."""
    rollout = make(policy)
    rollout.sync(0)
    one, stale = rollout.engine.score, rollout.engine.score(rollout.probe.sequences)[0]
    rollout.engine.score = lambda s: one(s) * 3
    rollout.probe._before = None
    rollout.sync(0)
    move(policy, 1e-5)
    rollout.engine.score = lambda s: [*one(s), stale, *one(s)]
    with pytest.raises(SyncError, match="vLLM still has older weights after step 1"):
        rollout.sync(1)


def test_probe_texts(policy: Policy) -> None:
    """Enough short ones, no more than needed of long ones, each cut where it must be."""
    assert sum(map(len, Probe(policy, PROMPTS * 1000).sequences)) in range(1024, 1035)
    long = Prompt("long", "1" * 500, "2")
    assert [len(s) for s in Probe(policy, [long] * 9).sequences] == [256] * 4
    assert [len(s) for s in Probe(policy, [long] * 9, longest=100).sequences][:2] == [100, 100]
    assert len(Probe(policy, [Prompt("", "7", ""), *PROMPTS]).sequences) == 4, "a single token has no log-prob"


def engine_config(folder: Path, **options: Any) -> TrainConfig:
    return TrainConfig(model=ModelConfig(name=str(folder)), rollout=RolloutConfig(backend="vllm"), vllm=VLLMConfig(**options))


def test_engine_arguments(policy: Policy, model_folder: Path) -> None:
    config = engine_config(model_folder, engine_args=("kv_cache_dtype=fp8", "enforce_eager=false", "max_num_batched_tokens=4096"))
    arguments = vllm.engine_arguments(config, policy)
    expected = {
        "model": str(model_folder), "dtype": "float32", "load_format": "dummy", "generation_config": "vllm", "max_num_seqs": 256,
        "logprobs_mode": "processed_logprobs", "max_model_len": 1024 + 512, "kv_cache_dtype": "fp8", "enforce_eager": False,
        "max_num_batched_tokens": 4096, "enable_sleep_mode": False,
    }  # fmt: skip
    assert {name: arguments[name] for name in expected} == expected
    assert vllm.max_model_len(replace(config, data=replace(config.data, max_prompt_tokens=10**6)), policy) == 32768, "where the model ends"
    with pytest.raises(ValueError, match=r"vllm.engine_args must not name what the trainer decides, got dtype, load_format"):
        vllm.engine_arguments(engine_config(model_folder, engine_args=("load_format=auto", "dtype=half")), policy)


def test_the_engine_s_logits_are_float32(model_folder: Path) -> None:
    """vLLM rounds those of a bfloat16 model to bfloat16 unless it is told otherwise; the trainer does not."""
    policy = load_policy(ModelConfig(name=str(model_folder), dtype="bfloat16"), torch.device("cpu"))
    assert vllm.engine_arguments(engine_config(model_folder), policy)["hf_overrides"] == {"head_dtype": "float32"}
    config = engine_config(model_folder, engine_args=('hf_overrides={"rope_theta": 7.0, "head_dtype": "model"}',))
    assert vllm.engine_arguments(config, policy)["hf_overrides"] == {"rope_theta": 7.0, "head_dtype": "model"}
    assert '--hf-overrides \'{"head_dtype": "float32"}\'' in server_line(engine_config(model_folder), policy, "http://node:8000")


@pytest.mark.parametrize(
    ("backend", "options", "match"),
    [
        ("vllm", {"probe_tolerance": 0.0}, "vllm.probe_tolerance must be > 0 or None, got 0.0"),
        ("vllm", {"max_model_len": 512}, r"vllm.max_model_len must be > rollout.max_new_tokens \(512\) or None, got 512"),
        ("vllm", {"gpu_memory_utilization": 1.2}, r"vllm.gpu_memory_utilization must be in \(0, 1\], got 1.2"),
        ("vllm", {"tensor_parallel_size": 2}, "vllm.tensor_parallel_size must be 1, or >= 1 for a server that is started, got 2"),
        ("vllm", {"urls": ("http://a:8000",)}, "vllm.urls must be empty unless rollout.backend is vllm_server"),
        ("vllm_server", {"urls": ("a:8000",)}, "vllm.urls must each start with http://, https:// or http\\+unix://, got a:8000"),
        ("vllm_server", {"urls": ("http://a:8000",), "weight_transfer": "ipc"}, "vllm.weight_transfer must not be ipc for vllm.urls"),
        ("vllm_server", {"weight_transfer": "nccl"}, "vllm.weight_transfer must not be nccl without vllm.urls"),
        ("vllm", {"engine_args": ("--eager",)}, "vllm.engine_args must each be name=value, got --eager"),
    ],
)
def test_options_are_checked(backend: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        check_config(TrainConfig(rollout=RolloutConfig(backend=backend), vllm=VLLMConfig(**options)))


def test_sleep_around_training(policy: Policy, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls to an engine that shares a GPU, which only a GPU can obey: asleep from release to the next update, weights before the cache."""
    calls: list[Any] = []

    class Recorder:
        def __getattr__(self, name: str) -> Callable[..., bool]:
            return lambda *args, **options: calls.append((name, *args, options)) or True

        def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
            calls.append((method, [(name, tensor.dtype) for name, tensor in kwargs["weights"]]))

    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    engine = vllm.LocalEngine(engine_config(model_folder), policy)
    engine._llm, engine._arguments["enable_sleep_mode"] = Recorder(), True
    engine.update(0)
    engine.release()
    engine.release()
    engine.update(1)
    weights = ("load_policy", [(name, torch.float32) for name, _ in policy.model.named_parameters()])
    assert calls == [
        weights,
        ("reset_prefix_cache", {}),
        ("sleep", {"level": 1}),
        ("wake_up", {"tags": ["weights"]}),
        weights,
        ("wake_up", {"tags": ["kv_cache"]}),
        ("reset_prefix_cache", {}),
    ]


def test_missing_vllm_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    out = tmp_path / "run"
    save_byte_model(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text('{"problem": "1+1=?", "answer": "2"}\n')
    args = [f"--run.out={out}", f"--model.name={tmp_path / 'model'}", f"--data.train={tmp_path / 'data.jsonl'}", "--rollout.backend=vllm"]
    assert main(["train", *args]) == 2
    assert 'error: rollout.backend vllm needs: pip install "aer-rl[vllm]"' in capsys.readouterr().err
    assert not out.exists()


def test_a_failed_sync_is_told_in_one_line(
    config_of_a_run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(config: TrainConfig, policy: Policy, prompts: Sequence[Prompt], *_: Any) -> EngineRollout:
        rollout = EngineRollout(policy, config.rollout, FakeEngine(policy), Probe(policy, prompts))
        rollout.engine.arrives = lambda name: False
        return rollout

    monkeypatch.setattr("aer_train.trainer.make_rollout", broken)
    assert main(["train", *config_of_a_run]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: vLLM does not have the policy's weights after step 0")


@pytest.fixture
def config_of_a_run(model_folder: Path, tmp_path: Path) -> list[str]:
    return [
        f"--run.out={tmp_path / 'run'}",
        f"--model.name={model_folder}",
        "--reward.kind=countdown",
        "--run.steps=1",
        "--rollout.max_new_tokens=4",
    ]


def test_the_default_backend_is_the_policy_itself(policy: Policy, tmp_path: Path) -> None:
    rollout = make_rollout(TrainConfig(), policy, PROMPTS, tmp_path)
    assert rollout.sync(3) == {"rollout/version": 3}
