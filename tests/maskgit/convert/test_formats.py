"""Telling systems apart by the names of their tensors."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from maskgit.convert.formats import find_parts
from maskgit.convert.reading import ConvertError

Tensors = dict[str, Tensor]


def below(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.module._orig_mod."])
def test_names_below_a_prefix(originals: ModuleType, prefix: str) -> None:
    for table in (originals.TOKENIZERS, originals.TRANSFORMERS):
        for make in table.values():
            tensors = make().tensors
            ((kind, _),) = find_parts(tensors)
            ((again, weights),) = find_parts(below(prefix, tensors) | {"optimizer.state.0": torch.ones(1)})
            assert again is kind
            assert len(weights.names()) == len(tensors) + (not prefix)


def test_all_systems_differ(originals: ModuleType) -> None:
    tables = (originals.TOKENIZERS, originals.TRANSFORMERS)
    kinds = {find_parts(make().tensors)[0][0] for table in tables for make in table.values()}
    assert len(kinds) == 9


def test_both_parts_in_one_file(originals: ModuleType) -> None:
    tensors = below("vqgan.", originals.lab_vqgan().tensors) | below(
        "transformer.", originals.lab_transformer().tensors
    )
    assert [type(kind).__name__ for kind, _ in find_parts(tensors)] == ["TokenizerFormat", "TransformerFormat"]


def test_two_of_a_kind(originals: ModuleType) -> None:
    tensors = originals.taming().tensors
    with pytest.raises(ConvertError, match=r"several sets of weights of one kind \(ema\., model\.\)"):
        find_parts(below("model.", tensors) | below("ema.", tensors))


def test_names_that_mean_the_same(originals: ModuleType) -> None:
    tensors = originals.TOKENIZERS["diffusers"]().tensors
    twin = {"encoder.mid_block.attentions.0.query.weight": tensors["encoder.mid_block.attentions.0.to_q.weight"]}
    with pytest.raises(ConvertError, match="mean the same in diffusers"):
        find_parts(tensors | twin)


def test_unknown_system() -> None:
    tensors = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3))).state_dict()
    with pytest.raises(
        ConvertError, match="course lab, .*its 6 tensors start with 0.bias, 0.weight, 1.bias and 3 more"
    ):
        find_parts(tensors)
    with pytest.raises(ConvertError, match="it holds no tensors"):
        find_parts({})
