"""Folders of images, the split, augmentation."""

import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgit.data import AugmentConfig, DataError, ImageError, ImageFolder, in_validation, load_dataset, read_image
from maskgit.data.images import center_square, find_images, random_crop, split_indices


def picture(rng, width=20, height=20):
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_find_images_any_nesting_sorted_without_hidden_ones(tmp_path):
    names = [
        "b.PNG",
        "a/c.JPeG",
        "a/deep/er/d.webp",
        "z/ünï çø∂é 日本.gif",
        ".hidden.png",
        ".cache/e.png",
        "a/notes.txt",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == sorted(["b.PNG", "a/c.JPeG", "a/deep/er/d.webp", "z/ünï çø∂é 日本.gif"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_are_no_images(tmp_path):
    picture(np.random.default_rng(0)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "nowhere.png").symlink_to("gone.png")
    assert [path.name for path in find_images(tmp_path)] == ["a.png", "nowhere.png"]  # which somebody may miss
    for name in ("pipe.png", "link.png"):
        with pytest.raises(ImageError, match=f"{name}: can't be read: not a file but a pipe"):
            read_image(tmp_path / name)


def test_find_images_follows_links_once(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.png").touch()
    try:
        (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "data")
    except OSError:
        pytest.skip("no symbolic links here")
    assert [path.name for path in find_images(tmp_path / "data")] == ["a.png"]


def test_missing_and_empty_folders_are_clear_errors(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_dataset(tmp_path / "nowhere", 16)
    with pytest.raises(DataError, match="no images"):
        load_dataset(tmp_path, 16)
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="not a folder"):
        load_dataset(tmp_path / "a.png", 16)


def test_classes_come_from_the_first_level(tmp_path, rng):
    for name in ["dog/1.png", "cat/x/2.png", "cat/y/3.png", "Émoji 😀/4.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(rng).save(tmp_path / name)
    data = ImageFolder(tmp_path, 8)
    assert data.class_names == sorted(["dog", "cat", "Émoji 😀"])
    assert data.labels.dtype == np.int64
    for path, label in zip(data.paths, data.labels, strict=True):
        assert path.relative_to(tmp_path).parts[0] == data.class_names[label]


def test_classes_are_the_same_on_both_sides(tmp_path, rng):
    for i in range(40):
        (tmp_path / f"class {i}").mkdir()
        picture(rng, 4, 4).save(tmp_path / f"class {i}" / "only.png")
    train, val = (ImageFolder(tmp_path, 4, split, val_fraction=0.5) for split in ("train", "val"))
    assert train.class_names == val.class_names and len(train.class_names) == 40
    assert len(train) + len(val) == 40


def test_no_classes_when_images_lie_in_the_root(tmp_path, rng):
    picture(rng).save(tmp_path / "1.png")
    data = ImageFolder(tmp_path, 8)
    assert data.class_names == [] and data.labels.tolist() == [0]
    (tmp_path / "sub").mkdir()
    picture(rng).save(tmp_path / "sub/2.png")
    with pytest.warns(UserWarning, match=r"no classes.*1\.png"):
        data = ImageFolder(tmp_path, 8)
    assert data.class_names == [] and len(data) == 2


def test_corrupt_files_are_named_counted_and_skipped(tmp_path, rng):
    for i in range(5):
        picture(rng, 60, 60).save(tmp_path / f"{i}.jpg")
    data = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "3.jpg").write_text("hello")
    with pytest.warns(UserWarning, match=r"skipped 2 unreadable") as caught:
        dataset = ImageFolder(tmp_path, 16)
    assert "1.jpg" in str(caught[0].message) and "3.jpg" in str(caught[0].message)
    assert [path.name for path in dataset.paths] == ["0.jpg", "2.jpg", "4.jpg"]
    assert [path.name for path, _ in dataset.skipped] == ["1.jpg", "3.jpg"]
    assert len(dataset) == len(dataset.labels) == 3


def test_only_corrupt_files_is_an_error_and_late_damage_is_named(tmp_path, rng):
    (tmp_path / "a.png").write_text("hello")
    with pytest.warns(UserWarning), pytest.raises(DataError, match="1 unreadable"):
        ImageFolder(tmp_path, 16)
    with pytest.raises(ImageError, match=r"a\.png"):
        ImageFolder(tmp_path, 16, check=False).image(0)


def test_plain_view_is_the_resized_centre(tmp_path):
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = (10, 200, 30)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for size in (1, 5, 10, 23):
        view = ImageFolder(tmp_path, size).image(0)
        assert view.shape == (size, size, 3) and view.dtype == np.uint8
        assert (view == (10, 200, 30)).all()


def test_wrong_arguments(tmp_path, rng):
    picture(rng).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="image_size=0"):
        ImageFolder(tmp_path, 0)
    with pytest.raises(DataError, match="unknown split 'test'"):
        ImageFolder(tmp_path, 8, "test")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="val_fraction=1.5"):
        ImageFolder(tmp_path, 8, "val", val_fraction=1.5)
    with pytest.raises(DataError, match="'val' with val_fraction=0"):
        ImageFolder(tmp_path, 8, "val", val_fraction=0)


def test_the_key_of_a_folder(tmp_path, rng):
    """Other images, other names, other times: another key; nothing else."""
    for name in ("cat/00.png", "cat/02.png", "dog/01.png"):
        (tmp_path / "first" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(rng).save(tmp_path / "first" / name)
    copy = Path(shutil.copytree(tmp_path / "first", tmp_path / "copy"))  # with the times of the originals
    key = ImageFolder(copy, 16).key()
    assert key == ImageFolder(tmp_path / "first", 16, check=False).key()
    path = copy / "cat" / "00.png"
    os.utime(path, (1, 1))
    touched = ImageFolder(copy, 16).key()
    path.rename(copy / "cat" / "12.png")
    assert len({key, touched, ImageFolder(copy, 16).key()}) == 3


# --- the split --------------------------------------------------------------------------------------------------------


def test_split_is_the_same_in_another_process(rng):
    keys = [f"{rng.integers(10**9)}/ünï {i}.png" for i in range(200)]
    here = [in_validation(key, 0.3) for key in keys]
    code = (
        "import sys, json; from maskgit.data import in_validation; "
        "print(json.dumps([in_validation(k, 0.3) for k in json.loads(sys.stdin.read())]))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(keys), env=env, capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == here


def test_split_is_pinned():
    """These sides must never change: models in use were trained on them."""
    keys = ["1f34e", "1f600", "cat/1.png", "日本", "a", "b", "c", "d"]
    assert [in_validation(key, 0.5) for key in keys] == [True, True, False, False, True, False, True, False]


def test_split_does_not_depend_on_the_other_files_or_the_fraction(tmp_path, rng):
    keys = [str(rng.integers(10**12)) for _ in range(4000)]
    val = split_indices(keys, "val", 0.1)
    train = split_indices(keys, "train", 0.1)
    assert sorted(val + train) == list(range(4000)) == split_indices(keys, "all", 0.1)
    assert 280 < len(val) < 520  # 400 expected, 19 standard deviation
    assert set(val) <= set(split_indices(keys, "val", 0.2))
    assert split_indices(keys, "val", 0) == split_indices(keys, "train", 1) == []
    fewer = split_indices(keys[::2], "val", 0.1)
    assert [2 * i for i in fewer] == [i for i in val if i % 2 == 0]


def test_split_is_blind_to_unicode_normal_forms():
    for i in range(50):
        composed = f"é{i}.png"
        assert in_validation(composed, 0.5) == in_validation(unicodedata.normalize("NFD", composed), 0.5)
    assert isinstance(in_validation("bad \udcff bytes.png", 0.5), bool)


# --- views ------------------------------------------------------------------------------------------------------------


def test_view_is_replayed_by_the_generator_alone(tmp_path, rng):
    for i in range(3):
        picture(rng, 30 + 10 * i, 45).save(tmp_path / f"{i}.png")
    data, seed = ImageFolder(tmp_path, 16), int(rng.integers(2**32))
    first = [data.view(i, np.random.default_rng(seed + i), AugmentConfig()) for i in range(3)]
    np.random.seed(0)
    again = [data.view(i, np.random.default_rng(seed + i), AugmentConfig()) for i in (2, 1, 0)][::-1]
    np.testing.assert_array_equal(first, again)
    other = data.view(0, np.random.default_rng(seed + 99), AugmentConfig())
    assert (other != first[0]).any()


def test_view_takes_as_many_numbers_whatever_comes_out(tmp_path, rng):
    picture(rng, 30, 40).save(tmp_path / "a.png")
    data, seed = ImageFolder(tmp_path, 8), int(rng.integers(2**32))
    after = set()
    for augment in (AugmentConfig(), AugmentConfig(flip=0), AugmentConfig(crop_scale=(1, 1), crop_ratio=(1, 1))):
        generator = np.random.default_rng(seed)
        data.view(0, generator, augment)
        after.add(generator.random())
    assert len(after) == 1


def test_augmentation_off_is_the_plain_view(tmp_path, rng):
    picture(rng, 30, 20).save(tmp_path / "a.png")
    data = ImageFolder(tmp_path, 16)
    np.testing.assert_array_equal(data.view(0, rng, AugmentConfig(enabled=False)), data.image(0))


def test_flip_alone_flips(tmp_path, rng):
    picture(rng, 16, 16).save(tmp_path / "a.png")
    data = ImageFolder(tmp_path, 16)
    whole = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    np.testing.assert_array_equal(data.view(0, rng, AugmentConfig(flip=1, **whole)), data.image(0)[:, ::-1])
    np.testing.assert_array_equal(data.view(0, rng, AugmentConfig(flip=0, **whole)), data.image(0))


def test_crops_stay_inside_and_have_the_promised_area_and_ratio(rng):
    augment = AugmentConfig(crop_scale=(0.2, 0.7), crop_ratio=(0.75, 1.25))
    for _ in range(500):
        width, height = rng.integers(1, 500, size=2).tolist()
        left, top, right, bottom = random_crop(width, height, augment, rng)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        area = (right - left) * (bottom - top) / min(width, height) ** 2
        assert 0.2 - 1e-6 <= area <= 0.7 + 1e-6
        assert 0.75 - 1e-6 <= (right - left) / (bottom - top) <= 1.25 + 1e-6


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)])
def test_tiny_images(tmp_path, rng, size):
    picture(rng, *size).save(tmp_path / "a.png")
    data = ImageFolder(tmp_path, 8)
    assert data.image(0).shape == (8, 8, 3)
    for _ in range(20):
        assert data.view(0, rng, AugmentConfig()).shape == (8, 8, 3)


def test_center_square():
    assert center_square(10, 4) == (3, 0, 7, 4)
    assert center_square(4, 9) == (0, 2, 4, 6)


@pytest.mark.parametrize(
    "wrong", [{"crop_scale": (0, 1)}, {"crop_scale": (0.9, 0.5)}, {"crop_ratio": (2, 1)}, {"flip": 1.2}]
)
def test_wrong_augmentation_names_the_field(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AugmentConfig(**wrong)
