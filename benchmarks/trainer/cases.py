"""What both trainers are given: the same model folder, prompts, reward, batch, optimizer and entropy term."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.trainer.rewards import DEAD

PROMPTS_PER_STEP, GROUP_SIZE = 32, 8


@dataclass(frozen=True)
class Case:
    """One comparison. `entropy` says what the entropy term is: off, a fixed coefficient, the bang-bang rule that TRL has too, or AER."""

    name: str
    steps: int
    excluded: int = 3
    """First steps that are not timed (at least 1: a step is timed from the end of the one before)."""
    vocab_size: int | None = None
    """None: the embedded countdown policy and task. A number: a random Qwen3 with that vocabulary, rewarded for even tokens."""
    hidden_size: int = 128
    layers: int = 3
    max_new_tokens: int = 6
    lr: float = 5e-4
    updates_per_step: int = 1
    entropy: Literal["off", "fixed", "bang_bang", "aer"] = "off"
    coef: float = 0.0
    """fixed: the coefficient. bang_bang: where it starts."""
    target: float = 0.0
    """bang_bang: nats."""
    prompts: int = PROMPTS_PER_STEP
    """Prompts of a step."""
    prompt_tokens: int = 8
    """Of each prompt of a random model."""
    share_prompts: bool | None = None
    """model.share_prompts of our trainer."""
    dead: float | None = None
    """Share of the prompts whose responses all get the reward 0; the others get one that differs from response to response. None: the
    task's own rewards."""
    dead_samples: Literal["measure", "skip"] = "measure"
    """optim.dead_samples of our trainer."""


LARGE: dict[str, Any] = {
    "steps": 4, "excluded": 1, "vocab_size": 49_152, "hidden_size": 576, "layers": 30, "max_new_tokens": 16, "prompts": 8, "lr": 1e-5,
}  # fmt: skip


def cpu() -> list[Case]:
    """Minutes on one core."""
    wide = {"steps": 5, "excluded": 1, "vocab_size": 32_000, "max_new_tokens": 64, "layers": 2, "lr": 1e-3}
    return [
        Case("countdown", steps=40),
        Case("countdown, entropy bonus", steps=80, entropy="fixed", coef=0.2),
        Case("countdown, adaptive bonus", steps=40, entropy="bang_bang", coef=0.02, target=0.6),
        Case("countdown, 2 updates", steps=40, updates_per_step=2),
        Case("V=32000", **wide),
        Case("V=32000, entropy bonus", **wide, entropy="fixed", coef=0.01),
    ]


def cuda() -> list[Case]:
    """The same, and a vocabulary and width like those of a real model."""
    real = {"steps": 6, "excluded": 2, "vocab_size": 151_936, "hidden_size": 1024, "layers": 8, "max_new_tokens": 256, "lr": 3e-4}
    return [*cpu(), Case("V=151936", **real), Case("V=151936, entropy bonus", **real, entropy="fixed", coef=0.01)]


def dead() -> list[Case]:
    """Steps in which a share of the groups teaches nothing, on the demo's model and on a shape of 135M parameters."""
    shapes = {"countdown": {"steps": 20}, "135M": LARGE}
    return [
        Case(f"{name}, {100 * share:.0f} % dead", **options, dead=share)
        for name, options in shapes.items()
        for share in (0.0, 0.25, 0.5, 0.75, 0.9)
    ]


def shared() -> list[Case]:
    """Steps whose prompts are as long beside their responses as in word problems, on a shape of 135M parameters."""
    return [Case("135M, 70 tokens of prompt", **LARGE, prompt_tokens=70)]


def smoke() -> list[Case]:
    """Seconds: does it run."""
    return [
        Case("countdown", steps=3, excluded=1),
        Case("V=500, entropy bonus", steps=3, excluded=1, vocab_size=500, hidden_size=32, layers=1, entropy="fixed", coef=0.01),
        Case("countdown, 50 % dead", steps=3, excluded=1, dead=0.5),
    ]


PROFILES = {"cpu": cpu, "cuda": cuda, "smoke": smoke}


@dataclass(frozen=True)
class Job:
    """What a trainer's process reads: the case, where its model and prompts are, and where it runs."""

    case: Case
    model: Path
    data: Path
    """JSONL with `problem` and `answer`."""
    work: Path
    """Scratch folder of this run, which does not exist yet."""
    result: Path
    """JSON file to write."""
    device: Literal["cpu", "cuda"]
    threads: int
    seed: int

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), default=str))

    @staticmethod
    def read(path: Path) -> Job:
        fields = json.loads(path.read_text())
        paths = {name: Path(fields[name]) for name in ("model", "data", "work", "result")}
        return Job(**fields | paths | {"case": Case(**fields["case"])})


def prepare(case: Case, folder: Path) -> tuple[Path, Path]:
    """Make model and prompts of a case below `folder`. Returns the model's folder and the JSONL file."""
    folder.mkdir(parents=True)
    if case.vocab_size is None:
        from aer_train.model import COUNTDOWN_POLICY
        from aer_train.tasks import make_prompts, task

        model = COUNTDOWN_POLICY
        rows = [{"problem": prompt.text, "answer": prompt.answer} for prompt in make_prompts(task("countdown"), "train")]
    else:
        model, rng = folder / "model", random.Random(0)
        _random_model(case, model)
        words = [f"w{i}" for i in range(case.vocab_size - 2)]
        rows = [{"problem": " ".join(rng.choices(words, k=case.prompt_tokens)), "answer": "even"} for _ in range(4096)]
    if case.dead is not None:
        every = random.Random(1)
        every.shuffle(rows)
        rows = [row | {"answer": DEAD if number < case.dead * len(rows) else "live"} for number, row in enumerate(rows)]
    data = folder / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model, data


def _random_model(case: Case, folder: Path) -> None:
    """A Qwen3 with random weights; its tokens are the words w0, w1, ..."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    heads = max(1, case.hidden_size // 64)
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", *(f"w{i}" for i in range(case.vocab_size - 2))])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=case.vocab_size,
        hidden_size=case.hidden_size,
        intermediate_size=3 * case.hidden_size,
        num_hidden_layers=case.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(part for part in range(1, max(1, heads // 2) + 1) if heads % part == 0),
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
