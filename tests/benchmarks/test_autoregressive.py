"""The autoregressive baseline against the transformer itself under a causal mask, with and without its cache."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import maskgit.network.transformer
from benchmarks.autoregressive import CausalDecoder, decode_autoregressively
from maskgit.config import TransformerConfig
from maskgit.network.transformer import Transformer

VARIANTS = [
    {"norm": "pre", "tied": True},
    {"norm": "post", "tied": False, "num_classes": 3},
    {"norm": "pre", "tied": True, "num_classes": 3, "input_mlp": True, "dropout": 0.5, "attention_dropout": 0.5},
    {"norm": "pre", "tied": True, "qk_norm": True},
]
IDS = ["pre", "post, classes", "classes, input MLP", "queries and keys normed"]


def make(config: TransformerConfig, **changes: object) -> Transformer:
    """A transformer with every parameter random, so that none can be left out unnoticed."""
    model = Transformer(dataclasses.replace(config, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim < 2 else 0.0, 0.5)
    return model


def shifted(tokens: Tensor, mask_token_id: int) -> Tensor:
    """What an autoregressive decoder reads where it predicts each token: the one before."""
    return F.pad(tokens, (1, 0), value=mask_token_id)[:, :-1]


def causal_logits(model: Transformer, tokens: Tensor, labels: Tensor | None, patch: pytest.MonkeyPatch) -> Tensor:
    """The transformer's own forward pass, with the causal mask that it never has: all positions at once, no cache."""
    num_tokens = model.config.num_tokens
    length = len(model.position_embedding)
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    if length > num_tokens:  # the class token, last in this sequence, is seen by all and sees itself
        visible[:, -1], visible[-1, :-1] = True, False

    def attention(qkv: Tensor, **_: object) -> Tensor:
        q, k, v = qkv.transpose(1, 3).unbind(2)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return (scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v).transpose(1, 2)

    with patch.context() as scope, torch.no_grad():
        scope.setattr(maskgit.network.transformer, "attention_packed", attention)
        return model(shifted(tokens, model.config.mask_token_id), labels)


def random_case(model: Transformer, batch: int = 3) -> tuple[Tensor, Tensor | None]:
    tokens = torch.randint(model.config.codebook_size, (batch, model.config.num_tokens))
    return tokens, torch.tensor([0, 2, 3])[:batch] if model.config.num_classes else None


@pytest.mark.parametrize("variant", VARIANTS, ids=IDS)
@pytest.mark.parametrize("chunks", [[16], [1] * 16, [5, 1, 1, 7, 2]], ids=["at once", "one by one", "mixed"])
def test_cached_equals_uncached(
    tiny_transformer_config: TransformerConfig,
    variant: dict[str, object],
    chunks: list[int],
    monkeypatch: pytest.MonkeyPatch,
):
    model = make(tiny_transformer_config, **variant).double()
    tokens, labels = random_case(model)
    wanted = causal_logits(model, tokens, labels, monkeypatch)
    decoder = CausalDecoder(model, len(tokens), labels)
    inputs = shifted(tokens, model.config.mask_token_id)
    with torch.no_grad():
        got = [decoder.logits(decoder.advance(part)) for part in inputs.split(chunks, dim=1)]
    assert torch.allclose(torch.cat(got, dim=1), wanted, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="token 17 of an image of 16"):
        decoder.advance(inputs[:, :1])


def test_it_is_causal(tiny_transformer_config: TransformerConfig, monkeypatch: pytest.MonkeyPatch):
    model = make(tiny_transformer_config)
    tokens, _ = random_case(model)
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % model.config.codebook_size
    before, after = (causal_logits(model, x, None, monkeypatch) for x in (tokens, changed))
    assert torch.equal(before[:, :10], after[:, :10])  # token 9 is no input before position 10
    assert (before[:, 10:] != after[:, 10:]).any(-1).all()


@pytest.mark.parametrize("variant", VARIANTS, ids=IDS)
def test_decoding_draws_from_the_causal_distributions(
    tiny_transformer_config: TransformerConfig, variant: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    model = make(tiny_transformer_config, **variant)
    batch = 300
    tokens = torch.randint(16, (1, 16)).repeat(batch, 1)
    masked = torch.zeros(batch, 16, dtype=torch.bool)
    masked[:, [3, 4, 15]] = True
    labels = torch.full((batch,), 1) if model.config.num_classes else None
    decoded = decode_autoregressively(
        model, tokens, masked, torch.arange(batch), labels=labels, softmax_temperature=3.0
    )
    assert torch.equal(decoded[~masked], tokens[~masked])
    # How often each code is drawn is the mean of its probabilities, given the tokens that were decoded before it.
    p = (causal_logits(model, decoded, labels, monkeypatch) / 3.0).softmax(-1)
    for position in (3, 4, 15):
        drawn = decoded[:, position, None]
        frequency = F.one_hot(drawn[:, 0], 16).double().mean(0)
        expected = p[:, position].double().mean(0)
        deviation = (expected * (1 - expected) / batch).sqrt() + 1e-9
        assert ((frequency - expected).abs() < 5 * deviation + 1 / batch).all()
        assert float(p[:, position].gather(1, drawn).min()) > 0


def test_greedy_limit_matches_a_loop_without_cache(
    tiny_transformer_config: TransformerConfig, monkeypatch: pytest.MonkeyPatch
):
    model = make(tiny_transformer_config, num_classes=3)
    tokens, labels = random_case(model)
    masked = torch.rand(3, 16) < 0.6
    masked[1] = True
    masked[2] = False
    # So cold that every token is the likeliest one.
    got = decode_autoregressively(
        model, tokens, masked, torch.tensor([5, -1, 2**40]), labels=labels, softmax_temperature=1e-6
    )
    wanted = tokens.clone()
    for position in range(16):
        best = causal_logits(model, wanted, labels, monkeypatch)[:, position].argmax(-1)
        wanted[:, position] = torch.where(masked[:, position], best, wanted[:, position])
    assert torch.equal(got, wanted)
    assert torch.equal(got[2], tokens[2])
    # Positions that are known beforehand need no looking up, and more of them change nothing.
    again = decode_autoregressively(
        model,
        tokens,
        masked,
        torch.tensor([5, -1, 2**40]),
        labels=labels,
        softmax_temperature=1e-6,
        positions=range(16),
    )
    assert torch.equal(again, got)


def test_an_image_is_its_own(tiny_transformer_config: TransformerConfig):
    model = make(tiny_transformer_config)
    tokens, _ = random_case(model)
    masked = torch.ones_like(tokens, dtype=torch.bool)
    seeds = torch.tensor([1, 2, 3])
    together = decode_autoregressively(model, tokens, masked, seeds)
    # What stands where it is masked doesn't matter, nor do the other images.
    alone = decode_autoregressively(model, torch.zeros_like(tokens[1:2]), masked[1:2], seeds[1:2])
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together, decode_autoregressively(model, tokens, masked, seeds + 9))
    assert together.min() >= 0 and together.max() < model.config.codebook_size


def test_under_autocast(tiny_transformer_config: TransformerConfig):
    model = make(tiny_transformer_config)
    tokens, _ = random_case(model)
    inputs = shifted(tokens, model.config.mask_token_id)
    decoder, exact = CausalDecoder(model, len(tokens)), CausalDecoder(model, len(tokens))
    with torch.no_grad():
        wanted = torch.cat([exact.logits(exact.advance(part)) for part in inputs.split(1, 1)], 1)
        with torch.autocast("cpu", torch.bfloat16):
            got = torch.cat([decoder.logits(decoder.advance(part)) for part in inputs.split(1, 1)], 1)
    assert decoder._cache[0][0].dtype == torch.bfloat16
    error = (got.float() - wanted).abs().mean() / wanted.std()
    assert 0 < float(error) < 0.05


def test_wrong_arguments(tiny_transformer_config: TransformerConfig):
    model = make(tiny_transformer_config)
    tokens, _ = random_case(model)
    masked, seeds = torch.ones_like(tokens, dtype=torch.bool), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\[B, 16\]"):
        decode_autoregressively(model, tokens[:, :9], masked[:, :9], seeds)
    with pytest.raises(ValueError, match="without classes"):
        decode_autoregressively(model, tokens, masked, seeds, labels=seeds)
    with pytest.raises(ValueError, match="training mode"):
        decode_autoregressively(model.train(), tokens, masked, seeds)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_capture_as_a_cuda_graph(tiny_transformer_config: TransformerConfig):
    model = make(tiny_transformer_config).cuda()
    tokens, _ = random_case(model)
    tokens, masked = tokens.cuda(), torch.ones(tokens.shape, dtype=torch.bool, device="cuda")
    seeds = torch.tensor([1, 2, 3], device="cuda")

    def decode() -> Tensor:
        return decode_autoregressively(model, tokens, masked, seeds, softmax_temperature=1e-6, positions=range(16))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        wanted = decode()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = decode()
    with torch.inference_mode():  # as the tensor was made, or it could not be written to
        captured.zero_()
    graph.replay()
    assert torch.equal(captured, wanted)
