import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskgit.config import TransformerConfig
from maskgit.decoding import DECODERS, DecodeConfig, decode, decode_plan, decode_steps, loop
from maskgit.decoding.schedules import SCHEDULES, mask_counts
from maskgit.network.transformer import Transformer
from maskgit_kernels.decode_step.eager import decode_step_eager
from maskgit_kernels.decode_step.settings import Settings, State

V, N = 12, 30
MASK = V


class Model:
    """Logits that depend on the whole image and on the position, and a record of what it was asked."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(V + 1, N, V + 1, generator=generator)
        self.asked = []

    def __call__(self, tokens):
        self.asked.append(tokens)
        own = self.table[tokens, torch.arange(N)]
        return own + (tokens.float().sin().sum(1)[:, None, None] * torch.arange(V + 1)).sin()


def problem(batch=4, share=0.6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (batch, N), generator=generator)
    masked = torch.rand(batch, N, generator=generator) < share
    return tokens, masked, torch.arange(batch) - 2


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 8, 40])
def test_the_promised_number_is_left_at_every_step(schedule, steps):
    tokens, masked, seeds = problem(6)
    masked[0], masked[1], masked[2] = True, False, torch.arange(N) == 7
    config = DecodeConfig(steps=steps, schedule=schedule)
    promised = mask_counts(masked.sum(1), steps, schedule)
    known, open_before, seen = ~masked, masked, 0
    for step, now, still in decode_steps(Model(), tokens, masked, config, seeds, mask_token_id=MASK):
        assert step == seen
        assert torch.equal(still.sum(1), promised[step])
        assert not (still & ~open_before).any()  # what is decided stays decided
        assert torch.equal(now[known], tokens[known])
        assert ((now >= 0) & (now < V)).all()
        if seen:
            assert torch.equal(now[~open_before], before[~open_before])  # noqa: F821
        before, open_before, seen = now, still, seen + 1  # noqa: F841
    assert seen == steps and not still.any()


def test_the_model_sees_mask_tokens_exactly_where_masked():
    tokens, masked, seeds = problem()
    model = Model()
    states = list(decode_steps(model, tokens, masked, DecodeConfig(), seeds, mask_token_id=MASK))
    opens = [masked] + [still for _, _, still in states[:-1]]
    assert len(model.asked) == 8
    for asked, still in zip(model.asked, opens, strict=True):
        assert torch.equal(asked == MASK, still)


def test_the_callers_tensors_are_not_modified():
    tokens, masked, seeds = problem()
    copies = tokens.clone(), masked.clone(), seeds.clone()
    decode(Model(), tokens, masked, DecodeConfig(), seeds, mask_token_id=MASK)
    assert all(torch.equal(x, y) for x, y in zip((tokens, masked, seeds), copies, strict=True))


def test_what_the_tokens_hold_where_masked_does_not_matter():
    tokens, masked, seeds = problem()
    first = decode(Model(), tokens, masked, DecodeConfig(), seeds, mask_token_id=MASK)
    second = decode(Model(), tokens.masked_fill(masked, MASK), masked, DecodeConfig(), seeds, mask_token_id=MASK)
    assert torch.equal(first, second)


def test_decode_is_the_last_of_the_steps():
    tokens, masked, seeds = problem()
    *_, (_, last, _) = decode_steps(Model(), tokens, masked, DecodeConfig(), seeds, mask_token_id=MASK)
    assert torch.equal(decode(Model(), tokens, masked, DecodeConfig(), seeds, mask_token_id=MASK), last)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("bias_shape", [(V,), (N, V)], ids=str)
def test_with_a_head_the_logits_are_its_product(name, bias_shape):
    config = dataclasses.replace(DECODERS[name], steps=4, guidance_scale=1.5, stop_after=None)
    weight, bias, shift = torch.randn(V, 6), torch.randn(bias_shape), torch.randn(V + 1, N, 6)

    def hidden(tokens):
        return 2 * shift[tokens, torch.arange(N)]

    def logits(tokens):
        return hidden(tokens) @ weight.T + bias

    tokens, masked, seeds = problem()
    results = [
        list(
            decode_steps(
                predict,
                tokens,
                masked,
                config,
                seeds,
                mask_token_id=MASK,
                tokens_to_guided=lambda held, predict=predict: (predict(held), predict(held.roll(1, 1))),
                head=head,
                plan=decode_plan(config, N, grid=(5, 6)),
            )
        )
        for predict, head in ((logits, None), (hidden, (weight, bias)))
    ]
    for (_, tokens1, masked1), (_, tokens2, masked2) in zip(*results, strict=True):
        assert torch.equal(tokens1, tokens2) and torch.equal(masked1, masked2)


def test_nothing_masked_returns_the_tokens():
    tokens, _, seeds = problem()
    masked = torch.zeros_like(tokens, dtype=torch.bool)
    assert torch.equal(decode(Model(), tokens, masked, DecodeConfig(), seeds, mask_token_id=MASK), tokens)


def test_an_image_does_not_depend_on_its_batch():
    tokens, masked, seeds = problem(5)
    together = decode(Model(), tokens, masked, DecodeConfig(), seeds, mask_token_id=MASK)
    for b in range(5):
        alone = decode(
            Model(), tokens[b : b + 1], masked[b : b + 1], DecodeConfig(), seeds[b : b + 1], mask_token_id=MASK
        )
        assert torch.equal(alone[0], together[b])


def test_seeds_decide():
    tokens, masked, _ = problem(3)
    tokens, masked = tokens[:1].expand(3, -1), masked[:1].expand(3, -1)
    result = decode(Model(), tokens, masked, DecodeConfig(), torch.tensor([1, 2, 1]), mask_token_id=MASK)
    assert torch.equal(result[0], result[2]) and not torch.equal(result[0], result[1])


def test_stop_after_fills_from_the_last_prediction():
    tokens, masked, seeds = problem()
    full = DecodeConfig(steps=8)
    short = dataclasses.replace(full, stop_after=3)
    long_states = list(decode_steps(Model(), tokens, masked, full, seeds, mask_token_id=MASK))
    states = list(decode_steps(Model(), tokens, masked, short, seeds, mask_token_id=MASK))
    assert len(states) == 3 and not states[-1][2].any()
    for (_, x, x_open), (_, y, y_open) in zip(states[:2], long_states[:2], strict=True):
        assert torch.equal(x, y) and torch.equal(x_open, y_open)
    assert torch.equal(states[2][1], long_states[2][1])  # the sample at every position, kept or not


def test_annealing_ends_without_noise(monkeypatch):
    temperatures = []

    def record(logits, tokens, masked, *args, choice_temperature, **kwargs):
        temperatures.append(choice_temperature)
        return tokens, masked

    monkeypatch.setattr("maskgit.decoding.loop.decode_step", record)
    tokens, masked, seeds = problem()
    decode(Model(), tokens, masked, DecodeConfig(steps=4, choice_temperature=8.0), seeds, mask_token_id=MASK)
    assert temperatures == [6.0, 4.0, 2.0, 0.0]


def test_greedy_finds_the_likeliest_tokens():
    answer = torch.randint(V, (2, N), generator=torch.Generator().manual_seed(3))

    def sure(tokens):
        return torch.nn.functional.one_hot(answer, V + 1) * 50.0

    tokens, masked, seeds = problem(2)
    masked[:] = True
    for config in (DecodeConfig(), DecodeConfig(draw="greedy"), DecodeConfig(draw="perturbed", confidence="prob")):
        config = dataclasses.replace(config, choice_temperature=0.0)
        assert torch.equal(decode(sure, tokens, masked, config, seeds, mask_token_id=MASK), answer)


def test_no_gradients_are_recorded():
    tokens, masked, seeds = problem()
    weight = torch.ones((), requires_grad=True)
    recorded = []

    def model(tokens):
        logits = torch.zeros(*tokens.shape, V) * weight
        recorded.append(logits.requires_grad)
        return logits

    decode(model, tokens, masked, DecodeConfig(), seeds, mask_token_id=MASK)
    assert recorded == [False] * 8


def test_nan_logits_are_an_error():
    tokens, masked, seeds = problem()
    with pytest.raises(ValueError, match="logits hold NaN"):
        decode(lambda t: torch.full((4, N, V), torch.nan), tokens, masked, DecodeConfig(), seeds, mask_token_id=MASK)


def test_arguments_that_do_not_fit():
    tokens, masked, seeds = problem()
    with pytest.raises(ValueError, match=r"tokens and masked must both be \[B, N\], got \(4, 30\) and \(4, 29\)"):
        decode(Model(), tokens, masked[:, 1:], DecodeConfig(), seeds, mask_token_id=MASK)
    with pytest.raises(ValueError, match=r"num_codes must be in \[1, 13\], the columns of logits, got 14"):
        decode(lambda t: torch.zeros(4, N, 13), tokens, masked, DecodeConfig(), seeds, mask_token_id=14)


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(steps=0), "steps must be at least 1, got 0"),
        (dict(steps=10**6), "steps must be at most 10,000"),
        (dict(schedule="cos"), "schedule must be one of"),
        (dict(draw="best"), "draw must be one of"),
        (dict(confidence="p"), "confidence must be one of"),
        (dict(softmax_temperature=0.0), "softmax_temperature must be positive"),
        (dict(choice_temperature=float("inf")), "choice_temperature must be"),
        (dict(stop_after=9), r"stop_after must be in \[1, 8\], the steps, got 9"),
        (dict(stop_after=0), r"stop_after must be in \[1, 8\]"),
    ],
)
def test_config_is_checked(values, message):
    with pytest.raises(ValueError, match=message):
        DecodeConfig(**values)


def test_presets_are_constants():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DECODERS["maskgit"].steps = 3


# --- the loop without the host ----------------------------------------------------------------------------------------

CLASSES = 3


class Loop(nn.Module):
    """The whole loop as a module with fixed shapes: a transformer with classes, guided where the preset guides."""

    def __init__(self, name):
        super().__init__()
        config = TransformerConfig(V, 16, dim=16, depth=1, heads=1, mlp_dim=16, num_classes=CLASSES)
        self.transformer = Transformer(config).eval()
        for weight in self.transformer.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.4)
        self.config = dataclasses.replace(DECODERS[name], steps=4)
        self.plan = decode_plan(self.config, 16)

    def forward(self, tokens, masked, seeds, labels):
        def guided(tokens):
            both = torch.cat([labels, torch.full_like(labels, CLASSES)])
            return self.transformer(tokens.repeat(2, 1), both).chunk(2)

        return decode(
            lambda tokens: self.transformer(tokens, labels),
            tokens,
            masked,
            self.config,
            seeds,
            mask_token_id=V,
            tokens_to_guided=guided,
            plan=self.plan,
        )


def inputs(seed=0, batch=3):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(V, (batch, 16), generator=generator),
        torch.rand(batch, 16, generator=generator) < 0.7,
        torch.randint(-(2**62), 2**62, (batch,), generator=generator),
        torch.randint(CLASSES, (batch,), generator=generator),
    )


class HostForbidden(TorchDispatchMode):
    """Raises at operators that read a value back to Python, give shapes that depend on values, or cross devices."""

    READS = {
        "_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "nonzero_numpy", "masked_select",
        "argwhere", "unique", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount", "lift_fresh",
    }  # fmt: skip

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        boolean_index = name in ("index", "index_put", "index_put_") and any(
            x.dtype == torch.bool for x in args[1] if x is not None
        )
        if name in self.READS or boolean_index or len({x.device for x in tensors}) > 1:
            raise AssertionError(f"{name} makes the host wait")
        self.called.append(name)
        return result


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 1],
        lambda x: torch.tensor(3),
        lambda x: torch.equal(x, x),
        lambda x: x.to("meta"),
    ],
)
def test_the_guard_sees_what_it_should(read):
    x = torch.arange(3)
    with HostForbidden(), pytest.raises(AssertionError, match="makes the host wait"):
        read(x)


@pytest.mark.parametrize("name", DECODERS)
def test_the_loop_reads_nothing_back(name):
    loop, arguments = Loop(name), inputs()
    expected = loop(*arguments)
    with HostForbidden() as guard, torch.inference_mode():
        result = loop(*arguments)
    assert torch.equal(result, expected)
    assert guard.called.count("decode_step") == 4


@pytest.mark.parametrize("name", DECODERS)
def test_the_loop_stays_on_a_gpu(name):
    """On tensors that claim to be on a GPU and hold nothing: no value to read, and no copy from or to the host."""
    loop = Loop(name)
    with FakeTensorMode():
        loop.plan = decode_plan(loop.config, 16, "cuda")
        weights = {key: torch.empty(weight.shape, device="cuda") for key, weight in loop.named_parameters()}
        arguments = tuple(torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in inputs())
        with HostForbidden() as guard:
            result = torch.func.functional_call(loop, weights, arguments)
    assert result.shape == (3, 16) and result.device.type == "cuda"
    assert guard.called.count("decode_step") == 4


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("draw", ["categorical", "greedy", "perturbed"])
def test_a_step_stays_on_a_gpu(draw, guided):
    """The same for the inside of a step as PyTorch does it, of which the loop sees the outside only."""
    with FakeTensorMode():
        tokens, masked, seeds, counts = (torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in inputs())
        logits = torch.empty(3, 16, V + 1, device="cuda")
        other = logits if guided else None
        with HostForbidden() as guard:
            state, settings = State(tokens, masked, counts, seeds), Settings(0, 1.0, 2.0, draw, "prob", 1.0)
            result = decode_step_eager(logits, other, V, state, settings)
    assert [x.device.type for x in result] == ["cuda", "cuda"] and "sort" in guard.called


@pytest.mark.parametrize("name", DECODERS)
def test_the_loop_exports(name):
    loop = Loop(name)
    exported = torch.export.export(loop, inputs())
    steps = 0
    for module in exported.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            steps += sum("decode_step" in str(node.target) for node in module.graph.nodes)
    assert steps == 4
    for seed in range(3):
        assert torch.equal(exported.module()(*inputs(seed)), loop(*inputs(seed)))


@pytest.mark.parametrize("name", ["maskgit", "valeo", "halton"])
def test_the_loop_compiles_whole(name):
    torch._dynamo.reset()
    loop = Loop(name)
    compiled = torch.compile(loop, fullgraph=True, backend="eager")
    for seed in range(2):
        assert torch.equal(compiled(*inputs(seed)), loop(*inputs(seed)))


def test_the_docstring_leads_to_the_kernel():
    root = Path(__file__).resolve().parents[3]
    for name in ("decode_step", "head_sample"):
        paths = re.findall(r"[\w/]+/\w+\.py", loop.__doc__.replace("decode_step", name))
        assert len(paths) == 3 and all((root / path).is_file() for path in paths)
        assert (root / paths[0]).with_name("triton_draw.py").is_file()
