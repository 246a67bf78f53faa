"""Trackers and the hub, with clients that the test plays: what they are told at a start, at a resume and at the end."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from aer_kernels import EntropyControlConfig
from aer_train.cli import main
from aer_train.config.checks import check_config
from aer_train.config.parse import read_config
from aer_train.config.tree import DataConfig, EvalConfig, ModelConfig, OptimConfig, RewardConfig, RolloutConfig, RunConfig, TrainConfig
from aer_train.run import checkpoint
from aer_train.run.folder import Recorder
from aer_train.trainer import train


class FakeClient:
    """A module in the form of wandb, which remembers what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.inits: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.init, module.Table = self.init, lambda dataframe: dataframe.to_dict("records")  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)

    def init(self, **options: Any) -> Any:
        self.inits.append(options)
        client = self

        class Run:
            name = options["name"] if options.get("resume") != "never" else options["name"] + "-2"

            def log(self, numbers: dict[str, Any], step: int) -> None:
                client.logged.append((step, numbers))

            def finish(self) -> None:
                client.finished += 1

        return Run()


ROWS = [{"step": 1, "prompt": f"p{i}", "response": "a|b\nc", "reward": float(i)} for i in range(10)]


def record(out: Path, resume_step: int | None = None, **options: Any) -> None:
    with Recorder(out, TrainConfig(run=RunConfig(**options)), resume_step) as recorder:
        step = (resume_step or 0) + 1
        recorder.write_samples(step, ROWS)
        recorder.log({"step": step, "reward/mean": 0.5, "entropy/mean": None})


def test_wandb_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient(monkeypatch, "wandb")
    options: dict[str, Any] = {"sinks": ("wandb",), "project": "math", "entity": "team", "sink_samples": 3}
    record(tmp_path / "run", **options)
    record(tmp_path / "run", 1, **options)
    first, second = client.inits
    assert (first["project"], first["entity"], first["name"], first["resume"]) == ("math", "team", "run", "allow") and len(first["id"]) == 8
    assert second["id"] == first["id"] and first["config"]["run"]["project"] == "math" and client.finished == 2
    assert json.loads((tmp_path / "run" / "trackers.json").read_text())["wandb"] == {"id": first["id"], "project": "math", "entity": "team"}
    shown = [row["prompt"] for row in client.logged[0][1]["samples"]]
    assert client.logged[0][0] == 1 and shown == ["p0", "p3", "p6"], "from all over the step"
    assert [entry for entry in client.logged if "samples" not in entry[1]] == [(1, {"reward/mean": 0.5}), (2, {"reward/mean": 0.5})]
    record(tmp_path / "other", **options)
    assert client.inits[2]["id"] != first["id"]


def test_the_project_of_a_run_stays_where_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient(monkeypatch, "wandb")
    record(tmp_path / "run", sinks=("wandb",), project="one")
    record(tmp_path / "run", 1, sinks=("wandb",), project="two")
    assert [options["project"] for options in client.inits] == ["one", "one"]


def test_a_run_that_died_at_its_start_goes_on_under_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient(monkeypatch, "wandb")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no network"):
        patch.setattr(sys.modules["wandb"], "init", lambda **_: (_ for _ in ()).throw(RuntimeError("no network")))
        record(tmp_path / "run", sinks=("wandb",))
    kept = json.loads((tmp_path / "run" / "trackers.json").read_text())["wandb"]["id"]
    record(tmp_path / "run", 0, sinks=("wandb",))
    assert client.inits[0]["id"] == kept


def test_trackio_goes_on_under_the_name_that_it_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient(monkeypatch, "trackio")
    record(tmp_path / "run", sinks=("trackio",), project="math")
    record(tmp_path / "run", 1, sinks=("trackio",), project="math")
    assert [(o["project"], o["name"], o["resume"]) for o in client.inits] == [("math", "run", "never"), ("math", "run-2", "allow")]
    assert not {"id", "entity"} & client.inits[0].keys(), "it has none"


def test_tensorboard_shows_samples_and_takes_steps_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the track extra is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record(tmp_path / "run", sinks=("tensorboard",), sink_samples=2)
    record(tmp_path / "run", 1, sinks=("tensorboard",), sink_samples=2)
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("reward/mean")] == [(1, 0.5), (2, 0.5)]
    text = found.Tensors("samples/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines() == ["|step|prompt|response|reward|", "|-|-|-|-|", r"|1|p0|a\|b<br>c|0.0|", r"|1|p5|a\|b<br>c|5.0|"]
    record(tmp_path / "run", 1, sinks=("tensorboard",))
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("reward/mean")] == [1, 2], "the step that is done again is there once"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"project": ""}, "run.project must not be empty"),
        ({"entity": "team"}, "run.entity must be None unless wandb is in run.sinks, got team"),
        ({"sink_samples": 3}, "run.sink_samples must be 0 without run.sinks and run.save_samples_every, got 3"),
        ({"sink_samples": 3, "sinks": ("wandb",), "save_samples_every": 0}, "run.sink_samples must be 0 without"),
        ({"sink_samples": -1}, "run.sink_samples must be >= 0, got -1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(TrainConfig(run=RunConfig(**options)))


# the hub


class FakeHub:
    """The hub's client; `broken` names a call that fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.broken: tuple[str, Exception] | None = None
        self.files: dict[str, str] = {}
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: self)

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.broken is not None and self.broken[0] == name:
            raise self.broken[1]

    def whoami(self) -> dict[str, str]:
        self._call("whoami")
        return {"name": "me"}

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        assert private and exist_ok and repository == "me/model"
        self._call("create_repo")

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, ignore_patterns: list[str]) -> None:
        from huggingface_hub.utils import filter_repo_objects

        self._call("upload_folder")
        names = [file.relative_to(folder_path).as_posix() for file in Path(folder_path).rglob("*") if file.is_file()]
        self.files |= dict.fromkeys(filter_repo_objects(names, ignore_patterns=ignore_patterns), commit_message)

    def upload_file(self, *, repo_id: str, path_or_fileobj: bytes, path_in_repo: str, commit_message: str) -> None:
        self._call("upload_file")
        self.files[path_in_repo] = path_or_fileobj.decode()


@pytest.fixture
def config(model_folder: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(name=str(model_folder)),
        data=DataConfig(limit=96),
        rollout=RolloutConfig(group_size=2, max_new_tokens=3, batch_size=8),
        reward=RewardConfig(kind="countdown", functions=("tests.train.rewards.length",), weights=(1.0, 0.25), workers=1),
        method=EntropyControlConfig(target=5.0),
        optim=OptimConfig(lr=3e-3, prompts_per_step=2, tokens_per_microbatch=64),
        eval=EvalConfig(data="builtin:countdown", samples=2, limit=4),
        run=RunConfig(out=str(tmp_path / "run"), steps=2, threads=1, push_to_hub="me/model"),
    )


@pytest.mark.slow
def test_the_last_checkpoint_is_pushed_with_a_card(
    config: TrainConfig, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(monkeypatch)
    run = train(config)
    assert hub.calls == ["whoami", "create_repo", "upload_folder", "upload_file"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"} <= hub.files.keys()
    assert not any(name.startswith("optimizer") or name == "state.json" for name in hub.files)
    assert hub.files["config.json"] == "step_000002 of a run of aer-rl"
    card = hub.files["README.md"]
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["library_name"] == "transformers" and "base_model" not in metadata and "datasets" not in metadata, "none is of the hub"
    assert str(tmp_path) not in card and str(model_folder.parent) not in card, "no folders of this machine"
    for part in (
        "# model", "| reward | 1 x countdown + 0.25 x tests.train.rewards.length |", "| steps | 2 of 2 prompts with 2 responses each |",
        "| entropy method | aer |", f"| base model | {model_folder.name} |", "Held-out prompts after step 0, 2 responses each:",
        "Held-out prompts after step 2, 2 responses each:", 'from_pretrained("me/model")', "| learning rate | 0.003, constant |",
    ):  # fmt: skip
        assert part in card, part
    settings = card.split("```toml\n")[1].split("```")[0]
    (tmp_path / "settings.toml").write_text(settings)
    again = read_config(tmp_path / "settings.toml")
    assert (again.reward, again.optim, again.rollout, again.method) == (config.reward, config.optim, config.rollout, config.method)
    hub.calls.clear()
    train(replace(config, run=replace(config.run, steps=2)), resume=True)
    assert hub.calls == ["whoami", "create_repo", "upload_folder", "upload_file"], "a run that is done is pushed again"
    assert checkpoint.latest(run) is not None


def test_what_comes_from_the_hub_is_linked(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch)
    run = train(config)
    path = run / "config.json"
    saved = json.loads(path.read_text())
    saved["model"] |= {"name": "org/base", "revision": "main"}
    saved["data"] |= {"train": "org/data:main"}
    path.write_text(json.dumps(saved))
    from aer_train.run.hub import push

    assert push(run, "me/model") == "https://huggingface.co/me/model"
    metadata = yaml.safe_load(hub.files["README.md"].split("---\n")[1])
    assert (
        metadata["base_model"] == "org/base"
        and metadata["datasets"] == ["org/data"]
        and "| base model | org/base at main |" in hub.files["README.md"]
        and metadata["library_name"] == "transformers"
    )
    saved["model"]["lora_rank"] = 4
    saved["data"]["train"] = "mine/*.jsonl.gz"
    path.write_text(json.dumps(saved))
    last = checkpoint.latest(run)
    assert last is not None
    (last / "ahead.parquet").write_bytes(b"samples of the next step")
    push(run, "me/adapters")
    assert "ahead.parquet" not in hub.files, "only a resumed run needs it"
    assert "mine" not in hub.files["README.md"] and "datasets" not in yaml.safe_load(hub.files["README.md"].split("---\n")[1]), (
        "files, packed"
    )
    assert yaml.safe_load(hub.files["README.md"].split("---\n")[1])["library_name"] == "peft", "a folder of adapters"


@pytest.mark.parametrize("call", ["whoami", "create_repo"])
def test_refused_before_the_first_step(call: str, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch)
    hub.broken = (call, RuntimeError("401 Unauthorized\nmore"))
    with pytest.raises(
        ValueError, match=r"run.push_to_hub must name a repository that you may write to .*got 'me/model': 401 Unauthorized$"
    ):
        train(config)
    assert not Path(config.run.out).exists()


def test_refused_offline(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By the client itself."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    arguments = [
        "--model.name",
        config.model.name,
        "--reward.kind",
        "countdown",
        "--run.out",
        config.run.out,
        "--run.push-to-hub",
        "me/model",
    ]
    assert main(["train", *arguments]) == 2
    assert "run.push_to_hub must name a repository that you may write to" in capsys.readouterr().err and not Path(config.run.out).exists()


@pytest.mark.slow
def test_an_upload_that_fails_says_how_to_go_on(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch)
    hub.broken = ("upload_folder", ConnectionError("the hub is down"))
    with pytest.raises(
        OSError, match=r"step_000002 must be uploaded to me/model, got the hub is down; push it again with: aer-train train --resume "
    ):
        train(config)
    assert checkpoint.latest(Path(config.run.out)) is not None
