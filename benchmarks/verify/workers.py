"""Runs tasks in processes of their own: they compile side by side, and a crash or a hang costs one task only."""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from benchmarks.verify.catalogue import Task
from benchmarks.verify.measure import Measurement
from maskgit_kernels.backend import interpreting


@dataclass(frozen=True)
class Outcome:
    """What came of a task."""

    task: Task
    measurements: list[Measurement]
    error: str | None  # the first line of what it raised, or how its process ended
    seconds: float
    compilations: int  # of kernels


def run(tasks: list[Task], jobs: int, device: torch.device, patience: float) -> Iterator[Outcome]:
    """Outcomes as they come; with one job in this very process, else in `jobs` others.

    patience: seconds after which a task is given up.
    """
    if jobs == 1:
        yield from (perform(task, device) for task in tasks)
        return
    waiting = list(tasks)
    running: dict[Connection, tuple[Any, Task, float]] = {}  # its process, what it does, and since when

    def start() -> None:
        ours, theirs = multiprocessing.Pipe()
        process = context.Process(target=_serve, args=(theirs, device), daemon=True)
        process.start()
        theirs.close()
        hand_out(ours, process)

    def hand_out(connection: Connection, process: Any) -> None:
        if waiting:
            running[connection] = process, waiting[0], time.monotonic()
            connection.send(waiting.pop(0))
        else:
            connection.close()  # which ends the process

    # CUDA can't be forked: all processes are copies of one that has imported everything but not started it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.verify.catalogue"])
    for _ in range(min(jobs, len(tasks))):
        start()
    while running:
        for connection in wait(list(running), timeout=1.0):
            assert isinstance(connection, Connection)
            process, task, since = running.pop(connection)
            try:
                outcome, is_usable = connection.recv()
            except EOFError:
                process.join()
                outcome, is_usable = _given_up(task, f"its process ended with status {process.exitcode}", since), False
            yield outcome
            if is_usable:
                hand_out(connection, process)
            elif waiting:
                start()
        for connection, (process, task, since) in list(running.items()):
            if time.monotonic() - since > patience:
                process.kill()
                del running[connection]
                yield _given_up(task, f"nothing came of it in {patience:g} s", since)
                if waiting:
                    start()


def _given_up(task: Task, why: str, since: float) -> Outcome:
    return Outcome(task, [], why, time.monotonic() - since, 0)


def _serve(connection: Connection, device: torch.device) -> None:
    """Do what comes until nothing does."""
    torch.set_num_threads(1)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        outcome = perform(task, device)
        is_usable = outcome.error is None or not _is_broken(device)
        connection.send((outcome, is_usable))
        if not is_usable:
            os._exit(1)


def _is_broken(device: torch.device) -> bool:
    """Whether an illegal access has left CUDA unusable for the rest of this process."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def perform(task: Task, device: torch.device) -> Outcome:
    """Do a task in this process."""
    from triton import knobs

    if interpreting():  # whose NumPy tells of every overflow that is meant to be
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton.runtime.interpreter")
    compiled = []
    knobs.runtime.jit_post_compile_hook = lambda **what: compiled.append(what["repr"])
    measurements: list[Measurement] = []
    error = None
    start = time.perf_counter()
    try:
        for measurement in task.run(device):
            measurements.append(measurement)
    except Exception as problem:  # whatever it is: the other tasks go on
        first_line = next(iter(str(problem).strip().splitlines()), "")
        error = f"{type(problem).__name__}: {first_line}"
    finally:
        knobs.runtime.jit_post_compile_hook = None
    return Outcome(task, measurements, error, time.perf_counter() - start, len(compiled))
