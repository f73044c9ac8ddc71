"""Token shards: what is in them, when they are reused, and when they are made again."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskgit.canvas.holes import cells_with_holes, smooth_fill
from maskgit.config import TokenizerConfig
from maskgit.data import AugmentConfig, DataError, ImageDataset, ImageError, ImageFolder, parts
from maskgit.data.tokens import (
    HIDDEN,
    TokenSample,
    TokenShard,
    class_names,
    hole_of,
    open_shard,
    tokenize,
    view_of,
)
from maskgit.tokenizer import VQGAN


class Noise(ImageDataset):
    """Five random pictures."""

    image_size = 16
    class_names = ["a", "b"]
    labels = np.array([0, 1, 1, 0, 1])

    def __init__(self, seed: int = 0) -> None:
        self.pixels = np.random.default_rng(seed).integers(256, size=(5, 20, 24, 3), dtype=np.uint8)

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


class Job:
    """A call of `tokenize` whose arguments can be changed, and which tells whether the tokenizer was asked."""

    def __init__(self, tokenizer: VQGAN, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options = {"views": 3, "augment": AugmentConfig(), "seed": 7, "device": torch.device("cpu")}
        self.tokenizer, self.folder, self.calls = tokenizer, folder, 0
        encode = VQGAN.encode

        def counting(model: VQGAN, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return encode(model, images)

        monkeypatch.setattr(VQGAN, "encode", counting)

    def __call__(
        self,
        images: ImageDataset | None = None,
        tokenizer: VQGAN | None = None,
        folder: Path | None = None,
        **changes: object,
    ) -> TokenShard:
        self.calls = 0
        options = self.options | changes
        return tokenize(tokenizer or self.tokenizer, images or Noise(), folder or self.folder, **options)  # type: ignore[arg-type]


@pytest.fixture
def job(tiny_tokenizer: VQGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tiny_tokenizer, tmp_path / "tokens", monkeypatch)


def encode(tokenizer: VQGAN, pixels: np.ndarray) -> list[int]:
    with torch.no_grad():
        return tokenizer.encode(torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)[0].tolist()


def test_views(job: Job) -> None:
    images = Noise()
    shard = job(images, batch_size=2)
    assert len(shard) == 5 and shard.tokens.shape == (3, 5, 16) and shard.tokens.dtype == np.uint16
    assert isinstance(shard.tokens, np.memmap)
    for index in range(5):
        plain = images.image(index)
        crop = images.view(index, np.random.default_rng((7, 2, 2, index)), AugmentConfig())
        for view, pixels in enumerate((plain, plain[:, ::-1].copy(), crop)):
            assert shard.tokens[view, index].tolist() == encode(job.tokenizer, pixels), (view, index)
    assert (shard.tokens[0] != shard.tokens[1]).any() and (shard.tokens[0] != shard.tokens[2]).any()


def test_items(job: Job) -> None:
    shard = job()
    chosen = set()
    for position in range(30):
        tokens, visible, candidates, label = shard[2, position]
        assert tokens.dtype == torch.int64 and label == 1
        assert candidates.all() and torch.equal(tokens, visible)
        assert torch.equal(tokens, shard[2, position].tokens)
        chosen.add(next(view for view in range(3) if shard.tokens[view, 2].tolist() == tokens.tolist()))
    assert chosen == {0, 1, 2}  # the position decides the view


def test_holes(job: Job) -> None:
    images = Noise()
    shard = job(images, hole_share=0.5, holes=2, batch_size=2)
    assert shard.holes is not None and shard.holes.shape == (2, 3, 5, 16)
    for number, view, index in np.ndindex(2, 3, 5):
        pixels = view_of(images, index, view, AugmentConfig(), 7).copy()
        hole = hole_of(16, view, index, number, 7)
        inside = cells_with_holes(hole, 4, 4).ravel()
        pixels[hole] = 77  # what is hidden has no influence
        hidden = smooth_fill(torch.tensor(pixels).permute(2, 0, 1) / 127.5 - 1, torch.from_numpy(~hole)[None])
        with torch.no_grad():
            expected = job.tokenizer.encode(hidden[None])[0].numpy()
        expected[inside] = HIDDEN
        assert np.array_equal(shard.holes[number, view, index], expected)
        sample = TokenSample(*(part[0] for part in shard.samples(np.array([index]), view, number)))
        assert sample.tokens.tolist() == shard.tokens[view, index].tolist()
        assert np.array_equal(sample.candidates, inside)
        assert np.array_equal(sample.visible, np.where(inside, sample.tokens, expected))


def test_a_share_of_the_samples_has_a_hole(job: Job) -> None:
    shard = job(hole_share=0.3, holes=2)
    samples = [shard[1, position] for position in range(1000)]
    share = np.mean([not sample.candidates.all() for sample in samples])
    whole = np.mean([cells_with_holes(hole_of(16, view, 1, n, 7), 4, 4).all() for n, view in np.ndindex(2, 3)])
    assert abs(share - 0.3 * (1 - whole)) < 4.5 * (0.21 / 1000) ** 0.5
    assert len({(tuple(s.tokens.tolist()), tuple(s.candidates.tolist())) for s in samples}) == 3 * (1 + 2)


def test_holes_are_added_to_a_shard_that_is_there(job: Job) -> None:
    tokens = job().tokens.copy()
    assert job.calls == 3
    job(hole_share=0.5, holes=2)
    assert job.calls == 6  # of the two holes only
    job(hole_share=0.1, holes=2)
    assert job.calls == 0
    shard = job(hole_share=0.5, holes=1)
    assert job.calls == 3 and np.array_equal(shard.tokens, tokens)


def test_reused_if_nothing_changed(job: Job) -> None:
    first = job().tokens.copy()
    assert job.calls == 3
    again = job()
    assert job.calls == 0 and np.array_equal(again.tokens, first)


@pytest.mark.parametrize("change", ["tokenizer", "images", "views", "augment", "seed"])
def test_redone_if_something_changed(job: Job, change: str) -> None:
    job()
    other = VQGAN(job.tokenizer.config).eval()
    other.load_state_dict(job.tokenizer.state_dict())
    with torch.no_grad():
        other.quant_conv.bias[0] += 1e-6  # even where it makes no difference to the tokens
    changes = {
        "tokenizer": {"tokenizer": other},
        "images": {"images": Noise(1)},
        "views": {"views": 2},
        "augment": {"augment": AugmentConfig(crop_scale=(0.2, 0.3))},
        "seed": {"seed": 8},
    }[change]
    shard = job(**changes)
    assert job.calls == len(shard.tokens)
    job(**changes)
    assert job.calls == 0


def test_another_decoder_makes_no_difference(job: Job) -> None:
    job()
    other = VQGAN(job.tokenizer.config).eval()
    other.load_state_dict(job.tokenizer.state_dict())
    with torch.no_grad():
        other.decoder.last_layer[0, 0, 0, 0] += 1
        other.post_quant_conv.weight[0] += 1
    job(tokenizer=other)
    assert job.calls == 0


def damage_json(folder: Path) -> None:
    (folder / "tokens.json").write_text('{"tokenizer": "12')


def kill_before_the_end(folder: Path) -> None:
    (folder / "tokens.json").unlink()
    tokens = np.load(folder / "tokens.npy", mmap_mode="r+")
    tokens[1:] = 0
    tokens.flush()


def truncate(folder: Path) -> None:
    data = (folder / "tokens.npy").read_bytes()
    (folder / "tokens.npy").write_bytes(data[:-10])


def lose(folder: Path) -> None:
    (folder / "tokens.npy").unlink()


@pytest.mark.parametrize("damage", [kill_before_the_end, damage_json, truncate, lose])
def test_half_of_a_shard_is_redone(job: Job, damage: object) -> None:
    first = job().tokens.copy()
    damage(job.folder)  # type: ignore[operator]
    again = job()
    assert job.calls == 3 and np.array_equal(again.tokens, first)


def fail_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt the `call`-th batch from now on."""
    encode, calls = VQGAN.encode, 0

    def fail(model: VQGAN, images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return encode(model, images)

    monkeypatch.setattr(VQGAN, "encode", fail)


def test_interrupted_midway(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done is kept, and the older shard of other inputs stays until the new one is whole."""
    older = job(seed=1).tokens.copy()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fail_at(3, patch)
        job()
    assert np.array_equal(job(seed=1).tokens, older) and job.calls == 0
    shard = job()
    assert job.calls == 1  # the third view
    assert not list(job.folder.glob("*.parts")) and not list(job.folder.glob(".*"))
    assert np.array_equal(shard.tokens, job(folder=job.folder.parent / "afresh").tokens)


def test_parts_of_other_inputs_are_not_taken(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fail_at(3, patch)
        job(seed=1)
    shard = job()
    assert job.calls == 3
    assert np.array_equal(shard.tokens, job(folder=job.folder.parent / "afresh").tokens)


def test_several_parts(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two images, the last of one: the same as all at once."""
    whole = job(hole_share=0.5, holes=2)
    monkeypatch.setattr(parts, "ROWS", 2)
    other = job.folder.parent / "other"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fail_at(6, patch)
        job(folder=other, hole_share=0.5, holes=2)
    names = sorted(path.name for path in (other / "tokens.parts").iterdir())
    assert names == ["0-000000000000.npy", "0-000000000002.npy", "0-000000000004.npy", "1-000000000000.npy",
                     "1-000000000002.npy", "parts.json"]  # fmt: skip
    again = job(folder=other, hole_share=0.5, holes=2)
    assert job.calls == (9 - 5) + 18
    assert np.array_equal(again.tokens, whole.tokens) and np.array_equal(again.holes, whole.holes)


def test_a_damaged_part(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fail_at(2, patch)
        job()
    part = job.folder / "tokens.parts" / "0-000000000000.npy"
    part.write_bytes(part.read_bytes()[:-5])
    with pytest.raises(DataError, match=f"{part}: damaged: .*; remove it and run again"):
        job()
    part.unlink()  # what the message says
    job()
    assert job.calls == 1


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures as files: those go to other processes without this module."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng()
    for i in range(11):
        path = root / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(256, size=(18, 22, 3), dtype=np.uint8)).save(path)
    return root


def digests(shard: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(shard.iterdir())}


@pytest.mark.slow
def test_the_same_bytes_from_any_number_of_processes(
    folder: Path, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ROWS", 4)
    images = ImageFolder(folder, 16)
    for processes in (0, 1, 2):
        job(images, folder=tmp_path / str(processes), processes=processes, batch_size=3)
    first = digests(tmp_path / "0")
    assert set(first) == {"tokens.npy", "tokens.json", "labels.npy", "names.jsonl", "images.json"}
    assert first == digests(tmp_path / "1") == digests(tmp_path / "2")


@pytest.mark.slow
def test_what_goes_wrong_in_a_process(folder: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged image is named here too; a process that dies is reported, and nothing is lost by it."""
    monkeypatch.setattr(parts, "ROWS", 4)
    images = ImageFolder(folder, 16)
    damaged = images.paths[9]
    data = damaged.read_bytes()
    try:
        damaged.write_bytes(data[: len(data) // 2])
        with pytest.raises(ImageError, match=f"{damaged}: can't be decoded"):
            job(images, processes=1, key="k", views=1)
    finally:
        damaged.write_bytes(data)
    assert len(list((job.folder / "tokens.parts").glob("*.npy"))) == 2
    with monkeypatch.context() as patch, pytest.raises(DataError, match="was killed .*finished parts are kept"):
        patch.setattr(parts, "_start", os._exit)
        job(images, processes=1, key="k", views=1)
    shard = job(images, processes=0, key="k", views=1)
    assert job.calls == 1 and shard.tokens.shape == (1, 11, 16)


# --- without the images -----------------------------------------------------------------------------------------------


def test_a_shard_tells_its_images(folder: Path, job: Job) -> None:
    images = ImageFolder(folder, 16)
    shard = job(images, hole_share=0.5)
    opened = open_shard(job.folder, job.tokenizer, 7, 0.5)
    assert class_names(job.folder) == ["cat", "dog"] and opened.labels.tolist() == images.labels.tolist()
    names = [json.loads(line) for line in (job.folder / "names.jsonl").read_text().splitlines()]
    assert names == [f"{('cat', 'dog')[i % 2]}/{i:02d}.png" for i in sorted(range(11), key=lambda i: (i % 2, i))]
    sent = pickle.loads(pickle.dumps(opened))
    assert isinstance(sent.tokens, np.memmap)
    for position in range(40):
        index = position % 11
        for ours, theirs in ((shard, opened), (shard, sent)):
            assert all(torch.equal(a, b) for a, b in zip(ours[index, position], theirs[index, position], strict=True))


def test_a_shard_without_a_description_of_its_images(job: Job) -> None:
    """As older releases wrote them: read as it is, and described."""
    job()
    for name in ("labels.npy", "names.jsonl", "images.json"):
        (job.folder / name).unlink()
    with pytest.raises(DataError, match="not a whole token shard: .*labels.npy"):
        open_shard(job.folder, job.tokenizer)
    job()
    assert job.calls == 0 and open_shard(job.folder, job.tokenizer).labels.tolist() == [0, 1, 1, 0, 1]


def test_a_file_that_older_releases_wrote_says_nothing(job: Job) -> None:
    """Which images were near copies of each other, and a damaged one at that."""
    tokens = job().tokens.copy()
    (job.folder / "families.npy").write_bytes(b"damaged")
    assert np.array_equal(job(replace=False).tokens, tokens) and job.calls == 0
    assert np.array_equal(open_shard(job.folder, job.tokenizer).tokens, tokens)
    assert not np.array_equal(job(seed=8).tokens, tokens)
    assert (job.folder / "families.npy").read_bytes() == b"damaged"


def test_shards_that_do_not_fit(job: Job, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokens.json is not there: there is no folder .*nowhere"):
        open_shard(tmp_path / "nowhere", job.tokenizer)
    job()
    with pytest.raises(DataError, match=r"holes.json is not there; write a token shard with train.py tokens"):
        open_shard(job.folder, job.tokenizer, hole_share=0.5)
    other = VQGAN(job.tokenizer.config)
    with pytest.raises(DataError, match=r"tokens.npy: made by another tokenizer .* tokenize again"):
        open_shard(job.folder, other)
    truncate(job.folder)
    with pytest.raises(DataError, match="not a whole token shard"):
        open_shard(job.folder, job.tokenizer)
    damage_json(job.folder)
    with pytest.raises(DataError, match=r"tokens.json: can't be read"):
        open_shard(job.folder, job.tokenizer)


def test_impossible_arguments(job: Job, tiny_tokenizer_config: TokenizerConfig) -> None:
    with pytest.raises(DataError, match="views=0"):
        job(views=0)
    with pytest.raises(DataError, match="holes=0"):
        job(holes=0)
    huge = VQGAN(dataclasses.replace(tiny_tokenizer_config, codebook_size=2**16))
    with pytest.raises(DataError, match="65536 codes does not fit"):
        job(tokenizer=huge)
    largest = VQGAN(dataclasses.replace(tiny_tokenizer_config, codebook_size=2**16 - 1)).eval()
    largest.codebook.weight.fill_(1e3)
    largest.codebook.weight[-1] = 0
    assert (job(tokenizer=largest, views=1).tokens == 2**16 - 2).all()
