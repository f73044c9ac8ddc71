"""Large arrays that are computed part by part, by several processes, and go on after a kill.

Each part is a file of its own that is renamed into place when it is whole. When all are there, they are put together
and removed. A start that finds parts of just the same inputs computes only those that are missing.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from maskgit.console import progress_bar
from maskgit.data.arrays import json_bytes, npy_bytes, open_array, read_json_if_any
from maskgit.data.images import DataError
from maskgit.files import write_atomically

CLAIM = "parts.json"
"""In a folder of parts: what they are of."""

ROWS = 1024
"""Rows of a part: about half a megabyte of tokens, and seconds of work."""


class Work(Protocol):
    """Computes rows of an array. Sent to the processes by pickle."""

    batch_size: int

    def to(self, device: torch.device) -> None:
        """Work there from now on."""

    def __call__(self, leading: tuple[int, ...], chosen: range) -> np.ndarray:
        """The rows array[leading][chosen]."""


class Part(NamedTuple):
    """The rows array[leading][rows], and the file that holds them."""

    file: Path
    leading: tuple[int, ...]
    rows: range


def write_in_parts(
    file: Path, description: dict[str, Any], shape: tuple[int, ...], work: Work, processes: int, device: torch.device
) -> None:
    """Compute an array uint16 [*leading, rows, N] into `file` and its description into the .json beside it.

    What is there under the two names stays valid until the new one is whole.

    Args:
        file: ends in .npy.
        description: of everything that the array depends on, in JSON form.
        processes: 0 computes here; otherwise so many processes of one thread each. A batch never depends on their
            number, nor on which of them it meets.
        device: where to compute; `cuda` spreads the processes over all GPUs.

    Raises DataError: no rows, a process that died, a damaged part, a full disk.
    """
    *sizes, rows, width = shape
    if not rows:
        raise DataError(f"{file}: there is nothing to write: no images")
    folder = file.with_suffix(".parts")
    _claim(folder, description | {"rows": ROWS, "batch_size": work.batch_size})
    parts = [
        Part(folder / f"{'-'.join(map(str, leading))}-{start:012d}.npy", leading, range(start, min(start + ROWS, rows)))
        for leading in np.ndindex(*sizes)
        for start in range(0, rows, ROWS)
    ]
    missing = [part for part in parts if not part.file.exists()]
    done = sum(len(part.rows) for part in parts) - sum(len(part.rows) for part in missing)
    with progress_bar(rows * math.prod(sizes), f"tokenizing {file.parent.name}/{file.stem}", "view") as progress:
        progress.n = progress.initial = done  # which takes no part in the rate
        compute = _compute_here(missing, work, device) if processes == 0 else _compute(missing, work, processes, device)
        for part in compute:
            progress.update(len(part.rows))
    _put_together(file, description, shape, parts)
    remove_parts(file, description)


def remove_parts(file: Path, description: dict[str, Any]) -> None:
    """Remove the parts of an array that is whole; parts of another array, which wait to be gone on with, stay."""
    folder = file.with_suffix(".parts")
    claim = read_json_if_any(folder / CLAIM)
    if _is_folder(folder) and (not claim or {name: claim.get(name) for name in description} == description):
        # A kill on the way leaves parts that nobody claims, for the next start to remove.
        (folder / CLAIM).unlink(missing_ok=True)
        shutil.rmtree(folder)


def _is_folder(path: Path) -> bool:
    """Not a link to one, which is somebody else's; and `rmtree` would wait for what is a pipe."""
    return path.is_dir() and not path.is_symlink()


def _claim(folder: Path, description: dict[str, Any]) -> None:
    """Make sure that all parts in `folder` are of the array described; others are removed."""
    if os.path.lexists(folder) and not _is_folder(folder):
        raise DataError(f"{folder}: is no folder; remove it and run again")
    if read_json_if_any(folder / CLAIM) != description:
        if lost := len(list(folder.glob("*.npy"))):
            warnings.warn(f"{folder}: removed the {lost} part(s) of a run with other settings", stacklevel=4)
        shutil.rmtree(folder, ignore_errors=True)
        with _writing(folder):
            write_atomically({folder / CLAIM: json_bytes(description)})


def _put_together(file: Path, description: dict[str, Any], shape: tuple[int, ...], parts: list[Part]) -> None:
    """The parts lie one after the other in the array, as they come in the list."""
    temporary = file.with_name(f".{file.name}.partial")
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint16)), "fortran_order": False, "shape": shape}
    with _writing(file):
        try:
            # Written, not memory-mapped: on a full disk that is an error instead of a SIGBUS. Made anew, so that
            # nothing is written into what a link of this name leads to.
            temporary.unlink(missing_ok=True)
            with open(temporary, "xb") as whole:
                np.lib.format.write_array_header_1_0(whole, header)
                for part in parts:
                    whole.write(_read_part(part, shape[-1]).data)
                whole.flush()
                os.fsync(whole.fileno())
            # The description makes the array valid: it goes first and comes last.
            file.with_suffix(".json").unlink(missing_ok=True)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
        write_atomically({file.with_suffix(".json"): json_bytes(description)})


def _read_part(part: Part, width: int) -> np.ndarray:
    """uint16 [rows, width]."""
    try:
        return open_array(part.file, np.uint16, (len(part.rows), width))
    except (OSError, ValueError) as error:
        raise DataError(f"{part.file}: damaged: {error}; remove it and run again") from error


def _write_part(part: Part, work: Work) -> None:
    data = npy_bytes(work(part.leading, part.rows))
    with _writing(part.file):
        write_atomically({part.file: data})


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Name the file in what goes wrong with writing it: the system's message for a full disk names none."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}; mend that and run again: finished parts are kept"
        raise DataError(f"{file}: can't be written: {reason}") from error


def _compute_here(parts: list[Part], work: Work, device: torch.device) -> Iterator[Part]:
    work.to(device)
    for part in parts:
        _write_part(part, work)
        yield part


# --- processes --------------------------------------------------------------------------------------------------------


def _compute(parts: list[Part], work: Work, processes: int, device: torch.device) -> Iterator[Part]:
    """Yields the parts as they are done."""
    if not parts:
        return
    work.to(torch.device("cpu"))  # for the journey
    context = multiprocessing.get_context("spawn")  # a process that has used a GPU can't be forked
    number = context.Value("i", 0)
    executor = ProcessPoolExecutor(
        min(processes, len(parts)), context, initializer=_start, initargs=(work, device, number)
    )
    try:
        futures = {executor.submit(_write_part_there, part): part for part in parts}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    except BrokenProcessPool as error:
        raise DataError(
            "one of the processes was killed (out of memory? use fewer --processes); run again: finished parts are kept"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


_work: Work | None = None  # of one of the processes


def _start(work: Work, device: torch.device, number: Any) -> None:
    global _work
    # An interruption from the keyboard reaches every process; the parent decides what comes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_the_parent, daemon=True).start()
    torch.set_num_threads(1)
    if device.type == "cuda" and device.index is None:
        with number.get_lock():
            device = torch.device("cuda", number.value % torch.cuda.device_count())
            number.value += 1
    work.to(device)
    _work = work


def _die_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _write_part_there(part: Part) -> None:
    assert _work is not None
    _write_part(part, _work)
