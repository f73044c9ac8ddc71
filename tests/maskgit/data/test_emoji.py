"""The embedded data set."""

import zipfile
from collections import Counter
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from maskgit.data import AugmentConfig, DataError, EmojiDataset, load_dataset, read_image
from maskgit.data.emoji import load_emoji

ASSETS = resources.files("maskgit") / "assets"


@pytest.fixture(scope="module")
def emoji():
    return EmojiDataset()


def test_all_distinct_bitmaps_of_the_font_are_there(emoji):
    assert len(emoji) == 3916
    assert emoji.pixels.shape == (3916, 64, 64, 3) and emoji.pixels.dtype == np.uint8
    assert len(set(emoji.names)) == 3916
    assert len({entry.codepoints for entry in emoji.entries}) == 3916
    assert all(pixels.any() and pixels.std() > 0 for pixels in emoji.pixels)


def test_names_groups_and_labels(emoji):
    by_name = {entry.name: entry for entry in emoji.entries}
    assert by_name["red apple"][1:4] == ("1F34E", "red apple", "Food & Drink")
    assert by_name["flag: Norway"].group == "Flags"
    assert by_name["flag: California (US)"].group == "Flags"
    assert by_name["health worker: dark skin tone"].group == "People & Body"
    assert by_name["phoenix"].group == "Animals & Nature"
    assert emoji.class_names == [
        "Smileys & Emotion", "People & Body", "Component", "Animals & Nature", "Food & Drink", "Travel & Places",
        "Activities", "Objects", "Symbols", "Flags",
    ]  # fmt: skip
    assert [emoji.class_names[label] for label in emoji.labels] == [entry.group for entry in emoji.entries]
    assert emoji.labels.dtype == np.int64


def test_pictures_are_what_their_names_say(emoji):
    def mean(name):
        return emoji.pixels[emoji.names.index(name)][16:48, 16:48].reshape(-1, 3).mean(0)

    for name, color in [("red circle", 0), ("green circle", 1), ("blue circle", 2)]:
        assert mean(name).argmax() == color
    assert (emoji.pixels[:, 0, 0].mean(0) > 240).all()  # white background


def test_variants_share_a_family(emoji):
    family = dict(zip(emoji.names, emoji.families, strict=True))
    for names in [
        ["thumbs up", "thumbs up: dark skin tone"],
        ["person", "man", "woman", "woman: light skin tone"],
        ["child", "boy", "girl: medium skin tone"],
        ["health worker", "man health worker", "woman health worker: dark skin tone"],
        ["person walking", "woman walking: dark skin tone", "man walking facing right: light skin tone"],
        ["prince", "princess", "person with crown"],
        ["Santa Claus", "Mrs. Claus", "mx claus: dark skin tone"],
        ["family", "family: man, woman, boy", "family: woman, girl"],
        ["couple with heart", "couple with heart: woman, man", "couple with heart: man, man, dark skin tone"],
        ["handshake", "handshake: light skin tone, dark skin tone"],
        ["women holding hands", "people holding hands: light skin tone, dark skin tone"],
        ["woman dancing", "man dancing"],
        ["one o’clock", "eleven-thirty"],
    ]:
        assert len({family[name] for name in names}) == 1, names
    for one, other in [
        ("grinning face", "grinning cat"),
        ("thumbs up", "thumbs down"),
        ("cook", "judge"),
        ("flag: Norway", "flag: Sweden"),
        ("person", "child"),
        ("kiss", "couple with heart"),
    ]:
        assert family[one] != family[other]


def test_no_skin_tone_or_gender_is_left_in_a_family(emoji):
    for entry in emoji.entries:
        codes = entry.family.split("-")
        assert not {"1f468", "1f469", "1f3fc", "1f3fd", "1f3fe", "1f3ff", "fe0f"} & set(codes)
        assert "200d-2640" not in entry.family and "200d-2642" not in entry.family


def test_no_family_is_on_both_sides():
    train, val, both = (EmojiDataset(split=split) for split in ("train", "val", "all"))
    assert len(train) + len(val) == len(both)
    assert not set(train.families) & set(val.families)
    assert set(val.class_names) == set(train.class_names)
    assert 0.05 < len(val) / len(both) < 0.2


def test_no_picture_or_its_mirror_image_is_on_both_sides():
    train, val = (EmojiDataset(split=split) for split in ("train", "val"))
    known = {pixels.tobytes() for pixels in train.pixels}
    for name, pixels in zip(val.names, val.pixels, strict=True):
        assert pixels.tobytes() not in known, name
        assert np.ascontiguousarray(pixels[:, ::-1]).tobytes() not in known, name


def test_the_split_is_pinned():
    val = EmojiDataset(split="val")
    assert len(val) == 450 and len(set(val.families)) == 163
    assert {"fox", "broccoli", "crown", "sailboat"} <= set(val.names)


def test_images_and_views():
    rng = np.random.default_rng(3)
    data = EmojiDataset(split="val")
    np.testing.assert_array_equal(data.image(5), data.pixels[5])
    data.image(5)[:] = 0  # a copy: the data set itself stays as it is
    assert data.image(5).any()
    for size in (16, 64, 100):
        resized = load_dataset("emoji", size, "val")
        assert resized.image(0).shape == resized.view(0, rng, AugmentConfig()).shape == (size, size, 3)
        np.testing.assert_array_equal(
            resized.view(7, np.random.default_rng(1), AugmentConfig()),
            resized.view(7, np.random.default_rng(1), AugmentConfig()),
        )


def test_decoded_once_and_read_only():
    assert load_emoji()[2] is load_emoji()[2]
    with pytest.raises(ValueError, match="read-only"):
        load_emoji()[2][0] = 0


def test_wrong_arguments():
    with pytest.raises(DataError, match="unknown split"):
        EmojiDataset(split="test")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="image_size"):
        EmojiDataset(image_size=0)


def test_the_license_travels_with_the_pictures():
    notice = (ASSETS / "NOTO_EMOJI_LICENSE.txt").read_text(encoding="utf-8")
    assert "SIL OPEN FONT LICENSE Version 1.1" in notice and "Google" in notice
    with (ASSETS / "emoji.zip").open("rb") as file, zipfile.ZipFile(file) as archive:
        assert archive.read("LICENSE.txt").decode() == notice
        assert max(Counter(archive.namelist()).values()) == 1
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_sample_images_are_held_out_emoji():
    val = EmojiDataset(split="val")
    samples = sorted(path.name for path in (ASSETS / "samples").iterdir() if path.name.endswith(".png"))
    assert len(samples) >= 6
    for name in samples:
        with resources.as_file(ASSETS / "samples" / name) as path:
            sample = read_image(path)
        index = val.names.index(name.removesuffix(".png").replace("-", " "))
        np.testing.assert_array_equal(np.asarray(sample), val.image(index))
        assert isinstance(sample, Image.Image) and sample.size == (64, 64)
