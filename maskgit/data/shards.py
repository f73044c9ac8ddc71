"""Images in tar archives, laid out as WebDataset does, read by index.

The library `webdataset` reads shards as streams: it shuffles whole shards and then inside a buffer, and its order
depends on how many processes read. Training here promises the same order for any number of them, and a resume at any
sample. So each archive is scanned once for where its members lie (headers only: a seek per member), and an image is
then one read at its place, whoever asks for it. That asks for archives that are not compressed, on a disk that can
seek; images are compressed already.
"""

from __future__ import annotations

import glob
import hashlib
import io
import itertools
import json
import os
import re
import tarfile
from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskgit.data.images import SUFFIXES, DataError, KeyedImages, Split, check_size, files_key
from maskgit.data.reading import ImageError, decode_as, to_shown
from maskgit.files import open_regular

_BRACES = re.compile(r"\{([^{}]*)\}")
_BLOCK = 512  # bytes of a tar header, and what members are padded to
_MAX_LABELS = 2**16
_MOST_LABEL_BYTES = 2**24  # of a .cls or .json member
_MOST_ARCHIVES = 10**6
_MOST_BRACES, _MOST_DIGITS = 16, 18  # in a pattern; more is no pattern that a person wrote


def is_shards(spec: str | os.PathLike[str]) -> bool:
    """Whether a data set's name on the command line means tar archives."""
    return os.fspath(spec).endswith((".tar", ".tar}"))


def expand(spec: str) -> list[Path]:
    """The archives that a pattern names: braces, `train-{000..009}.tar` or `{train,extra}.tar`, and then wildcards.

    Raises DataError: a file is missing, no file has such a name, or there are more than a million names.
    """
    if (braces := spec.count("{")) > _MOST_BRACES:
        raise DataError(f"{spec[:60]}...: {braces} braces, at most {_MOST_BRACES}; use wildcards (*.tar)")
    found = list(itertools.islice(_expand(spec), _MOST_ARCHIVES + 1))
    if len(found) > _MOST_ARCHIVES:
        raise DataError(f"{spec}: names more than {_MOST_ARCHIVES:,} archives; put more into each")
    return found


def _expand(spec: str) -> Iterator[Path]:
    """One after the other, so that a pattern of far too many names ends at the first that is missing."""
    match = _BRACES.search(spec)
    if match is None:
        found = sorted(glob.glob(spec, recursive=True)) if glob.has_magic(spec) else [spec]
        if not found:
            raise DataError(f"{spec}: no such files")
        for name in found:
            if not os.path.isfile(name):
                raise DataError(f"{name}: {'is not a file' if os.path.exists(name) else 'no such file'}")
            yield Path(name)
        return
    numbers = re.fullmatch(rf"(\d{{1,{_MOST_DIGITS}}})\.\.(\d{{1,{_MOST_DIGITS}}})", match[1])
    if numbers is None:
        choices: Iterable[str] = match[1].split(",")
    else:
        first, last = int(numbers[1]), int(numbers[2])
        if last < first:
            raise DataError(f"{spec}: {{{match[1]}}} counts downwards")
        choices = (f"{i:0{len(numbers[1])}d}" for i in range(first, last + 1))
    before, after = spec[: match.start()], spec[match.end() :]
    for choice in choices:
        yield from _expand(before + choice + after)


@dataclass
class _Sample:
    """The members of one archive that share a key."""

    image: tuple[int, int] | None = None
    """Where the image's bytes start, and how many they are."""
    label: int | str | None = None
    damaged: bool = False
    """A member of it can't be used, so neither can it."""


@dataclass
class _Scan:
    """What one archive holds."""

    samples: dict[str, _Sample] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    """(key or member, what is wrong with it)."""


def scan(path: Path) -> _Scan:
    """Find the samples of an archive: members whose names agree up to the first dot after the last slash.

    Raises DataError: not a tar archive, or a compressed one, or one that can't be read.
    """
    try:
        with open_regular(path) as file:
            return _scan(path, file)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error


def _scan(path: Path, data: BinaryIO) -> _Scan:
    result, size, end, damage = _Scan(), os.fstat(data.fileno()).st_size, 0, "no tar header here"
    try:
        with tarfile.open(fileobj=data, mode="r:") as archive:
            for member in archive:
                if member.size < 0:  # and the next header would be looked for further back, again and again
                    raise ValueError(f"{member.name} has a size of {member.size}")
                end = member.offset_data + (-(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0)
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                if not member.isfile() or not stem or not suffix:
                    continue
                sample = result.samples.setdefault(f"{folder}/{stem}" if folder else stem, _Sample())
                try:
                    if member.offset_data + member.size > size:
                        raise ValueError("the archive ends in the middle of it")
                    _add(sample, suffix.lower(), member, archive)
                except ValueError as error:
                    sample.damaged = True
                    result.problems.append((member.name, str(error)))
    except OSError:
        if end <= size:  # else it looked for a header far behind the end
            raise
    except Exception as error:  # damaged headers make tarfile raise nearly anything (ReadError, OverflowError, ...)
        if not end:  # else what came before is good, and the rest is counted below
            reason = "compressed or no tar archive (an image can't be read by its place in a compressed one)"
            raise DataError(f"{path}: {reason}: {error}") from error
        if not isinstance(error, tarfile.ReadError):
            damage = f"a damaged tar header here ({error})"
    if end < size and _is_no_end(data, end):  # tarfile takes a damaged header for the end
        result.problems.append((f"byte {end}", f"{damage}: the other {size - end:,} bytes are lost"))
    elif end > size and not result.problems:
        result.problems.append((f"byte {size}", "the archive ends too early"))
    return result


def _is_no_end(data: BinaryIO, offset: int) -> bool:
    data.seek(offset)
    return any(data.read(_BLOCK))  # the end is a block of zeros


def _add(sample: _Sample, suffix: str, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
    """Take a member into its sample. Raises ValueError for what can't be a label."""
    if member.issparse():
        raise ValueError("stored with gaps (GNU sparse); make the archive without --sparse")
    if f".{suffix}" in SUFFIXES:
        sample.image = (member.offset_data, member.size)
    elif suffix == "cls" or suffix == "json":
        if member.size > _MOST_LABEL_BYTES:
            raise ValueError(f"has {member.size:,} bytes, too many for a label: at most {_MOST_LABEL_BYTES:,}")
        file = archive.extractfile(member)
        assert file is not None  # a regular file
        text = file.read().decode()
        try:
            label = text.strip() if suffix == "cls" else _label_of(json.loads(text))
        except RecursionError:
            raise ValueError("JSON that is nested too deeply") from None
        if isinstance(label, str) and re.fullmatch(r"[+-]?\d+", label):
            label = int(label)
        if isinstance(label, int) and not 0 <= label < _MAX_LABELS:
            raise ValueError(f"the label {label} is not in [0, {_MAX_LABELS})")
        if label is not None and (suffix == "cls" or sample.label is None):  # where there are both, .cls has it
            sample.label = label


def _label_of(content: Any) -> int | str | None:
    label = content.get("label") if isinstance(content, dict) else None
    if isinstance(label, bool) or not isinstance(label, int | str | None):
        raise ValueError(f"label is {json.dumps(label)}, neither a number nor a string")
    return label


class ImageShards(KeyedImages):
    """The images in WebDataset's tar archives: KEY.jpg (or any other suffix of an image), its class in KEY.cls.

    A class is a number or a name: the text of KEY.cls, or else "label" in KEY.json. Numbers are the classes themselves,
    names are sorted as people count. If some image has no class, there are none. The classes are those of all images,
    and the split goes by archive and key, whatever else there is. Members that are cut off are skipped as images are
    that can't be decoded. `spec` is a pattern as `expand` takes it; the other arguments and errors are those of
    `maskgit.data.load_dataset`.
    """

    SKIPPED = "damaged member(s)"

    def __init__(
        self,
        spec: str | os.PathLike[str],
        image_size: int,
        split: Split = "all",
        val_fraction: float = 0.1,
        check: bool = True,
    ):
        self.image_size = check_size(image_size)
        self.archives = expand(os.fspath(spec))
        self.keys, self.skipped = [], []
        labels: list[int | str | None] = []
        places = array("q")
        for owner, (archive, found) in enumerate(zip(self.archives, self._scan_all(), strict=True)):
            self.skipped += [(f"{archive}/{member}", why) for member, why in found.problems]
            for key, sample in found.samples.items():
                if sample.image is not None and not sample.damaged:
                    self.keys.append(f"{archive.name}/{key}")
                    labels.append(sample.label)
                    places.extend((owner, *sample.image))
        if not self.keys:
            raise DataError(f"{spec}: no images in {len(self.archives)} archive(s): {', '.join(sorted(SUFFIXES))}")
        self.places = np.array(places).reshape(-1, 3)  # of each image: archive, where its bytes start, their number
        self._use(os.fspath(spec), labels, split, val_fraction, check)

    def _scan_all(self) -> Iterator[_Scan]:
        with ThreadPoolExecutor() as pool:
            scans = pool.map(scan, self.archives)
            yield from tqdm(scans, total=len(self.archives), desc="scanning archives", unit="tar", disable=None)

    def _keep(self, chosen: list[int]) -> None:
        super()._keep(chosen)
        self.places = self.places[chosen]

    def _place(self, index: int) -> str:
        return os.fspath(self.archives[self.places[index, 0]].parent / self.keys[index])

    def picture(self, index: int) -> Image.Image:
        owner, offset, size = self.places[index].tolist()
        # Opened for each image, which costs nothing beside decoding it: open files can't be shared between processes.
        try:
            with open_regular(self.archives[owner]) as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise ImageError(self._place(index), f"can't be read: {error.strerror or error}") from error
        return decode_as(io.BytesIO(data), self._place(index), to_shown)

    def key(self) -> str | None:
        digest = hashlib.sha256(files_key((path.name, path) for path in self.archives).encode())
        for name in self.keys:
            digest.update(f"{name}\0".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()
