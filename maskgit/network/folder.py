"""The model folder: what `save_pretrained` writes and `from_pretrained` reads.

    config.json               format version, the two configurations, class names, metadata, SHA-256 of the files below
    tokenizer.safetensors     tensors of the VQGAN, by their state_dict names
    transformer.safetensors   tensors of the transformer; absent from a tokenizer's own folder, the result of stage 1

Weights may be stored in half precision; they are always loaded as float32.

Everything is written to temporary files first and moved into place only when all of it is on the disk, config.json
last. A reader that finds weights of another save than config.json's refuses the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import nn

from maskgit.config import (
    ConfigError,
    HaltonConfig,
    TransformerConfig,
    check_fit,
    check_json,
    config_to_dict,
    short_repr,
    some,
    tokenizer_from_dict,
    transformer_from_dict,
)
from maskgit.console import first_line
from maskgit.decoding import DecodeConfig
from maskgit.files import write_atomically
from maskgit.network.halton import HaltonTransformer
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.safetensors"
TRANSFORMER_FILE = "transformer.safetensors"

_FIELDS: dict[str, type] = {
    "format_version": int,
    "tokenizer": dict,
    "transformer": dict,
    "class_names": list,
    "metadata": dict,
    "decoding": dict,
    "sha256": dict,
}
_JSON_NAMES = {int: "number", list: "list", dict: "object"}

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class ModelError(ValueError):
    """A model that can't be loaded or saved; the message names the file and what is wrong with it."""


@dataclass
class Model:
    """The content of a model folder. Raises a ModelError if the two networks don't fit each other."""

    tokenizer: VQGAN
    transformer: Transformer | HaltonTransformer
    class_names: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    """Anything that JSON can hold: how it was trained, on what, how well it does."""
    decoding: DecodeConfig = field(default_factory=DecodeConfig)
    """How the model decodes if nothing else is said."""

    def __post_init__(self) -> None:
        try:
            check_fit(self.tokenizer.config, self.transformer.config)
        except ConfigError as error:
            raise ModelError(f"tokenizer and transformer don't fit each other: {error}") from error


def find_model(path_or_repo: str | os.PathLike[str]) -> Path:
    """The folder of a model, by its path or the id of a repository on the Hugging Face Hub, from which it is fetched.

    Raises ModelError: there is neither, or huggingface_hub isn't installed.
    """
    path = Path(os.path.expanduser(path_or_repo))
    if os.path.exists(path):  # unlike Path's methods, these take any text for a name
        return path
    name = os.fspath(path_or_repo)
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise ModelError(f"{name}: no such model folder (nor 'embedded', nor the id of a repository on the Hub)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelError(
            f"{name}: no such model folder; to look for it on the Hugging Face Hub: pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG_FILE, TOKENIZER_FILE, TRANSFORMER_FILE]))
    except Exception as error:  # the client raises its own errors, and those of several libraries under it
        said = f"no such model folder, nor to be had from the Hugging Face Hub: {first_line(error)}"
        raise ModelError(f"{name}: {said}") from error


def save_model(folder: str | os.PathLike[str], model: Model, dtype: torch.dtype | None = None) -> None:
    """Write a model on any device as a model folder, which is made if missing; what is there is replaced.

    Args:
        dtype: store floating-point tensors as this (such as torch.float16); None keeps what they have.

    Raises:
        ModelError: a weight that `dtype` can't hold, or metadata that isn't JSON.
        OSError: the folder can't be written.
    """
    _check_names(Path(folder) / CONFIG_FILE, model.class_names, model.transformer.config.num_classes)
    parts = {TOKENIZER_FILE: model.tokenizer, TRANSFORMER_FILE: model.transformer}
    config = {
        "tokenizer": config_to_dict(model.tokenizer.config),
        "transformer": config_to_dict(model.transformer.config),
        "class_names": list(model.class_names),
        "metadata": model.metadata,
        "decoding": config_to_dict(model.decoding),
    }
    _save(Path(folder), config, parts, dtype)


def load_model(folder: str | os.PathLike[str]) -> Model:
    """Read a model folder: both networks in float32 on the CPU, in evaluation mode.

    Raises ModelError: a file is missing, damaged or of another save, its content doesn't fit the configuration or isn't
    finite, or the configuration is none that can be built.
    """
    folder = Path(folder)
    config = _read_whole_config(folder)
    tokenizer = _load_tokenizer(folder, config)
    try:
        transformer_config = transformer_from_dict(config["transformer"])
        check_fit(tokenizer.config, transformer_config)
        with torch.device("meta"):
            transformer = make_transformer(transformer_config)
        decoding = DecodeConfig(**check_json(DecodeConfig, config.get("decoding", {})))
    except (TypeError, ValueError) as error:  # a ConfigError is a ValueError
        raise ModelError(f"{folder / CONFIG_FILE}: {error}") from error
    names = config.get("class_names", [])
    _check_names(folder / CONFIG_FILE, names, transformer_config.num_classes)
    transformer = _fill(transformer, folder / TRANSFORMER_FILE, config)
    return Model(tokenizer, transformer, names, config.get("metadata", {}), decoding)


def load_transformer_config(folder: str | os.PathLike[str]) -> TransformerConfig | HaltonConfig:
    """How the transformer of a model folder is built, without reading its weights. Raises ModelError."""
    folder = Path(folder)
    try:
        return transformer_from_dict(_read_whole_config(folder)["transformer"])
    except ConfigError as error:
        raise ModelError(f"{folder / CONFIG_FILE}: {error}") from error


def make_transformer(config: TransformerConfig | HaltonConfig) -> Transformer | HaltonTransformer:
    """The network of a configuration, with random weights."""
    return HaltonTransformer(config) if isinstance(config, HaltonConfig) else Transformer(config)


def save_tokenizer(folder: str | os.PathLike[str], tokenizer: VQGAN) -> None:
    """Write a folder that holds a tokenizer only: the result of stage 1. Raises as `save_model` does."""
    _save(Path(folder), {"tokenizer": config_to_dict(tokenizer.config)}, {TOKENIZER_FILE: tokenizer}, None)


def load_tokenizer(folder: str | os.PathLike[str]) -> VQGAN:
    """As `load_model`, for the tokenizer of a model folder, with or without a transformer in it."""
    return _load_tokenizer(Path(folder), _read_config(Path(folder)))


def _check_names(path: Path, names: Sequence[str], num_classes: int) -> None:
    for number, name in enumerate(names):
        if not isinstance(name, str):
            raise ModelError(f"{path}: class_names holds {short_repr(name)} for class {number}, which is not text")
    # A model with classes may leave them unnamed.
    if names and len(names) != num_classes:
        raise ModelError(f"{path}: {len(names)} class names, but the transformer has {num_classes} classes")


# --- writing ----------------------------------------------------------------------------------------------------------


def _save(folder: Path, config: dict[str, Any], parts: Mapping[str, nn.Module], dtype: torch.dtype | None) -> None:
    files: dict[Path, bytes] = {}
    digests = {}
    for name, module in parts.items():
        tensors = {}
        for key, tensor in module.state_dict().items():
            if dtype is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
                if not tensor.isfinite().all():
                    raise ModelError(f"can't save to {folder / name}: {key} has values that {dtype} can't hold")
            tensors[key] = tensor.cpu().contiguous()
        files[folder / name] = safetensors.torch.save(tensors)
        digests[name] = hashlib.sha256(files[folder / name]).hexdigest()
    content = {"format_version": FORMAT_VERSION, **config, "sha256": digests}
    try:
        files[folder / CONFIG_FILE] = json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"can't save to {folder / CONFIG_FILE}: {error}") from error
    write_atomically(files)


# --- reading ----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # reading a pipe could wait for ever
            raise ModelError(f"{path}: not a file that can be read")
        return path.read_bytes()
    except FileNotFoundError:
        where = "no such file (not a model folder?)" if path.parent.is_dir() else f"there is no folder {path.parent}"
        raise ModelError(f"{path}: {where}") from None
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(_read(path))
    except ValueError as error:
        # ModelError is a ValueError too, and already says it all.
        reason = str(error).partition(";")[0]  # behind it, Python gives programmers advice
        raise error if isinstance(error, ModelError) else ModelError(f"{path}: not JSON: {reason}") from error
    except RecursionError:
        raise ModelError(f"{path}: not a model's configuration: lists within lists without end") from None
    if not isinstance(config, dict) or "format_version" not in config:
        raise ModelError(f"{path}: not a model's configuration (no format_version)")
    if config["format_version"] != FORMAT_VERSION:
        raise ModelError(
            f"{path}: format_version is {short_repr(config['format_version'])}, this release reads {FORMAT_VERSION}; "
            "install the release of maskgit that wrote it"
        )
    if unknown := set(config) - set(_FIELDS):
        raise ModelError(f"{path}: unknown fields {some(unknown)}")
    for name, kind in _FIELDS.items():
        if name in config and not isinstance(config[name], kind):
            raise ModelError(f"{path}: {name} must be a JSON {_JSON_NAMES[kind]}, not {short_repr(config[name])}")
    if "tokenizer" not in config:
        raise ModelError(f"{path}: no tokenizer in this configuration")
    return config


def _read_whole_config(folder: Path) -> dict[str, Any]:
    """That of a folder with both networks."""
    config = _read_config(folder)
    if "transformer" not in config:
        raise ModelError(
            f"{folder / CONFIG_FILE}: holds a tokenizer only; train a transformer on it (train.py transformer) first"
        )
    return config


def _load_tokenizer(folder: Path, config: dict[str, Any]) -> VQGAN:
    try:
        tokenizer_config = tokenizer_from_dict(config["tokenizer"])
        with torch.device("meta"):
            tokenizer = VQGAN(tokenizer_config)
    except (ConfigError, TypeError) as error:
        raise ModelError(f"{folder / CONFIG_FILE}: {error}") from error
    return _fill(tokenizer, folder / TOKENIZER_FILE, config)


def _fill(module: ModuleT, path: Path, config: dict[str, Any]) -> ModuleT:
    """Give a module on the meta device the tensors of a safetensors file."""
    data = _read(path)
    digest = config.get("sha256", {}).get(path.name)
    # A folder made by other means may leave the digests out.
    damaged = digest is not None and hashlib.sha256(data).hexdigest() != digest
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: damaged or not a safetensors file: {error}") from error
    if damaged:
        raise ModelError(f"{path}: damaged, or from another save than {CONFIG_FILE}: its SHA-256 isn't the one there")
    expected = module.state_dict()
    if missing := expected.keys() - tensors.keys():
        raise ModelError(f"{path}: {len(missing)} tensors are missing: {some(missing)}")
    if unexpected := tensors.keys() - expected.keys():
        raise ModelError(f"{path}: {len(unexpected)} tensors don't belong to this model: {some(unexpected)}")
    for name, tensor in sorted(tensors.items()):
        if tensor.shape != expected[name].shape:
            raise ModelError(
                f"{path}: {name} has shape {list(tensor.shape)}, "
                f"but by {CONFIG_FILE} it should be {list(expected[name].shape)}"
            )
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise ModelError(f"{path}: {name} holds {tensor.dtype}, where the model has {expected[name].dtype}")
        if tensor.is_floating_point():
            tensors[name] = tensor.float()
            if not tensors[name].isfinite().all():
                raise ModelError(
                    f"{path}: {name} has values that aren't finite: a training run that diverged, or a damaged file"
                )
    module.load_state_dict(tensors, assign=True)
    return module.eval()
