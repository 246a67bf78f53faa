"""The runs of a matrix: each once, side by side over the cores, resumable at any moment."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import threading
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import connection
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from aer_train.config.tree import TrainConfig
from aer_train.run.files import write_atomic
from aer_train.tasks import PREFIX
from aer_train.trainer import train
from study.conditions import write_conditions
from study.config import Job, Matrix, Study
from study.evaluate import Counts, right_samples
from study.options import check_options, options_of, options_path
from study.policies import policy_folder, prepare, stages
from study.reach import Reach, reach
from study.real.policy import write_training
from study.records import DONE, summarize

NICE = 5
"""Added to the niceness of the workers: a study takes what the machine has to spare."""


def run_matrix(study: Study, matrix: Matrix, out: Path, cache: Path, workers: int) -> list[Job]:
    """Run every job of the matrix that has no record yet below `out`; returns the jobs that failed for another reason than divergence.

    Args:
        cache: folder of the warm-started policies; missing ones are made first.
        workers: processes, one thread each.
    Raises:
        ValueError - `out` holds a run of a job that was begun with other options.
    """
    configs = {job: study.train_config(matrix, job, out / job.folder, policy_folder(cache, study.setting_of(job))) for job in matrix.jobs}
    for job, config in configs.items():
        check_options(out / job.folder, options_of(config, matrix))
    waiting = [job for job in matrix.jobs if not (out / job.folder / DONE).exists()]
    failed: list[Job] = []
    if not waiting:
        return failed
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    context = multiprocessing.get_context("spawn")
    console = Console(highlight=False)
    with ProcessPoolExecutor(workers, context, initializer=_start) as pool, Progress(*columns, console=console) as progress:
        for stage in stages(cache, [study.setting_of(job) for job in matrix.jobs]):
            for policy in [pool.submit(prepare, cache, setting) for setting in stage.values()]:
                policy.result()
        write_conditions(study, matrix, cache, out)
        bar = progress.add_task(matrix.name, total=len(matrix.jobs), completed=len(matrix.jobs) - len(waiting))
        futures = {pool.submit(run_job, job, configs[job], matrix): job for job in waiting}
        try:
            for future in as_completed(futures):
                progress.advance(bar)
                if future.exception() is not None:
                    job = futures[future]
                    failed.append(job)
                    console.print(f"{job.folder} failed: {future.exception()}; see {out / job.folder}.log", markup=False, soft_wrap=True)
        finally:  # who stops early, by Ctrl-C, does not wait for the runs that have not begun
            pool.shutdown(wait=False, cancel_futures=True)
    return failed


def run_job(job: Job, config: TrainConfig, matrix: Matrix) -> None:
    """Train and evaluate one run, and leave its record; a run that was cut off goes on from its last checkpoint.

    The last step is what counts: there is no selection of a checkpoint. A run that diverges (loss or logits are not finite) is a result.
    """
    run, started, cpu = Path(config.run.out), time.monotonic(), time.process_time()
    run.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options_path(run), json.dumps(options_of(config, matrix), indent=1))
    with open(f"{run}.log", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        diverged, right, reached, resumed = None, dict[str, Counts](), dict[int, Reach](), run.exists()
        try:
            if not config.data.train.startswith(PREFIX):
                write_training(Path(config.data.train), job.hard_share)
            train(config, resume=resumed)
            cpu = time.process_time() - cpu
            right = {split: right_samples(run, config, split, matrix.samples, matrix.eval_limit) for split in matrix.splits}
            reached = {step: reach(run, config, step) for step in matrix.probes}
        except FloatingPointError as error:
            diverged = str(error)
        except Exception:
            traceback.print_exc(file=log)
            raise
        record = summarize(job, run, right, matrix.samples, diverged) | {"seconds": round(time.monotonic() - started, 1)}
        if reached:
            record["reach"] = reached
        if diverged is None and not resumed:
            record["training_cpu"] = round(cpu, 1)
        write_atomic(run / DONE, json.dumps(record))
        shutil.rmtree(run / "checkpoints", ignore_errors=True)


def _start() -> None:
    """In each worker: one thread, little claim on the machine, and no life after the process that gives it work."""
    os.nice(NICE)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
