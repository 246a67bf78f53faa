"""verl's real FSDP2 worker with the loss of AER: beside verl's own, on one rank and on two."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

if importlib.util.find_spec("verl") is None:
    pytest.skip("verl is not installed", allow_module_level=True)

from tests.integrations.verl_setup import GROUP, PROMPTS, actor_config, jagged, queue_rows, worker
from tests.ranks import spawn

pytestmark = pytest.mark.verl

ROWS, MINI = PROMPTS * GROUP, PROMPTS * GROUP // 2
RUNS: dict[str, dict[str, Any]] = {
    "verl": {},
    "neutral": {"ours": True, "coef": 0.0, "divergence": 0.0},
    "verl, entropy_coeff": {"config": {"entropy_coeff": 0.05}},
    "fixed": {"ours": True, "coef": 0.05},
    "fixed, head of verl": {"ours": True, "coef": 0.05, "head": "verl"},
    "fixed, head of AER": {"ours": True, "coef": 0.05, "head": "aer"},
}
"""What the worker trains with."""
PRELOAD = ["verl.workers.engine_workers", "verl.utils.tensordict_utils", "transformers.models.qwen3"]


def data(seed: int, coef: float | None, divergence: float | None) -> Any:
    """A batch as the worker gets it; the coefficient grows along the rows where there is one."""
    from aer_kernels.integrations.verl_loss import COEF, DIVERGENCE

    rows = queue_rows(seed, ROWS)
    for name, value in ((COEF, coef), (DIVERGENCE, divergence)):
        if value is not None:
            rows[name] = jagged([value * mask.float() for mask in rows["response_mask"].unbind()])
    return rows


def trained(run: str) -> dict[str, Any]:
    """Three batches of two mini-batches each; the weights and the last metrics. In a process of its own."""
    import verl.utils.experimental.torch_functional as theirs
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.losses import ppo_loss

    from aer_kernels.integrations.verl_loss import aer_ppo_loss

    options = RUNS[run]
    config = actor_config(ppo_mini_batch_size=MINI, **options.get("config", {}))
    before, head = theirs.FusedLinearForPPO, options.get("head")
    made = worker(config, head)
    assert (theirs.FusedLinearForPPO.__name__ == "AERLinearForPPO") == (head == "aer")
    made.set_loss_fn(partial(aer_ppo_loss if options.get("ours") else ppo_loss, config=config))
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    metrics: dict[str, Any] = {}
    for step in range(3):
        batch = data(step, options.get("coef"), options.get("divergence"))
        mine = tu.index_select_tensor_dict(
            batch, [row for row in range(ROWS) if (row // 4) % world == rank]
        )  # each mini-batch half and half
        told = {"calculate_entropy": True, "global_batch_size": MINI, "mini_batch_size": MINI, "epochs": 1, "seed": 1, "temperature": 1.0}
        tu.assign_non_tensor(mine, **told, dataloader_kwargs={"shuffle": False})
        metrics = dict(tu.get(made.train_mini_batch(mine), "metrics"))
    theirs.FusedLinearForPPO = before  # the next run in this process is verl's
    state = made.engine.module.state_dict()
    weights = torch.cat([(p.full_tensor() if hasattr(p, "full_tensor") else p).detach().flatten().double() for p in state.values()])
    return {
        "weights": weights,
        "grad_norm": metrics["grad_norm"],
        "metrics": {name: value for name, value in metrics.items() if "aer" in name},
    }


def all_runs(names: list[str]) -> dict[str, Any]:
    return {name: trained(name) for name in names}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return spawn(all_runs, 1, tmp_path_factory.mktemp("one"), list(RUNS), preload=PRELOAD)[0]


def test_neutral_is_verls_own_update_bit_for_bit(one: dict[str, Any]) -> None:
    assert torch.equal(one["verl"]["weights"], one["neutral"]["weights"])
    assert not torch.equal(one["verl"]["weights"], one["fixed"]["weights"])


def test_a_fixed_coefficient_is_verls_entropy_coeff(one: dict[str, Any]) -> None:
    """After six steps of Adam, which divides by what rounding left of small gradients."""
    torch.testing.assert_close(one["fixed"]["weights"], one["verl, entropy_coeff"]["weights"], rtol=0, atol=3e-5)
    assert one["fixed"]["grad_norm"] == pytest.approx(one["verl, entropy_coeff"]["grad_norm"], rel=1e-4)


def test_the_heads_train_the_same(one: dict[str, Any]) -> None:
    for name in ("fixed, head of verl", "fixed, head of AER"):
        torch.testing.assert_close(one["fixed"]["weights"], one[name]["weights"], rtol=0, atol=1e-4)
    assert not torch.equal(one["fixed, head of verl"]["weights"], one["fixed, head of AER"]["weights"])


def test_two_ranks_are_one(one: dict[str, Any], tmp_path: Path) -> None:
    """Weights, gradients and what the controller is told."""
    first, second = spawn(all_runs, 2, tmp_path, ["fixed"], preload=PRELOAD)
    assert torch.equal(first["fixed"]["weights"], second["fixed"]["weights"])
    torch.testing.assert_close(first["fixed"]["weights"], one["fixed"]["weights"], rtol=0, atol=3e-5)
    assert first["fixed"]["grad_norm"] == pytest.approx(one["fixed"]["grad_norm"], rel=1e-3)
    names = [name for name in one["fixed"]["metrics"] if name.startswith("aer_slope")]
    assert len(names) == 2
    for name in names:
        assert first["fixed"]["metrics"][name] == pytest.approx(one["fixed"]["metrics"][name], rel=1e-3), name
