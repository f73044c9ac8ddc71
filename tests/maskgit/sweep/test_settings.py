"""Which settings a sweep tries."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from tiny_sweep import OWN

from maskgit.decoding import DECODERS
from maskgit.decoding.schedules import SCHEDULES
from maskgit.sweep.settings import FEATURES_WORK, STUDIES, Options, settings


def test_settings_are_the_product_on_top_of_the_presets() -> None:
    options = Options(decoders=("maskgit", "lab-greedy", "model"), steps=(2, 5), temperatures=(0.0, 3.0))
    found = [(setting.decoder, setting.config) for setting in settings(options, OWN)]
    wanted = [
        (name, replace(config, steps=steps, choice_temperature=temperature))
        for name, config in (("maskgit", DECODERS["maskgit"]), ("lab-greedy", DECODERS["lab-greedy"]), ("model", OWN))
        for steps in (2, 5)
        for temperature in (0.0, 3.0)
    ]
    assert found == wanted


def test_every_axis_reaches_the_decoder() -> None:
    options = Options(
        decoders=("valeo",),
        steps=(9,),
        schedules=("cubic",),
        temperatures=(1.5,),
        softmax_temperatures=(0.8,),
        guidance=(2.5,),
        guidance_intervals=("0.25:1",),
        remask=(0.3,),
        reuse=(2,),
    )
    (setting,) = settings(options, OWN)
    changed = dict(schedule="cubic", choice_temperature=1.5, softmax_temperature=0.8, guidance_scale=2.5)
    interval = dict(guidance_from=0.25, guidance_to=1.0)
    assert setting.config == replace(DECODERS["valeo"], steps=9, remask=0.3, reuse=2, **changed, **interval)
    named = {"decoder": "valeo", "steps": 9, "remask": 0.3, "reuse": 2, "guidance_interval": "0.25:1"}
    assert setting.values == named | changed
    assert setting.work == 9 + 6 + FEATURES_WORK  # guided from the fourth step on, t = 3


def test_a_setting_comes_once_and_without_classes_there_is_no_guidance() -> None:
    assert len(settings(Options(steps=(4, 4, 8), schedules=("cosine", "cosine")), OWN)) == 2
    (alone,) = settings(Options(decoders=("valeo",)), OWN)
    assert DECODERS["valeo"].guidance_scale > 0 == alone.config.guidance_scale
    (told,) = settings(Options(decoders=("valeo",), classes=True), OWN)
    assert told.config == DECODERS["valeo"]


def test_whole_pictures_are_made_of_told_classes_and_reported_apart() -> None:
    assert Options(generate=True).tells_classes and not Options().tells_classes
    assert Options(study="steps", generate=True).name == "steps-generate" != Options(study="steps").name
    assert Options(generate=True).name == "grid-generate"


@pytest.mark.parametrize("text", ["1", "0:1:2", "a:1", "0.5", "", ":"])
def test_what_is_no_interval(text: str) -> None:
    with pytest.raises(ValueError, match=f"guidance interval {text!r} must be FROM:TO, such as 0.5:1"):
        settings(Options(guidance_intervals=(text,)), OWN)


def test_intervals_without_guidance() -> None:
    intervals = ("0:1", "0.5:1")
    for options in (Options(guidance_intervals=intervals), Options(guidance_intervals=intervals, decoders=("valeo",))):
        with pytest.raises(ValueError, match="--guidance-intervals: nothing is guided; give --guidance too"):
            settings(options, OWN)
    told = Options(guidance_intervals=intervals, decoders=("valeo",), classes=True)
    assert [setting.config.passes for setting in settings(told, OWN)] == [15, 12]  # its ramp begins with 0
    assert settings(Options(guidance_intervals=intervals, decoders=("model",)), OWN)  # it may guide: only it knows


@pytest.mark.parametrize("study", STUDIES)
def test_studies(study: Any) -> None:
    found = settings(Options(study=study), OWN)
    assert len(found) == math.prod(len(values) for values in STUDIES[study].values()) > 4
    assert Options(study=study).tells_classes == (study == "guidance")
    # An axis on the command line takes the place of the study's.
    assert {setting.config.steps for setting in settings(Options(study=study, steps=(5,)), OWN)} == {5}


def test_the_studies_cover_what_there_is() -> None:
    assert {setting.config.schedule for setting in settings(Options(study="schedules"), OWN)} == set(SCHEDULES)
    assert {setting.decoder for setting in settings(Options(study="decoders"), OWN)} == {*DECODERS, "model"}
