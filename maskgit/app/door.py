"""Who may come in to the page, and with how much.

Other people's web pages, open in the same browser, can send requests here too: `OwnPageOnly` turns them away.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

MOST_PIXELS = 2**25
"""Of a picture: filling it takes 50 bytes a pixel and some seconds, for which everyone waits."""

LARGEST_FILE = 100 * 2**20
"""Bytes of a request, and so of a file that is sent."""

MOST_SECONDS = 300
"""That one press of a button may take, waiting for others not counted."""

KEPT = 3600
"""Seconds that uploads and results stay on the disk."""

LONGEST_QUEUE = 64

MOST_SESSIONS = LONGEST_QUEUE
"""That gradio remembers. Of each browser, and of each press by the HTTP API, it keeps a description of the whole page:
by itself of the last 10,000. No press needs that of another; who is forgotten gets it anew."""

_UNBOUNDED = "/component_server"
"""By this address gradio's image editor takes pictures in pieces, which it keeps, as many as somebody sends. Only pages
that follow each stroke use it."""

Scope = dict[str, Any]
Channel = Callable[..., Awaitable[Any]]


class OwnPageOnly:
    """ASGI middleware that refuses what no page of this server sends, 403, and what is too large, 413.

    Browsers say in `Origin` whose page makes a request. And they say in `Host` whom they take the server for: a name
    other than localhost could be somebody else's, pointed here after his page was loaded (DNS rebinding).

    Args:
        app: what is behind the door.
        any_name: whether the server may be called by any name, as one that is meant to be found by others is. The
            page that makes a request must still be its own.
    """

    def __init__(self, app: Callable[[Scope, Channel, Channel], Awaitable[None]], any_name: bool = False) -> None:
        self.app, self.any_name = app, any_name

    async def __call__(self, scope: Scope, receive: Channel, send: Channel) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        host = headers.get(b"host", "")
        named = bool(host) if self.any_name else _is_own(host)
        own = named and urlsplit(headers.get(b"origin", f"//{host}")).netloc == host
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif not own:
            await _refuse(scope, send, 403, "not from this page")
        elif _UNBOUNDED in scope.get("path", ""):
            await _refuse(scope, send, 403, "this page doesn't use that")
        elif b"transfer-encoding" in headers:  # which doesn't say how much there is to come
            await _refuse(scope, send, 411, "say how large the request is: Content-Length is missing")
        elif int(headers.get(b"content-length") or 0) > LARGEST_FILE:
            await _refuse(scope, send, 413, f"too large: this page takes {LARGEST_FILE // 2**20} MB at once")
        else:
            await self.app(scope, receive, send)


async def _refuse(scope: Scope, send: Channel, status: int, reason: str) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": reason.encode()})
    else:
        await send({"type": "websocket.close", "code": 1008})


def _is_own(host: str) -> bool:
    """Whether "name:port" is localhost or an IP address, which can't be pointed elsewhere."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def launch(
    page: Any, host: str = "127.0.0.1", port: int | None = None, share: bool = False, *, wait: bool = True
) -> str:
    """Serve a page, a gradio.Blocks, until Ctrl-C; or return its address at once, where nothing is to be waited for.

    Raises OSError: it can't be served at this address, or not shared.
    """
    from starlette.middleware import Middleware  # which gradio needs too

    # Pillow refuses twice as many, before it decodes them for the page.
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    # Or browsers would keep what has been put in and made, and for longer than this page does.
    os.environ.setdefault("GRADIO_RUN_HISTORY", "False")
    any_name = share or not (host == "localhost" or _is_loopback(host))
    door = Middleware(OwnPageOnly, any_name=any_name)
    page.queue(max_size=LONGEST_QUEUE, api_open=False)
    _, local, public = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        max_file_size=LARGEST_FILE,
        state_session_capacity=MOST_SESSIONS,
        app_kwargs={"middleware": [door]},
        prevent_thread_lock=True,
        quiet=not wait,
    )
    if share and not public:
        page.close()
        raise OSError("--share: gradio's servers gave no public address; is there a way to the internet?")
    if wait:
        page.block_thread()
    return local


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
