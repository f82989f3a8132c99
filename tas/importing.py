"""The import path is the registry: networks, data sets and objectives are named `package.module:attribute`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from tas.errors import TasError


def imported(path: str, error: type[TasError]) -> Any:
    """What `package.module:attribute` names; the folder the shell stands in is searched too.

    Raises `error` where the path has another form, the module cannot be imported, or it has no such attribute.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise error(f"an import path reads package.module:attribute, got {path!r}")
    if "/" in module_name or module_name.startswith(".") or Path(module_name).is_file():
        near = f": {Path(module_name).stem}:{attribute}, from its folder" if module_name.endswith(".py") else ""
        raise error(f"an import path reads package.module:attribute and names no file, got {path!r}{near}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: a user's file never hides an installed package
    try:
        found = importlib.import_module(module_name)
    except Exception as problem:  # a module may fail in any way while it is imported
        raise error(f"cannot import {module_name!r} of {path!r}: {type(problem).__name__}: {problem}") from problem
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise error(f"{module_name!r} has no attribute {attribute!r}; check the spelling of {path!r}")
        found = getattr(found, part)
    return found
