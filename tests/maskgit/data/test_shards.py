"""Tar archives as data sets: found, indexed, split and labeled; damage is named and counted."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgit.data import AugmentConfig, DataError, ImageError, ImageShards, in_validation, load_dataset
from maskgit.data import shards as shards_module
from maskgit.data.shards import expand, scan
from maskgit.training.tokenizer import ViewDataset


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def write_tar(path: Path, members: dict[str, bytes], **options: object) -> None:
    with tarfile.open(path, "w", **options) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def pixels() -> np.ndarray:
    """24 random pictures, another one in each place of the archives."""
    return np.random.default_rng().integers(256, size=(24, 20, 28, 3), dtype=np.uint8)


@pytest.fixture
def shards(tmp_path: Path, pixels: np.ndarray) -> str:
    """Two archives of 12 pictures; the class of a picture is its number modulo 3."""
    for shard in range(2):
        members = {}
        for i in range(12 * shard, 12 * shard + 12):
            members[f"sub/{i:04d}.cls"] = str(i % 3).encode()
            members[f"sub/{i:04d}.png"] = encoded(pixels[i])
        write_tar(tmp_path / f"train-{shard:03d}.tar", members)
    return str(tmp_path / "train-{000..001}.tar")


def test_pictures_labels_and_names(shards: str, pixels: np.ndarray) -> None:
    images = ImageShards(shards, 16)
    assert len(images) == 24 and images.class_names == ["0", "1", "2"]
    for i in range(24):
        np.testing.assert_array_equal(np.asarray(images.picture(i)), pixels[i])
        assert images.labels[i] == i % 3
        assert images.name(i) == f"train-{i // 12:03d}.tar/sub/{i:04d}"
    assert images.image(3).shape == (16, 16, 3)


def test_the_split_goes_by_the_key(shards: str) -> None:
    whole, train, val = (ImageShards(shards, 16, split, 0.4) for split in ("all", "train", "val"))
    assert sorted(train.keys + val.keys) == sorted(whole.keys) and val.keys and train.keys
    assert all(in_validation(key, 0.4) for key in val.keys)
    assert train.class_names == val.class_names == whole.class_names
    assert [int(key[-4:]) % 3 for key in val.keys] == val.labels.tolist()


@pytest.mark.parametrize("kind, suffix", [("JPEG", "jpg"), ("WEBP", "webp"), ("PNG", "seg.png")])
def test_any_format(tmp_path: Path, pixels: np.ndarray, kind: str, suffix: str) -> None:
    """A key ends at the first dot, so `a.seg.png` is no picture of the sample `a`."""
    write_tar(tmp_path / "a.tar", {f"a.{suffix}": encoded(pixels[0], kind), "b.png": encoded(pixels[1])})
    images = ImageShards(tmp_path / "a.tar", 16)
    assert images.keys == (["a.tar/b"] if suffix == "seg.png" else ["a.tar/a", "a.tar/b"])


def test_long_names_and_other_members(tmp_path: Path, pixels: np.ndarray) -> None:
    members = {"x" * 150 + "/a.png": encoded(pixels[0]), "notes": b"no suffix", "b.txt": b"words"}
    for name, layout in (("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT)):
        write_tar(tmp_path / f"{name}.tar", members, format=layout)
        images = ImageShards(tmp_path / f"{name}.tar", 16)
        assert len(images) == 1
        np.testing.assert_array_equal(np.asarray(images.picture(0)), pixels[0])


def test_class_names(tmp_path: Path, pixels: np.ndarray) -> None:
    members = {f"{i}.png": encoded(pixels[i]) for i in range(3)}
    members |= {f"{i}.json": json.dumps({"label": ("dog", "cat", "dog")[i], "caption": "x"}).encode() for i in range(3)}
    write_tar(tmp_path / "a.tar", members)
    images = ImageShards(tmp_path / "a.tar", 16)
    assert images.class_names == ["cat", "dog"] and images.labels.tolist() == [1, 0, 1]
    write_tar(tmp_path / "a.tar", members | {"0.cls": b"emu\n"})
    assert ImageShards(tmp_path / "a.tar", 16).class_names == ["cat", "dog", "emu"]


def test_no_classes(tmp_path: Path, pixels: np.ndarray) -> None:
    write_tar(tmp_path / "a.tar", {"a.png": encoded(pixels[0]), "b.png": encoded(pixels[1])})
    images = ImageShards(tmp_path / "a.tar", 16)
    assert images.class_names == [] and images.labels.tolist() == [0, 0]
    write_tar(tmp_path / "a.tar", {"a.png": encoded(pixels[0]), "b.png": encoded(pixels[1]), "b.cls": b"1"})
    with pytest.warns(UserWarning, match="no classes, because some images have none, such as a.tar/a"):
        images = ImageShards(tmp_path / "a.tar", 16)
    assert images.class_names == [] and images.labels.tolist() == [0, 0]


# --- what may be wrong ------------------------------------------------------------------------------------------------


def test_damaged_images_are_named_and_counted(tmp_path: Path, pixels: np.ndarray) -> None:
    good = encoded(pixels[0])
    members = {"a.png": good, "b.png": good[: len(good) // 2], "c.png": b"", "d.png": good}
    members |= {"e.png": good, "e.cls": b"-3"}  # nor is it known what this is
    write_tar(tmp_path / "a.tar", members)
    with pytest.warns(UserWarning, match="skipped 3 damaged member") as caught:
        images = ImageShards(tmp_path / "a.tar", 16)
    assert images.keys == ["a.tar/a", "a.tar/d"] and len(images.labels) == 2
    assert [Path(name).name for name, _ in images.skipped] == ["e.cls", "b", "c"]
    assert str(tmp_path / "a.tar" / "b") in str(caught[0].message)
    with pytest.warns(UserWarning, match="skipped 1 "):  # the label
        unchecked = ImageShards(tmp_path / "a.tar", 16, check=False)
    with pytest.raises(ImageError, match="a.tar/b: can't be decoded"):
        unchecked.picture(1)


def test_a_truncated_archive(tmp_path: Path, pixels: np.ndarray) -> None:
    """Wherever it is cut off: what is whole is found, and something is said."""
    path = tmp_path / "a.tar"
    write_tar(path, {f"{i}.png": encoded(pixels[i]) for i in range(3)})
    whole = path.read_bytes()
    places = [scan(path).samples[str(i)].image for i in range(3)]
    for cut in (places[2][0] + 10, places[2][0], places[2][0] - 100, places[1][0] + 600):
        path.write_bytes(whole[:cut])
        found = scan(path)
        kept = [key for key, sample in found.samples.items() if not sample.damaged]
        assert kept == [str(i) for i, (start, size) in enumerate(places) if start + size <= cut], cut
        assert len(found.problems) == 1, (cut, found.problems)
        with pytest.warns(UserWarning, match="skipped 1 damaged"):
            assert len(ImageShards(path, 16)) == len(kept)
    # An archive that wasn't closed lacks only the zeros at the end.
    path.write_bytes(whole[: places[2][0] + -(-places[2][1] // 512) * 512])
    assert not scan(path).problems


def test_a_damaged_header(tmp_path: Path, pixels: np.ndarray) -> None:
    """The standard library takes it for the end; here it is said that the rest is lost."""
    path = tmp_path / "a.tar"
    write_tar(path, {f"{i}.png": encoded(pixels[i]) for i in range(3)})
    start = scan(path).samples["1"].image[0] - 512
    data = bytearray(path.read_bytes())
    data[start + 150] ^= 0xFF  # in its checksum
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=f"byte {start}: no tar header here: the other .* bytes are lost"):
        assert ImageShards(path, 16).keys == ["a.tar/0"]


def test_no_archives(tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.raises(DataError, match="a.tar: no such file"):
        load_dataset(tmp_path / "a.tar", 16)
    with pytest.raises(DataError, match=r"a-\*.tar: no such files"):
        load_dataset(str(tmp_path / "a-*.tar"), 16)
    (tmp_path / "a-1.tar").touch()
    with pytest.raises(DataError, match="a-2.tar: no such file"):
        load_dataset(str(tmp_path / "a-{1..2}.tar"), 16)
    (tmp_path / "a.tar").mkdir()
    with pytest.raises(DataError, match="a.tar: is not a file"):
        load_dataset(tmp_path / "a.tar", 16)
    with pytest.raises(DataError, match="counts downwards"):
        expand("a-{3..1}.tar")
    for content in (b"", b"no archive" * 100):
        (tmp_path / "b.tar").write_bytes(content)
        with pytest.raises(DataError, match="b.tar: compressed or no tar archive"):
            load_dataset(tmp_path / "b.tar", 16)
    with tarfile.open(tmp_path / "c.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(DataError, match="c.tar: compressed or no tar archive"):
        load_dataset(tmp_path / "c.tar", 16)
    write_tar(tmp_path / "d.tar", {"a.txt": b"words"})
    with pytest.raises(DataError, match=r"d.tar: no images in 1 archive"):
        load_dataset(tmp_path / "d.tar", 16)
    write_tar(tmp_path / "d.tar", {"a.png": encoded(pixels[0])})
    with pytest.raises(DataError, match="none of the 1 image.* can be used for the split 'val'"):
        ImageShards(tmp_path / "d.tar", 16, "val", 0.0)


def test_patterns(tmp_path: Path) -> None:
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b.tar"):
        (tmp_path / name).touch()
    assert [path.name for path in expand(f"{tmp_path}/a-{{08..10}}.tar")] == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert [path.name for path in expand(f"{tmp_path}/{{b,a-09}}.tar")] == ["b.tar", "a-09.tar"]
    assert [path.name for path in expand(f"{tmp_path}/a-*.tar")] == ["a-08.tar", "a-09.tar", "a-10.tar"]


def pax(records: bytes) -> bytes:
    """An extended header before the member that follows."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    return info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)


def record(keyword: bytes, value: bytes) -> bytes:
    rest = b" " + keyword + b"=" + value + b"\n"
    length = next(n for n in range(len(rest), len(rest) + 9) if n == len(rest) + len(str(n)))
    return str(length).encode() + rest


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header whose size may be anything, in the binary form of large numbers."""
    data = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    data[124:136] = (size % 256**12 | 0x80 << 88).to_bytes(12, "big")
    data[156:157] = kind
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:]))
    return bytes(data)


HOSTILE = {
    "sparse map": pax(record(b"GNU.sparse.map", b"a,b")) + header("x.png", 0),
    "sparse size": pax(record(b"GNU.sparse.size", b"abc")) + header("x.png", 0),
    "charset": pax(record(b"hdrcharset", b"\xff\xfe")) + header("x.png", 0),
    "length": pax(b"9" * 5000 + b" path=x\n") + header("x.png", 0),
    "size in pax": pax(record(b"size", b"-512")) + header("x.png", 0),
    "negative size": header("x.png", -512),
    "negative size of a folder": header("x", -1024, tarfile.DIRTYPE),
    "negative size of a name": header("x.png", -512, tarfile.GNUTYPE_LONGNAME),
    "huge size of a name": header("x.png", 2**90, tarfile.GNUTYPE_LONGNAME),
    "huge size": header("x.png", 2**62),
    "larger than any offset": header("x.png", 2**80),
    "huge size of another": header("words", 2**62),
    "names of names": header("x.png", 0, tarfile.GNUTYPE_LONGNAME) * 3000,
    "sparse beyond the end": header("x.png", 0, tarfile.GNUTYPE_SPARSE)[:-30] + b"\xff" * 30,
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_headers(tmp_path: Path, pixels: np.ndarray, hostile: bytes) -> None:
    """What comes before is used and the rest reported; alone, they are no archive, or none with an image."""
    write_tar(tmp_path / "a.tar", {"a.png": encoded(pixels[0])})
    whole = (tmp_path / "a.tar").read_bytes()
    start, size = scan(tmp_path / "a.tar").samples["a"].image
    (tmp_path / "a.tar").write_bytes(whole[: start + -(-size // 512) * 512] + hostile + whole)
    with pytest.warns(UserWarning, match="skipped 1 damaged member"):
        assert ImageShards(tmp_path / "a.tar", 16).keys == ["a.tar/a"]
    (tmp_path / "b.tar").write_bytes(hostile + bytes(1024))
    with pytest.raises(DataError, match="b.tar: (compressed or no tar archive|no images|none of the 1 image)"):
        ImageShards(tmp_path / "b.tar", 16)


def test_hostile_labels(tmp_path: Path, pixels: np.ndarray) -> None:
    """Each is named, and the picture without trouble is used."""
    labels = {
        "nested.json": b"[" * 100_000 + b"]" * 100_000,
        "long.json": b'{"label": ' + b"9" * 5000 + b"}",
        "digits.cls": b"9" * 5000,
        "bytes.cls": b"\xff\xfe",
        "large.cls": b"x" * (2**24 + 1),
        "none.json": b'{"label": [1]}',
    }
    images = {f"{name.split('.')[0]}.png": encoded(pixels[0]) for name in [*labels, "good.png"]}
    write_tar(tmp_path / "a.tar", images | labels)
    with pytest.warns(UserWarning, match="skipped 6 damaged member"):
        found = ImageShards(tmp_path / "a.tar", 16)
    assert found.keys == ["a.tar/good"]
    reasons = {Path(name).name: why for name, why in found.skipped}
    assert set(reasons) == set(labels)
    assert "nested too deeply" in reasons["nested.json"] and "16,777,217 bytes" in reasons["large.cls"]


def test_a_member_with_gaps(tmp_path: Path, pixels: np.ndarray) -> None:
    """Its bytes don't lie in one piece, so it can't be read by its place."""
    data = encoded(pixels[0])
    sparse = record(b"GNU.sparse.map", b"0,%d" % len(data)) + record(b"GNU.sparse.size", b"%d" % len(data))
    member = pax(sparse) + header("x.png", len(data)) + data + bytes(-len(data) % 512)
    write_tar(tmp_path / "a.tar", {"a.png": data})
    (tmp_path / "a.tar").write_bytes(member + (tmp_path / "a.tar").read_bytes())
    with pytest.warns(UserWarning, match="x.png: stored with gaps"):
        assert ImageShards(tmp_path / "a.tar", 16).keys == ["a.tar/a"]


def test_patterns_of_too_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They end at once: at the first name that is missing, or at the bound."""
    with pytest.raises(DataError, match="a-0000000000.tar: no such file"):
        expand(f"{tmp_path}/a-{{0000000000..9999999999}}.tar")
    with pytest.raises(DataError, match=r"a-0{1000}\.\.9{1000}.tar: no such file"):
        expand(f"{tmp_path}/a-{{{'0' * 1000}..{'9' * 1000}}}.tar")
    (tmp_path / "a.tar").touch()
    with pytest.raises(DataError, match="braces, at most 16; use wildcards"):
        expand(f"{tmp_path}/{'{.,.}/' * 2000}a.tar")
    monkeypatch.setattr(shards_module, "_MOST_ARCHIVES", 10)
    assert len(expand(f"{tmp_path}/{{{'.,' * 9}.}}/a.tar")) == 10
    with pytest.raises(DataError, match="names more than 10 archives"):
        expand(f"{tmp_path}/{'{.,.}/' * 15}a.tar")


def test_no_pipe_is_waited_for(tmp_path: Path, shards: str) -> None:
    images = ImageShards(shards, 16)
    path = tmp_path / "train-001.tar"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="train-001.tar: is not a file"):
        ImageShards(shards, 16)
    with pytest.raises(ImageError, match="train-001.tar/sub/0012: can't be read: not a file but a pipe or a device"):
        images.picture(12)
    with pytest.raises(DataError, match="train-001.tar: can't be read: not a file but a pipe or a device"):
        scan(path)


# --- by index, whoever reads ------------------------------------------------------------------------------------------


def test_views_do_not_depend_on_the_process(shards: str) -> None:
    """What is read depends on index and position only, also in a data set that went to another process."""
    images = ImageShards(shards, 16)
    views = ViewDataset(images, AugmentConfig(), seed=1)
    order = [(int(i), position) for position, i in enumerate(np.random.default_rng().permutation(24))]
    expected = [views[key] for key in order]
    sent = pickle.loads(pickle.dumps(views))
    for (index, position), view in reversed(list(zip(order, expected, strict=True))):
        assert (sent[index, position] == view).all()
    assert sent.images.key() == images.key()


def test_the_key_changes_with_the_images(shards: str, tmp_path: Path, pixels: np.ndarray) -> None:
    before = ImageShards(shards, 16).key()
    assert ImageShards(shards, 16).key() == before != ImageShards(shards, 16, "train", 0.4).key()
    write_tar(tmp_path / "train-001.tar", {"a.png": encoded(pixels[0]), "a.cls": b"0"})
    assert ImageShards(shards, 16).key() != before
