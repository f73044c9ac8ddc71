"""Pictures of another size than the preset's, through both stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskgit.config import ConfigError, TokenizerConfig
from maskgit.network.folder import load_model, load_tokenizer
from maskgit.training.run_file import read_run
from maskgit.training.samples import at_size
from maskgit.training.settings import TokenizerTraining, TrainingError

PLAIN: dict[str, Any] = {"steps": 2, "perceptual": "none", "adversarial_weight": 0.0}


def test_both_stages(run: Any, tmp_path: Path) -> None:
    run("tokenizer", tmp_path / "a", image_size=24, **PLAIN)
    tokenizer = load_tokenizer(tmp_path / "a" / "model")
    assert (tokenizer.config.image_size, tokenizer.config.num_tokens) == (24, 36)
    assert Image.open(tmp_path / "a" / "reconstructions.png").size[0] == 16 * 24
    run("transformer", tmp_path / "b", tokenizer=tmp_path / "a" / "model", steps=2)
    assert load_model(tmp_path / "b" / "model").transformer.config.num_tokens == 36
    assert np.load(tmp_path / "b" / "tokens" / "train" / "tokens.npy").shape[2] == 36
    assert Image.open(tmp_path / "b" / "inpaintings.png").size[1] == 3 * 24
    # It is a setting of the run.
    with pytest.raises(TrainingError, match=r"other settings: image_size .was 24, now None."):
        run("tokenizer", tmp_path / "a", resume=True, **PLAIN)
    assert read_run(tmp_path / "a")[1].image_size == 24


def test_the_decoder_of_another_size(run: Any, unbroken: Any, tmp_path: Path) -> None:
    start = unbroken["tokenizer"] / "model"
    run("tokenizer", tmp_path, decoder_of=start, image_size=32, **PLAIN)
    ours, theirs = load_tokenizer(tmp_path / "model"), load_tokenizer(start)
    assert (ours.config.image_size, theirs.config.image_size) == (32, 16)
    for name, tensor in theirs.encoder.state_dict().items():
        assert torch.equal(ours.encoder.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "size, nearest", [(3, "take 4"), (18, "take 16 or 20"), (6001, "take 6000 or 6004"), (16385, "more than 16384")]
)
def test_sizes_that_can_not_be(size: int, nearest: str, tiny_tokenizer_config: TokenizerConfig) -> None:
    with pytest.raises(ConfigError, match=f"^--image-size: image_size {size} is .*{nearest}$"):
        at_size(tiny_tokenizer_config, size)
    assert at_size(tiny_tokenizer_config, None) is tiny_tokenizer_config
    with pytest.raises(TrainingError, match="--image-size 0: must be at least 1"):
        TokenizerTraining(image_size=0)
