"""Converted networks against the originals, which `originals` computes from the same checkpoint; and broken ones."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from maskgit import MaskGIT
from maskgit.config import Stage
from maskgit.convert import ConvertError, Hints, convert, read_model
from maskgit.convert.formats import TokenizerFormat, find_parts
from maskgit.network.folder import load_model, load_tokenizer

TOKENIZERS = ["lab", "taming", "llamagen", "diffusers", "google"]
TRANSFORMERS = ["lab", "valeo", "halton", "google"]


@pytest.fixture(autouse=True)
def flax_files_need_msgpack(request: pytest.FixtureRequest) -> None:
    if "google" in request.node.name and "tmp_path" in request.fixturenames:
        pytest.importorskip("msgpack")


@torch.no_grad()
def check_tokenizer(original, tmp_path: Path, hints: Hints | None = None) -> None:
    """Tokens and pixels are the original's, after a trip through a folder."""
    path = tmp_path / "original"
    convert([path], tmp_path / "model", hints)
    tokenizer = load_tokenizer(tmp_path / "model")
    assert tokenizer.config.grid == 16  # nothing told how large its images are
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    tokens = original.tokens(images)
    assert tokens.shape == (3, 16) and len(tokens.unique()) > 4
    assert torch.equal(tokenizer.encode(images), tokens)
    others = torch.randint(24, (2, 16))
    torch.testing.assert_close(tokenizer.decode(others), original.pixels(others), rtol=0, atol=1e-4)


@torch.no_grad()
def check_transformer(original, tokenizer_folder: Path, tmp_path: Path, **hints: object) -> None:
    """Logits are the original's, for every class and none, after a trip through a folder."""
    convert([tmp_path / "original", tokenizer_folder], tmp_path / "model", Hints(**(original.hints | hints)))
    transformer = load_model(tmp_path / "model").transformer
    tokens = torch.randint(17, (4, 16))
    expected = original.logits(tokens, None)
    assert expected.std() > 0.1
    torch.testing.assert_close(transformer(tokens), expected, rtol=0, atol=1e-4)
    if original.classes:
        labels = torch.arange(original.classes).repeat(2)[:4]
        expected = original.logits(tokens, labels)
        torch.testing.assert_close(transformer(tokens, labels), expected, rtol=0, atol=1e-4)
        assert not torch.allclose(expected, original.logits(tokens, None), atol=1e-2)


@pytest.mark.parametrize("system", TOKENIZERS)
def test_tokenizer(originals: ModuleType, tmp_path: Path, system: str) -> None:
    original = originals.TOKENIZERS[system]()
    originals.write(original.tensors, tmp_path / "original")
    check_tokenizer(original, tmp_path)


@pytest.mark.parametrize("system", TRANSFORMERS)
def test_transformer(originals: ModuleType, tokenizer_folder: Path, tmp_path: Path, system: str) -> None:
    original = originals.TRANSFORMERS[system]()
    originals.write(original.tensors, tmp_path / "original")
    check_transformer(original, tokenizer_folder, tmp_path)


def test_stages(originals: ModuleType) -> None:
    """The list of stages is the one that a person would write down."""
    encoder = (Stage(32, 2, resample=True), Stage(32, 2, resample=True), Stage(64, 2, attention=True))
    decoder = (Stage(64, 3, attention=True, resample=True), Stage(32, 3, resample=True), Stage(32, 3))
    config = Sound(originals, "taming", "tokenizer").read().config
    assert (config.encoder, config.decoder, config.stem_channels) == (encoder, decoder, 32)
    config = Sound(originals, "google", "tokenizer").read().config
    assert config.encoder == (Stage(32, 2, resample=True), Stage(32, 2, resample=True), Stage(64, 4))
    assert config.decoder == (Stage(64, 2, resample=True), Stage(32, 2, resample=True), Stage(32, 2))


# --- variants ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 3])
def test_google_blocks(originals: ModuleType, tmp_path: Path, blocks: int) -> None:
    """One block: the decoder's first level has none of its own left; three: ResBlock_10 sorts before ResBlock_2."""
    original = originals.google_tokenizer(blocks)
    originals.write(original.tensors, tmp_path / "original")
    check_tokenizer(original, tmp_path)


@pytest.mark.parametrize("attention", ["DIFFUSERS_ATTENTION_OF_OLD", None])
def test_diffusers_attention(originals: ModuleType, tmp_path: Path, attention: str | None) -> None:
    original = originals.diffusers(attention and getattr(originals, attention))
    if attention is None:  # none in the middle; that of the lowest level keeps its convolutions
        assert not any("mid_block.attentions" in name for name in original.tensors)
    originals.write(original.tensors, tmp_path / "original")
    check_tokenizer(original, tmp_path)


def test_halton_without_registers(originals: ModuleType, tokenizer_folder: Path, tmp_path: Path) -> None:
    original = originals.halton(registers=0)
    originals.write(original.tensors, tmp_path / "original")
    check_transformer(original, tokenizer_folder, tmp_path)


LAB_NAMES = {
    "packed": {"qkv": "generate_qkv", "out": "output_linear"},
    "multihead-attention": {"qkv": "mha.in_proj_", "out": "mha.out_proj"},
    "words-first": {"q": "q_linear", "k": "k_linear", "v": "v_linear", "out": "out_linear"},
    "words-last": {"q": "linear_q", "k": "linear_k", "v": "linear_v", "out": "linear_out"},
    "capitals": {"q": "WQ", "k": "WK", "v": "WV", "out": "Wo"},
    "capital-and-small": {"q": "Wq", "k": "Wk", "v": "Wv", "out": "fc"},
    "camel": {"q": "toQuery", "k": "KLinear", "v": "linearV", "out": "unifyHeads"},
    "full-words": {"out": "output_layer", "v": "value", "q": "query", "k": "key"},
    "plural": {"q": "w_qs", "k": "w_ks", "v": "w_vs", "out": "fc"},
    "query-proj": {"q": "query_proj", "k": "key_proj", "v": "value_proj", "out": "output_proj"},
    "per-head": {"q": "heads.{}.q", "k": "heads.{}.k", "v": "heads.{}.v", "out": "projector"},
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("names", LAB_NAMES)
def test_lab_attention(originals: ModuleType, tokenizer_folder: Path, tmp_path: Path, names: str, bias: bool) -> None:
    # Twelve heads, so that those numbered 10 and 11 would come before 2 as strings.
    original = originals.lab_transformer(LAB_NAMES[names], bias, heads=12, dim=48)
    originals.write(original.tensors, tmp_path / "original")
    if names == "per-head":
        check_transformer(original, tokenizer_folder, tmp_path, heads=None)
        with pytest.raises(ConvertError, match="has 12 heads, not 4"):
            read_model([tmp_path / "original", tokenizer_folder], Hints(heads=4))
    else:
        check_transformer(original, tokenizer_folder, tmp_path)


def test_lab_names_that_say_nothing(originals: ModuleType, tokenizer_folder: Path, tmp_path: Path) -> None:
    original = originals.lab_transformer({"k": "fc1", "q": "fc2", "out": "fc3", "v": "fc4"})
    originals.write(original.tensors, tmp_path / "original")
    with pytest.raises(ConvertError, match=r"isn't clear which .*Attention.* fc1, fc2, fc3, fc4 \(--projections\)"):
        read_model([tmp_path / "original", tokenizer_folder])
    check_transformer(original, tokenizer_folder, tmp_path, projections=("fc2", "fc1", "fc4", "fc3"))


def test_lab_projection_packed_by_head(originals: ModuleType, tokenizer_folder: Path, tmp_path: Path) -> None:
    original = originals.lab_transformer(heads=4)
    tensors = dict(original.tensors)
    for name in [name for name in tensors if "qkv" in name]:
        query, key, value = (rows.chunk(4) for rows in tensors[name].chunk(3))
        tensors[name] = torch.cat([part[head] for head in range(4) for part in (query, key, value)])
    originals.write(tensors, tmp_path / "original")
    check_transformer(original, tokenizer_folder, tmp_path, packing="heads")


@torch.no_grad()
def test_usual_heads(originals: ModuleType, tokenizer_folder: Path, tmp_path: Path) -> None:
    """16, with a note, where that divides the width; else the number has to be told."""
    original = originals.lab_transformer(heads=16)
    originals.write(original.tensors, tmp_path / "original")
    found = read_model([tmp_path / "original", tokenizer_folder]).transformer
    tokens = torch.randint(17, (2, 16))
    torch.testing.assert_close(found.network(tokens), original.logits(tokens, None), rtol=0, atol=1e-4)
    assert "16 assumed (--heads)" in found.notes[0]
    originals.write(originals.lab_transformer(dim=24).tensors, tmp_path / "original")
    with pytest.raises(ConvertError, match="width of 24 doesn't divide into 16 heads"):
        read_model([tmp_path / "original", tokenizer_folder])


def test_unit_pixels(originals: ModuleType, tmp_path: Path) -> None:
    original = originals.taming()
    originals.write(original.tensors, tmp_path / "original")
    unit = originals.Tokenizer(
        original.tensors,
        lambda images: original.tokens((images + 1) / 2),
        lambda tokens: original.pixels(tokens) * 2 - 1,
    )
    check_tokenizer(unit, tmp_path, Hints(unit_pixels=True))


# --- end to end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", TRANSFORMERS)
def test_inpaints(originals: ModuleType, tokenizer_folder: Path, tmp_path: Path, system: str) -> None:
    original = originals.TRANSFORMERS[system]()
    originals.write(original.tensors, tmp_path / "original")
    names = [f"class {number}" for number in range(original.classes)]
    convert([tokenizer_folder, tmp_path / "original"], tmp_path / "model", Hints(**original.hints), names)
    model = MaskGIT.from_pretrained(tmp_path / "model", device="cpu", precision="float32")
    assert model.metadata["converted_from"][1]["file"] == "original"
    pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8).numpy()
    mask = np.zeros((16, 16), dtype=bool)
    mask[4:12, 4:12] = True
    labels = ["class 1"] if original.classes else None
    (result,) = model.inpaint([Image.fromarray(pixels)], [mask], steps=3, labels=labels)
    filled = np.asarray(result.image)
    changed = (filled != pixels).any(-1)
    assert changed[mask].mean() > 0.9
    assert not changed[~mask].any()


def test_image_size_follows_the_transformer(originals: ModuleType, tokenizer_folder: Path, tmp_path: Path) -> None:
    """The tokenizer of 16x16 pixels and a transformer over 16 tokens agree; one over 64 makes it 32x32."""
    originals.write(originals.lab_transformer().tensors, tmp_path / "original")
    files = [tokenizer_folder, tmp_path / "original"]
    assert read_model(files, Hints(heads=2)).tokenizer.network.config.image_size == 16
    with pytest.raises(ConvertError, match="4x4 tokens stand for 16x16 pixels, not 32"):
        read_model(files, Hints(heads=2, image_size=32))
    tensors = originals.lab_transformer().tensors
    tensors |= {"pos_emb": torch.randn(64, 32), "bias": torch.randn(64, 17)}
    originals.write(tensors, tmp_path / "original")
    assert read_model(files, Hints(heads=2)).tokenizer.network.config.image_size == 32
    tensors |= {"pos_emb": torch.randn(63, 32), "bias": torch.randn(63, 17)}
    originals.write(tensors, tmp_path / "original")
    with pytest.raises(ConvertError, match="num_tokens 63 is not a square grid"):
        read_model(files, Hints(heads=2))


def test_image_size_of_a_tokenizer(originals: ModuleType, tmp_path: Path) -> None:
    originals.write(originals.taming().tensors, tmp_path / "original")
    assert read_model([tmp_path / "original"], Hints(image_size=32)).tokenizer.network.config.grid == 8
    with pytest.raises(ConvertError, match="image_size 30 is not a multiple of the patch size 4"):
        read_model([tmp_path / "original"], Hints(image_size=30))


# --- broken checkpoints -----------------------------------------------------------------------------------------------

ALL = [(system, "tokenizer") for system in TOKENIZERS] + [(system, "transformer") for system in TRANSFORMERS]


class Sound:
    """A sound checkpoint, to be spoilt."""

    def __init__(self, originals: ModuleType, system: str, part: str) -> None:
        original = (originals.TOKENIZERS if part == "tokenizer" else originals.TRANSFORMERS)[system]()
        self.tensors = dict(original.tensors)
        self.hints = Hints(**original.hints) if part == "transformer" else Hints()
        # What the network isn't made of; and Halton-MaskGIT without register tokens is one, too.
        ignored = ("loss.", "quantize.codebook_used", "reg_tokens.weight")
        self.names = [name for name in self.tensors if not name.startswith(ignored)]

    def some_names(self, count: int) -> list[str]:
        return [self.names[i] for i in torch.randperm(len(self.names))[:count].tolist()]

    def read(self, tensors: dict[str, torch.Tensor] | None = None) -> torch.nn.Module:
        ((kind, weights),) = find_parts(self.tensors if tensors is None else tensors)
        if isinstance(kind, TokenizerFormat):
            return kind.read(weights, self.hints)
        return kind.read(weights, self.hints, 16)


@pytest.fixture(params=ALL, ids=lambda param: "-".join(param))
def sound(request: pytest.FixtureRequest, originals: ModuleType) -> Sound:
    return Sound(originals, *request.param)


def test_missing_tensors(sound: Sound) -> None:
    for name in sound.some_names(20):
        with pytest.raises(ConvertError, match="is missing|lacks|without|differ|aren't|no place|not a checkpoint|few"):
            sound.read({other: tensor for other, tensor in sound.tensors.items() if other != name})


def test_wrong_shapes(sound: Sound) -> None:
    """A row more, a dimension more or less: never taken, but for a row that makes one more code or class."""
    tables = ("codebook.embedding.weight", "quantize.embedding.weight", "quantizer.codebook", "cls_emb.weight")
    for name in sound.some_names(10):
        tensor = sound.tensors[name]
        for wrong in (tensor[None], tensor[0], *([] if name in tables else [torch.cat([tensor, tensor[:1]])])):
            with pytest.raises(ConvertError):
                sound.read(sound.tensors | {name: wrong})


def test_more_than_the_network_has(sound: Sound) -> None:
    with pytest.raises(ConvertError, match="1 tensors have no place in such a model: adapter.weight"):
        sound.read(sound.tensors | {"adapter.weight": torch.ones(3)})


def test_values_that_are_no_weights(sound: Sound) -> None:
    (name,) = sound.some_names(1)
    tensor = sound.tensors[name]
    for value in (float("nan"), float("inf")):
        spoilt = torch.full_like(tensor, value)
        twins = {other: spoilt for other, shared in sound.tensors.items() if shared is tensor}  # tied weights
        with pytest.raises(ConvertError, match="aren't finite"):
            sound.read(sound.tensors | twins)
    with pytest.raises(ConvertError, match="holds torch.int32"):
        sound.read(sound.tensors | {name: tensor.to(torch.int32)})
    with pytest.raises(ConvertError, match="isn't a plain tensor: it has no numbers"):
        sound.read(sound.tensors | {name: tensor.to("meta")})
    if tensor.numel() > 1:
        with pytest.raises(ConvertError, match=f"claims {tensor.numel()} numbers"):
            sound.read(sound.tensors | {name: torch.ones(()).expand(tensor.shape)})


def test_far_too_many_layers(originals: ModuleType) -> None:
    """Refused before they are gone through, each with a look at all names."""
    sound = Sound(originals, "lab", "transformer")
    layers = {f"blocks.{number}.LayerNorm1.weight": torch.ones(1) for number in range(20_000)}
    with pytest.raises(ConvertError, match=r"there are 20000 of blocks\.\*, and no model has more than"):
        sound.read(layers | sound.tensors)


def test_half_precision_is_read(sound: Sound) -> None:
    network = sound.read({name: tensor.bfloat16() for name, tensor in sound.tensors.items()})
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("system", TRANSFORMERS)
def test_another_codebook(originals: ModuleType, tmp_path: Path, system: str) -> None:
    """A transformer over 16 codes doesn't go with a tokenizer of 24."""
    original = originals.TRANSFORMERS[system]()
    originals.write(original.tensors, tmp_path / "original")
    originals.write(originals.taming().tensors, tmp_path / "tokenizer.ckpt")
    with pytest.raises(ConvertError, match="original: .*24 codes"):
        read_model([tmp_path / "original", tmp_path / "tokenizer.ckpt"], Hints(**original.hints))


def test_head_must_be_tied(originals: ModuleType) -> None:
    sound = Sound(originals, "halton", "transformer")
    with pytest.raises(ConvertError, match="head.weight isn't tok_emb.weight"):
        sound.read(sound.tensors | {"head.weight": sound.tensors["head.weight"] + 1})


def test_heads_that_the_file_denies(originals: ModuleType) -> None:
    sound = Sound(originals, "google", "transformer")
    sound.hints = Hints(heads=8)
    with pytest.raises(ConvertError, match="has 4 heads, not 8"):
        sound.read(sound.tensors)
