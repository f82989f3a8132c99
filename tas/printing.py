"""The result of a command on stdout: one JSON object for machines, or tables and lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tas.files import json_text


def show(as_json: bool, value: Mapping[str, Any], *shown: Any) -> None:
    """Print `value` as JSON, or else `shown`: lines, and tables as pairs of header and rows."""
    if as_json:
        print(json_text(value))
        return
    from rich.console import Console

    from tas.reporting.tables import console

    out = Console()
    for part in shown:
        out.print(part if isinstance(part, str) else console(part), highlight=False, soft_wrap=isinstance(part, str))
