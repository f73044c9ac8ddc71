"""Every preset against its source: temperatures and distributions, restated here in NumPy (counts in test_plan)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from restated import all_left, left
from torch import Tensor

from maskgit.decoding import DECODERS, DecodeConfig, DecodePlan, decode, decode_plan, decode_steps, decoder
from maskgit_kernels import backend

NAMES = ["maskgit", "lab-perturbed", "lab-sampled", "lab-greedy", "valeo", "halton"]


def test_all_are_there() -> None:
    assert list(DECODERS) == NAMES
    assert DECODERS["maskgit"] == DecodeConfig()
    assert all(decoder(name) is config for name, config in DECODERS.items())
    with pytest.raises(ValueError, match="decoder must be one of maskgit, lab-perturbed, .*, halton, got 'valoe'"):
        decoder("valoe")


# --- temperature and guidance -----------------------------------------------------------------------------------------


def annealed(name: str, t: int, steps: int) -> float:
    """tau / tau0 at step t, by the cosine schedule where it has a say."""
    return {
        "maskgit": lambda: 1 - (t + 1) / steps,
        "lab-perturbed": lambda: 1 - t / steps,
        "lab-sampled": lambda: 1 - t / steps,
        "lab-greedy": lambda: 1 - math.cos(math.pi / 2 * (t + 1) / steps),
        "valeo": lambda: 1 - t / (steps - 1),
        "halton": lambda: 0.0,
    }[name]()


@pytest.mark.parametrize("name", NAMES)
def test_temperature_and_guidance_at_every_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def record(logits: Tensor, tokens: Tensor, masked: Tensor, *args: object, **options: object):
        asked.append(options | {"logits": logits})
        return tokens, masked

    monkeypatch.setattr("maskgit.decoding.loop.decode_step", record)
    plain, conditional, unconditional = torch.zeros(3, 1, 4, 5)
    for steps in (2, 5, 8):
        config = dataclasses.replace(decoder(name), steps=steps)
        asked.clear()
        tokens = torch.zeros(1, 4, dtype=torch.int64)
        decode(
            lambda tokens: plain,
            tokens,
            tokens == 0,
            config,
            torch.zeros(1, dtype=torch.int64),
            mask_token_id=5,
            tokens_to_guided=lambda tokens: (conditional, unconditional),
        )
        tau0 = 0.0 if name == "halton" else 4.5
        expected = [tau0 * annealed(name, t, steps) for t in range(steps)]
        assert [step["choice_temperature"] for step in asked] == pytest.approx(expected, abs=1e-14)
        scales = [3.0 * t / (steps - 1) if name == "valeo" else 0.0 for t in range(steps)]
        assert [step["guidance_scale"] for step in asked] == pytest.approx(scales)
        for scale, step in zip(scales, asked, strict=True):
            assert step["logits"] is (conditional if scale else plain)  # one pass for both, and only where it acts
            assert step["guidance_logits"] is (unconditional if scale else None)
        draw = {"lab-perturbed": "perturbed", "lab-greedy": "greedy"}.get(name, "categorical")
        confidence = "prob" if name.startswith("lab") else "log_prob"
        assert {(step["draw"], step["confidence"], step["softmax_temperature"]) for step in asked} == {
            (draw, confidence, 1.0)
        }


def test_guidance_by_a_single_step() -> None:
    """Where one step is the first and the last, the ramp has reached its end: full guidance."""
    config = dataclasses.replace(decoder("valeo"), steps=1)
    assert config.guidance_at(0) == 3.0 and config.temperature_at(0) == 0.0
    constant = DecodeConfig(guidance_scale=2.0)
    assert [constant.guidance_at(step) for step in range(8)] == [2.0] * 8
    ramped = DecodeConfig(guidance_scale=2.0, guidance_ramp="linear", steps=4)
    assert [ramped.guidance_at(step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]


# --- decoding by NumPy ------------------------------------------------------------------------------------------------

N, V = 6, 5
HOLE = np.array([True, True, True, False, True, True])
KNOWN = 2  # the token at the position that is no hole
TAU = 0.9  # for the confidence and the noise to weigh about the same
# The logits of a position, [N, V + 1, V], given the token (or mask) to its left, with the condition and without it.
TABLE, UNCONDITIONAL = np.random.default_rng(0).normal(0, 1.3, (2, N, V + 1, V)).astype(np.float32)
ORDER = [4, 2, 3, 1, 5, 0]  # in which Halton's points fall into the cells of a 2 x 3 grid


def test_order_by_hand() -> None:
    """The points (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), (5/8, 7/9), (3/8, 2/9) fall into the rows 1, 0, 1, 0,
    1, 0 and the columns 1, 2, 0, 1, 2, 0."""
    plan = decode_plan(decoder("halton"), N, grid=(2, 3))
    assert plan.order.tolist() == ORDER and plan.places.tolist() == [ORDER.index(n) for n in range(N)]


def simulate(name: str, steps: int, images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [images, N] at the end, and the masks [steps, images, N], by the preset's definition."""
    rng = np.random.default_rng(seed)
    places = np.array([ORDER.index(n) for n in range(N)])
    tokens = np.full((images, N), KNOWN)
    masked = np.repeat(HOLE[None], images, 0)
    remaining, masks = int(HOLE.sum()), []
    for t in range(steps):
        held = np.where(masked, V, tokens)
        before = np.roll(held, 1, axis=1)
        z = TABLE[np.arange(N), before].astype(np.float64)  # [images, N, V]
        if name == "valeo":
            w = 3.0 * t / (steps - 1)
            z = (1 + w) * z - w * UNCONDITIONAL[np.arange(N), before]
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        tau = TAU * annealed(name, t, steps)

        def chosen(p: np.ndarray, code: np.ndarray) -> np.ndarray:
            return np.take_along_axis(p, code[..., None], -1)[..., 0]

        if name == "lab-perturbed":
            scores = p + tau * rng.gumbel(size=p.shape)
            code, confidence = scores.argmax(-1), scores.max(-1)
        elif name == "lab-greedy":
            code = p.argmax(-1)
            confidence = chosen(p, code) + tau * rng.gumbel(size=code.shape)
        else:
            code = np.minimum((rng.random((images, N, 1)) > p.cumsum(-1)).sum(-1), V - 1)
            confidence = chosen(p, code)
            if name != "lab-sampled":
                confidence = np.log(confidence)
            confidence = confidence + tau * rng.gumbel(size=code.shape)
        if name == "halton":
            confidence = -places + np.zeros((images, N))
        tokens = np.where(masked, code, tokens)
        confidence = np.where(masked, confidence, np.inf)
        remaining = left(name, decoder(name).schedule, t, steps, int(HOLE.sum()), remaining)
        masked = confidence.argsort(-1).argsort(-1) < remaining
        masks.append(masked)
    return tokens, np.stack(masks)


def decode_table(config: DecodeConfig, seeds: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The same by the package."""
    conditional, unconditional = torch.from_numpy(TABLE), torch.from_numpy(UNCONDITIONAL)

    def logits(table: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda tokens: table[torch.arange(N), tokens.roll(1, 1)]

    tokens = torch.full((len(seeds), N), KNOWN)
    masked = torch.from_numpy(HOLE).expand(len(seeds), -1)
    states = list(
        decode_steps(
            logits(conditional),
            tokens,
            masked,
            config,
            seeds,
            mask_token_id=V,
            tokens_to_guided=lambda tokens: (logits(conditional)(tokens), logits(unconditional)(tokens)),
            plan=decode_plan(config, N, grid=(2, 3)),
        )
    )
    return states[-1][1].numpy(), np.stack([still.numpy() for _, _, still in states])


def p_value(statistic: float, freedom: int) -> float:
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return torch.special.gammaincc(half[0], half[1]).item()


def same_distribution(a: np.ndarray, b: np.ndarray) -> float:
    """p of a chi-square test that two samples of categories have one distribution; rare categories are merged."""
    size = int(max(a.max(), b.max())) + 1
    counts = np.stack([np.bincount(a, minlength=size), np.bincount(b, minlength=size)]).astype(float)
    shares = counts.sum(1, keepdims=True) / counts.sum()
    common = (counts.sum(0) * shares.min()) >= 10
    counts = np.concatenate([counts[:, common], counts[:, ~common].sum(1, keepdims=True)], axis=1)
    counts = counts[:, counts.sum(0) > 0]
    if counts.shape[1] == 1:
        return 1.0  # both samples hold one value only, the same
    expected = counts.sum(0) * shares
    return p_value(((counts - expected) ** 2 / expected).sum(), counts.shape[1] - 1)


def has_distribution(sample: np.ndarray, p: np.ndarray) -> float:
    counts = np.bincount(sample, minlength=len(p))
    return p_value(((counts - len(sample) * p) ** 2 / (len(sample) * p)).sum(), len(p) - 1)


IMAGES = 20_000


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
@pytest.mark.parametrize("name", NAMES)
def test_distributions(name: str, steps: int) -> None:
    """20,000 decodings and their definition: masks at every step, tokens, and pairs of tokens."""
    if name == "valeo" and steps == 1:
        pytest.skip("its definition divides by 0 there; see test_guidance_by_a_single_step")
    config = dataclasses.replace(decoder(name), steps=steps)
    if config.choice_temperature:
        config = dataclasses.replace(config, choice_temperature=TAU)
    tokens, masks = decode_table(config, torch.arange(IMAGES) - IMAGES // 2)
    expected_tokens, expected_masks = simulate(name, steps, 3 * IMAGES, seed=steps)

    counts = all_left(name, config.schedule, steps, int(HOLE.sum()))
    assert (masks.sum(2) == np.array(counts)[:, None]).all()  # exactly, in every image
    assert (tokens[:, ~HOLE] == KNOWN).all() and tokens.max() < V

    patterns = 2 ** np.arange(N)
    worst = min(
        same_distribution(mask @ patterns, expected_mask @ patterns)
        for mask, expected_mask in zip(masks, expected_masks, strict=True)
    )
    for n in range(N):
        worst = min(worst, same_distribution(tokens[:, n], expected_tokens[:, n]))
        for m in range(n):
            pair, expected_pair = (x[:, m] * V + x[:, n] for x in (tokens, expected_tokens))
            worst = min(worst, same_distribution(pair, expected_pair))
    assert worst > 0.001


def test_distributions_in_closed_form() -> None:
    """Where the law of a token or of a choice can be written down."""
    seeds = torch.arange(IMAGES) * 7 - 3
    p = np.exp(TABLE.astype(float))  # [N, V + 1, V]
    p /= p.sum(-1, keepdims=True)
    at_first = p[np.arange(N), np.roll(np.where(HOLE, V, KNOWN), 1)]  # [N, V]

    def decoded(name: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
        return decode_table(dataclasses.replace(decoder(name), steps=steps), seeds)

    # In one step, each token is drawn from its distribution; with the noise on p, from the softmax of p / tau0.
    for name in ("maskgit", "lab-sampled", "halton"):
        tokens, _ = decoded(name, 1)
        for n in np.flatnonzero(HOLE):
            assert has_distribution(tokens[:, n], at_first[n]) > 0.001
    tokens, _ = decoded("lab-perturbed", 1)
    for n in np.flatnonzero(HOLE):
        q = np.exp(at_first[n] / 4.5)
        assert has_distribution(tokens[:, n], q / q.sum()) > 0.001
    tokens, _ = decoded("lab-greedy", 1)
    assert (tokens[:, HOLE] == at_first[HOLE].argmax(-1)).all()

    # A Halton order of single tokens is a chain: position 4 first, seeing what is known to its left.
    tokens, masks = decoded("halton", 5)
    assert [np.flatnonzero(mask[0]).tolist() for mask in masks] == [[0, 1, 2, 5], [0, 1, 5], [0, 5], [0], []]
    assert has_distribution(tokens[:, 4], p[4, KNOWN]) > 0.001
    for code in range(V):  # position 5 sees what came out at 4
        assert has_distribution(tokens[tokens[:, 4] == code, 5], p[5, code]) > 0.001

    # Greedy, first of two steps, one of five kept: the largest of p_n + tau * Gumbel is a draw from softmax(p / tau).
    config = dataclasses.replace(decoder("lab-greedy"), steps=2)
    assert all_left("lab-greedy", "cosine", 2, 5)[0] == 4
    _, masks = decode_table(config, seeds)
    kept = (HOLE & ~masks[0]).argmax(1)
    weights = np.exp(at_first[HOLE].max(-1) / config.temperature_at(0))
    assert has_distribution(np.cumsum(HOLE)[kept] - 1, weights / weights.sum()) > 0.001


# --- the loop, for every preset ---------------------------------------------------------------------------------------


def grid_logits(tokens: Tensor) -> Tensor:
    """Logits for images of any size that depend on all tokens."""
    place = torch.arange(tokens.shape[1])[:, None] + torch.arange(V + 1)
    return (tokens.float().sin().sum(1)[:, None, None] * 3 + place).sin() * 3


def grid_guided(tokens: Tensor) -> tuple[Tensor, Tensor]:
    return grid_logits(tokens), grid_logits(tokens + 1)


@pytest.mark.parametrize("steps", [1, 2, 8, 40])
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_holes_in_any_number_of_steps(name: str, steps: int) -> None:
    """One image for each N0 from 0 to N = 25, so N0 is below T, above T, none and all."""
    config = dataclasses.replace(decoder(name), steps=steps)
    tokens = torch.randint(V, (26, 25))
    masked = torch.rand(26, 25).argsort(1) < torch.arange(26)[:, None]
    open_before, seen = masked, 0
    for step, now, still in decode_steps(
        grid_logits, tokens, masked, config, torch.arange(26), mask_token_id=V, tokens_to_guided=grid_guided
    ):
        assert still.sum(1).tolist() == [all_left(name, config.schedule, steps, start)[step] for start in range(26)]
        assert not (still & ~open_before).any()
        assert torch.equal(now[~open_before], (tokens if seen == 0 else before)[~open_before])  # noqa: F821
        assert ((now >= 0) & (now < V)).all()
        before, open_before, seen = now, still, seen + 1  # noqa: F841
    assert seen == steps and not open_before.any()
    assert torch.equal(now[~masked], tokens[~masked])


@pytest.mark.parametrize("name", NAMES)
def test_an_image_depends_on_itself_only(name: str) -> None:
    config = dataclasses.replace(decoder(name), steps=5)
    tokens, masked, seeds = torch.randint(V, (4, 16)), torch.rand(4, 16) < 0.7, torch.tensor([3, -9, 2**40, 3])
    tokens[3], masked[3] = tokens[0], masked[0]

    def run(chosen: list[int], plan: DecodePlan | None = None) -> Tensor:
        return decode(
            grid_logits,
            tokens[chosen],
            masked[chosen],
            config,
            seeds[chosen],
            mask_token_id=V,
            tokens_to_guided=grid_guided,
            plan=plan,
        )

    together = run([0, 1, 2, 3])
    assert torch.equal(together[0], together[3])
    for b in range(4):
        assert torch.equal(run([b])[0], together[b])
    assert torch.equal(run([2, 1], decode_plan(config, 16, grid=(4, 4))), together[[2, 1]])


@pytest.mark.parametrize("name", NAMES)
def test_both_implementations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernels, on a GPU or in the interpreter, and PyTorch decode the same tokens in the same order."""
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = dataclasses.replace(decoder(name), steps=3)
    tokens, masked, seeds = torch.randint(V, (3, 9)), torch.rand(3, 9) < 0.8, torch.tensor([5, -1, 2**33])

    def run(implementation: str) -> list[tuple[Tensor, Tensor]]:
        monkeypatch.setattr(backend, "_requested", implementation)
        states = decode_steps(
            lambda held: grid_logits(held.cpu()).to(device),
            tokens.to(device),
            masked.to(device),
            config,
            seeds.to(device),
            mask_token_id=V,
            tokens_to_guided=lambda held: tuple(x.to(device) for x in grid_guided(held.cpu())),
        )
        return [(now.cpu(), still.cpu()) for _, now, still in states]

    for (now, still), (other, other_still) in zip(run("torch"), run("triton"), strict=True):
        assert torch.equal(now, other) and torch.equal(still, other_still)


# --- arguments --------------------------------------------------------------------------------------------------------


def test_arguments_that_do_not_fit() -> None:
    tokens, seeds = torch.zeros(2, 6, dtype=torch.int64), torch.arange(2)
    with pytest.raises(ValueError, match="guidance_scale is 3.0, but tokens_to_guided is missing"):
        decode(grid_logits, tokens, tokens == 0, decoder("valeo"), seeds, mask_token_id=V)
    with pytest.raises(ValueError, match="the grid must have 6 tokens for order='halton', got 2 x 2"):
        decode(grid_logits, tokens, tokens == 0, decoder("halton"), seeds, mask_token_id=V)
    with pytest.raises(ValueError, match="the grid must have 6 tokens for order='halton', got 3 x 3"):
        decode_plan(decoder("halton"), 6, grid=(3, 3))
    for values, message in (
        (dict(counts="round"), "counts must be one of official, floor, decisive, compound, got 'round'"),
        (dict(progress="now"), "progress must be one of after, before, inclusive, got 'now'"),
        (dict(order="raster"), "order must be one of confidence, halton, got 'raster'"),
        (dict(annealing="cosine"), "annealing must be one of progress, schedule, got 'cosine'"),
        (dict(guidance_ramp="cosine"), "guidance_ramp must be one of constant, linear, got 'cosine'"),
        (dict(guidance_scale=math.nan), "guidance_scale must be finite, got nan"),
        (dict(guidance_from=-0.1), r"guidance_from must be in \[0, 1\], got -0.1"),
        (dict(guidance_to=math.nan), r"guidance_to must be in \[0, 1\], got nan"),
        (dict(guidance_from=0.5, guidance_to=0.4), "guidance_from must be at most guidance_to, 0.4, got 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            DecodeConfig(**values)
