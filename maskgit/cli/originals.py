"""What a run must not replace: what it is to read, and what isn't its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from maskgit.cli.jobs import OVERVIEW, Job, mask_folder
from maskgit.cli.options import Options
from maskgit.cli.results import is_result
from maskgit.console import UsageError
from maskgit.data.masks import MAKERS
from maskgit.files import find_replaced


def check_originals(options: Options, jobs: Sequence[Job], suffixes: Sequence[str]) -> None:
    """See to it that nothing is lost before anything is done; the names of each job's results end in `suffixes`.

    Raises:
        UsageError: a result would take the place of an image or mask that is to be read, in whatever way its path leads
            there; or, among images and where pictures are generated, of a file that isn't a result.
    """
    results = [job.file(suffix) for job in jobs for suffix in suffixes]
    if len(jobs) > 1:
        results.append(options.output / OVERVIEW)
    existing = [path for path in results if os.path.lexists(path)]
    images = [job.path for job in jobs if job.path is not None]
    folders = {path.parent for path in images}
    among = {path for path, _ in find_replaced({path.parent for path in existing}, folders)}
    beside = [path for path in existing if not images or path.parent in among]
    for kind, lost in (
        ("one of the images", [original for _, original in find_replaced(existing, images)]),
        ("a mask", [original for _, original in find_replaced(existing, mask_files(options, jobs))]),
        ("not the result of an earlier run", [path for path in beside if not is_result(path, options.output)]),
    ):
        if lost:
            more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
            raise UsageError(
                f"--output {options.output}: a result would take the place of {lost[0]}{more}, which is {kind}; "
                "choose another --output"
            )


def mask_files(options: Options, jobs: Sequence[Job]) -> list[Path]:
    """The files that --mask names, or those in the folders where it has masks looked for.

    Raises:
        UsageError: results go where masks are looked for, and would be taken for masks the next time.
    """
    if options.mask is None or options.mask in MAKERS:
        return []
    path = Path(options.mask)
    if not path.is_dir():
        return [path]
    if find_replaced([options.output], [path]):
        raise UsageError(
            f"--output {options.output} is the folder of the masks, for which the results would be taken; "
            "choose another --output"
        )
    return [file for folder in {mask_folder(path, job) for job in jobs} for file in folder.iterdir()]
