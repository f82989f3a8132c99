"""Imports point one way, and `import tas` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module may import those before it. Packages are one entry; inside a package the order is its own.
ROWS = (
    "errors files importing loading space stand_in",
    "cost sampling distribution elastic",
    "tracing reordering feeding supernet extraction calibration merging",
    "augment data mixing objectives training timing",
    "importance scoring correlation forgetting initialization distillation",
    "methods",
    "exporting latency originals recipe parts describing fitting preparation folder reporting",
    "cautions stages teaching choosing searching comparison synthesizing judging joining correlating planning",
    "outcomes predictions cells populations comparing",
    "runner printing commands",
    "testing",
    "cli",
)
ORDER = [name for row in ROWS for name in row.split()]


def imports(path: Path, toplevel_only: bool = False) -> list[str]:
    """Full names of the modules that a file imports, those inside functions too; not those for type checkers alone."""
    tree = ast.parse(path.read_text())
    skipped = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    nodes = tree.body if toplevel_only else [node for node in ast.walk(tree) if node not in skipped]
    found: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def module_of(path: Path) -> str:
    return path.relative_to(ROOT / "tas").parts[0].removesuffix(".py")


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", sources("tas"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    mine = module_of(path)
    if mine in ("__init__", "__main__"):
        return
    assert mine in ORDER, f"give {mine} its place in the order"
    for name in imports(path):
        package, _, rest = name.partition(".")
        assert package != "search_spaces", "tas never imports search_spaces"
        imported = rest.partition(".")[0]
        if package == "tas" and imported != mine:
            assert imported in ORDER[: ORDER.index(mine)], f"{mine} must not import {imported}"


def test_the_order_names_existing_modules_only() -> None:
    assert set(ORDER) == {module_of(path) for path in sources("tas")} - {"__init__", "__main__"}


@pytest.mark.parametrize("path", sources("search_spaces"), ids=lambda path: path.name)
def test_search_spaces_use_nothing_private_of_tas(path: Path) -> None:
    for name in imports(path):
        if name.startswith("tas."):
            assert not any(part.startswith("_") for part in name.split(".")), name


def test_a_bare_import_is_light() -> None:
    script = "import tas, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"optuna", "torchvision", "matplotlib", "tensorboard", "pydantic", "typer", "rich", "jinja2"}
    assert not heavy & set(done.stdout.split())


def test_every_public_name_is_there_and_none_pulls_in_the_heavy_libraries() -> None:
    script = (
        "import tas, sys\n"
        "for name in tas.__all__: getattr(tas, name)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"optuna", "torchvision", "matplotlib", "tensorboard"} & set(done.stdout.split())


def test_an_unknown_name_is_an_attribute_error() -> None:
    import tas

    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        _ = tas.prune  # type: ignore[attr-defined]
