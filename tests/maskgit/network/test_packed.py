"""The packed copies compute what transformer and tokenizer compute."""

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from maskgit.config import HaltonConfig, Stage, TokenizerConfig, TransformerConfig
from maskgit.network.copies import PackedConv2d, PackedLinear, can_pack, pack
from maskgit.network.halton import HaltonTransformer
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN

pytestmark = pytest.mark.skipif(not can_pack(), reason="PyTorch was built without oneDNN")

CONFIG = TransformerConfig(codebook_size=40, num_tokens=16, dim=48, depth=2, heads=3, mlp_dim=80)
KINDS = {
    "pre-norm": {},
    "post-norm": {"norm": "post"},
    "untied": {"tied": False},
    "qk norm": {"qk_norm": True},
    "classes": {"num_classes": 3},
    "input mlp": {"input_mlp": True},
}


def make(**changes) -> Transformer:
    model = Transformer(dataclasses.replace(CONFIG, **changes)).eval()
    for parameter in model.parameters():  # larger than at initialisation, so that every part counts
        nn.init.normal_(parameter, std=0.3)
    return model


def assert_as_exact(packed: nn.Module, original: nn.Module, call: Callable[[nn.Module], torch.Tensor]) -> None:
    """In float32, with the error of the original."""
    with torch.inference_mode():
        exact = call(copy.deepcopy(original).double())
        ours, theirs = ((call(network) - exact).abs().max() for network in (packed, original))
    assert ours <= 2 * theirs + 1e-6 * exact.abs().max()


def assert_as_good_as_autocast(
    packed: nn.Module, original: nn.Module, call: Callable[[nn.Module], torch.Tensor]
) -> None:
    with torch.inference_mode():
        exact = call(original)
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = (call(network).float() for network in (packed, original))
    assert (ours - exact).square().mean() <= 1.5 * (theirs - exact).square().mean()


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_same_logits_in_float32(changes):
    model = make(**changes)
    packed = pack(model, torch.float32)
    assert not any(isinstance(module, nn.Linear | nn.GELU) for module in packed.modules())
    tokens = torch.randint(41, (3, 16))
    labels = torch.tensor([0, 2, 3]) if changes.get("num_classes") else None
    assert_as_exact(packed, model, lambda network: network(tokens, labels))


def test_halton_transformer():
    config = HaltonConfig(codebook_size=40, num_tokens=16, dim=48, depth=2, heads=3, mlp_dim=80, num_classes=3)
    model = HaltonTransformer(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    packed = pack(model, torch.float32)
    assert not any(isinstance(module, nn.Linear) for module in packed.modules())
    tokens, labels = torch.randint(41, (3, 16)), torch.tensor([0, 2, 3])
    assert_as_exact(packed, model, lambda network: network(tokens, labels))


def test_bfloat16_is_as_good_as_autocast():
    model = make()
    tokens = torch.randint(41, (8, 16))
    assert_as_good_as_autocast(pack(model, torch.bfloat16), model, lambda network: network(tokens))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_image_does_not_depend_on_its_batch(dtype):
    packed = pack(make(dim=96, heads=2, mlp_dim=256), dtype)
    tokens = torch.randint(41, (17, 16))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        together = packed(tokens)
        for size in (1, 2, 5, 16):
            assert torch.equal(torch.cat([packed(part) for part in tokens.split(size)]), together)


def test_the_original_stays_as_it_is_and_is_shared():
    model = make()
    before = {name: (tensor, tensor.clone()) for name, tensor in model.named_parameters()}
    packed = pack(model, torch.bfloat16)
    for name, tensor in model.named_parameters():
        assert tensor is before[name][0] and torch.equal(tensor, before[name][1])
    assert packed.token_embedding.weight is model.token_embedding.weight
    assert isinstance(model.blocks[0].attention.qkv, nn.Linear)
    assert isinstance(packed.blocks[0].attention.qkv, PackedLinear)


TOKENIZER = TokenizerConfig(
    image_size=16,
    codebook_size=24,
    codebook_dim=8,
    latent_channels=32,
    stem_channels=32,
    encoder=(Stage(32, 1, resample=True, attention=True), Stage(64, 1)),
    decoder=(Stage(64, 1, resample=True), Stage(32, 1)),
)


def make_tokenizer() -> VQGAN:
    tokenizer = VQGAN(TOKENIZER).eval()
    for parameter in tokenizer.parameters():
        nn.init.normal_(parameter, std=0.1)
    return tokenizer.to(memory_format=torch.channels_last)


def test_tokenizer_in_float32():
    tokenizer = make_tokenizer()
    packed = pack(tokenizer, torch.float32)
    assert not any(isinstance(module, nn.Conv2d) for module in packed.modules())

    def check(size: int) -> None:
        images, tokens = torch.rand(2, 3, size, size) * 2 - 1, torch.randint(24, (2, (size // 2) ** 2))
        assert_as_exact(packed, tokenizer, lambda network: network.latents(images.to(network.codebook.weight.dtype)))
        assert_as_exact(packed, tokenizer, lambda network: network.decode(tokens))

    for size in (16, 32, 16):  # weights are laid out anew for every size
        check(size)


def test_tokenizer_in_bfloat16_is_as_good_as_autocast():
    tokenizer = make_tokenizer()
    tokens = torch.randint(24, (4, 64))
    assert_as_good_as_autocast(pack(tokenizer, torch.bfloat16), tokenizer, lambda network: network.decode(tokens))


def test_the_tokenizer_stays_as_it_is():
    tokenizer = make_tokenizer()
    before = {name: tensor.clone() for name, tensor in tokenizer.named_parameters()}
    packed = pack(tokenizer, torch.bfloat16)
    assert isinstance(packed.quant_conv, PackedConv2d) and isinstance(tokenizer.quant_conv, nn.Conv2d)
    assert packed.codebook.weight is tokenizer.codebook.weight
    assert all(torch.equal(tensor, before[name]) for name, tensor in tokenizer.named_parameters())


def test_without_onednn(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="no oneDNN"):
        pack(make(), torch.float32)
