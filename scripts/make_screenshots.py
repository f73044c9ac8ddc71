"""Draws the pictures of the page in docs/page.md: python scripts/make_screenshots.py, from the repository's root.

It takes the extra [browser] and Debian's chromium, and drives the page as its tests do.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests" / "maskgit" / "app")]

from browser import Visit, chromium  # noqa: E402
from serving import served  # noqa: E402

from maskgit.app.work import Tell, Worker  # noqa: E402
from maskgit.files import SAMPLES  # noqa: E402
from maskgit.pipeline import MaskGIT  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SIZE = (1040, 820)
WIDTH = 860
"""Of a picture in the docs."""

SAMPLE = SAMPLES / "micah-25.png"
STROKE = (0.45, 0.4), (0.55, 0.4), (0.55, 0.48), (0.45, 0.48), (0.45, 0.55), (0.55, 0.55)


class Unhurried(Worker):
    """So slow that every step can be photographed."""

    def do(self, job: Callable[[Tell], Any]) -> Iterator[Any]:
        def slowly(tell: Tell) -> Any:
            return job(lambda news: (tell(news), time.sleep(1))[0])

        return super().do(slowly)


def screenshot(visit: Visit) -> Image.Image:
    """What is seen of the page, at rest or not."""
    visit.page.evaluate("scrollTo(0, 0)")
    seen = Image.open(io.BytesIO(visit.page.screenshot())).convert("RGB")
    return seen.resize((WIDTH, seen.height * WIDTH // seen.width), Image.Resampling.LANCZOS)


def strip(pictures: list[Image.Image]) -> Image.Image:
    """Pictures side by side, at half their size."""
    small = [one.resize((one.width // 2, one.height // 2), Image.Resampling.LANCZOS) for one in pictures]
    film = Image.new("RGB", (sum(one.width + 8 for one in small) - 8, small[0].height), "white")
    for i, one in enumerate(small):
        film.paste(one, (i * (one.width + 8), 0))
    return film


def save(picture: Image.Image, name: str) -> None:
    path = IMAGES / f"page-{name}.webp"
    picture.save(path, quality=70, method=6)
    print(f"{path.relative_to(ROOT)}: {picture.width}x{picture.height}, {path.stat().st_size / 1000:.0f} kB")


def rest(visit: Visit) -> None:
    """Wait until all of it has come to rest."""
    visit.page.mouse.move(0, 0)
    visit.page.wait_for_timeout(1500)


def film(visit: Visit) -> None:
    visit.put_in(SAMPLE)
    visit.paint(*STROKE)
    rest(visit)
    painted = screenshot(visit)
    visit.press("Fill")
    visit.page.locator("#steps .thumbnails button").nth(3).wait_for()
    filling = screenshot(visit)
    visit.wait()
    rest(visit)
    save(strip([painted, filling, screenshot(visit)]), "film")


def inpaint(visit: Visit) -> None:
    visit.put_in(SAMPLE)
    visit.paint(*STROKE)
    visit.page.get_by_label("number input for Variants").fill("4")
    visit.press("Fill")
    show(visit, "inpaint")


def show(visit: Visit, name: str) -> None:
    visit.wait()
    rest(visit)
    save(screenshot(visit), name)


def outpaint(visit: Visit) -> None:
    visit.tab("Outpaint")
    visit.put_in(SAMPLE)
    visit.press("Continue")
    show(visit, "outpaint")


def generate(visit: Visit) -> None:
    visit.tab("Generate by class")
    visit.page.get_by_label("number input for Variants").fill("4")
    choose(visit, "lorelei")
    visit.press("Generate")
    show(visit, "generate")


def class_box(visit: Visit) -> None:
    visit.tab("Class into a box")
    visit.put_in(SAMPLE)
    choose(visit, "pixel-art")
    visit.press("Put it in")
    show(visit, "class-box")


def choose(visit: Visit, label: str) -> None:
    visit.page.get_by_label("Class", exact=True).click()
    visit.page.get_by_role("option", name=label).click()


def main() -> None:
    model = MaskGIT.from_pretrained()
    with chromium() as browser:
        for kind, tasks in ((Unhurried, [film]), (Worker, [inpaint, outpaint, generate, class_box])):
            with served(model, name="embedded", kind=kind) as url:
                for task in tasks:
                    visit = Visit(browser, url, SIZE)
                    task(visit)
                    visit.close()


if __name__ == "__main__":
    main()
