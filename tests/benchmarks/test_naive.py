"""What ours is compared with computes the same thing."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.checks import check_logits
from benchmarks.harness import WrongResultError
from benchmarks.loops import LabProgram, check_program, naive_decode
from benchmarks.models import make_models, make_transformer, pictures_with_holes
from benchmarks.naive_transformer import NaiveTransformer, forward_flops
from benchmarks.sampling import CHAINS, Job, check_chain, check_ours, make_inputs, run_step
from benchmarks.setting import Setting
from maskgit.config import PRESETS, TransformerConfig
from maskgit.network.transformer import Transformer
from maskgit_kernels.attention.eager import written_out

CPU = torch.device("cpu")
QUICK = Setting(CPU, quick=True)
JOB = Job(3, 25, 30, torch.float32, 0.6)


def randomize(transformer: Transformer) -> Transformer:
    """Weights that make a difference, biases included."""
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return transformer


def test_naive_transformer_has_pytorchs_own_dropout() -> None:
    config = TransformerConfig(codebook_size=8, num_tokens=4, dim=16, depth=2, heads=1, mlp_dim=16, input_mlp=True)
    dropouts = [module for module in NaiveTransformer(Transformer(config)).modules() if isinstance(module, nn.Dropout)]
    assert len(dropouts) == 6 and all(type(module) is nn.Dropout for module in dropouts)


@pytest.mark.parametrize("name", PRESETS)
def test_naive_transformer_computes_the_same(name: str) -> None:
    ours = randomize(make_transformer(name, CPU, quick=True))
    naive = NaiveTransformer(ours).eval()
    check_logits(ours, naive)
    tokens = torch.randint(33, (3, 16))
    labels = torch.tensor([0, 3, 10]) if ours.config.num_classes else None
    logits = naive(tokens, labels)
    assert logits.shape == (3, 16, 33)
    torch.testing.assert_close(logits[..., :32], ours(tokens, labels), rtol=1e-4, atol=1e-4)
    assert (logits[..., 32] < -1000).all()  # the mask token is never drawn


def test_another_transformer_is_noticed() -> None:
    ours = make_transformer("lab", CPU, quick=True)
    naive = NaiveTransformer(ours).eval()
    with torch.no_grad():
        ours.blocks[1].mlp[0].bias.add_(0.1)
    with pytest.raises(WrongResultError, match="logits differ"):
        check_logits(ours, naive)


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("input_mlp", [False, True])
def test_flops_are_those_of_the_products(classes: int, input_mlp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch counts nothing inside of an operator.
    monkeypatch.setattr(importlib.import_module("maskgit_kernels.attention.op"), "in_pieces", written_out)
    config = TransformerConfig(
        codebook_size=24, num_tokens=9, dim=32, depth=3, heads=2, mlp_dim=48, num_classes=classes, input_mlp=input_mlp
    )
    transformer = Transformer(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        transformer(torch.zeros(2, 9, dtype=torch.int64))
    assert counter.get_total_flops() == forward_flops(config, 2)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("chain", CHAINS)
def test_chains_are_decoding_steps(chain: str, guided: bool) -> None:
    job = dataclasses.replace(JOB, guided=guided)
    check_chain(CHAINS[chain], make_inputs(job, QUICK))


@pytest.mark.parametrize("chain", CHAINS)
def test_chains_draw_from_the_distribution(chain: str) -> None:
    logits = torch.randn(1, 1, 6)
    rows = 20_000
    tokens, _ = CHAINS[chain](
        logits.expand(1, rows, 6),
        torch.zeros(1, rows, dtype=torch.int64),
        torch.ones(1, rows, dtype=torch.bool),
        torch.zeros(1, dtype=torch.int64),
    )
    shares = torch.bincount(tokens[0], minlength=6) / rows
    expected = logits[0, 0].softmax(0)
    assert ((shares - expected).abs() < 5 * (expected * (1 - expected) / rows).sqrt() + 1e-4).all()


def test_wrong_steps_are_noticed() -> None:
    inputs = make_inputs(JOB, QUICK)
    right = CHAINS["eager_chain"]

    def forgets_known(*args: torch.Tensor, **options: float) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, masked = right(*args, **options)
        return (tokens + 1) % JOB.codes, masked

    def keeps_one_more(*args: torch.Tensor, **options: float) -> tuple[torch.Tensor, torch.Tensor]:
        logits, tokens, masked, keep = args
        return right(logits, tokens, masked, keep + 1, **options)

    def draws_anything(*args: torch.Tensor, **options: float) -> tuple[torch.Tensor, torch.Tensor]:
        logits, *rest = args
        return right(torch.zeros_like(logits), *rest, **options)

    for wrong, message in (
        (forgets_known, "known token"),
        (keeps_one_more, "wrong number"),
        (draws_anything, "no probability"),
    ):
        with pytest.raises(WrongResultError, match=message):
            check_chain(wrong, inputs)
    with pytest.raises(WrongResultError, match="reference's"):  # other noise than ours
        check_ours(lambda: run_step(right, inputs), inputs)


def test_lab_program_fills_holes_with_the_same_networks() -> None:
    model = make_models("lab", CPU, quick=True)["float32"]
    assert isinstance(model.transformer, Transformer)
    program = LabProgram(model.tokenizer, model.transformer)
    check_program(program, model)
    images, holes = pictures_with_holes(3, 16)
    assert [picture.size for picture in program(images, holes)] == [(16, 16)] * 3
    with torch.no_grad():
        program.tokenizer.vqgan.decoder[0].weight.mul_(1.5)
    with pytest.raises(WrongResultError, match="decoded pixels"):
        check_program(program, model)


@pytest.mark.parametrize("guidance_scale", [0.0, 2.0])
def test_naive_loop_ends_with_codes(guidance_scale: float) -> None:
    naive = NaiveTransformer(randomize(make_transformer("maskgit-256", CPU, quick=True))).eval()
    tokens = naive_decode(naive, torch.tensor([1, 2, 3]), steps=4, guidance_scale=guidance_scale)
    assert tokens.shape == (3, 16) and tokens.min() >= 0 and tokens.max() < 32
