"""What examples/verl_countdown.sh needs beside verl: the data of the embedded Countdown task, the reward, and the table.

python examples/verl_countdown.py data FOLDER --seed 0 [--prompts 16]
python examples/verl_countdown.py row FOLDER/validation --name AER --seed 0
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from aer_train import tasks
from aer_train.evaluation.estimates import pass_at_k
from aer_train.tasks.prompts import TIERS, make_prompts

POLICY = Path(tasks.__file__).parent / "countdown_policy"
COUNTDOWN = tasks.task("countdown")  # easy: 358=16? -> 8+5+3.  hard, needs a *, which the policy hardly ever writes: 358=43? -> 5*8+3


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any) -> float:
    """The reward, as verl calls it: 1.0 for a right response. It is the accuracy, too."""
    return COUNTDOWN.score(solution_str, ground_truth)


def write_data(folder: Path, seed: int, prompts: int | None) -> None:
    """Write train.parquet and test.parquet as verl reads them, and the policy."""
    from datasets import Dataset

    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", None), ("test", prompts)):
        rows = [
            {
                "data_source": prompt.tier,
                "prompt": [{"role": "user", "content": prompt.text}],
                "reward_model": {"style": "rule", "ground_truth": prompt.answer},
                "extra_info": {"index": number},
            }
            for number, prompt in enumerate(make_prompts(COUNTDOWN, split, count, seed=seed if split == "train" else 0))
        ]
        Dataset.from_list(rows).to_parquet(str(folder / f"{split}.parquet"))
    write_policy(folder / "policy")


def write_policy(folder: Path) -> None:
    """Write the policy of the package as verl wants a Qwen3: with a chat template, and with tokens that it looks up and never uses."""
    from transformers import AutoTokenizer

    shutil.copytree(POLICY, folder, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    tokenizer.add_tokens(["\n", "<|im_end|>"])
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)


def held_out(folder: Path) -> list[float]:
    """pass@1 and pass@k of each tier, from the generations of verl's last validation."""
    last = max(folder.glob("*.jsonl"), key=lambda path: int(path.stem))
    tier = {prompt.text: prompt.tier for prompt in make_prompts(COUNTDOWN, "test")}
    tallies: dict[str, dict[str, list[float]]] = {name: {} for name in TIERS}
    for line in last.read_text().splitlines():
        row = json.loads(line)
        tallies[tier[row["input"]]].setdefault(row["uid"].rsplit("_", 2)[0], []).append(row["score"])
    found = []
    for name in TIERS:
        samples = len(next(iter(tallies[name].values())))
        found += pass_at_k(samples, [int(sum(scores)) for scores in tallies[name].values()])[:, [0, -1]].mean(0).tolist()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["data", "row"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", help="first cell of the row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, help="held-out prompts (default: all 224)")
    args = parser.parse_args()
    if args.what == "data":
        write_data(args.folder, args.seed, args.prompts)
    else:
        print(f"| {' | '.join([args.name, str(args.seed), *(f'{number:.3f}' for number in held_out(args.folder))])} |")


if __name__ == "__main__":
    main()
