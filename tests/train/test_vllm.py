"""vLLM lane: the real engine (its CPU build is enough) behind the trainer. `make test-vllm` makes the environment and runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aer_kernels import EntropyControlConfig
from aer_train.config.tree import DataConfig, ModelConfig, OptimConfig, RewardConfig, RolloutConfig, RunConfig, TrainConfig, VLLMConfig
from aer_train.model import Policy, load_policy
from aer_train.rollout import vllm_worker
from aer_train.rollout.backends import make_rollout
from aer_train.rollout.engine import EngineRollout
from aer_train.rollout.http import call, socket_url
from aer_train.rollout.protocol import SyncError
from aer_train.rollout.transfer import EngineTransfer
from aer_train.run.folder import read_metrics
from aer_train.trainer import train
from aer_train.types import Prompt, Sample, Sampling
from tests.train.conftest import CHARACTERS, save_tokenizer
from tests.train.kept_engine import KeptEngine
from tests.train.same_run import assert_same_run
from tests.train.test_other_users import as_nobody, listening

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.usefixtures("kept_engine"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SMALL_CACHE = ("num_gpu_blocks_override=512",)
"""33 MB in place of a GiB, whose pages an engine touches when it starts: room for every sample that is drawn at a time."""

SHORT_START = {
    "TORCHDYNAMO_DISABLE": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent / "without_gc"), os.environ.get("PYTHONPATH")])),
}
"""For engines in other processes than this one, which would take seconds to compile a function of the sampler and to look for rubbish."""

PROMPTS = [Prompt(str(i), f"{i}+{7 * i % 10}=?", str(i)) for i in range(12)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models with a tied and an untied head."""
    return {name: save_random_model(tmp_path_factory.mktemp(name), tied=name == "tied") for name in ("tied", "untied")}


def save_random_model(folder: Path, tied: bool, shared: float = 0.0) -> Path:
    """A random Qwen3 whose attention heads are wide enough for vLLM on a CPU, published with settings that would bend the samples.

    Args:
        shared: size of a random vector that is added to every row of an untied head. It changes no probability, as it moves all logits alike.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    save_tokenizer(folder)
    config = Qwen3Config(
        vocab_size=len(CHARACTERS) + 2,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    if shared:
        model.lm_head.weight.data += shared * torch.randn(config.hidden_size)
    model.save_pretrained(folder)
    bending = {"eos_token_id": [1, 16], "repetition_penalty": 3.0, "top_k": 1, "temperature": 0.1, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(bending))
    return folder


def configuration(folder: Path, out: Path, **rollout: Any) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(name=str(folder)),
        data=DataConfig(max_prompt_tokens=32),
        rollout=RolloutConfig(**{"backend": "vllm", "group_size": 4, "max_new_tokens": 8, "temperature": 0.8, **rollout}),
        reward=RewardConfig(kind="tests.train.rewards.even_share", workers=1),
        method=EntropyControlConfig(target=5.0),
        optim=OptimConfig(lr=1e-3, prompts_per_step=8, updates_per_step=2, warmup_steps=0),
        run=RunConfig(out=str(out), steps=3, threads=1, save_every=2),
        vllm=VLLMConfig(engine_args=SMALL_CACHE),
    )


@pytest.fixture
def running(folders: dict[str, Path], tmp_path: Path) -> Iterator[tuple[Policy, EngineRollout]]:
    """A policy with a tied head, and an engine that has its weights."""
    config = configuration(folders["tied"], tmp_path / "run")
    policy = load_policy(config.model, torch.device("cpu"))
    rollout = make_rollout(config, policy, PROMPTS, Path(config.run.out))
    assert isinstance(rollout, EngineRollout)
    rollout.sync(0)
    yield policy, rollout
    rollout.close()


def full_logprobs(policy: Policy, sample: Sample, temperature: float) -> torch.Tensor:
    """(response tokens, V), by transformers alone."""
    logits = policy.model(torch.tensor([sample.prompt_tokens + sample.tokens])).logits[0, len(sample.prompt_tokens) - 1 : -1]
    return torch.log_softmax(logits.detach() / temperature, -1)


@pytest.fixture(scope="module")
def three_steps(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders."""
    out = tmp_path_factory.mktemp("three_steps")
    return {name: train(configuration(folders[name], out / name)) for name in ("untied", "tied")}  # the engine of the last one is kept


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_three_steps_from_the_same_weights(three_steps: dict[str, Path], name: str) -> None:
    """At every step the log-probs of vLLM's samples are the trainer's, and every update arrives."""
    import pyarrow.parquet as pq

    rows = read_metrics(three_steps[name])
    assert len(rows) == 3
    for step, row in enumerate(rows, 1):
        assert row["rollout/mismatch_max"] < 5e-5 and row["rollout/mismatch_ess"] > 0.999999
        assert row["rollout/version"] == step and row["rollout/probe_mean"] < 1e-5
        assert row["rollout/probe_moved"] > 0.05, "the policy has changed"
        assert row["rollout/probe_followed"] == pytest.approx(row["rollout/probe_moved"], rel=1e-3)
        samples = pq.read_table(three_steps[name] / "samples" / f"step_{step:06d}.parquet").to_pylist()
        assert {sample["version"] for sample in samples} == {step - 1}


def test_two_and_one_steps_are_three(
    three_steps: dict[str, Path], folders: dict[str, Path], kept_engine: KeptEngine, tmp_path: Path
) -> None:
    """Bit for bit, with an engine started anew."""
    config = configuration(folders["tied"], tmp_path / "parts")
    train(replace(config, run=replace(config.run, steps=2)))
    before = kept_engine.started
    kept_engine.end()
    assert_same_run(three_steps["tied"], train(config, resume=True))
    assert kept_engine.started == before + 1


def test_two_ranks_with_an_engine_each_are_one(three_steps: dict[str, Path], folders: dict[str, Path], tmp_path: Path) -> None:
    """Started by torchrun; every rank samples its share of the prompts with an engine of its own, and gets whole weights from the shards."""
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(asdict(configuration(folders["tied"], tmp_path / "two"))))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command = [*launch, "-m", "aer_train", "train", "--config", str(settings)]
    done = subprocess.run(command, env={**os.environ, **SHORT_START}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = read_metrics(three_steps["tied"]), read_metrics(tmp_path / "two")
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert b["rollout/probe_mean"] < 1e-5 and b["rollout/mismatch_max"] < 5e-5
        for name in ("reward/mean", "tokens/loss", "policy/loss", "entropy/mean", "optim/grad_norm", "rollout/probe_moved"):
            assert b[name] == pytest.approx(a[name], rel=1e-4), name


@pytest.fixture
def without_repacking(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """vLLM's reload as it is: it reports success, and a tied lm_head keeps its old weights (on a CPU)."""
    return lambda: monkeypatch.setattr(vllm_worker, "_repack_heads", lambda model: None)


def test_a_stale_head_stops_the_run_at_the_start(folders: dict[str, Path], tmp_path: Path, without_repacking: Callable[[], None]) -> None:
    without_repacking()
    with pytest.raises(SyncError, match="vLLM does not have the policy's weights after step 0"):
        train(configuration(folders["tied"], tmp_path / "tied"))


def test_samples(running: tuple[Policy, EngineRollout]) -> None:
    """Tempered log-probs of the whole distribution, as transformers computes them; ends; seeds; nothing of the published settings."""
    policy, rollout = running
    samples = rollout.generate(PROMPTS, 8, (0, "train", 1))
    assert [(s.prompt, s.index) for s in samples] == [(p, i) for p in range(12) for i in range(8)]
    assert policy.eos_ids == {1, 16}
    for s in samples:
        expected = full_logprobs(policy, s, 0.8).gather(1, torch.tensor(s.tokens)[:, None])[:, 0]
        assert s.logprobs == pytest.approx(expected.tolist(), abs=2e-5)
        assert s.finished == (s.tokens[-1] in policy.eos_ids) and not policy.eos_ids & set(s.tokens[:-1])
        assert s.finished or len(s.tokens) == 8
        graded = [token for token in s.tokens if token not in {0, 1, 16}]
        assert s.text == policy.tokenizer.decode(graded) and s.version == 0, "all but padding and ends"
    assert {s.finished for s in samples} == {True, False} and {s.tokens[-1] for s in samples if s.finished} == {1, 16}
    drawn = [[s.tokens for s in rollout.generate(PROMPTS[:2], 2, seed)] for seed in ((0, "train", 1), (0, "train", 1), (0, "train", 2))]
    assert drawn[0] == drawn[1] != drawn[2] and len({tuple(tokens) for tokens in drawn[0]}) == 4
    assert drawn[0] == [s.tokens for s in samples if s.prompt < 2 and s.index < 2], "a sample does not depend on its company"


def test_first_tokens_follow_the_softmax(running: tuple[Policy, EngineRollout]) -> None:
    policy, rollout = running
    samples = rollout.generate(PROMPTS[:1], 3000, (0,))
    expected = full_logprobs(policy, samples[0], 0.8)[0].exp() * len(samples)
    observed = torch.bincount(torch.tensor([s.tokens[0] for s in samples]), minlength=len(expected))
    usual = expected > 5
    chi_square = ((observed - expected)[usual] ** 2 / expected[usual]).sum().item()
    freedom = int(usual.sum()) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5 and freedom >= 5


def test_greedy(running: tuple[Policy, EngineRollout]) -> None:
    policy, rollout = running
    a, b = rollout.generate(PROMPTS[:1], 2, (0,), Sampling(0.0))
    found = full_logprobs(policy, a, 1.0)
    assert a.tokens == b.tokens == found.argmax(-1).tolist()
    assert a.logprobs == pytest.approx(found.max(-1).values.tolist(), abs=2e-5)


def test_a_stream_that_is_given_up_leaves_nothing_behind(running: tuple[Policy, EngineRollout]) -> None:
    _, rollout = running
    parts = rollout.stream(PROMPTS, 4, (0,))
    next(parts)
    parts.close()
    assert len(rollout.generate(PROMPTS[:2], 2, (1,))) == 4


def test_prompts_that_do_not_fit(running: tuple[Policy, EngineRollout]) -> None:
    _, rollout = running
    with pytest.raises(ValueError, match=r"vllm.max_model_len must hold a prompt of 33 tokens and .* 8, got 40"):
        rollout.generate([Prompt("", "1" * 33, "")], 1, (0,))


def test_a_stale_head_is_seen_at_any_step(running: tuple[Policy, EngineRollout], without_repacking: Callable[[], None]) -> None:
    policy, rollout = running
    with torch.no_grad():
        policy.head.weight += 1e-2 * torch.randn_like(policy.head.weight)
    rollout.sync(1)
    without_repacking()
    with torch.no_grad():
        policy.head.weight += 1e-2 * torch.randn_like(policy.head.weight)
    with pytest.raises(SyncError, match="vLLM does not have the policy's weights after step 2"):
        rollout.sync(2)


def test_an_update_that_does_nothing_is_seen_though_the_step_was_tiny(
    running: tuple[Policy, EngineRollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, rollout = running
    monkeypatch.setattr(rollout.engine, "update", lambda version: None)
    with torch.no_grad():
        policy.head.weight += 1e-5 * torch.randn_like(policy.head.weight)
    with pytest.raises(SyncError, match="vLLM still has older weights after step 1"):
        rollout.sync(1)


@pytest.fixture(scope="module")
def served(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Policy, EngineRollout, Path]]:
    """A policy with a tied head, and a server that was started for it; and the folder with its log."""
    folder = tmp_path_factory.mktemp("served")
    config = configuration(folders["tied"], folder, backend="vllm_server")
    policy = load_policy(config.model, torch.device("cpu"))
    rollout = make_rollout(config, policy, PROMPTS, folder)
    assert isinstance(rollout, EngineRollout)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SHORT_START.items():
            patch.setenv(name, value)
        rollout.sync(0)
    yield policy, rollout, folder
    rollout.close()


def test_samples_of_a_server(served: tuple[Policy, EngineRollout, Path]) -> None:
    """After an update, which a tied head has taken as well."""
    policy, rollout, _ = served
    before = policy.head.weight.detach().clone()
    with torch.no_grad():
        policy.head.weight += 1e-2 * torch.randn_like(before)
    found = rollout.sync(1)
    assert found["rollout/probe_mean"] < 1e-5 and found["rollout/probe_followed"] == pytest.approx(found["rollout/probe_moved"], rel=1e-3)
    samples = rollout.generate(PROMPTS, 4, (0, "train", 1))
    assert [(s.prompt, s.index, s.version) for s in samples] == [(p, i, 1) for p in range(12) for i in range(4)]
    for s in samples:
        expected = full_logprobs(policy, s, 0.8).gather(1, torch.tensor(s.tokens)[:, None])[:, 0]
        assert s.logprobs == pytest.approx(expected.tolist(), abs=2e-5)
        assert s.finished == (s.tokens[-1] in policy.eos_ids) and not policy.eos_ids & set(s.tokens[:-1])
    with torch.no_grad():
        policy.head.weight.copy_(before)
    rollout.sync(2)


def test_nobody_else_reaches_a_server(served: tuple[Policy, EngineRollout, Path]) -> None:
    """Its requests come over a Unix socket in a private folder, and so do the messages of its processes to each other. What is left on TCP
    is torch.distributed, on the loop-back interface."""
    engine = served[1].engine
    process = engine._process  # type: ignore[attr-defined]
    ports, files = listening(process._process.pid)
    assert set(files) >= {str(process.folder / "http")} and {str(Path(file).parent) for file in files} == {str(process.folder)}
    assert process.folder.stat().st_mode & 0o777 == 0o700 and len(files) > 1
    assert set(ports) <= {"127.0.0.1"}
    if os.getuid() == 0:
        assert "Permission denied" in as_nobody(lambda: call(f"{process.url}/health", post=False, timeout=5.0))


def test_training_with_a_server_that_is_there_already(
    served: tuple[Policy, EngineRollout, Path], three_steps: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    """The same run as with an engine in the process. Whoever used the server before is told that it has other weights now."""
    _, rollout, _ = served
    (url,) = rollout.engine._urls  # type: ignore[attr-defined]
    config = configuration(folders["tied"], tmp_path / "run", backend="vllm_server")
    rows = read_metrics(train(replace(config, vllm=VLLMConfig(urls=(url,)))))
    expected = read_metrics(three_steps["tied"])
    assert len(rows) == len(expected) == 3
    for a, b in zip(rows, expected, strict=True):
        assert a["rollout/probe_mean"] < 1e-5 and a["rollout/mismatch_max"] < 5e-5
        for name in ("reward/mean", "tokens/loss", "policy/loss", "entropy/mean", "optim/grad_norm", "rollout/probe_moved"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name
    with pytest.raises(SyncError, match=r"in place of \w+-2: it was restarted, or somebody else updates it"):
        rollout.generate(PROMPTS[:1], 1, (0,))


def test_a_server_ends_with_its_rollout(served: tuple[Policy, EngineRollout, Path]) -> None:
    _, rollout, folder = served
    (url,) = rollout.engine._urls  # type: ignore[attr-defined]
    rollout.close()
    with pytest.raises(ConnectionError, match="cannot be reached"):
        call(f"{url}/health", post=False, timeout=5.0)
    assert (folder / "vllm" / "server.log").stat().st_size > 0 and not (folder / "vllm" / "weights").exists()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    """What servers are told: (url, path, body). There is no GPU: vLLM's handles, communicators and streams are stand-ins."""
    from vllm.distributed.device_communicators import pynccl_wrapper
    from vllm.distributed.weight_transfer import ipc_engine, nccl_common, nccl_engine, packed_tensor

    found: list[tuple[str, str, Any]] = []

    def call(url: str, body: Any = None, **_: Any) -> Any:
        server, path = url.rsplit("/", 1)
        if path == "get_world_size":
            return {"world_size": 2}
        found.append((server, path, json.loads(json.dumps(body))))
        return None

    def join(*arguments: Any) -> Any:
        found.append(("nccl", "joined", arguments))
        return SimpleNamespace(destroy=lambda: None)

    unique_id = pynccl_wrapper.NCCLLibrary.unique_id_from_bytes(None, bytes(range(128)))
    monkeypatch.setattr(pynccl_wrapper, "NCCLLibrary", lambda: SimpleNamespace(ncclGetUniqueId=lambda: unique_id))
    monkeypatch.setattr("aer_train.rollout.transfer.call", call)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="GPU-0"))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    monkeypatch.setattr(ipc_engine, "packed_ipc_producer", lambda iterator, **_: _chunks(iterator))
    monkeypatch.setattr(nccl_common, "uid_init_process_group", join)
    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", lambda iterator, **_: found.append(("nccl", "sent", list(iterator))))
    assert hasattr(packed_tensor, "packed_ipc_producer") and hasattr(packed_tensor, "packed_nccl_broadcast_producer")
    return found


def _chunks(weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[Any]:
    for name, tensor in weights:
        sizes, handle = [tensor.numel() * tensor.element_size()], {"GPU-0": (1, 2)}
        shape = [list(tensor.shape)]
        yield SimpleNamespace(names=[name], dtype_names=["float32"], shapes=shape, ipc_handle=handle, tensor_sizes=sizes)


def test_weights_over_shared_gpus_as_vllm_sends_them(folders: dict[str, Path], told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferUpdateInfo

    policy = load_policy(ModelConfig(name=str(folders["tied"])), torch.device("cpu"))
    EngineTransfer("ipc", policy, [socket_url(Path("/tmp/aer/http"))]).send()
    paths = [path for _, path, _ in told]
    names = [name for name, _ in policy.model.named_parameters()]
    assert paths == ["init_weight_transfer_engine", "start_weight_update", *["update_weights"] * len(names), "finish_weight_update"]
    assert told[0][2] == {"init_info": {"packed": True}}
    assert [body["update_info"]["names"] for _, path, body in told if path == "update_weights"] == [[name] for name in names]
    assert "lm_head.weight" not in names
    monkeypatch.setattr("vllm.envs.VLLM_ALLOW_INSECURE_SERIALIZATION", True)
    read = [IPCWeightTransferUpdateInfo(**body["update_info"]).ipc_handles for _, path, body in told if path == "update_weights"]
    assert read == [{"GPU-0": (1, 2)}] * len(names), "as the worker reads them"


def test_weights_over_nccl_as_vllm_sends_them(folders: dict[str, Path], told: list[Any]) -> None:
    from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo

    policy = load_policy(ModelConfig(name=str(folders["untied"])), torch.device("cpu"))
    EngineTransfer("nccl", policy, ["http://127.0.0.1:1", "http://127.0.0.1:2"]).send()
    inits = {url: body["init_info"] for url, path, body in told if path == "init_weight_transfer_engine"}
    assert {url: (info["rank_offset"], info["world_size"], info["packed"]) for url, info in inits.items()} == {
        "http://127.0.0.1:1": (1, 5, True),
        "http://127.0.0.1:2": (3, 5, True),
    }
    joined = [NCCLWeightTransferInitInfo(**info) for info in inits.values()]  # as the worker reads it
    assert {(info.nccl_unique_id_bytes, info.master_address) for info in joined} == {(bytes(range(128)), None)}
    assert [place for who, what, place in told if (who, what) == ("nccl", "joined")] == [(bytes(range(128)), 0, 5, 0)]
    names = [name for name, _ in policy.model.named_parameters()]
    (sent,) = [weights for who, what, weights in told if (who, what) == ("nccl", "sent")]
    assert [name for name, _ in sent] == names and "lm_head.weight" in names
    for url in inits:
        paths = [(path, body) for who, path, body in told if who == url]
        assert [path for path, _ in paths] == [
            "init_weight_transfer_engine",
            "start_weight_update",
            "update_weights",
            "finish_weight_update",
        ]
        assert paths[2][1]["update_info"]["names"] == names and set(paths[2][1]["update_info"]["dtype_names"]) == {"float32"}
