"""Context reuse (ReCAP): partial evaluations against their definition, and against full ones where they must agree.

In a transformer of one block, keys and values depend on a position's own token only. If all that has changed is
evaluated, a partial evaluation must then give what a full one gives, which shows any mistake in the bookkeeping.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from maskgit.cli.options import Options, decode_config
from maskgit.config import HaltonConfig, Stage, TokenizerConfig, TransformerConfig
from maskgit.decoding import DECODERS, DecodeConfig, changed_counts, decode, decode_plan, decode_steps
from maskgit.decoding.graphs import GraphCache
from maskgit.network.copies import can_pack, pack
from maskgit.network.halton import HaltonTransformer
from maskgit.network.partial import Context, ReusingNetwork
from maskgit.network.transformer import Transformer
from maskgit.pipeline import MaskGIT
from maskgit.tokenizer import VQGAN

V, N, CLASSES = 12, 16, 3
KINDS: dict[str, dict[str, Any]] = {
    "pre-norm": {},
    "post-norm": {"norm": "post"},
    "untied": {"tied": False},
    "qk norm": {"qk_norm": True},
    "classes": {"num_classes": CLASSES},
    "input mlp": {"input_mlp": True},
    "halton": {"num_classes": CLASSES, "registers": 2},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def make(kind: str = "pre-norm", depth: int = 1) -> nn.Module:
    """With weights that make what goes in matter."""
    torch.manual_seed(0)
    sizes = dict(codebook_size=V, num_tokens=N, dim=16, depth=depth, heads=2, mlp_dim=32) | KINDS[kind]
    model = HaltonTransformer(HaltonConfig(**sizes)) if kind == "halton" else Transformer(TransformerConfig(**sizes))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval().double()


def some_labels(kind: str, batch: int) -> Tensor | None:
    return torch.arange(batch) % (CLASSES + 1) if "num_classes" in KINDS[kind] else None


def two_states(batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens before and after some have changed, 1 to 7 in each image, and which."""
    before = torch.randint(V + 1, (batch, N))
    changed = torch.rand(batch, N).argsort(1) < torch.randint(1, 8, (batch, 1))
    return before, torch.where(changed, torch.randint(V + 1, (batch, N)), before), changed


# --- one evaluation ---------------------------------------------------------------------------------------------------


@kinds
@torch.no_grad()
def test_everything_evaluated_is_a_full_evaluation(kind: str) -> None:
    model, (before, after, _) = make(kind, depth=3), two_states()
    labels, context = some_labels(kind, len(before)), Context()
    torch.testing.assert_close(model(before, labels, context), model(before, labels), rtol=0, atol=1e-12)
    context.choose(torch.ones_like(before, dtype=torch.bool), N)
    torch.testing.assert_close(model(after, labels, context), model(after, labels), rtol=1e-10, atol=1e-10)


@kinds
@torch.no_grad()
def test_one_block_needs_the_changes_only(kind: str) -> None:
    model, (before, after, changed) = make(kind), two_states()
    labels, context = some_labels(kind, len(before)), Context()
    model(before, labels, context)
    context.choose(changed, int(changed.sum(1).max()))
    found, expected = model(after, labels, context), model(after, labels)
    torch.testing.assert_close(found[changed], expected[changed], rtol=1e-10, atol=1e-10)
    # And so does the next evaluation, by what has been kept from both.
    chosen = torch.arange(N).expand_as(changed) < 3
    context.choose(chosen, 3)
    torch.testing.assert_close(model(after, labels, context)[chosen], expected[chosen], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_definition() -> None:
    """Several blocks: position by position, the chosen see each other as they are and the others as they were."""
    model, (before, after, changed) = make(depth=3), two_states(2)
    context = Context()
    model(before, None, context)
    context.choose(changed, N // 2)
    found = model(after, None, context)

    def embedded(tokens: Tensor) -> Tensor:
        return model.embedding_norm(model.token_embedding(tokens) + model.position_embedding)

    for b in range(2):
        old, new = embedded(before)[b], embedded(after)[b]  # [N, dim]
        for block in model.blocks:

            def heads(x: Tensor) -> Tensor:
                return block.attention.qkv(block.norm1(x)).view(N, 3, 2, 8)  # noqa: B023

            seen = torch.where(changed[b][:, None, None, None], heads(new), heads(old))
            states = []
            for x, qkv, kept in ((old, heads(old), heads(old)), (new, heads(new), seen)):
                scores = torch.einsum("nhd,mhd->hnm", qkv[:, 0], kept[:, 1]) / math.sqrt(8)
                out = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), kept[:, 2]).flatten(1)
                x = x + block.attention.proj(out)
                states.append(x + block.mlp(block.norm2(x)))
            old, new = states
        logits = F.linear(model.head(model.final_norm(new)), model.token_embedding.weight[:V]) + model.bias
        torch.testing.assert_close(found[b][changed[b]], logits[changed[b]], rtol=1e-10, atol=1e-10)
        assert (found[b] - model(after)[b])[changed[b]].abs().max() > 1e-3  # a full evaluation is something else


@kinds
@torch.no_grad()
def test_filling_up_changes_nothing(kind: str) -> None:
    """Neither the logits nor what is kept depend on how many positions other images have."""
    model, (before, after, changed) = make(kind, depth=2), two_states()
    labels, results = some_labels(kind, len(before)), []
    for count in (7, 12, N):
        context = Context()
        model(before, labels, context)
        context.choose(changed, count)
        first = model(after, labels, context)[changed]
        context.choose(~changed, N)
        results.append((first, model(before, labels, context)[~changed]))
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(not can_pack(), reason="PyTorch was built without oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@kinds
@torch.no_grad()
def test_packed_weights(kind: str, dtype: torch.dtype) -> None:
    packed, (before, after, changed) = pack(make(kind, depth=2).float(), dtype), two_states()
    labels, results = some_labels(kind, len(before)), []
    for model in (make(kind, depth=2), packed):
        with torch.autocast("cpu", torch.bfloat16, enabled=model is packed and dtype == torch.bfloat16):
            context = Context()
            model(before, labels, context)
            context.choose(changed, 9)
            partial = model(after, labels, context)
            results.append((partial[changed].double(), model(after, labels)[changed].double()))
    (exact, exact_full), (found, found_full) = results
    # As near to float64 as a full evaluation is.
    assert (found - exact).square().mean() <= 2 * (found_full - exact_full).square().mean() + 1e-12


# --- a run ------------------------------------------------------------------------------------------------------------


def problem(batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    masked = torch.rand(batch, N) < torch.tensor([1.1, 0.7, 0.4, -1])[:batch, None]
    return torch.randint(V, (batch, N)), masked, torch.randint(-(2**62), 2**62, (batch,))


class Record:
    """A transformer, and how many positions it was evaluated at."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.counts = model, []

    def __call__(self, tokens: Tensor, labels: Tensor | None, context: Context) -> Tensor:
        select = context.select

        def watched(x: Tensor, num_tokens: int) -> tuple[Tensor, int]:
            result = select(x, num_tokens)
            self.counts.append(result[1])
            return result

        context.select = watched
        try:
            return self.model(tokens, labels, context)
        finally:
            context.select = select


def reusing(network: Any, config: DecodeConfig, most_masked: int = N) -> ReusingNetwork:
    return ReusingNetwork(network, config.reuse, changed_counts(config, N, most_masked), V)


def run(
    network: Any, config: DecodeConfig, tokens: Tensor, masked: Tensor, seeds: Tensor, labels: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    """The states of a run, its network called with and without labels as the pipeline does it."""

    def guided(held: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([labels, torch.full_like(labels, CLASSES)])
        return network(held.repeat(2, 1), both).chunk(2)

    steps = decode_steps(
        lambda held: network(held, labels), tokens, masked, config, seeds, mask_token_id=V, tokens_to_guided=guided
    )
    return [(now, still) for _, now, still in steps]


def assert_same(states: list[tuple[Tensor, Tensor]], expected: list[tuple[Tensor, Tensor]]) -> None:
    for state, other in zip(states, expected, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(state, other, strict=True))


@pytest.mark.parametrize("remask", [0.0, 0.7])
@pytest.mark.parametrize("reuse", [1, 3, 20])
@pytest.mark.parametrize("name", DECODERS)
def test_one_block_decodes_as_without(name: str, reuse: int, remask: float) -> None:
    """Guidance, re-masking and every order included."""
    model, given = make("classes"), problem()
    labels = torch.tensor([0, 2, 3, 1])
    config = dataclasses.replace(DECODERS[name], steps=7, reuse=reuse, remask=remask)
    network = Record(model)
    most = int(given[1].sum(1).max())
    states = run(reusing(network, config, most), config, *given, labels)
    assert_same(states, run(model, config, *given, labels))
    assert network.counts.count(N) < 7 and not states[-1][1].any()


def test_where_guidance_sets_in_and_ends_all_is_evaluated() -> None:
    """There is nothing to reuse for the half of the batch that wasn't there a step before."""
    config = DecodeConfig(steps=8, reuse=7, guidance_scale=2.0, guidance_from=0.25, guidance_to=0.625)
    model, (tokens, _, seeds), labels = make("classes"), problem(), torch.tensor([0, 2, 3, 1])
    masked = torch.arange(N).expand(4, -1) < 12
    network, given = Record(model), (tokens, masked, seeds)
    assert_same(run(reusing(network, config, 12), config, *given, labels), run(model, config, *given, labels))
    assert [count == N for count in network.counts] == [step in (0, 2, 5) for step in range(8)]


@kinds
def test_full_evaluations_only_are_the_plain_loop(kind: str) -> None:
    model, given = make(kind, depth=2), problem()
    labels, config = some_labels(kind, 4), DecodeConfig(steps=5)
    network = Record(model)
    assert_same(run(reusing(network, config), config, *given, labels), run(model, config, *given, labels))
    assert network.counts == [N] * 5


@pytest.mark.parametrize("reuse", [1, 2, 3])
def test_what_is_evaluated(reuse: int) -> None:
    """What was masked before the step before: 12 tokens leave 10, 8, 6, 4, 2 and 0 by a linear schedule."""
    tokens, seeds = torch.randint(V, (2, N)), torch.arange(2)
    masked = torch.arange(N).expand(2, -1) < torch.tensor([[12], [5]])
    config = DecodeConfig(steps=6, schedule="linear", reuse=reuse)
    network = Record(make(depth=2))
    run(reusing(network, config, 12), config, tokens, masked, seeds)
    partial = [N, 12, 10, 8, 6, 4]
    assert network.counts == [N if step % (reuse + 1) == 0 else partial[step] for step in range(6)]


def test_counts_hold_for_all_images() -> None:
    """For every number of masked tokens up to the most, no more positions change than the host has counted on."""
    for config in (DecodeConfig(steps=6, remask=0.9), DecodeConfig(steps=20), DecodeConfig(steps=6, stop_after=3)):
        for most in (0, 1, 5, N):
            counts = changed_counts(config, N, most)
            masked = torch.arange(N).expand(most + 1, -1) < torch.arange(most + 1)[:, None]
            tokens, seeds = torch.zeros_like(masked, dtype=torch.int64), torch.arange(most + 1)
            noise = torch.randn(most + 1, N, V)
            states = decode_steps(lambda held: noise, tokens, masked, config, seeds, mask_token_id=V)  # noqa: B023
            opens = [masked, *(still for _, _, still in states)][:-1]
            assert counts[0] == N and len(counts) == len(opens)
            for count, earlier, now in zip(counts[1:], opens[:-1], opens[1:], strict=True):
                assert count == max(1, int((earlier | now).sum(1).max()))


def test_an_image_does_not_depend_on_the_others() -> None:
    model, (tokens, masked, seeds) = make(depth=3), problem()
    config = DecodeConfig(steps=6, reuse=2)
    together = run(reusing(model, config), config, tokens, masked, seeds)[-1][0]
    for b in range(4):
        one = slice(b, b + 1)
        network = reusing(model, config, int(masked[b].sum()))
        assert torch.equal(run(network, config, tokens[one], masked[one], seeds[one])[-1][0][0], together[b])


def test_the_loop_stays_on_a_gpu() -> None:
    """On tensors that claim to be on a GPU and hold nothing, no value could be read."""
    model, config = make("classes", depth=2).float(), DecodeConfig(steps=4, reuse=2, remask=0.5)
    weights: dict[str, Tensor] = {}

    def network(held: Tensor, labels: Tensor | None, context: Context) -> Tensor:
        return torch.func.functional_call(model, weights, (held, labels, context))

    given, evaluate = problem(), reusing(network, config, 9)
    with FakeTensorMode():
        plan = decode_plan(config, N, "cuda")
        weights.update((key, torch.empty(weight.shape, device="cuda")) for key, weight in model.named_parameters())
        tokens, masked, seeds = (torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in given)
        result = decode(lambda held: evaluate(held), tokens, masked, config, seeds, mask_token_id=V, plan=plan)
    assert result.shape == tokens.shape and result.device.type == "cuda"


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="reuse must be at least 0, got -1"):
        DecodeConfig(reuse=-1)
    for most in (-1, N + 1):
        with pytest.raises(ValueError, match=rf"most_masked must be in \[0, {N}\], got {most}"):
            changed_counts(DecodeConfig(reuse=1), N, most)


# --- the pipeline -----------------------------------------------------------------------------------------------------


def pipeline(depth: int, device: str = "cpu") -> MaskGIT:
    """16x16 pixels, 4x4 tokens."""
    torch.manual_seed(0)
    stages = (Stage(8, 1, resample=True), Stage(8, 1, resample=True), Stage(8, 1))
    tokenizer = VQGAN(TokenizerConfig(16, V, 4, 8, 8, stages, stages, groups=4))
    nn.init.normal_(tokenizer.codebook.weight)
    return MaskGIT(tokenizer, make("classes", depth).float(), ["a", "b", "c"], device=device, precision="float32")


def pictures(count: int) -> tuple[list[Image.Image], list[np.ndarray]]:
    rng = np.random.default_rng(count)
    images = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]
    return images, [rng.random((16, 16)) < 0.03 for _ in range(count)]


def everything(model: MaskGIT, **options: Any) -> list[np.ndarray]:
    images, masks = pictures(5)
    labels = [0, 1, None, 2, 0]
    found = model.inpaint(images, masks, batch_size=2, paste=False, labels=labels, guidance_scale=1.0, **options)
    made = model.generate(3, batch_size=2, **options)
    return [np.asarray(x) for x in (*(result.image for result in found), *made)]


def test_pipeline() -> None:
    model = pipeline(depth=1)
    for options in (dict(steps=5), dict(steps=5, guidance_from=0.4, guidance_to=0.8)):
        for found, expected in zip(everything(model, reuse=2, **options), everything(model, **options), strict=True):
            assert np.array_equal(found, expected)
    deeper = pipeline(depth=3)
    with torch.no_grad():  # what is kept from earlier steps counts for more
        for layer in deeper.transformer.blocks:
            layer.attention.qkv.weight *= 3
            layer.attention.proj.weight *= 3
    options = [dict(steps=12, seed=seed) for seed in range(8)]  # only some pictures change
    pairs = (zip(everything(deeper, reuse=11, **one), everything(deeper, **one), strict=True) for one in options)
    assert not all(np.array_equal(found, expected) for pictures in pairs for found, expected in pictures)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    "changes", [{}, dict(remask=0.5), dict(guidance_from=0.4, guidance_to=0.8)], ids=["", "remask", "interval"]
)
def test_graphs_on_a_gpu(changes: dict[str, Any]) -> None:
    model, options = pipeline(3, "cuda"), dict(steps=5, reuse=2, **changes)
    model.graphs = None
    expected = everything(model, **options)
    model.graphs = GraphCache()
    for _ in range(2):
        for found, other in zip(everything(model, **options), expected, strict=True):
            assert np.array_equal(found, other)


def test_command_line() -> None:
    assert decode_config(Options(reuse=2), DecodeConfig()) == DecodeConfig(reuse=2)
    assert decode_config(Options(), DecodeConfig(reuse=1)).reuse == 1
