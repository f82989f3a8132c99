"""The sections of a recipe: frozen, strict, and, as far as possible, the very values that the called functions take.

So their meaning is documented there, once. `tas init` writes a commented recipe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from tas.distillation import LOSSES, inversion
from tas.errors import BadRecipe
from tas.latency.target import Target
from tas.recipe.inputs import parse_inputs
from tas.recipe.searches import SEARCHES, Differentiable, Search, SearchOrName
from tas.tracing import Rules
from tas.training import TrainingPlan

_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "%": 0.01}


def amount(value: Any) -> Any:
    """ "22.44M" -> 22440000, "50%" -> 0.5; numbers stay, other text is left for the type check to refuse."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9_.]+)\s*([kMG%]?)\s*", value)
    if match is None:
        raise ValueError("must be a number such as 0.5, 50%, 22.44M, 350k or 22440000")
    number = float(match[1]) * _UNITS[match[2]]
    if match[2] == "%" and number > 1:
        raise ValueError("must be at most 100% of the original")
    return number if match[2] == "%" or number <= 1 else round(number)


Amount = Annotated[int | float, BeforeValidator(amount)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Network(Section):
    """The original. shape: of its input, with the batch dimension; by default the data's. inputs: in place of `shape`,
    where there are several, or some that are no real numbers; each as `--shape` takes them, "input_ids=1,16:int64".
    supernet: import path of a search network with rules of its own, called with the original; without one, any network
    is traced."""

    name: str
    kwargs: dict[str, Any] = {}
    weights: str | None = None
    shape: tuple[int, ...] | None = None
    inputs: tuple[str, ...] = ()
    supernet: str | None = None

    @field_validator("shape", mode="before")
    @classmethod
    def _of_one_input(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            raise BadRecipe(
                "network.shape is the sizes of one input, such as [1, 3, 224, 224], got a mapping: inputs with names "
                'are network.inputs, such as ["pixels=1,3,224,224", "ids=1,16:int64"]'
            )
        return tuple(value) if isinstance(value, list) else value  # strict, it takes no list from here

    @model_validator(mode="after")
    def _described_once(self) -> Network:
        parse_inputs(self.inputs)
        if self.shape is not None and self.inputs:
            raise BadRecipe("network.shape is for one input of real numbers, network.inputs for others: leave one out")
        return self

    @property
    def described(self) -> tuple[str, ...]:
        """The inputs as `--shape` takes them; none where the data's are used."""
        return self.inputs if self.shape is None else (",".join(map(str, self.shape)),)


class DataSource(Section):
    """The arguments of `tas.data.load`."""

    name: str
    root: str | None = None
    download: bool = False
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    padding: int = 0
    flip: bool = False
    cutout: int = 0
    classes: int | None = None
    test_fraction: float = 0.2
    workers: int = 0
    train: bool = True
    kwargs: dict[str, Any] = {}


class ObjectiveNames(Section):
    """Loss and metric by import path; without them cross-entropy and top-1 in percent."""

    loss: str | None = None
    metric: str | None = None
    name: str | None = None
    direction: Literal["max", "min"] = "max"


class Limits(Section):
    """Upper limits, each a ratio of the original ("50%", 0.5) or absolute ("22.44M"); `slack` as in `tas.Budget`.
    latency: a ratio, latency_ms: milliseconds, as the table of the section `latency` has them."""

    macs: Amount | None = None
    params: Amount | None = None
    latency: Annotated[Amount, Field(le=1)] | None = None
    latency_ms: float | None = Field(default=None, gt=0)
    slack: float = Field(default=0.05, ge=0, lt=1)


def _limits(value: Any) -> Any:
    """A bare part or amount limits the MACs."""
    return {"macs": value} if isinstance(value, str | int | float) else value


def _form(value: Any) -> str:
    return "several" if isinstance(value, list | tuple) else "single"


LimitsOrAmount = Annotated[Limits, BeforeValidator(_limits)]


Budgets = Annotated[
    Annotated[LimitsOrAmount, Tag("single")]
    | Annotated[tuple[LimitsOrAmount, ...], Field(min_length=1), Tag("several")],
    Discriminator(_form),
]


FORMS = ("single", "several")


@dataclass(frozen=True)
class Synthesize(inversion.Settings):
    __doc__ = f"""Images made from the original's batch-norm statistics (DeepInversion). Where this section stands, they
    take the place of the training images once the original is trained: in the search, its scores, the recalibration of
    batch norms and distillation. Test images judge, as always.

    real_images: so many real training images (a stratified sample) beside them. against: folder of a student, such as
    runs/first/student; images on which it differs from the original are sought too (Adaptive DeepInversion).

    {inversion.Settings.__doc__}"""

    section = "synthesize."
    real_images: int = 0
    against: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.real_images < 0:
            raise BadRecipe(f"synthesize.real_images must be at least 0, got {self.real_images}")


Start = Literal["inherit", "merge", "rewind", "scratch"]


class Initialize(Section):
    """How a student gets its weights: the original's most important channels ("inherit"), those with the removed ones
    merged into the layers that read them ("merge"), the same channels of an early `checkpoint` of the original, a file
    like network.weights ("rewind"), or fresh ones ("scratch").

    "auto" decides between those of `among`: uniform widths at the first budget are trained from each for `epochs` on
    one half of the training images and judged on (search.images of) the other, and all students get what was best.
    Short runs favour what starts high, so fresh weights are no fair candidate. recalibrate: batch-norm statistics of a
    student are taken anew, on search.calibration_images training images, before it is trained."""

    weights: Literal["inherit", "merge", "rewind", "scratch", "auto"] = "merge"
    importance: Literal["l1", "l1_first", "l2", "bn_scale", "random"] = "l1"
    checkpoint: str | None = None
    recalibrate: bool = False
    among: tuple[Start, ...] = Field(default=("inherit", "merge"), min_length=2)
    epochs: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _agree(self) -> Initialize:
        if len(set(self.among)) < len(self.among):
            raise BadRecipe(f"initialize.among names each start once, got {list(self.among)}")
        rewinds = self.weights == "rewind" or (self.weights == "auto" and "rewind" in self.among)
        if rewinds and self.checkpoint is None:
            raise BadRecipe("weights are rewound to an early original: name its file as initialize.checkpoint")
        if self.checkpoint is not None and not rewinds:
            raise BadRecipe("initialize.checkpoint is what weights are rewound to: set initialize.weights to rewind")
        return self


class Choose(Section):
    """Which of a search's candidates becomes the student. Quick scores say little across depths, so the `finalists`
    best by score are trained for `epochs` on one half of the training images, with the start and the teachers of a
    student, and the best on (10,000 of) the other half is chosen. 0 or 1: the quick score decides."""

    finalists: int = Field(default=4, ge=0)
    epochs: int = Field(default=1, ge=1)


@dataclass(frozen=True)
class Teacher:
    """One of those that teach: a network by import path, `kwargs` and `weights`, as in the section `network`; the name
    "original" stands for the original, beside others."""

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None

    def __post_init__(self) -> None:
        if (self.name == "original") == (self.weights is not None):
            raise BadRecipe(
                f"distill.teacher needs name and weights, or the name original alone; got the name {self.name!r} "
                + ("without weights" if self.weights is None else f"with the weights {self.weights!r}")
            )


def _several(value: Any) -> Any:
    """One teacher is a list of one."""
    return (value,) if isinstance(value, Mapping) else tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class OriginalPlan(TrainingPlan):
    __doc__ = f"How the original is trained, where it comes without weights. {TrainingPlan.__doc__}"

    section = "original."


@dataclass(frozen=True)
class StudentPlan(TrainingPlan):
    """How students are trained, but for what draws them to the original."""

    section = "distill."


@dataclass(frozen=True)
class Distillation(StudentPlan):
    """A training plan, and the loss (1 - alpha) CE + alpha x agreement with the teacher + tap_weight x taps.

    loss: "kd" T^2 KL (TAS: alpha 0.9, T 4), "dkd" decoupled (alpha 0.5), "dist" correlations (alpha 0.5); see
    `tas.distillation.losses`; or the import path of a function of the outputs of student and teacher that gives the
    mean over the batch, such as torch.nn.functional:mse_loss for a regression. temperature: the T. teacher: another
    network than the original, or a list of them, which teach by the mean of their probabilities at T. teacher_dtype:
    what teachers run in, by default `dtype`. taps: modules of the original, by name or glob ("layer*"), whose outputs
    the student's are drawn to by a normalised squared error on the channels that both have; tap_weight: of their
    mean."""

    loss: str = "kd"
    alpha: float = 0.9
    temperature: float = 4.0
    teacher: Annotated[tuple[Teacher, ...], BeforeValidator(_several)] = ()
    teacher_dtype: Literal["float32", "bfloat16"] | None = None
    taps: tuple[str, ...] = ()
    tap_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in LOSSES and ":" not in self.loss:
            raise BadRecipe(
                f"distill.loss is one of {', '.join(LOSSES)}, or the import path package.module:function of a loss of "
                f"two outputs, got {self.loss!r}"
            )
        if ":" in self.loss and len(self.teacher) > 1:
            raise BadRecipe(
                "several teachers teach by the mean of their probabilities, for distill.loss "
                f"{', '.join(LOSSES)}; got {self.loss!r} with {len(self.teacher)} teachers: leave one of them"
            )
        if not 0 <= self.alpha <= 1 or self.temperature <= 0:
            found = f"{self.alpha} and {self.temperature}"
            raise BadRecipe(f"distill.alpha lies in [0, 1] and distill.temperature above 0, got {found}")
        if self.tap_weight < 0:
            raise BadRecipe(f"distill.tap_weight is at least 0, got {self.tap_weight}")

    @property
    def plan(self) -> StudentPlan:
        return StudentPlan(**{each.name: getattr(self, each.name) for each in fields(StudentPlan)})


class Report(Section):
    """What the student is compared with, at the same budget and trained the same way, and how often all are trained."""

    baselines: tuple[Literal["uniform", "random"], ...] = ("uniform",)
    repeats: int = Field(default=1, ge=1)


class Compare(Section):
    """What `tas compare` compares: every search at every budget with every seed, and the baselines with them.

    methods: names of searches, or whole `search` sections, by default the recipe's. A search that is only named has its
    own defaults, but the recipe's numbers of images. budgets: `budget` sections, or limits of the MACs, by default the
    recipe's. seeds: of search and training. random_draws: random networks a budget and seed. forgetting: also ask what
    pruning forgot; then every seed has an original of its own, trained as the section `original` says, or from the
    `weights`, a file a seed. latency_batch, latency_repeats: of the measured latency, which is also measured at batch
    1.
    """

    methods: tuple[SearchOrName, ...] = ()
    budgets: tuple[LimitsOrAmount, ...] = ()
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0, 1, 2), min_length=1)
    random_draws: int = Field(default=1, ge=1)
    forgetting: bool = False
    weights: tuple[str, ...] = ()
    latency_batch: int = Field(default=32, ge=1)
    latency_repeats: int = Field(default=20, ge=2)

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[Any, ...]) -> tuple[Any, ...]:
        for name in methods:
            if isinstance(name, str) and name not in SEARCHES:
                raise ValueError(f"names searches out of {', '.join(SEARCHES)}")
        return methods

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("must be distinct: the same seed twice would feign a small spread")
        return seeds


@dataclass(frozen=True)
class Latency(Target):
    __doc__ = f"""The target whose latency budgets limit, and its table.

    {Target.__doc__}

    points, rounds: see `tas.measure_latency`. table: the file that holds the table, or will; by default one in `runs`,
    named by network and target. A finished one is used on any machine.
    """

    points: int = 4
    rounds: int = 15
    table: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points < 2 or self.rounds < 3:
            raise BadRecipe(f"latency takes at least 2 points and 3 rounds, got {self.points} and {self.rounds}")

    @property
    def target(self) -> Target:
        return Target(self.runtime, self.device, self.batch, self.threads)


class Machine(Section):
    """Where and how to run; the one section that may change when a run is taken up again. threads 0: torch decides."""

    device: str = "auto"
    threads: int = Field(default=0, ge=0)


class Recipe(Section):
    """Everything that decides a run. budget: one section, or a list of them for a student each; a bare part or amount
    limits the MACs. A search by gradient is made at the first one."""

    title: str | None = None
    network: Network
    data: DataSource
    objective: ObjectiveNames = ObjectiveNames()
    budget: Budgets
    space: Rules = Rules()
    original: OriginalPlan | None = None
    synthesize: Synthesize | None = None
    search: Search = Differentiable()
    choose: Choose = Choose()
    initialize: Initialize = Initialize()
    distill: Distillation = Distillation()
    report: Report = Report()
    compare: Compare = Compare()
    latency: Latency | None = None
    machine: Machine = Machine()
    seed: int = Field(default=0, ge=0)

    @property
    def budgets(self) -> tuple[Limits, ...]:
        return self.budget if isinstance(self.budget, tuple) else (self.budget,)
