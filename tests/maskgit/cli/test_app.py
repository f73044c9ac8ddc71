"""The web page: what is painted becomes the hole, and the page answers."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskgit import app
from maskgit.app import NO_CLASS, build, painted
from maskgit.config import Stage, TokenizerConfig, TransformerConfig
from maskgit.network.transformer import Transformer
from maskgit.pipeline import MaskGIT
from maskgit.tokenizer import VQGAN


def model(classes: tuple[str, ...] = ()) -> MaskGIT:
    torch.manual_seed(0)
    tokenizer = TokenizerConfig(
        image_size=16,
        codebook_size=16,
        codebook_dim=4,
        latent_channels=8,
        stem_channels=8,
        encoder=(Stage(8, 1, resample=True), Stage(8, 1)),
        decoder=(Stage(8, 1, resample=True), Stage(8, 1)),
        groups=4,
    )
    transformer = TransformerConfig(
        codebook_size=16, num_tokens=64, dim=32, depth=1, heads=2, mlp_dim=32, num_classes=len(classes)
    )
    return MaskGIT(VQGAN(tokenizer), Transformer(transformer), classes, device="cpu")


def editor(size: tuple[int, int] = (20, 12)) -> dict[str, object]:
    layer = np.zeros((size[1], size[0], 4), dtype=np.uint8)
    layer[3:7, 5:9] = (0, 0, 0, 200)
    return {"background": Image.new("RGB", size, "red"), "layers": [Image.fromarray(layer)]}


def test_what_is_painted_is_the_hole() -> None:
    image, mask = painted(editor())
    assert image.size == (20, 12)
    assert mask.sum() == 16 and mask[3:7, 5:9].all()


@pytest.mark.parametrize("value", [None, {"background": None, "layers": []}])
def test_no_picture_is_an_error(value: dict[str, object] | None) -> None:
    with pytest.raises(ValueError, match="picture"):
        painted(value)


def test_nothing_painted_is_an_error() -> None:
    with pytest.raises(ValueError, match="paint"):
        painted({**editor(), "layers": []})


def test_what_is_transparent_stays_so() -> None:
    for color, mode in ((9, 9, 9, 255), "RGB"), ((9, 9, 9, 254), "RGBA"):
        image, _ = painted({**editor(), "background": Image.new("RGBA", (20, 12), color)})
        assert image.mode == mode and image.getpixel((3, 3)) == color[: len(mode)]


def test_a_picture_that_is_too_large_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MOST_PIXELS", 239)
    with pytest.raises(ValueError, match="the picture has 20x12 pixels, this page takes 239: scale it down"):
        painted(editor())


@pytest.mark.parametrize(
    "host, origin, status",
    [
        ("127.0.0.1:7860", None, 200),
        ("127.0.0.1:7860", "http://127.0.0.1:7860", 200),
        ("localhost:7860", "http://localhost:7860", 200),
        ("[::1]:7860", "http://[::1]:7860", 200),
        ("192.168.0.7:80", "http://192.168.0.7:80", 200),
        ("127.0.0.1:7860", "http://evil.example", 403),
        ("127.0.0.1:7860", "http://127.0.0.1:8000", 403),  # another server's page, on this machine
        ("127.0.0.1:7860", "null", 403),
        ("127.0.0.1:7860", "http://127.0.0.1:7860.evil.example", 403),
        ("evil.example:7860", "http://evil.example:7860", 403),  # its name now leads here
        ("evil.example:7860", None, 403),
        ("", None, 403),
    ],
)
def test_other_peoples_pages_are_refused(host: str, origin: str | None, status: int) -> None:
    statuses: list[int] = []

    async def page(scope: dict, receive: object, send: object) -> None:
        statuses.append(200)

    async def send(message: dict) -> None:
        statuses.extend([message["status"]] if message["type"] == "http.response.start" else [])

    headers = [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin else [])]
    asyncio.run(app.OwnPageOnly(page)({"type": "http", "headers": headers}, None, send))
    assert statuses == [status]


def test_the_door_of_the_running_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Size of uploads, foreign pages, age of files, length of the queue; over HTTP."""
    pytest.importorskip("gradio", reason="needs the extra [app]")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # which the page lowers
    import httpx

    page = build(model())
    assert page.delete_cache == (3600, 3600) and page._queue.max_size == 32
    _, url, _ = app.launch(page, None, prevent_thread_lock=True, quiet=True)
    try:
        assert httpx.get(url).status_code == 200
        assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 403
        upload = f"{url}gradio_api/upload"
        small, large = ({"files": ("a.png", b"x" * size)} for size in (100, 101 * 2**20))
        assert httpx.post(upload, files=small).status_code == 200
        assert httpx.post(upload, files=small, headers={"Origin": "http://evil.example"}).status_code == 403
        assert httpx.post(upload, files=large, timeout=60).status_code == 413
    finally:
        page.close()


@pytest.mark.parametrize("classes", [(), ("cat", "dog")], ids=["without classes", "with classes"])
def test_the_page_fills_the_hole(classes: tuple[str, ...]) -> None:
    pytest.importorskip("gradio", reason="needs the extra [app]")
    page = build(model(classes))
    (fill,) = [function.fn for function in page.fns.values() if function.api_name == "fill"]
    for label in range(NO_CLASS, len(classes)):
        image, steps = fill(editor(), label, 2.0, 3, "cosine", "confidence", 1.0, 4.5, 0)
        assert image.size == (20, 12) and len(steps) == 3


# --- the command ------------------------------------------------------------------------------------------------------


def test_what_the_command_can_t_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2 and a line, whatever it is; the page is not served."""
    monkeypatch.setattr(app, "launch", lambda *_: pytest.fail("the page was served"))
    assert app.main(["--model", str(tmp_path / "nowhere")]) == 2
    assert app.main(["--device", "toaster"]) == 2
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it weren't installed
    assert app.main(["--device", "cpu"]) == 2
    model, device, gradio = capsys.readouterr().err.splitlines()
    assert model.startswith("error: ") and "nowhere: no such model folder" in model
    assert device.startswith("error: device 'toaster' can't be used here")
    assert gradio == "error: the page needs gradio: pip install 'maskgit-inpaint[app]'"
    assert app.main(["--port", "many"]) == 2
    assert app.main(["--help"]) == 0
    assert "usage: python -m maskgit.app" in capsys.readouterr().out


def test_the_command_serves_the_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    served: list[tuple[object, int]] = []
    monkeypatch.setattr(app, "build", lambda model: model)
    monkeypatch.setattr(app, "launch", lambda page, port: served.append((page, port)))
    assert app.main(["--device", "cpu", "--port", "1234"]) == 0
    ((page, port),) = served
    assert isinstance(page, MaskGIT) and port == 1234
    monkeypatch.setattr(app, "launch", lambda *_: (_ for _ in ()).throw(OSError("no empty port")))
    assert app.main(["--device", "cpu"]) == 2
    assert capsys.readouterr().err == "error: no empty port\n"
