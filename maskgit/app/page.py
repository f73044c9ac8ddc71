"""What there is to see on the page: its tabs, from top to bottom, and which button does what."""

from __future__ import annotations

import dataclasses
import html
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw

from maskgit.app import given
from maskgit.app.actions import MOST_VARIANTS, OWN, Actions, How
from maskgit.app.door import KEPT
from maskgit.app.work import Worker
from maskgit.console import first_line
from maskgit.decoding import DECODERS, ORDERS, DecodeConfig
from maskgit.decoding.schedules import SCHEDULES
from maskgit.files import SAMPLES
from maskgit.pipeline import MaskGIT

_RED = "rgba(230, 40, 60, 0.55)"

_DECODERS_DO = {
    "maskgit": "the paper's official code: tokens are drawn, the most confident kept, with less and less noise",
    "lab-perturbed": "the same noise, on the probability of every code, both draws a token and ranks it",
    "lab-sampled": "tokens are drawn, and ranked by their probability instead of its logarithm",
    "lab-greedy": "the likeliest token everywhere; noise, growing with the steps, only in which are kept",
    "valeo": "the PyTorch reproduction: the arccos schedule, and with a class guidance that grows",
    "halton": "tokens are drawn, and kept in a fixed order that spreads over the picture",
}

_RANDOM_SEED = "() => Math.floor(Math.random() * 2 ** 31)"

Components = dict[str, Any]
"""By the names that their values have for the actions, and in the HTTP API."""


class Page(gr.Blocks):
    """Blocks that say what is wrong with what is sent to them, without a traceback on the console."""

    async def preprocess_data(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().preprocess_data(*args, **options)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:  # each component has its own for values that make no sense
            raise gr.Error(first_line(error), print_exception=False) from error


def build(model: MaskGIT, name: str, worker: Worker) -> Page:
    """The page of a model that is called so; the worker does what its buttons ask for."""
    actions = Actions(model, worker)
    classes = model.class_names or [str(number) for number in range(model.transformer.config.num_classes)]
    tabs: list[tuple[Callable[..., Iterator[Any]], Components, Buttons]] = []
    with Page(title="MaskGIT", delete_cache=(KEPT, KEPT), analytics_enabled=False) as page:
        gr.Markdown(f"# MaskGIT\n{_about(model, name)}")
        with gr.Row():
            with gr.Column():
                with gr.Tab("Inpaint"):
                    tabs.append((actions.inpaint, _picture_to_paint_on() | _cropping(), _buttons("Fill")))
                with gr.Tab("Outpaint"):
                    own = {"picture": _picture()} | _percents("Added", left=0, top=0, right=50, bottom=0)
                    tabs.append((actions.outpaint, own, _buttons("Continue")))
                with gr.Tab("Generate by class" if classes else "Generate"):
                    tabs.append((actions.generate, {}, _buttons("Generate")))
                if classes:
                    with gr.Tab("Class into a box"):
                        tabs.append((actions.class_box, _picture_with_box() | _cropping(), _buttons("Put it in")))
                how = _how(model, classes)
            with gr.Column():
                results = _results()
        for action, own, buttons in tabs:
            _listen(action, own | how, results, buttons)
    return page


def _about(model: MaskGIT, name: str) -> str:
    """The model's name and size, in a line."""
    size, classes = model.tokenizer.config.image_size, model.transformer.config.num_classes
    weights = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.tokenizer, model.transformer)]
    return (
        f"Model **{html.escape(name)}**: {size}x{size} pixels at a time, {sum(weights):.1f} million parameters "
        f"(tokenizer {weights[0]:.1f}, transformer {weights[1]:.1f}), "
        f"{f'{classes} classes' if classes else 'no classes'}, on {model.device} in {model.precision}."
    )


# --- what is put in ---------------------------------------------------------------------------------------------------


def _picture() -> gr.File:
    """A picture's file, as it is: gradio's own component for pictures would decode it, and lose what it carries."""
    picture = gr.File(label="Picture", file_types=["image"], height=120)
    gr.Examples([[str(path)] for path in sorted(SAMPLES.glob("*.png"))], [picture], label="or one of these")
    return picture


def _picture_to_paint_on() -> Components:
    picture = _picture()
    painted = gr.ImageEditor(
        label="Paint over what is to be filled",
        type="pil",
        format="png",
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(colors=[_RED], default_color=_RED, color_mode="fixed"),
        eraser=gr.Eraser(),
        buttons=["fullscreen"],
        elem_id="painted",
    )
    with gr.Accordion("… or put in a mask, made elsewhere", open=False):
        mask = gr.File(label="Mask: white is filled, or what is painted on a transparent layer", height=120)
        invert = gr.Checkbox(label="Invert the mask", info="Fill what it keeps, and keep the rest.")
    picture.change(_to_paint_on, picture, painted, api_visibility="private", show_progress="hidden")
    return {"picture": picture, "painted": painted, "mask": mask, "invert": invert}


def _to_paint_on(path: str | None) -> dict[str, Any] | None:
    """What the editor shows of a picture, with nothing painted yet."""
    picture = _shown(path)
    return {"background": picture, "layers": [], "composite": None} if picture else None


def _shown(path: str | None) -> Image.Image | None:
    try:
        return given.shown(given.open_picture(path).image) if path else None
    except ValueError as error:
        raise gr.Error(given.named(str(error), path), print_exception=False) from error


def _picture_with_box() -> Components:
    picture = _picture()
    drawn = gr.Image(label="The box", interactive=False, format="png", height=320, buttons=[])
    box = _percents("Box", left=25, top=25, width=50, height=50)
    for changed in (picture, *box.values()):
        changed.change(
            _with_box,
            [picture, *box.values()],
            drawn,
            api_visibility="private",
            show_progress="hidden",
            trigger_mode="always_last",
        )
    return {"picture": picture} | box


def _with_box(path: str | None, left: float, top: float, width: float, height: float) -> Image.Image | None:
    """A picture as the page shows it, with a box drawn into it."""
    picture = _shown(path)
    if picture:
        try:
            x, y, right, bottom = given.box(picture.size, left, top, width, height)
            line = max(1, max(picture.size) // 100)
            ImageDraw.Draw(picture).rectangle((x, y, right - 1, bottom - 1), outline=(230, 40, 60), width=line)
        except ValueError:
            pass  # nothing of it is in the picture: nothing to draw
    return picture


def _percents(what: str, **values: float) -> Components:
    """Sliders in percent of a picture's sides."""
    with gr.Row():
        return {
            name: gr.Slider(0, 100, value, step=1, label=f"{what}: {name}", info="% of the picture", min_width=120)
            for name, value in values.items()
        }


def _cropping() -> Components:
    with gr.Accordion("Where the model looks", open=False), gr.Row():
        crop = gr.Dropdown(
            [("what suits the model", ""), ("Auto", "auto"), ("Off", "off")],
            value="",
            allow_custom_value=True,
            label="Crop",
            info="Auto looks at holes from near; a number, at so many pixels at least. Off squeezes the whole picture "
            "to the model's square.",
        )
        grow = gr.Textbox("", label="Grow", info="Pixels by which holes get larger.", placeholder="as many as Feather")
        feather = gr.Number(0, label="Feather", precision=0, info="Pixels over which the fill fades into the picture.")
    return {"crop": crop, "grow": grow, "feather": feather}


# --- how it is done ---------------------------------------------------------------------------------------------------


def _how(model: MaskGIT, classes: list[str]) -> Components:
    """The fields of `How`: what is empty is as the decoder has it."""
    with gr.Row():
        label = gr.Dropdown(
            [("any", ""), *((str(name), str(name)) for name in classes)],
            value="",
            label="Class",
            info="What is to be seen in what is filled.",
            visible=bool(classes),
        )
        variants = gr.Slider(1, MOST_VARIANTS, 1, step=1, label="Variants", info="How many are made, to choose from.")
        seed = gr.Number(0, label="Seed", precision=0, info="Another one gives other pictures, the same the same.")
    with gr.Accordion("How it is decoded", open=False):
        preset = gr.Dropdown([OWN, *DECODERS], value=OWN, label="Decoder", info="Whose way of decoding.")
        about = gr.Markdown(_about_decoder(OWN, model.decoding))
        preset.change(
            lambda name: _about_decoder(name, How(decoder=name).config(model.decoding)),
            preset,
            about,
            api_visibility="private",
            show_progress="hidden",
        )
        with gr.Row():
            steps = _setting("Steps", "Each is one pass through the transformer.")
            schedule = _choice("Schedule", SCHEDULES, "How many tokens stay masked after each step.")
            order = _choice("Order", ORDERS, "Which tokens are kept first: the surest, or by their place.")
        with gr.Row():
            softmax = _setting("Softmax temperature", "Below 1 the likely tokens become likelier.")
            choice = _setting(
                "Choice temperature", "How much chance is in which tokens are kept; the Halton order has none."
            )
            guidance = _setting("Guidance", "With a class: how much it counts, 0 or more.")
    return {
        "label": label,
        "variants": variants,
        "seed": seed,
        "decoder": preset,
        "steps": steps,
        "schedule": schedule,
        "order": order,
        "softmax_temperature": softmax,
        "choice_temperature": choice,
        "guidance_scale": guidance,
    }


def _setting(label: str, info: str) -> gr.Textbox:
    # Not a gr.Number: that has 0 where it is empty, as soon as it is seen.
    name = label.lower().replace(" ", "-")
    return gr.Textbox("", label=label, info=info, placeholder="as the decoder", min_width=160, elem_id=f"how-{name}")


def _choice(label: str, choices: Iterable[str], info: str) -> gr.Dropdown:
    return gr.Dropdown([("as the decoder", ""), *((one, one) for one in choices)], value="", label=label, info=info)


def _about_decoder(name: str, config: DecodeConfig) -> str:
    """What a decoder does, and its settings, in a line."""
    return (
        f"*{name}*: {_DECODERS_DO.get(name, 'what suits this model best, as it says itself')}. "
        f"{config.steps} steps, {config.schedule} schedule, {config.order} order, softmax temperature "
        f"{config.softmax_temperature:g}, choice temperature {config.choice_temperature:g}, guidance "
        f"{config.guidance_scale:g}."
    )


# --- what comes out ---------------------------------------------------------------------------------------------------

Buttons = tuple[gr.Button, gr.Button]


def _buttons(name: str) -> Buttons:
    with gr.Row():
        return gr.Button(name, variant="primary"), gr.Button("Another one")


def _results() -> list[Any]:
    """The components of a `View`."""
    status = gr.Markdown("What is made appears here.", elem_id="status")
    kind: dict[str, Any] = {"interactive": False, "format": "png"}
    steps = gr.Gallery(label="Step by step", columns=8, preview=True, height=260, elem_id="steps", **kind)
    slider = gr.ImageSlider(
        label="Before and after", type="filepath", image_mode=None, max_height=400, elem_id="slider", **kind
    )
    result = gr.DownloadButton("Download", elem_id="download")
    variants = gr.Gallery(
        label="Variants: choose one", columns=4, height=220, allow_preview=False, elem_id="variants", **kind
    )
    variants.select(_choose, [slider, variants], [result, slider], api_visibility="private", show_progress="hidden")
    return [result, slider, variants, steps, status]


def _choose(slider: tuple[str, str], variants: list[tuple[str, str | None]], chosen: gr.SelectData) -> Any:
    """One of the variants, for the download and beside what there was before."""
    path, _ = variants[chosen.index]
    return path, (slider[0], path)


def _listen(action: Callable[..., Iterator[Any]], components: Components, results: list[Any], buttons: Buttons) -> None:
    """Let a tab's buttons do its action, which is called so in the HTTP API too.

    One runs at a time, whosever it is; gradio says to the others how many are before them.
    """
    shared = [field.name for field in dataclasses.fields(How)]

    def run(*values: Any) -> Iterator[Any]:
        given = dict(zip(components, values, strict=True))
        how = How(**{name: given.pop(name) for name in shared if name in given})
        yield from action(**given, how=how)

    # What gradio calls the parameters; those whose component is empty at first may be left out.
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in components]
    )
    wired: dict[str, Any] = {
        "fn": run,
        "inputs": list(components.values()),
        "outputs": results,
        "concurrency_id": "model",
        "concurrency_limit": 1,
        "show_progress": "hidden",
        "api_name": action.__name__,
    }
    fill, another = buttons
    fill.click(**wired, api_description=action.__doc__)
    another.click(None, None, components["seed"], js=_RANDOM_SEED).then(**wired | {"api_visibility": "private"})
