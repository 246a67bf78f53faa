"""Methods in the trainer: what is neutral changes no bit, cutting an update changes nothing, runs resume, options are typed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from aer_kernels import EntropyControlConfig
from aer_kernels.entropy_control.config import Kind
from aer_kernels.methods import METHODS as KINDS
from aer_kernels.methods import (
    AdapoConfig,
    AEntConfig,
    AresConfig,
    ARMConfig,
    ClipCovConfig,
    EntrocraftConfig,
    EntroPICConfig,
    EntropyAdvantageConfig,
    EPOConfig,
    ERCConfig,
    ForkingTokensConfig,
    KLCovConfig,
    MAIClipConfig,
    PEPOConfig,
    PositiveAdvantageConfig,
    RelaxConfig,
    RepoRConfig,
    SIRENConfig,
    StareConfig,
    Stateless,
    SteerConfig,
    TokenBatch,
    TokenTargetsConfig,
    TokenTerms,
    method_class,
)
from aer_train.cli import main
from aer_train.config.checks import check_config
from aer_train.config.parse import read_config
from aer_train.config.tree import DataConfig, ModelConfig, ObjectiveConfig, OptimConfig, RewardConfig, RolloutConfig, RunConfig, TrainConfig
from aer_train.run import checkpoint
from aer_train.step import batching, passes
from aer_train.trainer import train
from tests.train.same_run import assert_same_run, stable_rows


@dataclass(frozen=True)
class NeutralConfig:
    kind: str = "tests.train.test_methods.Neutral"


class Neutral(Stateless):
    """Says of every token what the trainer would have done anyway."""

    Config = NeutralConfig

    def __init__(self, config: NeutralConfig) -> None:
        pass

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        one, zero = torch.ones_like(tokens.logprobs), torch.zeros_like(tokens.logprobs)
        return TokenTerms(weight=one, shift=zero, entropy_coef=zero, divergence_coef=zero, clip_low=0.2, clip_high=0.2, held=one)


class Nosy(Neutral):
    """Neutral, but needs entropies."""

    Config = NeutralConfig
    needs_entropy = True


def together(**parts: Any) -> Any:
    """Options of several methods at once."""
    return method_class("+".join(parts)).Config(**parts)


METHODS: dict[str, Any] = {
    "aer": EntropyControlConfig(target=20.0, surplus=1.0, quantity="response"),
    "difficult": EntropyControlConfig(target=5.0, held="difficult"),
    "forking_tokens": ForkingTokensConfig(share=0.3),
    "positive_advantage": PositiveAdvantageConfig(target=2.0, start=0.5),
    "clip_cov": ClipCovConfig(share=0.1, low=0.05),
    "kl_cov": KLCovConfig(share=0.2),
    "steer": SteerConfig(mapping="linear"),
    "stare": StareConfig(target=5.0, variant="two_sided", step=0.1),
    "entropic": EntroPICConfig(target=2.0, confident=0.2),
    "siren": SIRENConfig(beta=1.0),
    "aent": AEntConfig(start=0.1, most=0.2, target=2.0, width=0.0, dropped=0.4, step=0.1),
    "steer exact": SteerConfig(form="exact", least=0.3),
    "epo": EPOConfig(coef=0.1, low=0.9, high=1.1, alpha=1.0, updates=3),
    "erc": ERCConfig(),
    "ares and fixed": together(ares=AresConfig(window=2), fixed=EntropyControlConfig(kind="fixed", coef=0.1)),
    "relax and arm": together(relax=RelaxConfig(alpha=3.0, modes=2), arm=ARMConfig(alpha=1.0, gate="none_right")),
    "repo_r": RepoRConfig(target=9.0, start=0.05, most=0.4),
    "entrocraft and fixed": together(
        entrocraft=EntrocraftConfig(target=9.0, updates=3), fixed=EntropyControlConfig(kind="fixed", coef=0.02, difficulty="uniform")
    ),
    "token_targets": TokenTargetsConfig(tau=1.5, ahead=3.0, min_coef=-0.3, forward=0.5),
    "adapo and pepo": together(adapo=AdapoConfig(step=0.01, start=0.0, least=0.0, target=9.0), pepo=PEPOConfig(window=3)),
    "mai_clip and entropy_advantage": together(
        mai_clip=MAIClipConfig(eps=0.01, step=0.01, target=9.0), entropy_advantage=EntropyAdvantageConfig()
    ),
}
"""Every method, alone or beside another, with constants that make it count on a policy this small."""


def config_of(model: Path, out: Path, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        model=ModelConfig(name=str(model)),
        data=DataConfig(limit=96),
        rollout=RolloutConfig(group_size=4, max_new_tokens=6),
        reward=RewardConfig(kind="tests.train.rewards.digit_share", workers=1),
        optim=OptimConfig(lr=3e-3, prompts_per_step=6, updates_per_step=2, tokens_per_microbatch=10**6),
        run=RunConfig(out=str(out), steps=3, threads=1, save_every=0),
    )
    return replace(config, **changes)


@pytest.fixture
def config(model_folder: Path, tmp_path: Path) -> TrainConfig:
    return config_of(model_folder, tmp_path / "run")


def run(config: TrainConfig, name: str, resume: bool = False, **changes: Any) -> Path:
    out = Path(config.run.out).parent / name
    return train(replace(config, run=replace(config.run, out=str(out)), **changes), resume=resume)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.latest(folder) / "model.safetensors")


@pytest.fixture(scope="module")
def plain(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[ObjectiveConfig], dict[str, torch.Tensor]]:
    """The weights of GRPO without a method, by its objective."""

    @cache
    def trained(objective: ObjectiveConfig) -> dict[str, torch.Tensor]:
        out = tmp_path_factory.mktemp("plain") / "run"
        return weights(train(config_of(model_folder, out, objective=objective, method=EntropyControlConfig(kind="off"))))

    return trained


Trained = Callable[[ObjectiveConfig], dict[str, torch.Tensor]]


@contextmanager
def counted() -> Iterator[list[bool]]:
    """The passes with a graph, one by one."""
    real, graphs = passes.policy_loss, list[bool]()

    def counting(*args: Any) -> Any:
        graphs.extend([True] * torch.is_grad_enabled())
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "policy_loss", counting)
        yield graphs


@pytest.fixture(scope="module")
def whole(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, int]]:
    """The run of one of METHODS, made once, with a checkpoint after each step; and how many passes it had."""

    @cache
    def trained(name: str) -> tuple[Path, int]:
        out = tmp_path_factory.mktemp("whole") / "run"
        config = config_of(model_folder, out, method=METHODS[name], run=RunConfig(str(out), steps=3, threads=1, save_every=1, keep=9))
        with counted() as graphs:
            return train(config), len(graphs)

    return trained


@pytest.mark.slow
@pytest.mark.parametrize("objective", [ObjectiveConfig(), ObjectiveConfig(kind="gspo", aggregation="sequence_mean")], ids=["ppo", "gspo"])
def test_neutral_terms_are_grpo_bit_for_bit(config: TrainConfig, objective: ObjectiveConfig, plain: Trained) -> None:
    for kind in ("Neutral", "Nosy"):
        found = weights(run(config, kind, objective=objective, method=NeutralConfig(f"tests.train.test_methods.{kind}")))
        assert all(torch.equal(found[name], tensor) for name, tensor in plain(objective).items()), kind


UNCLIPPED, WIDE = ObjectiveConfig(clip_low=1.0, clip_high=1e6), ObjectiveConfig(clip_low=0.6, clip_high=1.5, dual_clip=50.0)
NEUTRAL: dict[str, tuple[dict[str, Any], ObjectiveConfig]] = {
    "adapo": ({"step": 0.0, "start": 0.2}, ObjectiveConfig()),
    "aent": ({"start": 0.0, "least": 0.0, "step": 0.0}, ObjectiveConfig()),
    "siren": ({"beta": 0.0}, ObjectiveConfig()),
    "ares": ({"bonus": 0.0}, ObjectiveConfig()),
    "arm": ({"alpha": 0.0}, ObjectiveConfig()),
    "clip_cov": ({"share": 0.0, "clip_low": None, "clip_high": None}, ObjectiveConfig()),
    "entrocraft": ({"width": 99.0, "tau_end": None}, ObjectiveConfig()),
    "entropic": ({"kp": 0.0, "ki": 0.0}, ObjectiveConfig()),
    "entropy_advantage": ({"alpha": 0.0}, ObjectiveConfig()),
    "epo": ({"coef": 0.0}, ObjectiveConfig()),
    "erc": ({"low": 0.0, "high": 1e9}, ObjectiveConfig()),
    "fixed": ({"coef": 0.0}, ObjectiveConfig()),
    "forking_tokens": ({"share": 1.0}, ObjectiveConfig()),
    "kl_cov": ({"coef": 0.0}, UNCLIPPED),
    "mai_clip": ({"step": 0.0}, WIDE),
    "pepo": ({"window": 1}, ObjectiveConfig()),
    "positive_advantage": ({"start": 1.0, "step": 0.0}, ObjectiveConfig()),
    "relax": ({"alpha": 0.0, "modes": 2}, ObjectiveConfig()),
    "repo_r": ({"start": 0.0}, ObjectiveConfig()),
    "stare": ({"weight": 1.0}, ObjectiveConfig()),
    "steer": ({"least": 1.0}, ObjectiveConfig()),
    "token_targets": ({"min_coef": 0.0, "max_coef": 0.0}, ObjectiveConfig()),
}
"""Options with which each method changes nothing, and the objective that it then leaves."""


def test_every_method_has_neutral_options() -> None:
    assert set(NEUTRAL) == (set(KINDS) - set(get_args(Kind))) | {"fixed"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NEUTRAL)
def test_a_neutral_method_is_grpo_bit_for_bit(config: TrainConfig, kind: str, plain: Trained) -> None:
    options, objective = NEUTRAL[kind]
    found = weights(run(config, kind, method=method_class(kind).Config(kind=kind, **options)))
    assert all(torch.equal(found[name], tensor) for name, tensor in plain(objective).items())


def test_every_method_is_cut() -> None:
    assert {kind for config in METHODS.values() for kind in config.kind.split("+")} >= set(KINDS) - set(get_args(Kind))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_cutting_an_update_changes_nothing(
    config: TrainConfig, name: str, plain: Trained, whole: Callable[[str], tuple[Path, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One, two and five or more micro-batches an update: the method says the same, the weights agree to rounding."""
    folder, updates = whole(name)
    rows, found, counts = [stable_rows(folder)], [weights(folder)], list[float]()
    assert updates in (5, 6), "one pass each; an update without a live sample has none"
    alone, small = replace(config.model, share_prompts=False), replace(config.optim, tokens_per_microbatch=12)
    for cut in ({"model": alone}, {"optim": small}):
        with monkeypatch.context() as patch, counted() as graphs:
            if "model" in cut:
                patch.setattr(batching, "partition", lambda widths, budget, world: [[list(range(len(widths)))[k::2] for k in range(2)]])
            folder = run(config, "+".join(cut), method=METHODS[name], **cut)
        rows.append(stable_rows(folder))
        found.append(weights(folder))
        counts.append(len(graphs) / updates)
    assert counts[0] == 2 and counts[1] >= 5, counts
    grpo = plain(ObjectiveConfig(clip_low=1.0, clip_high=1e6) if name in ("clip_cov", "kl_cov") else ObjectiveConfig())
    assert any((tensor - grpo[key]).abs().max() > 1e-4 for key, tensor in found[0].items()), "the case must change something"
    for others, tensors in zip(rows[1:], found[1:], strict=True):
        for row, other in zip(rows[0], others, strict=True):
            assert row["reward/mean"] == other["reward/mean"]
            for key in row:
                if key.startswith(("entropy/", "method/")) and row[key] is not None:
                    assert other[key] == pytest.approx(row[key], rel=1e-4, abs=1e-5), key
        for key, tensor in tensors.items():
            # AdamW divides by the root of a moment: where a gradient is next to 0 its rounding counts
            torch.testing.assert_close(tensor, found[0][key], rtol=1e-4, atol=5e-5)


QUICK = ("positive_advantage", "stare", "siren", "clip_cov", "ares and fixed")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in METHODS])
def test_a_method_resumes_exactly(config: TrainConfig, name: str, whole: Callable[[str], tuple[Path, int]]) -> None:
    """From the checkpoint before the last step."""
    folder, parts = whole(name)[0], Path(config.run.out).parent / "parts"
    shutil.copytree(folder, parts)
    shutil.rmtree(parts / "checkpoints" / "step_000003")
    assert_same_run(folder, run(config, "parts", method=METHODS[name], resume=True))


@pytest.mark.slow
@pytest.mark.parametrize("objective", [ObjectiveConfig(), ObjectiveConfig(kind="gspo", aggregation="sequence_mean")], ids=["ppo", "gspo"])
def test_training_with_top_p_is_on_the_distribution_that_was_sampled(
    config: TrainConfig, objective: ObjectiveConfig, plain: Trained
) -> None:
    """Log-probs of both sides are over the same tokens, so that no ratio of a first update is off; cutting changes nothing."""
    config = replace(config, rollout=replace(config.rollout, top_p=0.7), objective=objective)
    folders = [
        run(config, f"{budget}", method=METHODS["aer"], optim=replace(config.optim, tokens_per_microbatch=budget)) for budget in (10**6, 25)
    ]
    rows, whole = stable_rows(folders[0]), weights(folders[0])
    for row, other in zip(rows, stable_rows(folders[1]), strict=True):
        assert 0 <= row["rollout/mismatch_kl"] < 1e-5 and row["rollout/mismatch_max"] < 1e-3, "of the recorded log-probs from the trainer's"
        assert other["entropy/mean"] == pytest.approx(row["entropy/mean"], rel=1e-4)
    for key, tensor in weights(folders[1]).items():
        torch.testing.assert_close(tensor, whole[key], rtol=1e-4, atol=1e-5)
    assert any((tensor - plain(objective)[key]).abs().max() > 1e-4 for key, tensor in whole.items())
    full = stable_rows(run(replace(config, rollout=replace(config.rollout, top_p=1.0)), "full", method=METHODS["aer"]))
    assert rows[0]["entropy/mean"] < full[0]["entropy/mean"] - 0.1, "entropy is over the tokens that are drawn"


@pytest.mark.slow
def test_the_entropy_that_is_reported_is_of_all_tokens(config: TrainConfig) -> None:
    """SIREN's own entropy, of the nucleus, is what it controls."""
    method = SIRENConfig(beta=0.0)
    rows, plain = stable_rows(run(config, "siren", method=method)), stable_rows(run(config, "off", method=EntropyControlConfig(kind="off")))
    for row, other in zip(rows, plain, strict=True):
        assert row["entropy/mean"] == pytest.approx(other["entropy/mean"], rel=1e-6)
        assert row["entropy/policy_slope"] == pytest.approx(other["entropy/policy_slope"], rel=1e-5)
        assert row["entropy/bonus_slope"] == 0
    assert rows[-1]["entropy/controlled"] != pytest.approx(rows[-1]["entropy/mean"], rel=0.01)


@pytest.mark.slow
def test_what_is_logged(config: TrainConfig) -> None:
    rows = stable_rows(run(config, "logged", method=METHODS["positive_advantage"]))
    assert [row["method/positive_weight"] for row in rows] == pytest.approx([0.5, 0.55, 0.6]), "what the step was made with"
    assert all(row["entropy/target"] == 2.0 and row["entropy/controlled"] == pytest.approx(row["entropy/mean"]) for row in rows)
    assert all("entropy/coef" not in row for row in rows)
    assert all(0 < row["method/reweighted_frac"] < 1 for row in rows)
    silent = stable_rows(run(config, "silent", method=METHODS["aer"]))
    assert all("method/reweighted_frac" not in row for row in silent)


@pytest.mark.slow
def test_masked_tokens_cost_no_product(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tokens in five without a gradient: they enter no gradient product of the head."""
    from aer_train.step import loss

    real, counts = loss.fused_policy_loss, []

    def counting(*args: Any, **kwargs: Any) -> Any:
        output = real(*args, **kwargs)
        counts.append((float(output.metrics["num_grad_tokens"]), float(output.metrics["num_tokens"])))
        return output

    monkeypatch.setattr(loss, "fused_policy_loss", counting)
    run(config, "forking", method=ForkingTokensConfig(share=0.2))
    assert 0.1 < sum(grad for grad, _ in counts) / sum(total for _, total in counts) < 0.3


@pytest.mark.slow
def test_options_are_those_of_the_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[method]\nkind = "forking_tokens"\nshare = 0.5\n')
    assert read_config(file).method == ForkingTokensConfig(share=0.5)
    assert main(["train", "--config", str(file), "--method.share", "0.4", "--dry-run"]) == 0
    assert '"share": 0.4' in capsys.readouterr().out
    assert main(["train", "--preset", "countdown", "--method.kind", "positive_advantage", "--method.target=0.3", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert '"kind": "positive_advantage"' in out and '"target": 0.3' in out and "max_coef" not in out
    assert main(["train", "--preset", "countdown", "--method.kind", "fixed", "--method.coef", "0.1", "--dry-run"]) == 0
    assert '"tau": 1.2' in capsys.readouterr().out, "the same options: what the preset set stays"
    for args, message in (
        (["--method.kind", "clip"], "kind must be one of aer, balance,"),
        (["--method.kind", "forking_tokens", "--method.tau", "0.5"], "Unrecognized options: --method.tau"),
        (["--method.kind", "forking_tokens", "--method.share", "1.5"], "share must be in (0, 1], got 1.5"),
        (["--method.kind", "tests.nothing.Here"], "or a dotted path to a class, got 'tests.nothing.Here'"),
    ):
        assert main(["train", *args, "--dry-run"]) == 2
        assert message in capsys.readouterr().err


def test_refill_does_not_ask_for_what_needs_a_pass() -> None:
    config = TrainConfig(method=ForkingTokensConfig(), rollout=RolloutConfig(refill_rounds=1))
    with pytest.raises(ValueError, match=r"rollout\.refill must be zero_variance for method\.kind forking_tokens, .* got no_signal"):
        check_config(config)
    check_config(replace(config, rollout=RolloutConfig(refill_rounds=1, refill="zero_variance")))


class Broken(Neutral):
    def terms(self, tokens: TokenBatch) -> TokenTerms:
        return TokenTerms(weight=-torch.ones_like(tokens.logprobs))


@pytest.mark.slow
def test_a_method_that_answers_nonsense_stops_the_run(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match=r"weight must be >= 0, got -1.0"):
        run(config, "broken", method=NeutralConfig("tests.train.test_methods.Broken"))


@pytest.mark.parametrize(
    "kind, options, changes, match",
    [
        ("kl_cov", {}, {"optim": OptimConfig()}, "KLCov must have more than one update on each batch"),
        ("mai_clip", {}, {"optim": OptimConfig()}, "MAIClip must have more than one update on each batch"),
        ("erc", {}, {"optim": OptimConfig()}, "ERC must have more than one update on each batch"),
        (
            "mai_clip",
            {},
            {"objective": ObjectiveConfig(kind="cispo")},
            "objective.kind must be ppo for method.kind mai_clip, which moves dual_clip",
        ),
        ("arm", {}, {}, "alpha must be given for kind 'arm'"),
        ("adapo", {}, {}, "step must be given for kind 'adapo'"),
        ("arm", {"alpha": 1.0}, {"rollout": RolloutConfig(refill_rounds=1)}, "rollout.refill must be zero_variance for method.kind arm"),
        ("relax", {"dictionary": "nowhere.pt"}, {}, "dictionary must name a file with a tensor"),
    ],
)
def test_what_cannot_work_is_refused_before_a_run(kind: str, options: Any, changes: Any, match: str) -> None:
    config = TrainConfig(method=method_class(kind).Config(**options), optim=OptimConfig(updates_per_step=2))
    with pytest.raises(ValueError, match=match):
        check_config(replace(config, **changes))


@pytest.mark.slow
def test_two_methods_at_once_have_options_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["train", "--preset", "countdown", "--method.kind", "stare+fixed", "--method.stare.target", "0.5", "--method.fixed.coef=0.2"]
    assert main([*args, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert '"target": 0.5' in out and '"coef": 0.2' in out
    file = tmp_path / "run.toml"
    file.write_text('[method]\nkind = "stare+fixed"\n[method.stare]\nshare = 0.3\n[method.fixed]\ncoef = 0.2\n')
    config = read_config(file).method
    assert config.stare == StareConfig(share=0.3) and config.fixed == EntropyControlConfig(kind="fixed", coef=0.2)
    assert main(["train", "--method.kind", "stare+steer", "--dry-run"]) == 2
    assert "got stare and steer, which move weight" in capsys.readouterr().err


@pytest.mark.slow
def test_the_text_of_tokens_reaches_a_method_that_asks(config: TrainConfig) -> None:
    """Digits alone may be hits: the bonus is another than with every token."""
    changed = [
        stable_rows(run(config, name, data=DataConfig(), method=AresConfig(window=1, triggers=words, wrong_bonus="released")))
        for name, words in (("every", ()), ("digits", tuple("0123456789")), ("none", ("nothing",)))
    ]
    means = [rows[0]["reward/shaped_mean"] for rows in changed]
    assert len(set(means)) == 3 and all(rows[0]["reward/mean"] == changed[0][0]["reward/mean"] for rows in changed)
    assert changed[0][0]["method/uncertain_from"] is None or changed[0][1]["method/uncertain_from"] > 0
