"""What can be wrong with what the user brought. Every message states the rule, the value found, and what to do."""

from collections.abc import Mapping
from typing import Any


class TasError(Exception):
    """Base of every error that the user can mend; the shell answers it with exit code 2."""


class BadNetwork(TasError):
    """The network cannot be built, loaded, or run on the example inputs."""


class Untraceable(TasError):
    """Nothing in the network can be searched; the message lists why each size was kept."""


class Infeasible(TasError):
    """No architecture of the space meets the budget, or the budget exceeds the original."""


class BadRecipe(TasError):
    """A recipe, an option or a run folder is wrong."""


class BadData(TasError):
    """The data cannot be read, or does not fit the task."""


class Diverged(TasError):
    """A loss or a weight became something else than a number during a training."""


class Caution(UserWarning):
    """What makes a search or its scores worth less than they look; runs and comparisons keep it with their warnings."""


def failure(problem: Exception) -> str:
    """What the user's code raised, in one line: "ValueError: no such file". Of what a worker process of a DataLoader
    raised, the message is whole tracebacks, in the last of which what was raised is not indented."""
    lines = str(problem).strip().splitlines() or [""]
    if "in DataLoader worker process" in lines[0]:
        last = max((n for n, line in enumerate(lines) if "Traceback (most recent call last)" in line), default=0)
        return next((line[:200] for line in lines[last + 1 :] if line[:1].strip()), lines[0])
    return f"{type(problem).__name__}: {lines[0][:200]}"


def require_rules(values: Any, rules: Mapping[str, bool], section: str = "") -> None:
    """`BadRecipe` with the first of the rules that is not kept: a rule says in words, and as a condition, what a field
    of `values` must be, and begins with the field's name. section: what comes before the name."""
    for rule, kept in rules.items():
        if not kept:
            raise BadRecipe(f"{section}{rule}, got {getattr(values, rule.split()[0])!r}")


def least(values: Any, **smallest: int) -> dict[str, bool]:
    """Rules for `require_rules`: fields that are whole numbers, and their smallest values."""
    rules: dict[str, bool] = {}
    for name, number in smallest.items():
        value = getattr(values, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        rules |= {f"{name} is a whole number": whole, f"{name} is at least {number}": not whole or value >= number}
    return rules


def switches(values: Any, *names: str) -> dict[str, bool]:
    """Rules for `require_rules`: fields that are True or False."""
    return {f"{name} is true or false": isinstance(getattr(values, name), bool) for name in names}
