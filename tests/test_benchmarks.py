"""The benchmark suite end to end on tiny shapes: rows, table, plots, and a check that refuses wrong results."""

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("tqdm", reason="the bench extra is not installed")
pytest.importorskip("matplotlib", reason="the bench extra is not installed")

from benchmarks import gate, table
from benchmarks.__main__ import main, measure
from benchmarks.profiles import PROFILES
from benchmarks.providers import PROVIDERS, Inapplicable, Unavailable, prepare
from benchmarks.providers.eager import EAGER
from benchmarks.providers.ours import OURS
from benchmarks.workloads import KINDS, Workload, make_case

CPU = torch.device("cpu")


def tiny(kind, **changes):
    return replace(Workload(kind, 64, 300, 32, torch.float32, rounds=1), **changes)


@pytest.mark.slow
def test_a_profile_end_to_end(tmp_path, capsys):
    """A run leaves rows that say where they come from, a table with every provider, and plots."""
    assert main(["--profile", "smoke", "--out", str(tmp_path), "--only", "score", "policy N=64"]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {r["provider"] for r in rows if r["kind"] == "score"} == {p.name for p in PROVIDERS}
    ours = [r for r in rows if r["provider"] == "aer_kernels"]
    assert len(ours) == 2 and all(r["status"] == "measured" and r["median_ms"] > 0 and r["peak_mib"] > 0 for r in ours)
    for field in (
        "hardware",
        "torch",
        "commit",
        "date",
        "version",
        "errors",
        "ratio_to_eager",
        "ratio_to_products",
        "median_entropy",
        "tflops",
    ):
        assert all(r.get(field) is not None for r in ours), field
    text = (tmp_path / "table.md").read_text()
    assert "| aer_kernels |" in text and "Not for this work:" in text
    assert {"main.png", "tokens.png"} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_our_work_passes_its_check(kind):
    errors = gate.check(OURS, tiny(kind), CPU)
    wanted = {"score": {"logprobs", "entropy"}, "logprobs": {"logprobs", "entropy", "grad_hidden", "grad_weight"},
              "from_logits": {"logprobs", "entropy", "grad_logits"}}  # fmt: skip
    assert errors.keys() == wanted.get(kind, {"loss", "grad_hidden", "grad_weight"})
    assert max(errors.values()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["policy_no_entropy", "score", "cross_entropy"])
def test_every_provider_that_runs_here_passes(kind):
    """Peers are held to the same truth; those that are not installed or need a GPU say so."""
    for provider in PROVIDERS:
        try:
            gate.check(provider, tiny(kind), CPU)
        except Unavailable as reason:
            assert str(reason)


@pytest.mark.slow
def test_a_wrong_result_is_not_timed(monkeypatch):
    """An entropy gradient with the wrong sign: seen by the check, listed with its error, without a time."""

    class Flipped(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return -grad

    def tokens(case):
        right = EAGER.tokens(case)
        return lambda: (lambda logprobs, entropy: (logprobs, Flipped.apply(entropy)))(*right())

    wrong = replace(EAGER, name="wrong", tokens=tokens)
    with pytest.raises(gate.GateError, match="error of grad_hidden is"):
        gate.check(wrong, tiny("logprobs"), CPU)
    monkeypatch.setattr("benchmarks.__main__.PROVIDERS", (wrong, EAGER))
    rows = {r["provider"]: r for r in measure(tiny("logprobs"), CPU, 0)}
    assert rows["wrong"]["status"].startswith("failed the check: error of grad_hidden") and "median_ms" not in rows["wrong"]
    assert rows["eager"]["status"] == "measured"


def test_a_missing_gradient_is_not_timed():
    detached = replace(EAGER, tokens=lambda case: lambda: tuple(x.detach().requires_grad_() for x in EAGER.tokens(case)()))
    with pytest.raises(gate.GateError, match="no grad_hidden and no grad_weight"):
        gate.check(detached, tiny("logprobs"), CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_of_the_products(kind):
    unit = 64 * 300 * 32
    expected = {"policy": 6, "policy_half": 4, "policy_no_entropy": 6, "logprobs": 8, "score": 2, "cross_entropy": 6, "from_logits": 0}
    assert tiny(kind).flops == expected[kind] * unit


def test_half_of_the_tokens_are_idle_in_policy_half():
    case = make_case(tiny("policy_half", num_tokens=2048, vocab_size=50), CPU)
    idle = (case.advantages == 0) & (case.entropy_coef == 0)
    assert idle.sum() == 1024


def test_targets_are_read_from_the_rows():
    shared = {"kind": "policy", "N": 4096, "V": 32_000, "D": 512, "sweep": "main", "median_ms": 50.0}
    ours = shared | {"provider": "aer_kernels", "ratio_to_eager": 0.5, "ratio_to_products": 1.3, "peak_mib": 10.0, "outputs_mib": 1.0}
    text = table.targets([ours, shared | {"provider": "eager", "peak_mib": 100.0}])
    assert (
        "time / eager | <= 0.55 | 0.50 | yes" in text
        and "bare products | <= 1.2 | 1.30 | no" in text
        and "eager | <= 0.12 | 0.10 | yes" in text
    )
    assert table.targets([]) == ""


def test_the_gpu_profile_needs_a_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="needs a CUDA GPU"):
        main(["--profile", "gpu", "--out", str(tmp_path)])
    assert all(w.vocab_size > 30_000 for w in PROFILES["gpu"]())


def test_kinds_that_do_not_apply_are_told_apart():
    peer = replace(EAGER, tokens=EAGER.tokens, entropy_gradient=False, given_logits=False)
    for kind in ("policy", "from_logits"):
        with pytest.raises(Inapplicable):
            prepare(peer, make_case(tiny(kind), CPU))


def test_the_trainer_table_is_made_of_what_the_processes_measured(tmp_path):
    """Medians over the timed steps of all runs; a peer that failed says why, and there is no ratio then."""
    from benchmarks.trainer import report
    from benchmarks.trainer.cases import Case

    def run(seconds, cpu):
        steps = [{"clock": 0.0, "cpu": 0.0, "tokens": 100, "reward": 0.5, "entropy": 2.0, "parts": {"rollout": 0.25}}]
        for number in range(1, 5):
            clock = 100.0 if number == 1 else steps[-1]["clock"] + seconds  # the first step that could be timed warms up
            steps.append(steps[0] | {"clock": clock, "cpu": number * cpu, "reward": 0.5 + number / 10})
        return {"version": "1.2", "peak_mib": 300.0, "imports_mib": 200.0, "steps": steps}

    here = {"hardware": "a", "threads": 1, "driver": None, "torch": "2", "python": "3", "commit": "c", "date": "d"}
    case = Case("small", steps=5, excluded=2)
    ours = here | report.row(case, "aer_train", [run(0.5, 0.3), run(0.7, 0.3)])
    peer = here | report.row(case, "TRL", [run(1.2, 0.6), run(1.2, 0.6)])
    assert ours["median_ms"] == pytest.approx(600) and ours["median_ms_of_runs"] == pytest.approx([500, 700])
    assert ours["tokens_per_s"] == pytest.approx(100 / 0.6) and ours["median_cpu_ms"] == pytest.approx(300)
    text = report.write([ours, peer])
    assert "aer_train / TRL: time 0.500, outside of rollouts 0.368, CPU time 0.500, peak memory 1.000." in text
    assert "| 300 | 100 | 0.500 -> 0.900 |" in text
    failed = here | report.row(case, "TRL", [{"error": "Traceback ...\nImportError: no trl"}])
    text = report.write([ours, failed])
    assert "| TRL | failed: Traceback ... ImportError: no trl |" in text and "aer_train / TRL" not in text
    report.save_plots([ours, peer], tmp_path)
    assert (tmp_path / "rewards.png").stat().st_size > 1000


def test_both_trainers_are_given_the_same_job(tmp_path):
    from benchmarks.trainer.cases import GROUP_SIZE, PROFILES, PROMPTS_PER_STEP, Job, prepare
    from benchmarks.trainer.ours import settings

    case = PROFILES["smoke"]()[1]
    model, data = prepare(case, tmp_path / "case")
    job = Job(case, model, data, tmp_path / "work", tmp_path / "result", "cpu", 1, 3)
    job.write(tmp_path / "job")
    assert Job.read(tmp_path / "job") == job
    config = settings(job)
    assert config.optim.prompts_per_step == PROMPTS_PER_STEP and config.rollout.group_size == GROUP_SIZE
    assert config.run.seed == 3 and config.method.coef == case.coef and config.model.name == str(model)
    trl = pytest.importorskip("benchmarks.trainer.trl", reason="TRL is not installed", exc_type=ImportError)
    theirs = trl.settings(job)
    assert theirs.learning_rate == config.optim.lr and (theirs.adam_beta1, theirs.adam_beta2) == config.optim.betas
    assert theirs.max_completion_length == config.rollout.max_new_tokens and theirs.entropy_coef == config.method.coef
    assert theirs.generation_batch_size == PROMPTS_PER_STEP * GROUP_SIZE and theirs.max_grad_norm == config.optim.grad_clip


@pytest.mark.slow
def test_what_methods_cost(capsys):
    """Two methods in turn: a row each, beside the first."""
    pytest.importorskip("aer_train.trainer", reason="the train extra is not installed")
    from benchmarks import methods

    assert methods.main(["--steps", "2", "--only", "off", "steer"]) == 0
    header, _, off, steer = capsys.readouterr().out.strip().splitlines()[-4:]
    assert header == "| method.kind | ms a step | times off |" and off.startswith("| off | ") and off.endswith(" | 1.00 |")
    assert steer.startswith("| steer | ") and float(steer.split("|")[3]) > 0
    assert set(methods.REQUIRED) < set(methods.METHODS)
