"""The model card of a checkpoint: how it was made, with the numbers of its run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aer_train.config.method import with_method
from aer_train.config.parse import leaves
from aer_train.config.tree import TrainConfig
from aer_train.data.files import file_format
from aer_train.evaluation.tables import eval_cells
from aer_train.run.files import read_json
from aer_train.run.folder import read_config, read_evals, read_metrics
from aer_train.types import Row

PRIVATE = ("run.out", "run.push_to_hub", "run.project", "run.entity", "eval.suite_dir", "vllm.urls")
"""Options that say something of a machine or a person, and nothing of the model."""


LONGEST_PATH = 1000
"""A text that is longer is none."""

USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{0}")
model = AutoModelForCausalLM.from_pretrained("{0}")
```"""


def model_card(run: Path, checkpoint: Path, repository: str) -> str:
    """Return the text of README.md: metadata of the hub, origin, settings, results and use."""
    from huggingface_hub import ModelCardData

    config, state = read_config(run), read_json(checkpoint / "state.json")
    base, data = config["model"]["name"], config["data"]["train"]
    metadata = ModelCardData(
        base_model=base if _is_hub_id(base) else None,
        datasets=[data.partition(":")[0]] if _is_hub_id(data) else None,
        library_name="peft" if config["model"].get("lora_rank") else "transformers",
        pipeline_tag="text-generation",
        tags=["reinforcement-learning", "grpo", "aer-rl"],
    )
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {repository.rpartition('/')[2]}",
        f"{_public(base)}, trained by reinforcement learning with verifiable rewards on {_public(data)} with aer-rl.",
        "## How it was made",
        _table(["", ""], _origin(config, state)),
        "Options that differ from their defaults:",
        f"```toml\n{_settings(config)}\n```",
        *_results(run),
        "## Use",
        USE.format(repository),
    ]
    return "\n\n".join(parts) + "\n"


def _origin(config: Row, state: Row) -> list[list[str]]:
    """What a reader asks first."""
    data, reward, objective, optim, rollout = (config[name] for name in ("data", "reward", "objective", "optim", "rollout"))
    weights = reward["weights"] or [1.0] * (1 + len(reward["functions"]))
    rewards = [f"{weight:g} x {_public(name)}" for weight, name in zip(weights, [reward["kind"], *reward["functions"]], strict=True)]
    return [
        ["base model", _with_revision(config["model"]["name"], config["model"]["revision"])],
        ["training data", _with_revision(data["train"], data["revision"])],
        ["reward", " + ".join(rewards) if reward["functions"] else _public(reward["kind"])],
        ["objective", f"{objective['kind']}, advantages {objective['advantage']}, {objective['aggregation']}"],
        ["entropy method", config["method"]["kind"]],
        ["steps", f"{state['step']} of {optim['prompts_per_step']} prompts with {rollout['group_size']} responses each"],
        ["response", f"at most {rollout['max_new_tokens']} tokens, temperature {rollout['temperature']:g}"],
        ["learning rate", f"{optim['lr']:g}, {optim['schedule']}"],
        ["seed", str(config["run"]["seed"])],
        ["versions", ", ".join(f"{name} {version}" for name, version in state["versions"].items() if version)],
    ]


def _settings(config: Row) -> str:
    """Options that differ from their defaults, as a configuration file has them."""
    default = dict(leaves(json.loads(json.dumps(asdict(with_method(TrainConfig(), config["method"]["kind"]))))))
    changed = [(name, value) for name, value in leaves(config) if name not in PRIVATE and value is not None and value != default.get(name)]
    return "\n".join(f"{name} = {json.dumps(_public(value))}" for name, value in changed)


def _results(run: Path) -> list[str]:
    """The first and the last evaluation, and the last row of metrics."""
    rows, evals = read_metrics(run), read_evals(run)
    last = rows[-1]
    named = {"reward/mean": "training reward", "entropy/mean": "entropy of a token, nats", "tokens/response_mean": "tokens of a response"}
    found = ["## Results", f"In the last step, {last['step']}:"]
    found.append(_table(["", ""], [[words, f"{last[name]:.3f}"] for name, words in named.items() if last.get(name) is not None]))
    for step in sorted({min(evals), max(evals)}) if evals else []:
        header, cells = eval_cells(evals[step])
        found += [f"Held-out prompts after step {step}, {evals[step]['samples']} responses each:", _table(header, cells)]
    return found


def _table(header: Any, rows: Any) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def _with_revision(name: str, revision: str | None) -> str:
    return _public(name) + (f" at {revision}" if revision else "")


def _is_hub_id(name: str) -> bool:
    """Whether a model or a dataset comes from the hub."""
    return not (name.startswith("builtin:") or _is_path(name) or Path(name).exists())


def _public(value: Any) -> Any:
    """A value without the folders and hosts of a machine."""
    if isinstance(value, list):
        return [_public(part) for part in value]
    if not isinstance(value, str):
        return value
    if "://" in value:
        return "a server"
    return Path(value).name if _is_path(value) or (len(value) < LONGEST_PATH and Path(value).exists()) else value


def _is_path(text: str) -> bool:
    return text.startswith(("/", ".", "~")) or file_format(text) is not None
