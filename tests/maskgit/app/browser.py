"""The page in a browser, as tests and screenshots use it: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

CHROMIUM = shutil.which("chromium")
PATIENCE = 60_000
"""Milliseconds that anything may take."""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root has no sandbox, and a container little shared memory.
        words = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=words)
        try:
            yield browser
        finally:
            browser.close()


_BROKEN = """() => {
    const seen = e => !e || (getComputedStyle(e).opacity !== "0" && seen(e.parentElement))
    return [...document.querySelectorAll(".wrap .error")].filter(e => e.checkVisibility() && seen(e)).length
}"""


class Visit:
    """Somebody's visit to the page, in a context of its own: nothing is shared with other visits."""

    def __init__(self, browser: Any, url: str, size: tuple[int, int] = (1280, 1000)) -> None:
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text) if message.type == "error" else None)
        self.page.goto(url)
        self.page.get_by_role("tab", name="Inpaint").wait_for()

    def close(self) -> None:
        self.context.close()

    def tab(self, name: str) -> None:
        """Go to a tab."""
        self.page.get_by_role("tab", name=name).click()

    def put_in(self, picture: Path, number: int = 0) -> None:
        """Put a file into the first of the tab's places for files, or another."""
        self.page.locator("[role=tabpanel]:visible input[type=file]").nth(number).set_input_files(picture)

    def paint(self, *points: tuple[float, float]) -> None:
        """Draw a line with the brush, or the eraser, through these points, in shares of the sides of where one can."""
        undo = self.page.locator("#painted button[title=Undo]")
        for _ in range(10):  # as long as the picture isn't there yet, the brush doesn't paint
            box = self.canvas()
            at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
            self.page.mouse.move(*at[0])
            self.page.mouse.down()
            for x, y in at[1:]:
                self.page.mouse.move(x, y, steps=8)
            self.page.mouse.up()
            self.page.wait_for_timeout(300)
            if undo.is_enabled():
                return
        raise AssertionError("nothing is painted")

    def canvas(self) -> dict[str, float]:
        """Where on the screen the picture to paint on is."""
        canvas = self.page.locator("#painted canvas").first
        canvas.wait_for()
        self.page.wait_for_timeout(1500)  # it is moved and scaled for a while
        canvas.scroll_into_view_if_needed()
        return canvas.bounding_box()

    def color_at(self, x: float, y: float) -> tuple[int, ...]:
        """What is seen at a point of the picture to paint on, in shares of its sides."""
        box = self.page.locator("#painted canvas").first.bounding_box()
        seen = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        return seen.getpixel((round(box["x"] + x * box["width"]), round(box["y"] + y * box["height"])))

    def write(self, setting: str, value: str) -> None:
        """Write into the field of a setting of the decoding, which has to be in sight."""
        self.page.locator(f"#how-{setting} :is(input, textarea)").fill(value)

    def press(self, name: str) -> None:
        """Press the tab's button of that name."""
        self.page.get_by_role("button", name=name, exact=True).locator("visible=true").click()

    def status(self) -> str:
        """The line that says how far it is."""
        return self.page.locator("#status .md").inner_text()

    def wait(self, text: str = "Done") -> str:
        """Wait until the status line has this text; what it says then."""
        self.page.locator("#status .md", has_text=text).wait_for()
        return self.status()

    def broken(self) -> int:
        """How many panels show an error instead of what they are for. gradio has one in each, mostly unseen."""
        return self.page.evaluate(_BROKEN)

    def download(self, to: Path) -> Path:
        """Download the result."""
        with self.page.expect_download() as download:
            self.page.locator("#download").click()
        download.value.save_as(to)
        return to
