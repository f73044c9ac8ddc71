"""The words of the inpaint command, with files that its options name."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskgit.cli.inpaint import main
from maskgit.decoding import DECODERS

from .bending import NAMES, TEXTS, bend_bytes, put_odd
from .cases import Case, Content, Group, Known, command, with_file
from .pictures import STRANGE, png, random_file
from .seeds import PICTURE, Seeds

LONG = "9" * 400
LENGTHS = ["", *"0 1 8 25% 100% 12.5% -1 1e9 0% 999999999 x % ٣ ²".split(), "1" + "0" * 30, f"{LONG}%"]
COUNTS = ["", *"1 2 0 -1 1.5 1e3 nan ² ٣ x".split(), LONG, "9" * 5000]
NUMBERS = ["", *"0 1 0.5 -1 nan inf -inf 1e400 1e308 x".split(), LONG]
PLACES = ["x" * 5000, *"x.png pictures masks nowhere model /dev/null /dev/zero /proc/self/mem . a/../b".split()]
OPTIONS: dict[str, list[str]] = {
    "images": [*PLACES, "pictures/0.png"],
    "mask": [*PLACES, "center", "strokes", "half", "mask.png"],
    "class": ["red", "3", "Red", "all", *COUNTS],
    "output": ["x" * 5000, *"out pictures x.png out/deeper /dev/null/x /proc/x model mask.png".split()],
    "model": ["", "x" * 5000, *"model pictures a/b ../x embedded/ x.png ~nobody/x hf://x".split()],
    "decoder": [*DECODERS, "", "x"],
    "steps": COUNTS,
    "schedule": ["", *"cosine arccos linear x".split()],
    **dict.fromkeys(("temperature", "softmax-temperature", "guidance", "remask"), NUMBERS),
    "reuse": COUNTS,
    "seed": COUNTS,
    "batch-size": COUNTS,
    "device": ["", *"cpu cpu:0 cpu:7 cuda meta privateuseone mkldnn hpu xla vulkan x cpu:9999999999".split()],
    "kernels": "auto torch x".split(),
    "precision": "float32 bf16 fp16 x".split(),
}
FLAGS = (
    "--invert-mask --no-paste --no-save-steps --maps --list-classes --help --no-such-option --paste -- -x word".split()
)


def use(seeds: Seeds, *words: str) -> Case:
    """Run the command on the tiny model, with two pictures and a mask; later words override."""
    seeds.take("model")
    for i in range(2):
        Path(f"pictures/{i}.png").parent.mkdir(exist_ok=True)
        Path(f"pictures/{i}.png").write_bytes(PICTURE)
    Path("mask.png").write_bytes(png(24, 20, 8, 0))
    given = {word for word in words if word.startswith("--")}
    sound = {"--images": "pictures", "--output": "out", "--model": "model", "--steps": "2", "--device": "cpu"}
    if "--generate" in given:
        del sound["--images"]
    start = [word for option, value in sound.items() if option not in given for word in (option, value)]
    return command(main, [*start, *words], keeps=True, changes="out")


def named(*words: str) -> Callable[[Seeds], Case]:
    return lambda seeds: use(seeds, *words)


def picture(content: Content, name: str = "x.png") -> Callable[[Seeds], Case]:
    return with_file(use, f"pictures/{name}", content)


KNOWN: Known = {
    "F1 177 megapixels": picture(lambda _: png(13300, 13300, 1, 0)),
    "F10 pipe": picture(None),
    "F12 box of 400 digits": named("--box", "9" * 400 + "%", "0", "1", "1"),
    "F12 box of 5000 digits": named("--box", "9" * 5000, "0", "1", "1"),
    "F12 margins of 400 digits": named("--outpaint", "9" * 400 + "%", "0", "1", "1"),
    "F12 point of 5000 digits": named("--maps", "--map-at", "9" * 5000, "0"),
    "F12 device privateuseone": named("--device", "privateuseone"),
    "F15 name that steers a terminal": picture(b"no picture", STRANGE),
    "F15 good name that steers a terminal": picture(png(16, 16), STRANGE),
    "class of 5000 digits": named("--class", "9" * 5000),
    "class that is no digit": named("--class", "²"),
    "steps of 5000 digits": named("--steps", "9" * 5000),
    "F12 steps of 400 digits": named("--steps", LONG),
    "margins of 0": named("--outpaint", "0", "0", "0", "0"),
    "mask is a model": named("--mask", "model/config.json"),
}


def random_case(rng: random.Random, seeds: Seeds) -> Case:
    words: list[Any] = []
    for option in rng.sample(sorted(OPTIONS), rng.choice((1, 1, 2, 4))):
        odd = [text for text in TEXTS if "\ud800" not in text]
        words += [f"--{option}", rng.choice(OPTIONS[option] if rng.random() < 0.85 else odd)]
    how = rng.random()
    if how < 0.15:
        words += ["--box", *(rng.choice(LENGTHS) for _ in range(4))]
    elif how < 0.3:
        words += ["--outpaint", *(rng.choice(LENGTHS[1:7]) for _ in range(4))]
    elif how < 0.4:
        words += ["--maps", "--map-at", *(rng.choice(LENGTHS) for _ in range(2))]
    elif how < 0.45:
        words += ["--guidance-interval", *(rng.choice(NUMBERS) for _ in range(2))]
    elif how < 0.5:
        words += ["--generate", rng.choice(COUNTS[1:8])]
    if rng.random() < 0.3:
        words.insert(rng.randrange(len(words) + 1), rng.choice(FLAGS))
    if rng.random() < 0.4:
        Path("pictures").mkdir()
        name = rng.choice((f"{rng.choice(NAMES)}.png", "0.jpg", "overview.grid.png"))
        Path("pictures", name).write_bytes(bend_bytes(rng, random_file(rng)))
        if rng.random() < 0.2:
            put_odd(rng, Path("pictures", name))
    if rng.random() < 0.2:
        put_odd(rng, Path(rng.choice(("masks", "masks/0.png", "x.png", "out", "out/0.png", "pictures/deep/er.png"))))
    return use(seeds, *words)


GROUP = Group("inpaint's words", KNOWN, random_case)
