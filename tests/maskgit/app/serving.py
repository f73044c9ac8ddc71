"""The page, served from this process for as long as it is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from PIL import Image

from maskgit.app.door import launch
from maskgit.app.work import Worker
from maskgit.pipeline import MaskGIT


@contextlib.contextmanager
def served(
    model: MaskGIT,
    seconds: float = 60,
    host: str = "127.0.0.1",
    name: str = "a tiny model",
    kind: type[Worker] = Worker,
) -> Iterator[str]:
    """The address of a page on which a press of a button may take so many seconds."""
    from maskgit.app.page import build

    worker, most = kind(seconds), Image.MAX_IMAGE_PIXELS
    page = build(model, name, worker)
    try:
        yield launch(page, host, wait=False).rstrip("/")
    finally:
        page.close()
        worker.close()
        Image.MAX_IMAGE_PIXELS = most  # which the page lowers
