"""A web page: paint over a picture, see it filled. `python -m maskgit.app`, with the extra [app].

It is for whoever sits at this machine. Other people's web pages, open in the same browser, can send requests here too:
`OwnPageOnly` turns them away.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from maskgit.console import UsageError, run_command
from maskgit.decoding import ORDERS
from maskgit.decoding.schedules import SCHEDULES
from maskgit.files import SAMPLES
from maskgit.pipeline import MaskGIT

NO_CLASS = -1

MOST_PIXELS = 2**25
"""Of a picture: filling it takes 50 bytes a pixel and some seconds, for which everyone waits."""

LARGEST_FILE = "100mb"
KEPT = 3600
"""Seconds that uploads and results stay on the disk."""

LONGEST_QUEUE = 32


@dataclass(frozen=True)
class Options:
    """Serve a web page on this machine in which holes are painted and filled."""

    model: str = "embedded"
    """"embedded", a model folder, or a repository on the Hugging Face Hub."""
    device: str | None = None
    """Such as cpu or cuda:0. Default: a GPU if there is one."""
    port: int = 7860
    """Port of the page."""


def painted(editor: dict[str, Any] | None) -> tuple[Image.Image, np.ndarray]:
    """Picture and hole from what the page's editor holds.

    Args:
        editor: "background" and "layers" as PIL images; what has been painted is not transparent.

    Returns:
        The picture, RGB where it is RGBA without transparency, and bool [H, W], True where anything is painted.

    Raises:
        ValueError: there is no picture, it has more than `MOST_PIXELS`, or nothing is painted.
    """
    if not editor or editor.get("background") is None:
        raise ValueError("put in a picture first")
    image = editor["background"]
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(
            f"the picture has {image.width}x{image.height} pixels, this page takes {MOST_PIXELS:,}: scale it down"
        )
    if image.mode == "RGBA" and image.getextrema()[3] == (255, 255):
        image = image.convert("RGB")
    mask = np.zeros((image.height, image.width), dtype=bool)
    for layer in editor["layers"]:
        mask |= np.asarray(layer.convert("RGBA").resize(image.size, Image.Resampling.NEAREST))[..., 3] > 0
    if not mask.any():
        raise ValueError("paint over what is to be filled")
    return image, mask


def build(model: MaskGIT) -> Any:
    """The page, a gradio.Blocks. Raises ImportError where gradio is missing."""
    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError("the page needs gradio: pip install 'maskgit-inpaint[app]'") from error
    decoding, classes = model.decoding, model.class_names or range(model.transformer.config.num_classes)

    def fill(
        editor: dict[str, Any] | None,
        label: int,
        guidance: float,
        steps: float,
        schedule: str,
        order: str,
        softmax_temperature: float,
        choice_temperature: float,
        seed: float,
    ) -> tuple[Image.Image, list[Image.Image]]:
        try:
            image, mask = painted(editor)
            (result,) = model.inpaint(
                [image],
                [mask],
                labels=[None if label == NO_CLASS else label] if classes else None,
                seed=int(seed or 0),
                save_steps=True,
                guidance_scale=guidance,
                steps=int(steps),
                schedule=schedule,
                order=order,
                softmax_temperature=softmax_temperature,
                choice_temperature=choice_temperature,
            )
        except ValueError as error:
            raise gr.Error(str(error)) from error
        return result.image, [step.image for step in result.steps]

    samples = [str(path) for path in sorted(SAMPLES.glob("*.png"))]
    examples = [[{"background": path, "layers": [], "composite": path}] for path in samples]
    with gr.Blocks(title="MaskGIT inpainting", delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown("# MaskGIT inpainting\nPut in a picture, paint over what is to be filled, press *Fill*.")
        with gr.Row():
            editor = gr.ImageMask(type="pil", label="Picture and hole")
            output = gr.Image(label="Filled", format="png")
        with gr.Row(visible=bool(classes)):
            label = gr.Dropdown(
                [("any", NO_CLASS), *((str(name), number) for number, name in enumerate(classes))],
                value=NO_CLASS,
                label="Class",
            )
            guidance = gr.Slider(0, 10, value=decoding.guidance_scale, label="Guidance by the class")
        with gr.Row():
            steps = gr.Slider(1, max(32, decoding.steps), value=decoding.steps, step=1, label="Steps")
            schedule = gr.Dropdown(sorted(SCHEDULES), value=decoding.schedule, label="Schedule")
            order = gr.Dropdown(ORDERS, value=decoding.order, label="Order")
            softmax_temperature = gr.Slider(
                0.1, 2, value=decoding.softmax_temperature, label="Softmax temperature", info="lower: likelier tokens"
            )
            choice_temperature = gr.Slider(
                0,
                10,
                value=decoding.choice_temperature,
                label="Choice temperature",
                info="noise on the confidence; the Halton order has none",
            )
            seed = gr.Number(value=0, precision=0, label="Seed")
        button = gr.Button("Fill", variant="primary")
        gallery = gr.Gallery(label="Step by step", columns=8, format="png")
        gr.Examples(examples, inputs=[editor])
        how = [label, guidance, steps, schedule, order, softmax_temperature, choice_temperature, seed]
        button.click(fill, [editor, *how], [output, gallery], api_name="fill")
    return page.queue(max_size=LONGEST_QUEUE)


Scope = dict[str, Any]
Channel = Callable[..., Awaitable[Any]]


class OwnPageOnly:
    """ASGI middleware that refuses what no page of this server sends: 403.

    Browsers say in `Origin` whose page makes a request. And they say in `Host` whom they take the server for: a name
    other than localhost could be somebody else's, pointed here after his page was loaded (DNS rebinding).
    """

    def __init__(self, app: Callable[[Scope, Channel, Channel], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Channel, send: Channel) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        host = headers.get(b"host", "")
        own = _is_own(host) and urlsplit(headers.get(b"origin", f"//{host}")).netloc == host
        if scope["type"] == "lifespan" or own:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"not from this page"})
        else:
            await send({"type": "websocket.close", "code": 1008})


def _is_own(host: str) -> bool:
    """Whether "name:port" is localhost or an IP address, which can't be pointed elsewhere."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def launch(page: Any, port: int, **options: Any) -> Any:
    """Serve the page; further options are those of gradio's `launch`, whose result this returns."""
    from starlette.middleware import Middleware  # which gradio needs too

    # Pillow refuses twice as many, before it decodes them for the page.
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    door = {"max_file_size": LARGEST_FILE, "app_kwargs": {"middleware": [Middleware(OwnPageOnly)]}}
    return page.launch(server_port=port, **door, **options)


def serve(options: Options) -> None:
    """Serve the page until Ctrl-C. Raises UsageError for a model or option that can't be used."""
    try:
        launch(build(MaskGIT.from_pretrained(options.model, device=options.device)), options.port)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise UsageError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status: 0, or 2 for bad usage."""
    return run_command(Options, serve, argv, prog="python -m maskgit.app")


if __name__ == "__main__":
    sys.exit(main())
