"""The section `search`: the settings of every method, told apart by the key `method`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from tas.methods import adaptive_bn, differentiable, netadapt, optuna_study, tuned


@dataclass(frozen=True)
class Differentiable(differentiable.Settings):
    __doc__ = f"The search by gradient (TAS).\n\n{differentiable.Settings.__doc__}"

    method: Literal["differentiable"] = "differentiable"


@dataclass(frozen=True)
class AdaptiveBN(adaptive_bn.Settings):
    __doc__ = f"Random architectures, scored by adaptive batch norm (EagleEye).\n\n{adaptive_bn.Settings.__doc__}"

    method: Literal["adaptive_bn"] = "adaptive_bn"


@dataclass(frozen=True)
class OptunaStudy(optuna_study.Settings):
    __doc__ = f"An Optuna study whose trials are scored by adaptive batch norm.\n\n{optuna_study.Settings.__doc__}"

    method: Literal["optuna"] = "optuna"


@dataclass(frozen=True)
class Tuned(tuned.Settings):
    __doc__ = (
        f"An Optuna study of whole searches by gradient.\n\n{tuned.Settings.__doc__}"
        f"\n\nThe fields of `differentiable`. {differentiable.Settings.__doc__}"
    )

    method: Literal["tuned"] = "tuned"


@dataclass(frozen=True)
class NetAdapt(netadapt.Settings):
    __doc__ = f"Greedy steps on a measured resource.\n\n{netadapt.Settings.__doc__}"

    method: Literal["netadapt"] = "netadapt"


SEARCHES = {
    "differentiable": Differentiable,
    "adaptive_bn": AdaptiveBN,
    "optuna": OptunaStudy,
    "tuned": Tuned,
    "netadapt": NetAdapt,
}


def _method(values: Any) -> str:
    found = values.get("method", "differentiable") if isinstance(values, Mapping) else getattr(values, "method", "")
    return str(found or "differentiable")


Search = Annotated[
    Annotated[Differentiable, Tag("differentiable")]
    | Annotated[AdaptiveBN, Tag("adaptive_bn")]
    | Annotated[OptunaStudy, Tag("optuna")]
    | Annotated[Tuned, Tag("tuned")]
    | Annotated[NetAdapt, Tag("netadapt")],
    Discriminator(_method),
]


UNNAMED = "(none)"  # stands for no method, which several searches must have each


def _name_or_method(value: Any) -> str:
    if isinstance(value, str):
        return "name"
    return UNNAMED if isinstance(value, Mapping) and "method" not in value else _method(value)


SearchOrName = Annotated[
    Annotated[str, Tag("name")]
    | Annotated[Differentiable, Tag("differentiable")]
    | Annotated[AdaptiveBN, Tag("adaptive_bn")]
    | Annotated[OptunaStudy, Tag("optuna")]
    | Annotated[Tuned, Tag("tuned")]
    | Annotated[NetAdapt, Tag("netadapt")],
    Discriminator(_name_or_method),
]
