"""The page over HTTP, as programs use it: names and defaults, errors, and whose pictures are whose."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra [app]")

import httpx  # noqa: E402
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402
from serving import served  # noqa: E402

from maskgit.app import door  # noqa: E402
from maskgit.app.page import Page  # noqa: E402
from maskgit.pipeline import MaskGIT  # noqa: E402


@pytest.fixture(scope="module")
def url(model: MaskGIT) -> Iterator[str]:
    with served(model) as url:
        yield url


@pytest.fixture
def client(url: str, tmp_path: Path) -> Iterator[Client]:
    client = Client(url, verbose=False, download_files=tmp_path / "downloads", analytics_enabled=False)
    yield client
    client.close()


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def call(url: str, action: str, **given: Any) -> Any:
    """As `curl` would: what came at the end, or the error as a string."""
    event = httpx.post(f"{url}/gradio_api/call/v2/{action}", json=given).json()["event_id"]
    answer = httpx.get(f"{url}/gradio_api/call/{action}/{event}", timeout=60).text
    kind, data = answer.strip().split("\n\n")[-1].split("\n", 1)
    found = json.loads(data.removeprefix("data: "))
    return found if kind == "event: complete" else found["error"]


def upload(url: str, path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        (where,) = httpx.post(f"{url}/gradio_api/upload", files={"files": (path.name, file)}).json()
    return {"path": where, "meta": {"_type": "gradio.FileData"}}


def test_the_names_are_these_and_no_others(client: Client) -> None:
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(endpoints) == ["/inpaint", "/outpaint", "/generate", "/class_box"]
    for endpoint in endpoints.values():
        assert all(parameter["parameter_has_default"] for parameter in endpoint["parameters"])


def test_a_program_fills_a_hole(client: Client, picture: Path, mask: Path, model: MaskGIT) -> None:
    result, sliders, variants, steps, status = client.predict(
        picture=handle_file(picture), mask=handle_file(mask), seed=3, variants=2, steps=3, api_name="/inpaint"
    )
    same = model.inpaint(Image.open(picture), pixels(mask) > 0, seed=3, steps=3)
    assert (pixels(result) == np.asarray(same.image)).all()
    assert len(sliders) == len(variants) == 2 and len(steps) == 3 and status == "Done, with seed 3."


def test_a_decoder_brings_all_its_settings(client: Client, model: MaskGIT) -> None:
    *_, steps, _ = client.predict(decoder="lab-greedy", api_name="/generate")
    assert len(steps) == 5


def test_curl_does_the_others(url: str, picture: Path) -> None:
    for action, given, size in (
        ("outpaint", {"right": 50}, (48, 24)),
        ("class_box", {"label": "dog"}, (32, 24)),
        ("generate", {}, (16, 16)),
    ):
        file = {} if action == "generate" else {"picture": upload(url, picture)}
        result, *_ = call(url, action, **file, **given)
        assert Image.open(result["path"]).size == size


def test_errors_are_said_and_leave_no_traceback(
    url: str, client: Client, picture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    file = upload(url, tmp_path / "text.png")
    assert call(url, "inpaint") == "put in a picture first"
    assert call(url, "inpaint", picture=file).startswith("text.png: not an image in a known format")
    assert call(url, "outpaint", picture=upload(url, picture), right="much")
    assert call(url, "generate", decoder="theirs")
    assert call(url, "generate", schedule="steep")
    assert call(url, "generate", steps=10**9) == "steps must be at most 10,000"
    with pytest.raises(AppError, match="choose one of cat, dog|not in the list"):
        client.predict(label="cow", api_name="/generate")
    assert "Traceback" not in capfd.readouterr().err


def test_two_at_once_get_their_own(url: str, mask: Path, tmp_path: Path) -> None:
    """Each sends a picture of one color, and gets it back around the hole."""

    def use(value: int) -> None:
        path = tmp_path / f"{value}.png"
        Image.new("RGB", (32, 24), (value, value, value)).save(path)
        for _ in range(3):
            result, *_ = call(url, "inpaint", picture=upload(url, path), mask=upload(url, mask), steps=2)
            assert (pixels(result["path"])[pixels(mask) == 0] == value).all()

    with concurrent.futures.ThreadPoolExecutor() as users:
        list(users.map(use, (10, 200)))


def test_a_line_that_is_too_long_is_refused(model: MaskGIT) -> None:
    with served(model) as url, httpx.Client() as http:
        answers = [
            http.post(f"{url}/gradio_api/call/v2/generate", json={"steps": 2000}) for _ in range(door.LONGEST_QUEUE + 2)
        ]
        assert answers[0].status_code == 200
        assert answers[-1].status_code == 503 and "Queue is full" in answers[-1].text


def test_who_has_been_there_is_forgotten(model: MaskGIT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the server's memory would grow with each press. And presses go on while theirs is forgotten."""
    monkeypatch.setattr(door, "MOST_SESSIONS", 2)
    pages: list[Any] = []
    launch = Page.launch
    monkeypatch.setattr(Page, "launch", lambda page, **options: pages.append(page) or launch(page, **options))
    with served(model) as url, concurrent.futures.ThreadPoolExecutor(6) as users:
        results = list(users.map(lambda seed: call(url, "generate", seed=seed, steps=2), range(6)))
        (page,) = pages
        assert [status for *_, status in results] == [f"Done, with seed {seed}." for seed in range(6)]
        assert len(page.state_holder.session_data) == 2


def test_the_line_can_t_be_jumped(url: str) -> None:
    assert httpx.post(f"{url}/gradio_api/run/generate", json={"data": []}).status_code in (401, 404)
