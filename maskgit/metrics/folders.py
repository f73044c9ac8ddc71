"""What sets are read from: folders of pictures, features kept from the last time, statistics of pytorch-fid."""

from __future__ import annotations

import hashlib
import os
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from maskgit.data.images import DataError, find_images
from maskgit.files import write_atomically
from maskgit.metrics.features import FeatureNetwork
from maskgit.metrics.sets import Gaussian, gaussian_of_moments

BESIDE = (".strip", ".maps", ".grid")
"""How the stems end of what `inpaint.py` writes beside its results: picture strips, maps, the overview."""

_SHOWN = 3  # names in an error; of more, only the number


def find_pictures(folder: Path) -> list[Path]:
    """The image files below a folder, sorted, without what `inpaint.py` writes beside its results.

    Raises:
        DataError: the folder is missing, is a file, or holds no images.
    """
    found = [path for path in find_images(folder) if not path.stem.endswith(BESIDE)]
    if not found:
        raise DataError(f"{folder}: no images in this folder, at any depth")
    return found


def match_pictures(real: Path, generated: Path) -> list[tuple[Path, Path]]:
    """Each real picture with the generated one of its name, whatever the suffix, in the same sub-folder.

    Where originals differ in their suffix only, `inpaint.py` names the second result by the whole name: a.jpg and
    a.png give a.png and a.png.png. A generated picture of the whole name therefore comes first.

    Raises:
        DataError: a missing or empty folder; pictures on either side that have no partner, or two.
    """
    originals, results = find_pictures(real), find_pictures(generated)
    by_key: dict[str, list[Path]] = {}
    for path in results:
        by_key.setdefault(_key(path.relative_to(generated).with_suffix("")), []).append(path)
    pairs, alone, taken = [], [], set()
    for original in originals:
        relative = original.relative_to(real)
        keys = [_key(relative), _key(relative.with_suffix(""))]
        key = next((key for key in keys if key in by_key), None)
        if key is None:
            alone.append(original)
        elif key in taken or len(by_key[key]) > 1:
            raise DataError(f"{original}: not one picture but several, here or in {generated}, have the name {key}")
        else:
            taken.add(key)
            pairs.append((original, by_key[key][0]))
    if alone:
        raise DataError(f"{_count(alone, real)} in {real} with no picture of the same name in {generated}")
    if left := [path for key, paths in by_key.items() if key not in taken for path in paths]:
        raise DataError(f"{_count(left, generated)} in {generated} with no original of the same name in {real}")
    return pairs


def _key(relative: Path) -> str:
    return unicodedata.normalize("NFC", relative.as_posix())  # file systems differ in how accents are encoded


def _count(paths: Sequence[Path], folder: Path) -> str:
    names = ", ".join(path.relative_to(folder).as_posix() for path in paths[:_SHOWN])
    return f"{len(paths)} picture(s) ({names}{', ...' * (len(paths) > _SHOWN)})"


# --- features that are kept -------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where features are kept if nothing else is said: maskgit in $XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskgit"


def folder_features(
    network: FeatureNetwork,
    folder: Path,
    files: Sequence[Path],
    extract: Callable[[], Tensor],
    cache: Path | None,
) -> Tensor:
    """The features, float32 [n, D], of files below a folder: from the cache (None for no cache) or else from `extract`.

    They are filed under the network's digest (weights and preparation) and that of the list of files: their names
    below the folder, sizes and times of change. A folder that was moved keeps its features, one that changed does not.

    Raises:
        OSError: a file is gone. (A cache that can't be written is a warning.)
    """
    if cache is None:
        return extract()
    digest = hashlib.sha256(network.digest.encode())
    for file in files:
        about = file.stat()
        name = file.relative_to(folder).as_posix().encode("utf-8", "surrogatepass")
        digest.update(b"\n%d %d %s" % (about.st_size, about.st_mtime_ns, name))
    path = cache / f"{network.name}-{digest.hexdigest()[:32]}.safetensors"
    if path.is_file():
        try:
            features = safetensors.torch.load_file(path)["features"]
        except (safetensors.SafetensorError, KeyError, OSError) as error:
            warnings.warn(f"{path}: damaged, the features are computed anew: {error}", stacklevel=2)
        else:
            if len(features) == len(files):
                return features
    features = extract()
    try:
        write_atomically({path: safetensors.torch.save({"features": features})})
    except OSError as error:
        warnings.warn(f"{path}: the features can't be kept for the next time: {error.strerror}", stacklevel=2)
    return features


def read_statistics(path: Path) -> Gaussian:
    """pytorch-fid's statistics of a set: an .npz file with mu [2048] and sigma [2048, 2048].

    Raises:
        DataError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it is a single array")
        with file:
            mean, covariance = file["mu"], file["sigma"]
        if {mean.dtype.kind, covariance.dtype.kind} - set("fiu"):
            raise ValueError(f"numbers of types {mean.dtype} and {covariance.dtype} instead of real ones")
        return gaussian_of_moments(*(torch.from_numpy(array.astype(np.float64)) for array in (mean, covariance)))
    except Exception as error:  # zipfile, zlib, tokenize and ast: a damaged file makes NumPy raise anything
        raise DataError(f"{path}: no statistics as pytorch-fid writes them (mu, sigma): {error}") from error
