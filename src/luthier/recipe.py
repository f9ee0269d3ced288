"""A recipe: how a task is trained, every technique a field.

The settings of one optimiser or schedule live with that part; dotted paths such as `schedule.gamma`
or `model.width` reach them from the command line, from patches and from search spaces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_serializer, model_validator

from luthier.data.augmentation import AugmentationChoice
from luthier.errors import LuthierError, RecordError, unknown
from luthier.files import from_json, from_stored, to_json, to_stored, write_atomic
from luthier.parts import Frozen, Part, callables_given
from luthier.training.averaging import AveragingChoice
from luthier.training.choices import ActivationName, InitName, NormName
from luthier.training.optimizers import AdamW, OptimizerChoice
from luthier.training.schedules import BatchGrowthChoice, Constant, ScheduleChoice
from luthier.training.stopping import EarlyStoppingChoice

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
_NOT_IDENTITY = {"seed", "device", "compile"}


def _as_tuple(value: Any) -> Any:
    """One augmentation stands for a tuple of one; None for none."""
    return () if value is None else value if isinstance(value, (list, tuple)) else (value,)


class Recipe(Frozen):
    """How to train: frozen, validated, JSON round trip. None leaves the model or torch as it is.

    >>> recipe = Recipe(optimizer="sgd", lr=0.1, schedule="step")
    >>> recipe.replace({"schedule.gamma": 0.5}).schedule
    Step(step_size=None, gamma=0.5, unit='epoch')

    Raises:
        LuthierError: an unknown field (close matches are named) or a value outside its range.
    """

    # optimiser
    optimizer: OptimizerChoice = Field(AdamW(), description="update rule; its own settings: --optimizer.betas ...")
    lr: Positive = Field(1e-3, description="(peak) learning rate")
    weight_decay: NonNegative = Field(0.0, description="weight decay; biases and norms exempt")
    decoupled: bool | None = Field(None, description="decoupled decay (AdamW's) or L2; none: the optimiser's own way")
    decay_norms_and_biases: bool = Field(False, description="decay biases and norm weights too")
    l1: NonNegative = Field(0.0, description="L1 penalty on the decayed weights")
    # schedule
    schedule: ScheduleChoice = Field(Constant(), description="learning-rate schedule over the whole training")
    warmup_frac: Fraction = Field(0.0, description="share of the steps spent ramping the lr up, before the schedule")
    batch_growth: BatchGrowthChoice | None = Field(None, description="grow the batch size during training")
    # regularisation
    dropout: Fraction | None = Field(None, description="dropout probability of hidden units")
    label_smoothing: Fraction = Field(0.0, description="label smoothing of the cross entropy")
    mixup: NonNegative = Field(0.0, description="mixup alpha; 0: off")
    cutmix: NonNegative = Field(0.0, description="cutmix alpha; 0: off")
    augment: Annotated[tuple[AugmentationChoice, ...], BeforeValidator(_as_tuple)] = Field(
        (), description="augmentations, in order: flip,crop"
    )
    early_stopping: EarlyStoppingChoice | None = Field(
        None, description="stop after this many evaluations without gain"
    )
    clip_norm: Positive | None = Field(None, description="clip the gradient's global norm")
    clip_value: Positive | None = Field(None, description="clip each gradient entry")
    averaging: AveragingChoice | None = Field(None, description="average the weights: ema or swa")
    # network
    norm: NormName | None = Field(None, description="normalisation of hidden layers")
    activation: ActivationName | None = Field(None, description="activation of hidden layers")
    init: InitName | None = Field(None, description="initialisation of the weights")
    zero_last: bool = Field(False, description="start with zero weights in the last layer")
    model: dict[str, Any] = Field({}, description="keywords of the model builder: --model.width 256 ...")
    # running
    epochs: int = Field(10, ge=1, description="passes over the training data")
    batch_size: int = Field(128, ge=1, description="examples per optimizer step")
    accumulate: int = Field(1, ge=1, description="micro-batches that one batch is split into, to save memory")
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32", description="autocast precision")
    memory_format: Literal["contiguous", "channels_last"] = Field("contiguous", description="layout of images")
    compile: bool = Field(False, description="torch.compile the model")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights, data order, dropout and augmentation")
    deterministic: bool = Field(False, description="deterministic kernels only; for tune, decisions too")

    @field_serializer("model", when_used="json")
    def _stored(self, model: dict[str, Any]) -> dict[str, Any]:
        """A builder may tell tuples from lists."""
        stored: dict[str, Any] = to_stored(model)
        return stored

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.accumulate > self.batch_size:
            raise LuthierError(
                f"accumulate={self.accumulate} splits a batch into more parts than it has examples "
                f"(batch_size={self.batch_size}): lower accumulate or raise batch_size"
            )
        return self

    def key(self) -> str:
        """Sixteen hex digits that identify the recipe without seed, device and compile."""
        content = self.model_dump(mode="json", exclude=_NOT_IDENTITY)
        return hashlib.sha256(to_json(dict(sorted(content.items()))).encode()).hexdigest()[:16]

    def value(self, path: str) -> Any:
        """The value at a dotted path; a part's plain path gives its name.

        >>> Recipe(schedule="step").value("schedule"), Recipe(schedule="step").value("schedule.gamma")
        ('step', 0.1)

        Raises:
            LuthierError: there is no such field, or the present part has no such setting.
        """
        field, _, setting = path.partition(".")
        if field not in Recipe.model_fields:
            raise unknown("recipe field", field, Recipe.model_fields)
        value = getattr(self, field)
        if not setting:
            return value.name if isinstance(value, Part) else value
        if field == "model":
            return value.get(setting)
        if not isinstance(value, Part):
            raise LuthierError(f"recipe field {path!r}: {field} is {value!r} and has no settings")
        settings = type(value).model_fields
        if setting not in settings:
            raise unknown(f"setting of {field} {value.name!r}", setting, set(settings) - {"name"})
        return getattr(value, setting)

    def replace(self, values: Mapping[str, Any]) -> Recipe:
        """A new recipe with the values at these dotted paths; whole fields are set before their settings.

        Raises:
            LuthierError: as for construction, or a setting that the (new) part does not have.
        """
        recipe = self
        for path in sorted(values, key=lambda path: path.count(".")):
            recipe = recipe._with(path, values[path])
        return recipe

    def _with(self, path: str, value: Any) -> Recipe:
        field, _, setting = path.partition(".")
        fields = {name: getattr(self, name) for name in Recipe.model_fields}
        if field == "model" and setting:
            fields["model"] = {**self.model, setting: value}
        elif setting:
            self.value(path)  # raises when there is no such setting
            part = getattr(self, field)
            fields[field] = type(part)(**{**dict(part), setting: value})
        else:
            fields[field] = value
        return Recipe(**fields)

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """Dotted paths whose values differ, with (mine, other's); a missing setting counts as None."""
        mine, others = self.flat(), other.flat()
        paths = dict.fromkeys([*mine, *others])
        return {path: (mine.get(path), others.get(path)) for path in paths if mine.get(path) != others.get(path)}

    def flat(self, brief: bool = False) -> dict[str, Any]:
        """All values by dotted path; a part appears as name and settings (brief: those not at their default)."""
        values: dict[str, Any] = {}
        for field in Recipe.model_fields:
            value = getattr(self, field)
            if isinstance(value, Part):
                values[field] = value.name
                values.update({f"{field}.{name}": item for name, item in value.settings(brief).items()})
            elif field == "model":
                values.update({f"model.{name}": item for name, item in value.items()})
            else:
                values[field] = value
        return values

    def to_json(self) -> str:
        """The recipe as JSON text."""
        return to_json(self.model_dump(mode="json"), indent=2)

    @classmethod
    def from_json(cls, text: str, callables: Mapping[str, Callable[..., Any]] | None = None) -> Recipe:
        """A recipe from JSON text; callables that it names are given again by name.

        Raises:
            LuthierError: unknown fields, values out of range, a callable with another source.
        """
        try:
            fields = from_json(text)
        except ValueError as error:
            raise LuthierError(f"expected a recipe in JSON, got {text[:60]!r}: {error}") from None
        if not isinstance(fields, dict):
            raise LuthierError(f"expected a recipe as a JSON object, got {text[:60]!r}")
        if "model" in fields:
            fields["model"] = from_stored(fields["model"])
        with callables_given(callables or {}):
            return cls(**fields)

    def save(self, path: str | Path) -> None:
        """Write the recipe as JSON, atomically."""
        write_atomic(Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path, callables: Mapping[str, Callable[..., Any]] | None = None) -> Recipe:
        """Read a recipe from JSON; callables that it names are given again by name."""
        try:
            text = Path(path).read_text()
        except OSError as error:
            raise RecordError(f"the recipe {path} cannot be read: {error.strerror}") from None
        return cls.from_json(text, callables)
