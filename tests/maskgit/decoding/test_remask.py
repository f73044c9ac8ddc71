"""Re-masking (ReMDM): how many tokens, which ones, and what never changes."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from maskgit.cli.options import Options, decode_config
from maskgit.decoding import DECODERS, DecodeConfig, decode, decode_plan, decode_steps
from maskgit.decoding.loop import _draw
from maskgit.decoding.plan import remask_counts
from maskgit.decoding.schedules import halton_order

V, N = 12, 36
TABLE = torch.randn(V + 1, N, V + 1, generator=torch.Generator().manual_seed(0))


def logits(tokens: Tensor) -> Tensor:
    """They depend on the whole image and on the position."""
    return TABLE[tokens, torch.arange(N)] + (tokens.float().sin().sum(1)[:, None, None] * torch.arange(V + 1)).sin()


def guided(tokens: Tensor) -> tuple[Tensor, Tensor]:
    return logits(tokens), logits(tokens).cos()


def problem(batch: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (batch, N), generator=generator)
    masked = torch.rand(batch, N, generator=generator) < 0.7
    masked[0], masked[1], masked[2] = True, False, torch.arange(N) == 7
    return tokens, masked, torch.arange(batch) * 3 - 4


def states(config: DecodeConfig, tokens: Tensor, masked: Tensor, seeds: Tensor) -> list[tuple[Tensor, Tensor]]:
    steps = decode_steps(logits, tokens, masked, config, seeds, mask_token_id=V, tokens_to_guided=guided)
    return [(now, still) for _, now, still in steps]


def test_counts_by_hand() -> None:
    """Of 10 tokens, 10, 7, 4, 1 and 0 are masked at first and after four steps, so 0, 3, 6 and 9 are decided before
    them: at most 0, 3, 1 and 0 can be masked again."""
    counts = torch.zeros(4, 11, dtype=torch.int64)
    counts[:, 10] = torch.tensor([7, 4, 1, 0])
    assert remask_counts(counts, 1.0)[:, 10].tolist() == [0, 3, 1, 0]
    assert remask_counts(counts, 0.7)[:, 10].tolist() == [0, 2, 0, 0]  # 2.1, 0.7
    assert remask_counts(counts, 1 / 3)[:, 10].tolist() == [0, 1, 0, 0]
    assert not remask_counts(counts, 0.0).any()


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", DECODERS)
def test_every_step(name: str, eta: float) -> None:
    config = dataclasses.replace(DECODERS[name], steps=9, remask=eta)
    plain = decode_plan(dataclasses.replace(config, remask=0.0), N).counts
    tokens, masked, seeds = problem()
    before, values, revised = masked, tokens, 0
    for step, (now, still) in enumerate(states(config, tokens, masked, seeds)):
        again = still & ~before
        for b, start in enumerate(masked.sum(1).tolist()):
            left, decided = int(plain[step, start]), start - int(before[b].sum())
            assert still[b].sum() == left  # as without re-masking
            assert again[b].sum() == math.floor(Fraction(eta).limit_denominator(100) * min(decided, left))
        assert not (still & ~masked).any()  # known tokens never
        assert torch.equal(now[~before], values[~before])  # those too that are masked again, until they are replaced
        assert ((now >= 0) & (now < V)).all()
        revised += int((now != values)[before & (values != tokens)].sum())
        before, values = still, now
    assert not before.any()
    assert torch.equal(values[~masked], tokens[~masked])
    assert revised > 0


@pytest.mark.parametrize("name", DECODERS)
def test_with_eta_0_it_is_the_plain_decoder(name: str) -> None:
    config = dataclasses.replace(DECODERS[name], steps=6)
    plan = decode_plan(config, N)
    assert plan.remasked is None
    tokens, masked, seeds = problem()
    plain = states(config, tokens, masked, seeds)
    plan = plan._replace(remasked=remask_counts(plan.counts, 0.0))  # through the code that masks none again
    steps = decode_steps(logits, tokens, masked, config, seeds, mask_token_id=V, tokens_to_guided=guided, plan=plan)
    for (_, *state), expected in zip(steps, plain, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(state, expected, strict=True))
    remasking = states(dataclasses.replace(config, remask=1.0), tokens, masked, seeds)
    assert not torch.equal(remasking[-1][0], plain[-1][0])


def p_value(observed: Tensor, expected: float) -> float:
    statistic = ((observed - expected) ** 2 / expected).sum().double()
    return torch.special.gammaincc(torch.tensor((len(observed) - 1) / 2).double(), statistic / 2).item()


def test_every_choice_is_equally_likely() -> None:
    candidates = torch.tensor([True, False, True, True, False, True, True])
    images = 20_000
    seeds = torch.arange(images) - images // 2
    drawn = [
        _draw(candidates.expand(images, -1), torch.full((images,), 2), seeds, step).to(torch.int64) for step in (3, 4)
    ]
    for one in drawn:
        assert (one.sum(1) == 2).all() and not one[:, ~candidates].any()
        pairs = (one[:, candidates] * 2 ** torch.arange(5)).sum(1).bincount(minlength=32)
        assert (pairs > 0).sum() == 10 and p_value(pairs[pairs > 0], images / 10) > 0.001
    # Steps draw independently: of two candidates drawn at one, 2 * 2 / 5 are drawn at the other too on average.
    common = (drawn[0] * drawn[1]).sum(1).bincount(minlength=3)
    assert p_value(common / torch.tensor([3, 6, 1]) * 10, images) > 0.001


def test_numbers_drawn_differ_between_images() -> None:
    candidates = torch.rand(6, N) < 0.5
    count = torch.minimum(torch.tensor([0, 1, 2, 3, 30, N]), candidates.sum(1))
    drawn = _draw(candidates, count, torch.arange(6), 0)
    assert torch.equal(drawn.sum(1), count) and not (drawn & ~candidates).any()


def test_halton_order_among_what_is_masked() -> None:
    """Those masked again that come early in the order are decided first."""
    places = torch.tensor(halton_order(6, 6)).argsort()
    tokens, masked, seeds = problem()
    config = dataclasses.replace(DECODERS["halton"], steps=9, remask=1.0)
    before = masked
    for _, still in states(config, tokens, masked, seeds):
        for b in range(len(tokens)):
            decided, left = places[before[b] & ~still[b]], places[before[b] & still[b]]
            assert not len(decided) or not len(left) or decided.max() < left.min()
        before = still


@pytest.mark.parametrize("name", ["maskgit", "halton"])
def test_an_image_depends_on_itself_only(name: str) -> None:
    config = dataclasses.replace(DECODERS[name], steps=7, remask=0.6)
    tokens, masked, seeds = problem()
    together = decode(logits, tokens, masked, config, seeds, mask_token_id=V)
    for b in range(len(tokens)):
        one = slice(b, b + 1)
        alone = decode(logits, tokens[one], masked[one], config, seeds[one], mask_token_id=V)
        assert torch.equal(alone[0], together[b])


def test_stopping_early_leaves_nothing_masked() -> None:
    tokens, masked, seeds = problem()
    stopped = states(DecodeConfig(remask=1.0, stop_after=4), tokens, masked, seeds)
    assert len(stopped) == 4 and not stopped[-1][1].any()


def test_the_loop_stays_on_a_gpu() -> None:
    """On tensors that claim to be on a GPU and hold nothing, no value could be read."""
    config = dataclasses.replace(DECODERS["halton"], steps=4, remask=0.5)
    with FakeTensorMode():
        plan = decode_plan(config, N, "cuda")
        tokens, masked, seeds = (torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in problem())
        made = torch.empty(len(tokens), N, V, device="cuda")
        result = decode(lambda held: made, tokens, masked, config, seeds, mask_token_id=V, plan=plan)
    assert result.shape == tokens.shape and result.device.type == "cuda"


@pytest.mark.parametrize("eta", [-0.1, 1.01, float("nan")])
def test_config_is_checked(eta: float) -> None:
    with pytest.raises(ValueError, match=r"remask must be in \[0, 1\]"):
        DecodeConfig(remask=eta)


def test_command_line() -> None:
    assert decode_config(Options(remask=0.25, steps=32), DecodeConfig()) == DecodeConfig(remask=0.25, steps=32)
    assert decode_config(Options(), DecodeConfig(remask=0.5)).remask == 0.5
