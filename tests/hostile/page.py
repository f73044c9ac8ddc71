"""Many users of the page at once: nothing fails, nobody gets another's picture, memory comes back.

python -m tests.hostile.page --users 50 --seconds 120      # needs the extra [app]

Each user sends a picture of a color of its own with a hole in it, again and again, and looks whether what comes back
has that color around the hole. Every fifth goes away without waiting. The server is a process of its own, whose memory
is measured through /proc after a few rounds, and again at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SIDE = 64
GROWTH = 48
"""Megabytes more that the server may have at the end: gradio remembers some kilobytes of each of 2,000 sessions, and
Python and PyTorch don't give all freed memory back. Most of it comes in the first minutes, and then no more."""


def color(user: int) -> tuple[int, int, int]:
    """Each user's own."""
    return 40 + user % 7 * 20, 40 + user // 7 % 7 * 20, 40 + user // 49 % 7 * 20


def png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


class Users:
    """Users of a page, each in a thread, until the time is over."""

    def __init__(self, url: str, model_seconds: float) -> None:
        self.url, self.end = url, time.monotonic() + model_seconds
        self.filled, self.left = 0, 0
        self.errors: list[str] = []
        self.wrong = 0
        hole = Image.new("L", (SIDE, SIDE))
        hole.paste(255, (20, 20, 44, 44))
        self.mask, self.known = png(hole), np.asarray(hole) == 0

    def run(self, count: int) -> None:
        threads = [threading.Thread(target=self._use, args=(user,)) for user in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _use(self, user: int) -> None:
        import httpx

        rng = random.Random(user)
        own = Image.new("RGB", (SIDE, SIDE), color(user))
        with httpx.Client(base_url=self.url, timeout=300) as http:
            while time.monotonic() < self.end:
                try:
                    answer = self._fill(http, png(own), patience=rng.random())
                except Exception as error:
                    self.errors.append(f"user {user}: {type(error).__name__}: {error}")
                    return
                if answer is None:
                    self.left += 1
                elif (answer[self.known] == color(user)).all():
                    self.filled += 1
                else:
                    self.wrong += 1

    def _fill(self, http: Any, picture: bytes, patience: float) -> np.ndarray | None:
        files = [("files", ("picture.png", picture)), ("files", ("mask.png", self.mask))]
        paths = http.post("/gradio_api/upload", files=files).raise_for_status().json()
        one, other = ({"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths)
        asked = {"picture": one, "mask": other, "steps": 2}
        event = http.post("/gradio_api/call/v2/inpaint", json=asked).raise_for_status().json()["event_id"]
        with http.stream("GET", f"/gradio_api/call/inpaint/{event}") as lines:
            kind = ""
            for line in lines.iter_lines():
                if patience < 0.2:
                    return None
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                if line.startswith("data: ") and kind == "error":
                    raise RuntimeError(line)
                if line.startswith("data: ") and kind == "complete":
                    result = json.loads(line.removeprefix("data: "))[0]["path"]
                    made = http.get(f"/gradio_api/file={result}").raise_for_status().content
                    return np.asarray(Image.open(io.BytesIO(made)))
        raise RuntimeError("no answer")


@contextlib.contextmanager
def server(model: str, log: Path) -> Iterator[tuple[str, Callable[[], float]]]:
    """A page in a process of its own: its address, and what tells its memory in megabytes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "kernels"))), "no_proxy": "*"}
    command = [sys.executable, "-m", "maskgit.app", "--device", "cpu", "--port", str(port), "--model", model]
    with open(log, "wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            if b"Running on" in log.read_bytes():
                break
            if process.poll() is not None:
                raise RuntimeError(f"the page didn't start:\n{log.read_text()}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", lambda: _megabytes(process.pid)
    finally:
        process.terminate()
        process.wait()


def _megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.page", description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--model", default="embedded")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with server(options.model, log) as (url, megabytes):
            Users(url, min(20, options.seconds)).run(options.users)  # until all that is made once has been made
            before = megabytes()
            users = Users(url, options.seconds)
            users.run(options.users)
            time.sleep(2)
            after = megabytes()
        traceback = "Traceback" in log.read_text()
        print(log.read_text(), end="")
    print(
        f"{options.users} users in {options.seconds:g} s: {users.filled} pictures filled, {users.left} not waited for, "
        f"{users.wrong} in wrong hands, {len(users.errors)} errors; {before:.0f} MB before, {after:.0f} MB after"
    )
    print("\n".join(users.errors[:10]))
    bad = traceback or users.wrong or users.errors or not users.filled or after - before > GROWTH
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
