"""The worker: one job after another, with news, and an end to what takes too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from maskgit.app.work import Stopped, Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(seconds=30)
    yield worker
    worker.close()


def endless(tell: Callable[[Any], None]) -> None:
    while True:
        tell("still")
        time.sleep(0.001)


def test_news_come_in_order_and_the_result_last(worker: Worker) -> None:
    assert list(worker.do(lambda tell: [tell(i) for i in range(3)] and "result")) == [0, 1, 2, "result"]


def test_news_come_while_the_job_goes_on(worker: Worker) -> None:
    go_on = threading.Event()

    def job(tell: Callable[[Any], None]) -> bool:
        tell("started")
        return go_on.wait(20)

    news = worker.do(job)
    assert next(news) == "started"
    go_on.set()
    assert list(news) == [True]


def test_jobs_wait_for_each_other(worker: Worker) -> None:
    running: list[int] = []
    most: list[int] = []

    def job(tell: Callable[[Any], None]) -> None:
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        running.pop()

    users = [threading.Thread(target=lambda: list(worker.do(job))) for _ in range(8)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert most == [1] * 8


def test_an_error_comes_out_and_the_next_job_runs(worker: Worker) -> None:
    with pytest.raises(ZeroDivisionError):
        list(worker.do(lambda tell: 1 / 0))
    assert list(worker.do(lambda tell: "fine")) == ["fine"]


def test_what_takes_too_long_is_stopped() -> None:
    worker = Worker(seconds=0.05)
    with pytest.raises(Stopped, match="more than 0.05 seconds"):
        list(worker.do(endless))
    assert list(worker.do(lambda tell: "fine")) == ["fine"]
    worker.close()


def test_what_nobody_waits_for_is_stopped(worker: Worker) -> None:
    news = worker.do(endless)
    next(news)
    news.close()
    assert list(worker.do(lambda tell: "fine")) == ["fine"]


def test_closing_stops_what_is_being_done() -> None:
    worker = Worker(seconds=30)
    news = worker.do(endless)
    next(news)
    worker.close()
    with pytest.raises(Stopped):
        list(news)
