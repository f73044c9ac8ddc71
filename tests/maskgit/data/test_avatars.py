"""The embedded data set."""

import re
import zipfile
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from maskgit.data import AugmentConfig, AvatarDataset, DataError, EmptySplitError, ImageFolder, load_dataset
from maskgit.data.avatars import load_avatars

ASSETS = resources.files("maskgit") / "assets"
STYLES = [
    "adventurer", "big-smile", "fun-emoji", "lorelei", "micah", "miniavs",
    "notionists", "open-peeps", "personas", "pixel-art", "thumbs", "toon-head",
]  # fmt: skip
LICENSES = {
    "CC0 1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC BY 4.0": "https://creativecommons.org/licenses/by/4.0/",
}


@pytest.fixture(scope="module")
def avatars() -> AvatarDataset:
    return AvatarDataset()


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the package as a folder, as scripts/make_avatars writes it."""
    folder = tmp_path_factory.mktemp("avatars")
    with (ASSETS / "avatars.zip").open("rb") as file, zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    return folder


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_all_pictures_are_there_and_distinct(avatars: AvatarDataset) -> None:
    assert len(avatars) == 6000
    assert avatars.pixels.shape == (6000, 64, 64, 3) and avatars.pixels.dtype == np.uint8
    assert len(set(avatars.names)) == len({pixels.tobytes() for pixels in avatars.pixels}) == 6000
    assert all(pixels.std() > 10 for pixels in avatars.pixels)  # none is empty
    assert [avatars.name(i) for i in (0, 5999)] == [avatars.names[0], avatars.names[5999]]


def test_styles_are_the_classes(avatars: AvatarDataset) -> None:
    assert avatars.class_names == STYLES == sorted(STYLES)
    assert avatars.labels.dtype == np.int64 and np.bincount(avatars.labels).tolist() == [500] * 12
    for name, label in zip(avatars.names, avatars.labels, strict=True):
        style, seed = name.removesuffix(".webp").split("/")
        assert style == STYLES[label] and str(int(seed)) == seed
    avatars.class_names.clear()  # a copy, as pixels are: what others get stays as it is
    assert AvatarDataset().class_names == STYLES
    avatars.class_names.extend(STYLES)


def test_a_style_is_told_by_its_looks(avatars: AvatarDataset) -> None:
    """Pictures are nearer to the mean of their own style than to that of another, far more often than by chance."""
    small = avatars.pixels.reshape(6000, 8, 8, 8, 8, 3).mean((2, 4)).reshape(6000, -1)  # [n, 8 * 8 * 3]
    means = np.stack([small[avatars.labels == label][:250].mean(0) for label in range(12)])
    nearest = ((small[:, None] - means) ** 2).sum(-1).argmin(1)
    unseen = np.concatenate([np.flatnonzero(avatars.labels == label)[250:] for label in range(12)])
    assert (nearest == avatars.labels)[unseen].mean() > 0.5


def test_decoded_once_and_read_only() -> None:
    assert load_avatars()[2] is load_avatars()[2]
    with pytest.raises(ValueError, match="read-only"):
        load_avatars()[2][0] = 0


def test_images_and_views() -> None:
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


# --- the split --------------------------------------------------------------------------------------------------------


def test_the_split_is_that_of_a_folder_with_the_same_files(extracted: Path) -> None:
    """Names, labels and pixels."""
    for split in ("train", "val"):
        ours, theirs = AvatarDataset(split=split), ImageFolder(extracted, 64, split, check=False)
        assert theirs.class_names == ours.class_names
        order = np.array([theirs.keys.index(name) for name in ours.names])
        assert sorted(order) == list(range(len(theirs)))
        assert np.array_equal(theirs.labels[order], ours.labels)
        for i in range(0, len(ours), 50):
            assert np.array_equal(ours.image(i), theirs.image(order[i])), ours.name(i)


def test_no_picture_or_its_mirror_image_is_on_both_sides() -> None:
    train, val, both = (AvatarDataset(split=split) for split in ("train", "val", "all"))
    assert len(train) + len(val) == len(both) and not set(train.names) & set(val.names)
    known = {pixels.tobytes() for pixels in train.pixels}
    for name, pixels in zip(val.names, val.pixels, strict=True):
        assert pixels.tobytes() not in known, name
        assert np.ascontiguousarray(pixels[:, ::-1]).tobytes() not in known, name


def test_the_split_is_pinned() -> None:
    val = AvatarDataset(split="val")
    assert np.bincount(val.labels).tolist() == [44, 57, 56, 58, 40, 53, 51, 54, 50, 62, 58, 50]
    assert [val.names[i] for i in (0, 1, -2, -1)] == [
        *("adventurer/5.webp", "adventurer/7.webp"),
        *("toon-head/468.webp", "toon-head/481.webp"),
    ]


def test_wrong_arguments() -> None:
    with pytest.raises(DataError, match="unknown split"):
        AvatarDataset(split="test")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="image_size"):
        AvatarDataset(image_size=0)
    with pytest.raises(EmptySplitError, match="avatars: none of the 6000 image.s. can be used for the split 'val'"):
        load_dataset("avatars", 64, "val", val_fraction=0.0)


# --- whose they are ---------------------------------------------------------------------------------------------------


def test_credit_travels_with_the_pictures() -> None:
    notice = (ASSETS / "AVATARS_NOTICE.txt").read_text(encoding="utf-8")
    with (ASSETS / "avatars.zip").open("rb") as file, zipfile.ZipFile(file) as archive:
        assert archive.read("NOTICE.txt").decode() == notice
    about, *credits = notice.strip().split("\n\n")
    assert "DiceBear" in about
    assert [credit.partition(":")[0] for credit in credits] == STYLES
    for credit in credits:
        who, source, license = credit.split("\n")
        assert re.fullmatch(r"[a-z-]+: .+ by .+ \(https?://\S+\)", who)
        assert source.startswith("  source: https://")
        name, _, terms = license.removeprefix("  license: ").partition(" (")
        assert terms == f"{LICENSES[name]})"


def test_the_archive() -> None:
    with (ASSETS / "avatars.zip").open("rb") as file, zipfile.ZipFile(file) as archive:
        names = [info.filename for info in archive.infolist()]
        assert max(Counter(names).values()) == 1 and len(names) == 6000 + 2
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert file.seek(0, 2) <= 8_000_000
