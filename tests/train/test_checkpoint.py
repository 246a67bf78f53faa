import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from aer_kernels import AdaptiveEntropyController, EntropyControlConfig
from aer_train.config.tree import ModelConfig
from aer_train.model import Policy, load_policy
from aer_train.run import checkpoint
from aer_train.run.checkpoint import Progress

CPU = torch.device("cpu")


def trained(policy: Policy) -> tuple[torch.optim.AdamW, AdaptiveEntropyController]:
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    policy.hidden(torch.tensor([[3, 4]]), torch.ones(1, 2)).square().sum().backward()
    optimizer.step()
    controller = AdaptiveEntropyController()
    for entropy in (2.0, 1.7, 1.1):
        controller.update(entropy * 10, 10)
    return optimizer, controller


def test_everything_comes_back(policy: Policy, tmp_path: Path) -> None:
    optimizer, controller = trained(policy)
    folder = checkpoint.save(tmp_path, Progress(20, 70), policy, optimizer, controller, keep=2)
    assert folder == tmp_path / "checkpoints" / "step_000020" == checkpoint.latest(tmp_path)
    other = load_policy(ModelConfig(name=str(folder)), CPU)
    fresh = torch.optim.AdamW(other.model.parameters(), lr=5e-3, weight_decay=0.5)
    restored = AdaptiveEntropyController()
    assert checkpoint.restore(folder, other, fresh, restored) == Progress(20, 70)
    assert restored.state_dict() == controller.state_dict() and restored.alpha > 0
    for a, b in zip(policy.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
        for name, value in optimizer.state[a].items():
            assert torch.equal(value, fresh.state[b][name])
    assert fresh.param_groups[0]["weight_decay"] == 0.5, "the configuration's, not the checkpoint's"
    assert other.tokenizer.encode("12+3") == policy.tokenizer.encode("12+3")
    assert json.loads((folder / "state.json").read_text())["versions"]["torch"] == torch.__version__


def test_transformers_alone_can_load_it(policy: Policy, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = checkpoint.save(tmp_path, Progress(1), policy, *trained(policy), keep=1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(model.lm_head.weight, policy.head.weight)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 1


def test_only_the_newest_are_kept_and_rubbish_goes(policy: Policy, tmp_path: Path) -> None:
    state = trained(policy)
    rubbish = tmp_path / "checkpoints" / ".tmp-step_000003"
    rubbish.mkdir(parents=True)
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, Progress(step), policy, *state, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_000002", "step_000003"]


def test_an_incomplete_checkpoint_is_ignored_and_replaced(policy: Policy, tmp_path: Path) -> None:
    state = trained(policy)
    checkpoint.save(tmp_path, Progress(1), policy, *state, keep=2)
    torn = checkpoint.save(tmp_path, Progress(2), policy, *state, keep=2)
    (torn / "state.json").unlink()
    assert checkpoint.latest(tmp_path).name == "step_000001"
    assert checkpoint.save(tmp_path, Progress(2), policy, *state, keep=2) == checkpoint.latest(tmp_path) == torn
    assert checkpoint.latest(tmp_path / "elsewhere") is None


def test_a_crash_while_saving_leaves_the_previous_one(policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = trained(policy)
    before = checkpoint.save(tmp_path, Progress(1), policy, *state, keep=1)
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, Progress(2), policy, *state, keep=1)
    assert checkpoint.latest(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("model.safetensors", None, "model.safetensors is missing"),
        ("optimizer/.metadata", b"", r"optimizer/.metadata has 0 bytes, not \d+"),
        ("tokenizer.json", "flip", "tokenizer.json has another content than was written"),
        ("state.json", b'{"step": 2', "state.json is garbled"),
        ("state.json", b"[1]", "state.json is garbled"),
    ],
)
def test_damage_is_found_and_the_way_back_is_named(policy: Policy, tmp_path: Path, name: str, data: bytes | str | None, found: str) -> None:
    state = trained(policy)
    for step in (1, 2):
        folder = checkpoint.save(tmp_path, Progress(step), policy, *state, keep=2)
        checkpoint.check(folder)
    path = folder / name
    whole = path.read_bytes()
    if data is None:
        path.unlink()
    else:
        path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:] if isinstance(data, str) else data)
    with pytest.raises(
        ValueError, match=rf"checkpoint must be as it was written, got .*step_000002 where {found}: delete .* back to step_000001"
    ):
        checkpoint.check(folder)
    checkpoint.check(tmp_path / "checkpoints" / "step_000001")


def test_a_full_disk_is_told_as_such_and_leaves_no_rubbish(policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors' own error is none that the command line knows."""
    state = trained(policy)
    before = checkpoint.save(tmp_path, Progress(1), policy, *state, keep=1)

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(OSError, match=r"checkpoint must be written completely, got No space left on device .*; the checkpoints before it"):
        checkpoint.save(tmp_path, Progress(2), policy, *state, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [before.name]
    checkpoint.check(before)


def test_a_diverged_policy_is_not_saved(policy: Policy, tmp_path: Path) -> None:
    state = trained(policy)
    before = checkpoint.save(tmp_path, Progress(1), policy, *state, keep=1)
    with torch.no_grad():
        policy.head.weight[3, 2] = torch.nan
    with pytest.raises(FloatingPointError, match=r"weights must be finite to be saved, got others in .*weight: the policy has diverged"):
        checkpoint.save(tmp_path, Progress(2), policy, *state, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [before.name]


def test_a_state_of_another_rule_is_refused(policy: Policy, tmp_path: Path) -> None:
    optimizer, controller = trained(policy)
    folder = checkpoint.save(tmp_path, Progress(1), policy, optimizer, controller, keep=1)
    other = AdaptiveEntropyController(EntropyControlConfig(kind="off"))
    with pytest.raises(ValueError, match=r"the configuration must fit the checkpoint .*step_000001: state must come from"):
        checkpoint.restore(folder, policy, optimizer, other)


def test_published_generation_settings_stay(policy: Policy, tmp_path: Path) -> None:
    policy.generation_config.temperature = 0.6  # without do_sample: transformers itself refuses to save this
    folder = checkpoint.save(tmp_path, Progress(1), policy, *trained(policy), keep=1)
    saved = json.loads((folder / "generation_config.json").read_text())
    assert saved["temperature"] == 0.6 and saved["eos_token_id"] == 1


def test_parameters_without_a_gradient_are_no_obstacle(policy: Policy, tmp_path: Path) -> None:
    """Frozen ones have no part in the optimizer; those that nothing has reached yet begin at 0, whenever their first gradient comes."""
    frozen, unreached = policy.model.model.layers[0].mlp.up_proj.weight, policy.model.model.layers[1].self_attn.q_proj.weight
    frozen.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in policy.model.parameters() if p.requires_grad], lr=1e-2)
    policy.hidden(torch.tensor([[3, 4]]), torch.ones(1, 2)).square().sum().backward()
    unreached.grad = None
    optimizer.step()
    controller = AdaptiveEntropyController()
    folder = checkpoint.save(tmp_path, Progress(1), policy, optimizer, controller, keep=1)
    other = load_policy(ModelConfig(name=str(folder)), CPU)
    other.model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    fresh = torch.optim.AdamW([p for p in other.model.parameters() if p.requires_grad], lr=1e-2)
    checkpoint.restore(folder, other, fresh, AdaptiveEntropyController())
    names = dict(other.model.named_parameters())
    for name, a in policy.model.named_parameters():
        if a is unreached:
            assert all(not value.any() for value in fresh.state[names[name]].values())
        elif a is not frozen:
            assert optimizer.state[a] and all(
                torch.equal(value, fresh.state[names[name]][key]) for key, value in optimizer.state[a].items()
            )
    for p, o in ((policy, optimizer), (other, fresh)):
        o.zero_grad()
        p.hidden(torch.tensor([[3, 4]]), torch.ones(1, 2)).square().sum().backward()
        o.step()
    for a, b in zip(policy.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_moments_that_should_be_there_are_missed(policy: Policy, tmp_path: Path) -> None:
    optimizer, controller = trained(policy)
    optimizer.zero_grad()
    name, parameter = list(policy.model.named_parameters())[3]
    del optimizer.state[parameter]
    folder = checkpoint.save(tmp_path, Progress(1), policy, optimizer, controller, keep=1)
    assert json.loads((folder / "state.json").read_text())["untouched"] == [name]
    checkpoint.restore(folder, policy, torch.optim.AdamW(policy.model.parameters()), controller)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "untouched": []}))
    with pytest.raises(
        ValueError, match=rf"the configuration must fit the checkpoint .*Missing key in checkpoint state_dict: state.{name}"
    ):
        checkpoint.restore(folder, policy, torch.optim.AdamW(policy.model.parameters()), controller)
