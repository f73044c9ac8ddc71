"""The page in a browser: what a hand does with it, and what an eye sees."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra [app]")
pytest.importorskip("playwright", reason="needs the extra [browser]")

from browser import CHROMIUM, Visit, chromium  # noqa: E402
from serving import served  # noqa: E402

from maskgit.pipeline import MaskGIT  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def url(model: MaskGIT) -> Iterator[str]:
    with served(model) as url:
        yield url


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Visit]:
    visit = Visit(browser, url)
    yield visit
    visit.close()


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_paint_fill_download(visit: Visit, picture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is outside of the paint comes back bit for bit, and what is below it changes."""
    visit.put_in(picture)
    visit.paint((0.5, 0.4), (0.5, 0.6))
    visit.press("Fill")
    assert visit.wait() == "Done, with seed 0."
    result, original = pixels(visit.download(tmp_path / "result.png")), pixels(picture)
    changed = (result != original).any(-1)
    assert changed[10:14, 15:17].all()  # the middle
    rows, columns = np.nonzero(changed)
    assert columns.min() >= 12 and columns.max() <= 19 and rows.min() >= 6 and rows.max() <= 17
    assert visit.page.locator("#steps .thumbnails button").count() == 8
    assert not visit.said and "Traceback" not in capfd.readouterr().err


def test_paint_is_see_through_and_can_be_taken_back(visit: Visit, picture: Path) -> None:
    Image.new("RGB", (64, 48), (0, 0, 255)).save(picture)
    visit.put_in(picture)
    visit.canvas()
    blue = visit.color_at(0.5, 0.5)
    assert blue == (0, 0, 255)
    visit.paint((0.4, 0.5), (0.6, 0.5))
    red, _, rest = visit.color_at(0.5, 0.5)
    assert red > 80 and rest > 80  # the brush's red, and still some of the picture's blue
    visit.press("Undo")
    visit.page.mouse.move(0, 0)
    assert visit.color_at(0.5, 0.5) == blue
    visit.press("Fill")
    visit.wait("paint over what is to be filled")


def test_the_eraser(visit: Visit, picture: Path, tmp_path: Path) -> None:
    visit.put_in(picture)
    visit.paint((0.5, 0.4), (0.5, 0.6))
    visit.press("Erase")
    visit.paint((0.5, 0.3), (0.5, 0.7))
    visit.press("Fill")
    visit.wait("paint over what is to be filled")


def test_a_mask_instead_of_paint(visit: Visit, picture: Path, mask: Path, tmp_path: Path) -> None:
    visit.put_in(picture)
    visit.canvas()
    visit.page.get_by_text("… or put in a mask").click()
    visit.put_in(mask, number=1)
    visit.page.get_by_text("mask.png").wait_for()
    visit.press("Fill")
    visit.wait()
    changed = (pixels(visit.download(tmp_path / "result.png")) != pixels(picture)).any(-1)
    assert changed[8:16, 10:20].sum() == changed.sum() > 70


def test_a_single_setting_leaves_the_others_as_they_are(visit: Visit) -> None:
    """Also where the empty fields of the others have been seen."""
    visit.tab("Generate by class")
    visit.page.get_by_role("button", name="How it is decoded").click()
    visit.write("steps", "3")
    visit.press("Generate")
    visit.wait()
    assert visit.page.locator("#steps .thumbnails button").count() == 3


def test_variants_are_chosen_by_a_click(visit: Visit, picture: Path, tmp_path: Path) -> None:
    visit.put_in(picture)
    visit.paint((0.5, 0.4), (0.5, 0.6))
    visit.page.get_by_label("number input for Variants").fill("3")
    visit.press("Fill")
    visit.wait()
    first = pixels(visit.download(tmp_path / "first.png"))
    shown = visit.page.locator("#slider img").last.get_attribute("src")
    visit.page.locator("#variants button.thumbnail-item, #variants .grid-container button").nth(2).click()
    visit.page.wait_for_function(
        "src => [...document.querySelectorAll('#slider img')].at(-1).getAttribute('src') != src", arg=shown
    )
    third = pixels(visit.download(tmp_path / "third.png"))
    assert (first != third).any()


def test_another_one_has_another_seed(visit: Visit, picture: Path) -> None:
    visit.tab("Generate by class")
    visit.press("Generate")
    assert visit.wait() == "Done, with seed 0."
    visit.press("Another one")
    visit.page.locator("#status .md", has_text=re.compile("Done, with seed [1-9]")).wait_for()


def test_each_tab(visit: Visit, picture: Path, tmp_path: Path) -> None:
    def made(name: str) -> tuple[int, int]:
        return Image.open(visit.download(tmp_path / f"{name}.png")).size

    visit.tab("Generate by class")
    visit.press("Generate")
    visit.wait("Done")
    assert made("generated") == (16, 16)
    visit.tab("Outpaint")
    visit.press("Continue")
    visit.wait("put in a picture first")
    visit.put_in(picture)
    visit.press("Continue")
    visit.wait("Done")
    assert made("continued") == (48, 24)
    visit.tab("Class into a box")
    visit.put_in(picture)
    visit.press("Put it in")
    visit.wait("choose the class")
    visit.page.get_by_label("Class", exact=True).click()
    visit.page.get_by_role("option", name="dog").click()
    visit.press("Put it in")
    visit.wait("Done")
    assert made("boxed") == (32, 24)


def test_no_class_no_tab_for_it(browser: Any, classless: MaskGIT) -> None:
    with served(classless) as url:
        visit = Visit(browser, url)
        assert [tab.inner_text() for tab in visit.page.get_by_role("tab").all()] == ["Inpaint", "Outpaint", "Generate"]
        assert "no classes" in visit.page.get_by_text("million parameters").inner_text()
        visit.close()


def test_errors_leave_nothing_behind(visit: Visit, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No panel that only says "Error", no traceback; and the page goes on."""
    (tmp_path / "text.png").write_text("no picture")
    visit.put_in(tmp_path / "text.png")
    visit.page.get_by_test_id("toast-body").get_by_text("text.png: not an image").wait_for()
    visit.press("Fill")
    visit.wait("text.png: not an image")
    assert visit.broken() == 0
    visit.tab("Generate by class")
    visit.press("Generate")
    visit.wait("Done")
    assert "Traceback" not in capfd.readouterr().err


def test_too_long_a_run_is_stopped(browser: Any, model: MaskGIT) -> None:
    with served(model, seconds=0.001) as url:
        visit = Visit(browser, url)
        visit.tab("Generate by class")
        visit.press("Generate")
        assert visit.wait("stopped").startswith("stopped, as it took more than 0.001 seconds")
        visit.close()


def test_two_at_once_get_their_own(browser: Any, url: str, tmp_path: Path) -> None:
    visits = [Visit(browser, url) for _ in range(2)]
    values = (10, 200)
    for visit, value in zip(visits, values, strict=True):
        Image.new("RGB", (32, 24), (value, value, value)).save(tmp_path / f"{value}.png")
        visit.put_in(tmp_path / f"{value}.png")
        visit.paint((0.5, 0.4), (0.5, 0.6))
    for visit in visits:
        visit.press("Fill")
    for visit, value in zip(visits, values, strict=True):
        visit.wait()
        result = pixels(visit.download(tmp_path / f"result-{value}.png"))
        assert (result[:, :10] == value).all()
        visit.close()
