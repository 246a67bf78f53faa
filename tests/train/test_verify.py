"""The verifier as a machine: answers and reward functions that are out to break it cost at most their deadline, wherever it is used from."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aer_train.verify import Verifier
from aer_train.verify.pool import Pool

SYMBOLIC = (r"\boxed{1+x}", "x+1")
"""A pair that needs a process."""

HOSTILE = {
    "power_tower": r"\boxed{9^{9^{9^9}}}",
    "hidden_tower": r"\boxed{x + (10^{10})!}",
    "many_powers": r"\boxed{\left(\left(2^{999}\right)^{999}\right)^{999} + x}",
    "nested_brackets": r"\boxed{" + "(" * 1_000_000 + "}",
    "nested_braces": r"\boxed{" * 200_000,
    "nested_lists": r"\boxed{" + "(1," * 240 + ")" * 240 + "}",
    "nested_fractions": r"\boxed{" + r"\frac{1}{1+" * 24 + "x" + "}" * 24 + "}",
    "nested_roots": r"\boxed{" + r"\sqrt{" * 45 + "x" + "}" * 45 + "}",
    "digits": r"\boxed{" + "9" * 10_000_000 + "}",
    "long_power": r"\boxed{x^{" + "9" * 200 + "}}",
    "wide_sum": r"\boxed{\sum_{k=1}^{10^{12}} \sin(k) x}",
    "hard_integral": r"\boxed{\int_0^{\infty} \sin(x^{x^x}) dx}",
    "control_characters": "\\boxed{\x00\x1b[31m\x7f\u202e}",
    "surrogates": "\\boxed{x + \ud800}",
    "a_million_boxes": r"\boxed{1}" * 1_000_000,
    "fifty_boxes": "".join(rf"\boxed{{x+{i}}}" for i in range(50)),
    "a_million_words": "answer is " * 1_000_000,
    "a_million_hashes": "#" * 1_000_000,
    "unicode_digits": "\\boxed{\uff14\uff12}",
    "commas": r"\boxed{" + "1," * 400 + "}",
}


@pytest.fixture(scope="module")
def impatient() -> Iterator[Verifier]:
    with Verifier(timeout=1.0, workers=1) as verifier:
        yield verifier


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_refused_before_the_deadline(impatient: Verifier, name: str) -> None:
    impatient.score_many([SYMBOLIC])  # the process is up
    start = time.monotonic()
    (verdict,) = impatient.score_many([(HOSTILE[name], "42+x")])
    assert verdict.outcome in ("wrong", "no_answer") and verdict.reward == 0.0, "refused, and not by the deadline"
    assert time.monotonic() - start < 1.0
    assert impatient.score_many([(r"\boxed{2+x}", "x+2")])[0].outcome == "correct"


@pytest.mark.parametrize(
    "gold", [HOSTILE[name][7:-1] for name in ("power_tower", "hidden_tower", "nested_brackets", "digits", "surrogates")]
)
def test_hostile_gold_answers(impatient: Verifier, gold: str) -> None:
    impatient.score_many([SYMBOLIC])
    start = time.monotonic()
    (verdict,) = impatient.score_many([(r"\boxed{x + 41}", gold)])
    assert verdict.reward == 0.0 and time.monotonic() - start < 3.0


def test_the_same_question_is_asked_once(impatient: Verifier) -> None:
    start = time.monotonic()
    verdicts = impatient.score_many([(HOSTILE["hidden_tower"], "43+x")] * 500)
    assert len({verdict.outcome for verdict in verdicts}) == 1 and time.monotonic() - start < 5.0


def test_integers_start_no_process() -> None:
    with Verifier() as verifier:
        verdicts = verifier.score_many([("#### 5", "5"), (r"\boxed{5}", "6"), ("I do not know.", "7")] * 1000)
        assert [v.outcome for v in verdicts[:3]] == ["correct", "wrong", "no_answer"]
        assert verifier.unparseable(["18", "1/2", "", "#### 7", r"\text{east}", "52_8"]) == [2]
        assert verifier._pool.pids() == []


def test_countdown() -> None:
    with Verifier(kind="countdown") as verifier:
        verdicts = verifier.score_many([("8+5+3", "358=16"), ("8*5+3", "358=16"), ("8+5+3" * 1_000_000, "358=16")])
        assert [v.outcome for v in verdicts] == ["correct", "wrong", "wrong"]
        assert verifier.unparseable(["358=16", "16"]) == [1]


# custom rewards: imported in the worker processes under their dotted path


def nasty(response: str, answer: str) -> object:
    """A reward function that does what its response says."""
    acts: dict[str, Callable[[], object]] = {
        "sleep": lambda: time.sleep(60),
        "ignore": lambda: (signal.signal(signal.SIGTERM, signal.SIG_IGN), time.sleep(60)),
        "spin": lambda: 9**9**9,
        "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "segfault": lambda: ctypes.string_at(0),
        "leave": lambda: os._exit(0),
        "eat": lambda: bytearray(64 << 30),
        "recurse": lambda: nasty(response, answer),
        "babble": lambda: print("to standard output", flush=True) or 1.0,
        "doze": lambda: time.sleep(0.5) or 1.0,
        "pid": lambda: Path(answer).write_text(f"{os.getpid()}") and time.sleep(60),
        "die once": lambda: 1.0 if Path(answer).exists() else (Path(answer).touch(), os.kill(os.getpid(), signal.SIGKILL)),
        "fork": lambda: 1.0 if (child := os.fork()) and Path(answer).write_text(f"{child} {os.getpid()}") else time.sleep(60),
    }
    if response in acts:
        return acts[response]()
    if response == "exit":
        sys.exit(0)
    if response == "interrupt":
        raise KeyboardInterrupt
    values = {"half": 0.5, "two": 2.0, "nan": float("nan"), "none": None, "text": "1.0", "true": True, "long": "x" * 2_000_000}
    return values.get(response, float(response == answer))


NASTY = "tests.train.test_verify.nasty"


def pool_of(verifier: Verifier) -> Pool:
    """The processes of a reward function."""
    return verifier._scorer.pool  # type: ignore[union-attr]


@pytest.mark.slow
def test_custom_rewards_that_hang_die_and_lie(capfd: pytest.CaptureFixture[str]) -> None:
    expected = {
        "right": ("correct", 1.0, ""), "half": ("wrong", 0.5, ""), "true": ("correct", 1.0, ""), "babble": ("correct", 1.0, ""),
        "two": ("crash", 0.0, "reward.kind must give a number in [0, 1], got 2.0"), "nan": ("crash", 0.0, "reward.kind must give a number in [0, 1], got nan"),
        "none": ("crash", 0.0, "in [0, 1], got None"), "text": ("crash", 0.0, "in [0, 1], got '1.0'"), "long": ("crash", 0.0, "longer than"),
        "sleep": ("timeout", 0.0, "no answer within 2 s"), "ignore": ("timeout", 0.0, "no answer"), "spin": ("timeout", 0.0, "no answer"),
        "die": ("crash", 0.0, "SIGKILL"), "segfault": ("crash", 0.0, "SIGSEGV"), "leave": ("crash", 0.0, "exit code 0"), "eat": ("crash", 0.0, "MemoryError"),
        "recurse": ("crash", 0.0, "RecursionError"), "exit": ("crash", 0.0, "SystemExit"), "interrupt": ("crash", 0.0, "KeyboardInterrupt"),
    }  # fmt: skip
    with Verifier(kind=NASTY, timeout=2.0, workers=3) as verifier:
        verdicts = verifier.score_many([(response, "right") for response in [*expected, "right"]])
    for (response, (outcome, reward, detail)), verdict in zip(expected.items(), verdicts, strict=False):
        assert (verdict.outcome, verdict.reward) == (outcome, reward) and detail in verdict.detail, (response, verdict)
    assert verdicts[-1].outcome == "correct" and verdicts[-1].extracted is None
    assert capfd.readouterr().out == "", "standard output belongs to the program"


@pytest.mark.slow
def test_a_slow_answer_does_not_make_its_neighbour_late() -> None:
    with Verifier(kind=NASTY, timeout=1.0, workers=1) as verifier:
        verdicts = verifier.score_many([("doze", "")] * 3 + [("sleep", "")] + [("doze", "")])
    assert [v.outcome for v in verdicts] == ["correct"] * 3 + ["timeout", "correct"]
    assert all(0.4 < v.seconds < 2.0 for v in verdicts)


@pytest.mark.slow
def test_submitted_answers_are_graded_while_other_work_goes_on() -> None:
    with Verifier(kind=NASTY, timeout=1.0, workers=2) as verifier:
        start = time.monotonic()
        slow, fast = verifier.submit([("sleep", "right")]), verifier.submit([("right", "right"), ("half", "right")])
        assert time.monotonic() - start < 0.5
        assert [v.reward for v in fast.result()] == [1.0, 0.5]
        assert [v.outcome for v in slow.result()] == ["timeout"] and slow.result() == slow.result()


def test_close_is_prompt_final_and_repeatable(tmp_path: Path) -> None:
    with Verifier(kind=NASTY, timeout=60.0, workers=1) as verifier:
        pool = pool_of(verifier)
        pending = verifier.submit([("sleep", ""), ("sleep", "")])
        wait_for(lambda: pool.pids() and not pool._idle.qsize())
        time.sleep(0.5)
        pids, start = pool.pids(), time.monotonic()
    verifier.close()
    assert time.monotonic() - start < 5.0 and not any(alive(pid) for pid in pids)
    with pytest.raises(ValueError, match="verifier must be open, got one that was closed"):
        verifier.submit([])
    with pytest.raises(ValueError, match="verifier must be open until its verdicts are there, got one that was closed"):
        pending.result()


def test_what_a_reward_function_forked_is_killed_too(tmp_path: Path) -> None:
    with Verifier(kind=NASTY, timeout=5.0, workers=1) as verifier:
        verdict = verifier.score_many([("fork", str(tmp_path / "pids"))])[0]
        assert verdict.outcome == "correct"
        child, worker = map(int, (tmp_path / "pids").read_text().split())
        assert alive(child) and alive(worker)
    wait_for(lambda: not alive(child) and not alive(worker))


def test_works_from_threads_and_leaves_no_process_behind() -> None:
    found: list[str] = []

    def grade() -> None:
        found.extend(v.outcome for v in verifier.score_many([(rf"\boxed{{{i}+x}}", f"x+{i}") for i in range(4)]))

    with Verifier(timeout=20.0) as verifier:
        threads = [threading.Thread(target=grade) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pids = verifier._pool.pids()
    assert found == ["correct"] * 12
    assert pids and not any(alive(pid) for pid in pids)


def test_works_in_asyncio_and_from_it() -> None:
    async def grade() -> list[str]:
        with Verifier(timeout=20.0, workers=1) as verifier:
            inside = verifier.score_many([SYMBOLIC])
            beside = await asyncio.gather(*(asyncio.to_thread(verifier.score_many, [(rf"\boxed{{{i}+x}}", f"x+{i}")]) for i in (2, 3)))
            return [v.outcome for v in [*inside, *beside[0], *beside[1]]]

    assert asyncio.run(grade()) == ["correct"] * 3


def grade_elsewhere(results: multiprocessing.Queue[list[str]]) -> None:
    with Verifier(timeout=20.0, workers=1) as verifier:
        results.put([v.outcome for v in verifier.score_many([SYMBOLIC])])


@pytest.mark.slow
def test_works_in_a_spawned_process() -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=grade_elsewhere, args=(results,), daemon=True)
    process.start()
    assert results.get(timeout=60) == ["correct"]
    process.join()
    assert process.exitcode == 0


def test_works_after_a_fork_without_touching_the_parent() -> None:
    with Verifier(timeout=20.0, workers=1) as verifier:
        verifier.score_many([SYMBOLIC])
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with verifier:
                    os.write(writer, verifier.score_many([(r"\boxed{2+x}", "x+2")])[0].outcome.encode())
            finally:
                os._exit(0)
        os.close(writer)
        assert os.read(reader, 100) == b"correct" and os.waitpid(child, 0)[1] == 0
        pids = verifier._pool.pids()
        assert verifier.score_many([(r"\boxed{3+x}", "x+3")])[0].outcome == "correct"
        assert verifier._pool.pids() == pids, "the parent's process lives on"
        os.close(reader)


@pytest.mark.slow
def test_a_process_killed_from_outside_costs_no_verdict(tmp_path: Path) -> None:
    """The system short of memory, or a person, may kill a process: what it was asked is asked again, once."""
    with Verifier(kind=NASTY, timeout=5.0, workers=1) as verifier:
        assert verifier.score_many([("die once", str(tmp_path / "seen"))])[0].outcome == "correct"
        os.kill(pool_of(verifier).pids()[0], signal.SIGKILL)
        assert verifier.score_many([("right", "right")])[0].outcome == "correct"


def test_processes_die_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    code = f"from aer_train.verify import Verifier; Verifier({NASTY!r}, 60.0, 1).score_many([('pid', {str(tmp_path / 'pid')!r})])"
    root = str(Path(__file__).resolve().parents[2])
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": root})
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    worker = int((tmp_path / "pid").read_text())
    assert alive(worker)
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(worker))


def test_a_process_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool("no.such.function", timeout=1.0, workers=1)
    with pytest.raises(ImportError, match=r"a verifier process must be able to load no\.such\.function, got ModuleNotFoundError"):
        pool.submit("a", "b").result()
    monkeypatch.setattr("aer_train.verify.pool.START_ATTEMPTS", 1)
    monkeypatch.setattr(sys, "executable", "/no/python")
    with pytest.raises(ChildProcessError, match=r"a verifier process must start, got: .*No such file"):
        pool.submit("a", "b").result()
    pool.close()


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"kind": "no.such.function"},
            r"reward.kind must be math, an embedded task, a URL or a dotted path to a function, got 'no.such.function': No module named 'no'",
        ),
        (
            {"kind": "math.no"},
            "reward.kind must be math, an embedded task, a URL or a dotted path to a function, got 'math.no': module 'math' has no attribute 'no'",
        ),
        ({"kind": "math.pi"}, "reward.kind must name a function, got 'math.pi' of type float"),
        (
            {"kind": "tests.train.test_verify.test_countdown"},
            r"reward.kind must name a function of \(response, answer\) or of names in its row, got .*, which takes none of them",
        ),
        ({"timeout": 0}, "timeout must be > 0 and finite, got 0"),
        ({"workers": 0}, "workers must be >= 1, got 0"),
        ({"kind": "countdown", "lenient": True}, "lenient must be False for kind countdown, got True"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Verifier(**options)  # type: ignore[arg-type]


def test_pairs_must_be_texts() -> None:
    with Verifier() as verifier, pytest.raises(TypeError, match=r"pairs must hold \(response text, gold answer\) as str, got str and int"):
        verifier.score_many([("5", 5)])  # type: ignore[list-item]


def alive(pid: int) -> bool:
    """Whether a process runs (a dead one that nobody waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("prompt", "response", "outcome"),
    [
        ("<|User|>1+1?<|Assistant|><think>\n", r"It may be \boxed{2}.", "no_answer"),
        ("<|User|>1+1?<|Assistant|><think>\n", r"It may be \boxed{3}.</think> \boxed{2}", "correct"),
        ("1+1? [THINK]", r"\boxed{2}", "no_answer"),
        ("1+1? <|begin_of_thought|>\n\n", r"\boxed{2}", "no_answer"),
        ("1+1?<think>\n\n</think>\n\n", r"\boxed{2}", "correct"),
        ("Use <think> and </think>. 1+1?", r"\boxed{2}", "correct"),
        ("Think between <think> and </think>, beginning with <think> 1+1?", r"\boxed{2}", "correct"),
        ("I methink>", r"\boxed{2}", "correct"),
        ("", r"\boxed{2}", "correct"),
    ],
)
def test_thinking_that_the_prompt_has_opened_is_no_answer(prompt: str, response: str, outcome: str) -> None:
    with Verifier(workers=1) as verifier:
        assert verifier.score_many([(response, "2", prompt)])[0].outcome == outcome
