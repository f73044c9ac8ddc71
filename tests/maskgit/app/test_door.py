"""The door: whose requests come in, and how large they may be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from serving import served

from maskgit.app import door
from maskgit.pipeline import MaskGIT


def answer(headers: dict[str, str], any_name: bool = False, kind: str = "http") -> int:
    """The status that a request with these headers gets; 200 is the page's own. Of a socket: 1000 or its refusal."""
    statuses: list[int] = []

    async def page(scope: dict, receive: object, send: object) -> None:
        statuses.append(200 if kind == "http" else 1000)

    async def send(message: dict) -> None:
        if "body" not in message:
            statuses.append(message.get("status") or message["code"])

    scope = {"type": kind, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(door.OwnPageOnly(page, any_name)(scope, None, send))
    (status,) = statuses
    return status


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
    headers = {"host": host} | ({"origin": origin} if origin else {})
    assert answer(headers) == status
    assert answer(headers, kind="websocket") == (1000 if status == 200 else 1008)


@pytest.mark.parametrize(
    "host, origin, status",
    [
        ("studio.example:7860", None, 200),
        ("studio.example:7860", "http://studio.example:7860", 200),
        ("abc.gradio.live", "https://abc.gradio.live", 200),
        ("studio.example:7860", "http://evil.example", 403),
        ("studio.example:7860", "null", 403),
        ("", None, 403),
    ],
)
def test_a_page_for_others_has_any_name_but_is_still_its_own(host: str, origin: str | None, status: int) -> None:
    assert answer({"host": host} | ({"origin": origin} if origin else {}), any_name=True) == status


def test_how_much_comes_in() -> None:
    host = {"host": "localhost"}
    assert answer(host | {"content-length": str(door.LARGEST_FILE)}) == 200
    assert answer(host | {"content-length": str(door.LARGEST_FILE + 1)}) == 413
    assert answer(host | {"transfer-encoding": "chunked"}) == 411


# --- the running page -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(classless: MaskGIT) -> Iterator[str]:
    pytest.importorskip("gradio", reason="needs the extra [app]")
    with served(classless) as url:
        yield url


def test_the_door_is_in_the_page(url: str) -> None:
    import httpx

    assert httpx.get(url).status_code == 200
    assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 403
    upload = f"{url}/gradio_api/upload"
    small, large = ({"files": ("a.png", b"x" * size)} for size in (100, door.LARGEST_FILE))
    assert httpx.post(upload, files=small).status_code == 200
    assert httpx.post(upload, files=small, headers={"Origin": "http://evil.example"}).status_code == 403
    pieces = httpx.post(
        f"{url}/gradio_api/component_server",
        data={"type": "background", "index": "0", "session_hash": "a", "component_id": "1", "fn_name": "accept_blobs"},
        files={"file": ("a.png", b"x")},
    )
    assert pieces.status_code == 403 and pieces.text == "this page doesn't use that"
    refused = httpx.post(upload, files=large, timeout=60)
    assert refused.status_code == 413 and refused.text == "too large: this page takes 100 MB at once"


def test_others_come_in_by_any_name_where_the_page_is_for_them(classless: MaskGIT) -> None:
    pytest.importorskip("gradio", reason="needs the extra [app]")
    import httpx

    with served(classless, host="0.0.0.0") as url:
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(url, headers={"Host": "studio.example"}).status_code == 200
        assert httpx.get(url, headers={"Host": "studio.example", "Origin": "http://evil.example"}).status_code == 403


def test_what_is_sent_and_made_goes_after_a_while(
    classless: MaskGIT, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    pytest.importorskip("gradio", reason="needs the extra [app]")
    import httpx

    from maskgit.app import page

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(page, "KEPT", 1)
    with served(classless) as url:
        (path,) = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.png", b"x")}).json()
        with open(path, "rb") as file:
            assert file.read() == b"x"
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                open(path).close()
            except FileNotFoundError:
                return
            time.sleep(0.2)
        pytest.fail("it is still there")
