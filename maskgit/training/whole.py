"""A whole model in a given time: `train.py model` trains the tokenizer, makes the tokens, trains the transformer.

OUTPUT/plan.json holds what was decided on the way, so that a start with --resume does the same:

    settings        of the command, and the recipe's tables, none of which --resume must change
    seconds_spent   by all starts so far (of one that was killed outright, only up to the last stage it began)
    stages          of each stage begun: its settings, steps among them, and the pace that these came from
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import torch

from maskgit.config import preset
from maskgit.data import load_dataset
from maskgit.data.arrays import json_bytes
from maskgit.decoding import decoder
from maskgit.files import write_atomically
from maskgit.network.folder import CONFIG_FILE, Model, load_model, save_model
from maskgit.training.checkpoint import list_checkpoints
from maskgit.training.crops import cut_crops
from maskgit.training.engine import Engine, pick_device
from maskgit.training.going_on import keep_apart
from maskgit.training.pace import Pace, measure_pace
from maskgit.training.recipe_file import DEFAULT, Recipe, read_recipe
from maskgit.training.run_file import changed_values, flat, settings_from_json, settings_to_json
from maskgit.training.samples import at_size
from maskgit.training.settings import (
    STAGES,
    LoopConfig,
    ModelTraining,
    TokenizerTraining,
    TokensConfig,
    TrainingError,
    TransformerTraining,
)
from maskgit.training.tokenizer import TokenizerTask, tokenizer_architecture, train_tokenizer
from maskgit.training.tokens import masks_for_holes, open_tokens, tokenizer_at, write_tokens
from maskgit.training.transformer import TransformerTask, make_architecture, train_transformer

# --- what a recipe leaves open ----------------------------------------------------------------------------------------

CPU_BATCHES = {"tokenizer": 16, "transformer": 32}
GPU_BATCHES = {"tokenizer": 64, "transformer": 128}
"""Images per step. A step of the embedded model has a GPU wait for its launches: there, more images cost little."""
GPU_WORKERS = 4
"""Processes that read images where a GPU would wait for them."""
COMPILED_FROM = 600.0
"""Seconds of training on a CPU from which compiling the tokenizer, which takes a minute or two, pays."""

VALIDATIONS = 5  # of a stage
LOG_SECONDS, SAVE_SECONDS = 10, 300  # between two lines of the log, and two checkpoints
LEAST_STEPS = 20  # of a stage, however little time there is

DECIDED = frozenset(
    ("output", "data", "hole_masks", "device", "tokenizer", "tokens", "model", "image_size", "val_fraction", "seed")
    + ("init", "resume", "steps", "log_every", "save_every", "validate_every", "eval_every")
)
"""What no stage's table can say, because it follows from the command's own options, or from the time."""

ConfigT = TypeVar("ConfigT", bound=LoopConfig)


def fit_to_time(config: ConfigT, pace: Pace, seconds: float) -> ConfigT:
    """The settings of a stage with as many steps as there is time for, and its other intervals to match.

    The learning rate comes down at the end of just these steps, after a warm-up of at most a tenth of them.
    """
    steps = max(LEAST_STEPS, int((seconds - VALIDATIONS * pace.validation) / pace.step))
    return dataclasses.replace(
        config,
        steps=steps,
        warmup=min(config.warmup, steps // 10),
        log_every=max(1, round(LOG_SECONDS / pace.step)),
        save_every=max(1, round(SAVE_SECONDS / pace.step)),
        validate_every=-(-steps // VALIDATIONS),
    )


# --- the plan ---------------------------------------------------------------------------------------------------------


class PlannedStage(NamedTuple):
    """A stage that was begun."""

    config: LoopConfig
    pace: Pace


class Plan:
    """OUTPUT/plan.json, and the clock.

    Raises TrainingError: there is one and no --resume, it is of other settings, or it can't be read.
    """

    def __init__(self, config: ModelTraining, recipe: Recipe) -> None:
        self.file = config.output / "plan.json"
        self.settings = {
            name: value for name, value in settings_to_json(config).items() if name not in ("output", "device")
        }
        self.settings |= {name: recipe.tables[name] for name in STAGES}
        self.stages: dict[str, PlannedStage] = {}
        self.goes_on = self.file.exists()
        self._before, self._started = 0.0, monotonic()
        if self.goes_on:
            if not config.resume:
                raise TrainingError(
                    f"{config.output} already holds a run: go on with --resume, or choose another --output"
                )
            self._read()

    @property
    def spent(self) -> float:
        """Seconds since the first start, less those between a start's end and the next one."""
        return self._before + monotonic() - self._started

    def save(self) -> None:
        stages = {
            name: {"settings": settings_to_json(config), "pace": pace._asdict()}
            for name, (config, pace) in self.stages.items()
        }
        here = str(Path.cwd())  # where a relative path among the settings begins
        content = {"settings": self.settings, "folder": here, "seconds_spent": self.spent, "stages": stages}
        write_atomically({self.file: json_bytes(content)})

    def _read(self) -> None:
        try:
            content = json.loads(self.file.read_bytes())
            # Settings of a later release are none of this command; what an older one didn't know has its default.
            default = settings_to_json(ModelTraining()) | {name: read_recipe(DEFAULT).tables[name] for name in STAGES}
            known = {name: value for name, value in default.items() if name in self.settings}
            theirs = flat({name: content["settings"].get(name, value) for name, value in known.items()})
            self._before = float(content["seconds_spent"])
            started = Path(content.get("folder", ""))  # older plans don't say
            for name, stage in content["stages"].items():
                config, _ = settings_from_json(STAGES[name], stage["settings"])
                self.stages[name] = PlannedStage(config, Pace(**{k: float(v) for k, v in stage["pace"].items()}))
        except (OSError, TypeError, ValueError, KeyError, AttributeError, RecursionError, TrainingError) as error:
            raise TrainingError(
                f"{self.file}: can't be read: {type(error).__name__}: {error}; choose another --output"
            ) from error
        changed = changed_values(theirs, flat(self.settings), ["data", "hole_masks"], started)
        if changed:
            raise TrainingError(
                f"{self.file}: this run was started with other settings: {', '.join(changed)}; go on with its own, or "
                "choose another --output"
            )


# --- from start to end ------------------------------------------------------------------------------------------------


def train_model(config: ModelTraining, recipe: Recipe | None = None) -> dict[str, float]:
    """Train a model in about `config.minutes` and write it to `config.output`/model in float16.

    Args:
        recipe: whose tables the stages are trained with; None: the default one.

    Returns:
        The figures of the transformer's last validation.

    Raises:
        TrainingError, DataError, ModelError and ConfigError: what is wrong with the settings or the files.
        Stopped: SIGTERM or SIGINT came while a stage trained; there is a checkpoint of its last step.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError(
            "train.py model: start it without torchrun, for one GPU at most, or run the stages one by one"
        )
    tokenizer = at_size(preset(config.model).tokenizer, config.image_size)  # there may be no such preset or size
    recipe = recipe or read_recipe(DEFAULT)
    check_recipe(recipe, config)
    plan = Plan(config, recipe)
    keep_apart(config)
    masks_for_holes(config, tokenizer)  # now, not when the tokenizer is trained
    _say(f"{config.minutes:g} minutes in all, {_end(60 * config.minutes - plan.spent)}")
    try:
        if config.crops_a_minute:
            config = _cut_crops(config, plan)
        _train_tokenizer(config, recipe, plan)
        _make_tokens(config, recipe, plan)
        figures = _train_transformer(config, recipe, plan)
    finally:
        if plan.stages:
            plan.save()
    _export(config, plan, figures)
    return figures


def check_recipe(recipe: Recipe, config: ModelTraining) -> None:
    """Raise a TrainingError for a recipe that isn't for this command, decides on what the command decides on, or trains
    without the holes that the command has masks for."""
    recipe.settings("model")
    for name in STAGES:
        if refused := sorted(recipe.tables[name].keys() & DECIDED):
            raise TrainingError(
                f"--recipe {recipe.name}: [{name}] {refused[0]}: `train.py model` decides on that; leave it out, or "
                "run the stages one by one"
            )
    if config.hole_masks is not None and not recipe.settings("transformer").hole_share:
        raise TrainingError(
            f"--hole-masks {config.hole_masks}: --recipe {recipe.name} trains without holes: it needs a hole_share "
            "above 0 in [transformer]; own-masks has one"
        )


def _cut_crops(config: ModelTraining, plan: Plan) -> ModelTraining:
    """Settings to go on with: the same, of crops of the images."""
    folder = config.output / "crops"
    if folder.exists() and not plan.goes_on:
        raise TrainingError(f"{folder}: is there already: choose another --output")
    if not folder.exists():
        count = int(config.crops_a_minute * config.minutes)
        _say(f"cutting {count:,} crops of the images")
        size = at_size(preset(config.model).tokenizer, config.image_size).image_size
        images = [load_dataset(config.data, size, split, config.val_fraction) for split in ("train", "val")]
        plan.save()
        cut_crops(images, folder, count, config.val_fraction, config.seed)
    return dataclasses.replace(config, data=str(folder))


def _train_tokenizer(config: ModelTraining, recipe: Recipe, plan: Plan) -> None:
    if "tokenizer" not in plan.stages:
        _say("timing steps of the tokenizer")
        stage = stage_settings(config, recipe, "tokenizer", TokenizerTraining)
        engine = Engine(stage)
        pace = measure_pace(TokenizerTask(stage, tokenizer_architecture(stage), engine), stage, engine)
        seconds = 60 * config.minutes * config.tokenizer_share - plan.spent
        plan.stages["tokenizer"] = PlannedStage(fit_to_time(engine.config, pace, seconds), pace)
    if not (config.output / "tokenizer" / "model" / CONFIG_FILE).exists():
        train_tokenizer(_begin(config, plan, "stage 1 of 3, tokenizer", TokenizerTraining))


def _make_tokens(config: ModelTraining, recipe: Recipe, plan: Plan) -> None:
    plan.save()
    if "transformer" in plan.stages:
        return
    _say("stage 2 of 3, tokens: of all images, by a process for each core")
    write_tokens(tokens_settings(config, recipe))


def _train_transformer(config: ModelTraining, recipe: Recipe, plan: Plan) -> dict[str, float]:
    if "transformer" not in plan.stages:
        _say("timing steps of the transformer")
        stage = stage_settings(config, recipe, "transformer", TransformerTraining)
        engine = Engine(stage)
        pace = _transformer_pace(stage, engine)
        seconds = 60 * config.minutes - plan.spent
        plan.stages["transformer"] = PlannedStage(fit_to_time(engine.config, pace, seconds), pace)
    return train_transformer(_begin(config, plan, "stage 3 of 3, transformer", TransformerTraining))


def _transformer_pace(stage: TransformerTraining, engine: Engine) -> Pace:
    assert stage.tokenizer is not None and stage.tokens is not None
    tokenizer = tokenizer_at(stage.tokenizer, None).to(engine.device)
    tokens = open_tokens(stage.tokens, tokenizer, stage.seed, stage.hole_share)
    architecture = make_architecture(stage, tokenizer.config)
    return measure_pace(TransformerTask(stage, architecture, tokenizer, engine, tokens), stage, engine)


def tokens_settings(config: ModelTraining, recipe: Recipe) -> TokensConfig:
    """Of what is between the stages."""
    stage = stage_settings(config, recipe, "transformer", TransformerTraining)
    shared = {field.name for field in dataclasses.fields(TokensConfig)} & {f.name for f in dataclasses.fields(stage)}
    values = {name: getattr(stage, name) for name in shared}
    holes = stage.holes if stage.hole_share else 0
    return TokensConfig(**values | {"output": config.output / "tokens", "holes": holes})


def stage_settings(config: ModelTraining, recipe: Recipe, name: str, kind: type[ConfigT]) -> ConfigT:
    """Of a stage, but for its steps: what suits the device, then what the recipe says, then the command."""
    device = pick_device(config.device)
    on_gpu = device.type == "cuda"
    suitable = {
        "batch_size": (GPU_BATCHES if on_gpu else CPU_BATCHES)[name],
        "workers": GPU_WORKERS if on_gpu else 0,
    }
    if name == "tokenizer":
        compiler = shutil.which(os.environ.get("CXX", "g++"))  # as TorchInductor chooses it
        seconds = 60 * config.minutes * config.tokenizer_share
        suitable["compile"] = device.type == "cpu" and compiler is not None and seconds >= COMPILED_FROM
    stage, _ = settings_from_json(kind, suitable | recipe.tables[name])
    chosen = {"tokenizer": config.tokenizer_batch_size, "transformer": config.batch_size}[name]
    told = {setting: getattr(config, setting) for setting in ("model", "val_fraction", "seed")}
    told |= {} if chosen is None else {"batch_size": chosen}
    if name == "tokenizer" and config.image_size is not None:  # from which the transformer has it
        told["image_size"] = config.image_size
    return dataclasses.replace(stage, **_places(config, name), **told)


def _places(config: ModelTraining, name: str) -> dict[str, Any]:
    """What a stage is told that another start may call otherwise."""
    places = {"output": config.output / name, "data": config.data, "device": config.device}
    if name == "transformer":
        places |= {"tokens": config.output / "tokens", "tokenizer": config.output / "tokenizer" / "model"}
        places |= {"hole_masks": config.hole_masks}
    return places


def _begin(config: ModelTraining, plan: Plan, title: str, kind: type[ConfigT]) -> ConfigT:
    """The settings that a stage starts or goes on with; says how long it will take."""
    plan.save()
    name = title.split()[-1]
    planned, pace = plan.stages[name]
    assert isinstance(planned, kind)
    # A plan that was just made meets no run there that it could go on with.
    stage = dataclasses.replace(planned, **_places(config, name), resume=plan.goes_on)
    done = max((step for step, _ in list_checkpoints(stage.output / "checkpoints")), default=0)
    left = stage.steps - done
    seconds = left * pace.step + -(-left // stage.validate_every) * pace.validation
    going_on = f", of which {done:,} are done" if done else ""
    _say(
        f"{title}: {stage.steps:,} steps of {stage.batch_size} images{going_on}, {pace.step:.3g} s each and "
        f"{pace.validation:.3g} s a validation: {seconds / 60:.1f} minutes, {_end(seconds)}"
    )
    return stage


def _export(config: ModelTraining, plan: Plan, figures: dict[str, float]) -> None:
    """Put the model together: float16, decoding, and how it came about."""
    trained = load_model(config.output / "transformer" / "model")
    of_tokenizer = json.loads((config.output / "tokenizer" / "validation.json").read_text())
    metadata = {
        "validation": figures,
        "tokenizer validation": {name: value for name, value in of_tokenizer.items() if name != "step"},
        "steps": {name: stage.config.steps for name, stage in plan.stages.items()},
        "minutes": plan.spent / 60,
    }
    folder = config.output / "model"
    names, decoding = trained.class_names, decoder(config.decoder)
    save_model(folder, Model(trained.tokenizer, trained.transformer, names, metadata, decoding), torch.float16)
    size = sum(path.stat().st_size for path in folder.iterdir())
    _say(f"the model is in {folder}, {size / 1e6:.1f} MB, after {plan.spent / 60:.1f} minutes of {config.minutes:g}")


def _end(seconds: float) -> str:
    """When something will be through that takes so long from now."""
    end = datetime.now() + timedelta(seconds=max(0.0, seconds))
    return f"until {end:%a %H:%M}"


def _say(text: str) -> None:
    print(text, flush=True)
