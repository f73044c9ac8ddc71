"""The embedded data set."""

import importlib.util
import io
import json
import shutil
import zipfile
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgit.data import AugmentConfig, AvatarDataset, DataError, EmptySplitError, ImageFolder, load_dataset, read_image
from maskgit.data.avatars import load_avatars

ASSETS = resources.files("maskgit") / "assets"


@pytest.fixture(scope="module")
def archive():
    with (ASSETS / "avatars.zip").open("rb") as file, zipfile.ZipFile(file) as opened:
        yield opened


@pytest.fixture(scope="module")
def make_avatars():
    path = Path(__file__).resolve().parents[3] / "scripts" / "make_avatars" / "__main__.py"
    spec = importlib.util.spec_from_file_location("make_avatars", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_six_thousand_pictures_no_two_of_which_are_the_same():
    data = AvatarDataset()
    assert len(data) == 6000
    assert data.pixels.shape == (6000, 64, 64, 3) and data.pixels.dtype == np.uint8
    assert len({pixels.tobytes() for pixels in data.pixels}) == 6000
    assert (data.pixels.reshape(6000, -1).std(1) > 5).all()  # none is empty


def test_the_styles_are_the_classes():
    data = AvatarDataset()
    assert data.class_names == [
        "adventurer", "big-smile", "fun-emoji", "lorelei", "micah", "miniavs",
        "notionists", "open-peeps", "personas", "pixel-art", "thumbs", "toon-head",
    ]  # fmt: skip
    assert np.bincount(data.labels).tolist() == [500] * 12 and data.labels.dtype == np.int64
    assert all(data.name(i).startswith(f"{data.class_names[label]}/") for i, label in enumerate(data.labels))


def test_styles_look_alike_within_and_not_between():
    """The mean picture of the even ones of a style is nearest to that of its odd ones."""
    data = AvatarDataset()
    means = [data.pixels[data.labels == label].astype(np.float64) for label in range(12)]
    even, odd = (np.stack([pixels[start::2].mean(0).ravel() for pixels in means]) for start in (0, 1))
    distances = ((even[:, None] - odd) ** 2).sum(2)
    assert distances.argmin(1).tolist() == list(range(12))


def test_the_split_is_pinned():
    train, val, both = (AvatarDataset(split=split) for split in ("train", "val", "all"))
    assert (len(train), len(val), len(both)) == (5367, 633, 6000)
    assert not set(train.names) & set(val.names)
    assert np.bincount(val.labels).min() >= 40
    assert {"lorelei/333.webp", "micah/25.webp", "pixel-art/310.webp"} <= set(val.names)


def test_no_picture_has_its_mirror_image_on_the_other_side():
    """Training flips pictures."""
    train, val = (AvatarDataset(split=split) for split in ("train", "val"))
    known = {pixels.tobytes() for pixels in train.pixels}
    for name, pixels in zip(val.names, val.pixels, strict=True):
        assert np.ascontiguousarray(pixels[:, ::-1]).tobytes() not in known, name


def test_a_folder_of_the_same_files_is_split_the_same_way(archive, tmp_path):
    archive.extractall(tmp_path)
    for split in ("train", "val"):
        ours, theirs = AvatarDataset(split=split), ImageFolder(tmp_path, 64, split, check=False)
        assert sorted(ours.names) == theirs.keys and ours.class_names == theirs.class_names
        order = np.argsort(ours.names)  # a folder's files are sorted as text: 10.webp comes before 2.webp
        np.testing.assert_array_equal(ours.labels[order], theirs.labels)
        for i in range(0, len(theirs), 100):
            np.testing.assert_array_equal(ours.image(order[i]), theirs.image(i))


def test_images_and_views():
    rng = np.random.default_rng(3)
    data = AvatarDataset(split="val")
    np.testing.assert_array_equal(data.image(5), data.pixels[5])
    data.image(5)[:] = 0  # a copy: the data set itself stays as it is
    assert data.image(5).any()
    for size in (16, 64, 100):
        resized = load_dataset("avatars", size, "val")
        assert resized.image(0).shape == resized.view(0, rng, AugmentConfig()).shape == (size, size, 3)
        np.testing.assert_array_equal(
            resized.view(7, np.random.default_rng(1), AugmentConfig()),
            resized.view(7, np.random.default_rng(1), AugmentConfig()),
        )


def test_decoded_once_and_read_only():
    assert load_avatars()[2] is load_avatars()[2]
    with pytest.raises(ValueError, match="read-only"):
        load_avatars()[2][0] = 0


def test_wrong_arguments():
    with pytest.raises(DataError, match="unknown split"):
        AvatarDataset(split="test")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="image_size"):
        AvatarDataset(image_size=0)
    with pytest.raises(EmptySplitError, match="avatars: none of the 6000 image.* for the split 'val'"):
        load_dataset("avatars", 64, "val", val_fraction=0.0)


def test_a_folder_of_that_name_has_another_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="avatars: no such folder"):
        load_dataset("./avatars", 64)


def test_everybody_who_drew_is_named_with_a_license(archive):
    notice = (ASSETS / "AVATARS_NOTICE.txt").read_text(encoding="utf-8")
    assert archive.read("NOTICE.txt").decode() == notice
    styles = json.loads(archive.read("index.json"))["styles"]
    assert [style["style"] for style in styles] == AvatarDataset().class_names
    for style in styles:
        assert style["license"] in ("CC0 1.0", "CC BY 4.0")
        (paragraph,) = [part for part in notice.split("\n\n") if part.startswith(f"{style['style']}: ")]
        for word in ("title", "creator", "source", "license", "terms"):
            assert style[word] and style[word] in paragraph
    assert "by DiceBear" in notice and "Lisa Wischofsky" in notice and "creativecommons.org" in notice


def test_the_zip_is_small_and_holds_nothing_else(archive):
    assert len((ASSETS / "avatars.zip").read_bytes()) <= 8e6
    assert max(Counter(archive.namelist()).values()) == 1
    assert set(archive.namelist()) == {"NOTICE.txt", "index.json", *load_avatars()[0]}
    assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_sample_images_are_held_out_avatars_of_eight_styles():
    val = AvatarDataset(split="val")
    samples = sorted(path.name for path in (ASSETS / "samples").iterdir() if path.name.endswith(".png"))
    assert len({name.rpartition("-")[0] for name in samples}) == len(samples) == 8
    for name in samples:
        with resources.as_file(ASSETS / "samples" / name) as path:
            sample = read_image(path)
        style, _, seed = name.removesuffix(".png").rpartition("-")
        np.testing.assert_array_equal(np.asarray(sample), val.image(val.names.index(f"{style}/{seed}.webp")))
        assert isinstance(sample, Image.Image) and sample.size == (64, 64)


# --- scripts/make_avatars ---------------------------------------------------------------------------------------------


def test_the_script_makes_what_the_package_holds(archive, make_avatars, tmp_path):
    """The zip of the shipped pictures, written again, is the shipped one to the last byte."""
    index = json.loads(archive.read("index.json"))
    assert [style["style"] for style in index["styles"]] == list(make_avatars.STYLES)
    made = [
        (style, {name: archive.read(name) for name in index["pictures"] if name.startswith(f"{style['style']}/")})
        for style in index["styles"]
    ]
    assert all(len(files) == make_avatars.PACKAGED for _, files in made)
    make_avatars.write_package(made, tmp_path / "avatars.zip")
    assert (tmp_path / "avatars.zip").read_bytes() == (ASSETS / "avatars.zip").read_bytes()
    assert (tmp_path / "AVATARS_NOTICE.txt").read_bytes() == (ASSETS / "AVATARS_NOTICE.txt").read_bytes()
    make_avatars.write_folder(made[:1], tmp_path / "folder")
    assert len(load_dataset(str(tmp_path / "folder"), 64, "val")) == np.bincount(AvatarDataset(split="val").labels)[0]


@pytest.mark.parametrize("wanted, seeds", [(1, [0]), (3, [0, 3, 6]), (7, [0, 3, 6, 9, 12, 15, 18])])
def test_more_pictures_begin_with_the_same_ones(make_avatars, monkeypatch, wanted, seeds):
    """Of pictures that are the same, the one of the lowest seed is kept, however many are wanted."""
    plan_drawings(make_avatars, monkeypatch, different=7)
    credit, files = make_avatars.make_style("thumbs", wanted)
    assert credit == {"style": "thumbs"} and list(files) == [f"thumbs/{seed}.webp" for seed in seeds]
    for seed, data in zip(seeds, files.values(), strict=True):
        assert np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).max() == seed // 3


def test_a_style_that_is_exhausted(make_avatars, monkeypatch):
    asked = plan_drawings(make_avatars, monkeypatch, different=4)
    _, files = make_avatars.make_style("thumbs", 5)
    assert list(files) == [f"thumbs/{seed}.webp" for seed in (0, 3, 6, 9)]
    assert asked == list(range(make_avatars.TRIES * 5))


def plan_drawings(make_avatars, monkeypatch, different):
    """Three seeds in turn give the same picture, and all further ones the last; returns the seeds asked for."""
    asked = []

    def draw(style, first, count):
        yield [{"style": style}]
        for seed in range(first, first + count):
            asked.append(seed)
            yield {"style": style, "seed": seed, "svg": str(min(seed // 3, different - 1))}

    monkeypatch.setattr(make_avatars, "draw", draw)
    monkeypatch.setattr(make_avatars, "render", lambda svg: Image.new("RGB", (4, 4), (int(svg), 0, 0)))
    return asked


@pytest.fixture
def node(make_avatars):
    if shutil.which("node") is None or not (make_avatars.HERE / "node_modules").is_dir():
        pytest.skip("needs Node.js and `npm ci` in scripts/make_avatars")


def test_the_script_refuses_styles_without_a_license(node, make_avatars, capfd):
    with pytest.raises(SystemExit, match="avataaars wasn't drawn"):
        list(make_avatars.draw("avataaars", 0, 1))
    assert 'avataaars: license "Free for personal and commercial use" is none of' in capfd.readouterr().err


def test_the_script_draws_the_shipped_pixels(node, archive, make_avatars):
    pytest.importorskip("resvg_py")
    shipped = dict(zip(*load_avatars()[::2], strict=True))
    for style in ("lorelei", "notionists"):
        _, *drawings = make_avatars.draw(style, 0, 5)
        for drawing in drawings:
            drawn = make_avatars.render(drawing["svg"])
            np.testing.assert_array_equal(np.asarray(drawn), shipped[f"{style}/{drawing['seed']}.webp"])


@pytest.mark.parametrize(
    "arguments, message", [(["--per-style", "0"], "--per-style 0"), (["--output", "."], "--output .: is there already")]
)
def test_the_script_refuses(make_avatars, monkeypatch, capsys, tmp_path, arguments, message):
    (tmp_path / "picture.png").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["make_avatars", *arguments])
    with pytest.raises(SystemExit) as stopped:
        make_avatars.main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err
