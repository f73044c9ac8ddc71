"""The last block at some rows only: the same logits there, and the same tokens and gradients in the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgit.config import Stage, TokenizerConfig, TransformerConfig, preset
from maskgit.decoding import DECODERS, DecodeConfig, decode_steps, masked_counts
from maskgit.decoding.schedules import mask_counts
from maskgit.machine import bfloat16_instructions
from maskgit.network.copies import PackedLinear, can_pack
from maskgit.network.partial import FEWEST_ROWS, Context, MaskedRowsNetwork, masked_rows
from maskgit.network.transformer import Transformer
from maskgit.pipeline import MaskGIT
from maskgit.tokenizer import VQGAN

V, N, CLASSES = 12, 64, 3
KINDS: dict[str, dict[str, Any]] = {
    "pre-norm": {},
    "post-norm": {"norm": "post"},
    "untied": {"tied": False},
    "classes": {"num_classes": CLASSES},
    "one block": {"depth": 1},
}


def make(kind: str = "pre-norm") -> Transformer:
    """With weights that make what goes in matter."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(codebook_size=V, num_tokens=N, dim=16, depth=2, heads=2, mlp_dim=32, dropout=0.0)
    model = Transformer(TransformerConfig(**sizes | KINDS[kind]))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval().double()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_a_full_evaluation(kind: str, checkpointing: bool) -> None:
    model, tokens = make(kind).train(), torch.randint(V + 1, (3, N))
    model.checkpoint_blocks = checkpointing
    labels = torch.tensor([0, 2, 3]) if kind == "classes" else None
    wanted = torch.rand(3, N) < torch.tensor([0.9, 0.3, 0.0])[:, None]
    weights = torch.randn(3, N, V, dtype=torch.double) * wanted[..., None]
    results = []
    for rows in (None, wanted.flatten().nonzero().squeeze(1)):
        logits = model(tokens, labels, rows=rows)
        assert logits.shape == (3, N, V)
        gradients = torch.autograd.grad((logits * weights).sum(), list(model.parameters()))
        results.append((logits[wanted], gradients))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def test_the_last_block_sees_no_other_rows() -> None:
    model, seen = make("classes"), []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    model(torch.zeros(2, N, dtype=torch.int64), rows=torch.tensor([1, N, 2 * N - 1]))
    assert seen == [(2, N + 1, 16), (3, 16)]


def test_rows_and_a_context_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="it can't be given rows too"):
        make()(torch.zeros(2, N, dtype=torch.int64), None, Context(), rows=torch.tensor([1]))


def test_rows_are_the_masked_ones_and_some_more() -> None:
    masked = torch.tensor([[False, True, False, True], [False, False, False, True]])
    assert masked_rows(masked, 2).tolist() == [1, 3, 7, 4]
    assert masked_rows(masked, 4).sort().values.tolist() == list(range(8))


def problem() -> tuple[Tensor, Tensor, Tensor]:
    masked = torch.rand(4, N) < torch.tensor([1.1, 0.7, 0.4, -1])[:, None]
    return torch.randint(V, (4, N)), masked, torch.randint(-(2**62), 2**62, (4,))


@pytest.mark.parametrize("remask", [0.0, 0.7])
@pytest.mark.parametrize("name", DECODERS)
def test_decodes_as_without(name: str, remask: float) -> None:
    """Guidance, re-masking and every order included, and no more rows than are masked, but for the fewest."""
    model, (tokens, masked, seeds) = make("classes"), problem()
    labels, counts = torch.tensor([0, 2, 3, 1]), []
    config = DecodeConfig(**{**vars(DECODERS[name]), "steps": 7, "remask": remask})

    def at_rows(held: Tensor, labels: Tensor | None, *, rows: Tensor) -> Tensor:
        held_masked = int((held == V).sum(1).max())
        counts.append((len(rows) // len(held), held_masked))
        return model(held, labels, rows=rows)

    def run(network: Any) -> list[tuple[Tensor, Tensor]]:
        def guided(held: Tensor) -> tuple[Tensor, Tensor]:
            both = torch.cat([labels, torch.full_like(labels, CLASSES)])
            return network(held.repeat(2, 1), both).chunk(2)

        steps = decode_steps(
            lambda held: network(held, labels), tokens, masked, config, seeds, mask_token_id=V, tokens_to_guided=guided
        )
        return [state[1:] for state in steps]

    most = masked_counts(config, N, int(masked.sum(1).max()))
    for state, other in zip(run(MaskedRowsNetwork(at_rows, most, V)), run(model), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(state, other, strict=True))
    assert all(rows >= now and rows == min(N, max(FEWEST_ROWS, now)) for rows, now in counts)


def test_counts_are_checked() -> None:
    for most in (-1, N + 1):
        with pytest.raises(ValueError, match=rf"most_masked must be in \[0, {N}\], got {most}"):
            masked_counts(DecodeConfig(), N, most)


@pytest.mark.skipif(not can_pack(), reason="PyTorch was built without oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["embedded", "lab"])
@torch.no_grad()
def test_packed_products_do_not_depend_on_the_number_of_rows(name: str, dtype: torch.dtype) -> None:
    """What the pipeline relies on: an image's picture must not depend on how many tokens others have masked.

    With AMX oneDNN chooses by the rows in what order it sums: few sums are then rounded to the bfloat16 next to it.
    """
    only_near = dtype == torch.bfloat16 and "amx_bf16" in bfloat16_instructions()
    config = preset(name).transformer
    for inner, outer in ((config.dim, config.dim), (config.dim, config.mlp_dim), (config.mlp_dim, config.dim)):
        linear, x = PackedLinear(nn.Linear(inner, outer), dtype, None), torch.randn(400, inner).to(dtype)
        expected = linear(x)
        for rows in (FEWEST_ROWS, 33, 47, 64, 100, 256, 257):
            got = linear(x[:rows])
            if only_near:
                torch.testing.assert_close(got, expected[:rows], rtol=2**-7, atol=1e-5)
                assert (got != expected[:rows]).float().mean() < 1e-3, rows
            else:
                assert torch.equal(got, expected[:rows]), rows


@pytest.mark.skipif(not can_pack(), reason="PyTorch was built without oneDNN")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_pipeline_saves_the_work_and_changes_nothing(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    stages = (Stage(8, 1, resample=True), Stage(8, 1, resample=True), Stage(8, 1))
    tokenizer = VQGAN(TokenizerConfig(32, V, 4, 8, 8, stages, stages, groups=4))
    model = MaskGIT(tokenizer, make("one block").float(), device="cpu", precision=precision)
    seen: list[int] = []
    tokens, masked, seeds = problem()
    config, masked = DecodeConfig(steps=4), masked & (torch.arange(N) < 40)
    given = (tokens, masked, config, seeds.tolist(), None, 4)

    def recorded(self: MaskedRowsNetwork, *arguments: Any) -> None:
        right(self, *arguments)
        network = self._network
        self._network = lambda *inputs, rows: (seen.append(len(rows)), network(*inputs, rows=rows))[1]

    right = MaskedRowsNetwork.__init__
    monkeypatch.setattr(MaskedRowsNetwork, "__init__", recorded)
    found = list(model._decode(*given))
    left = mask_counts(torch.tensor(int(masked.sum(1).max())), 4, "cosine").tolist()
    assert seen == [4 * max(FEWEST_ROWS, count) for count in (int(masked.sum(1).max()), *left[:-1])]
    monkeypatch.setattr("maskgit.pipeline.networks.MaskedRowsNetwork", lambda network, counts, _: plain(model))
    for state, other in zip(found, model._decode(*given), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(state, other, strict=True))
    assert len(seen) == 4


def plain(model: MaskGIT) -> Any:
    """The packed transformer at every position."""
    network = model._fastest(model.transformer)

    def evaluate(tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        with model._autocast():
            return network(tokens, labels)

    return evaluate
