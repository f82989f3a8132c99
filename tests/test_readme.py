"""What the README shows works, and what it lists is there."""

import re
import shlex
from pathlib import Path

import pytest

from tas import cli

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    examples = [code for language, code in BLOCKS if language == "python"]
    assert examples
    for code in examples:
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert "MACs" in capsys.readouterr().out


def test_every_command_of_the_readme_exists() -> None:
    commands = {
        command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback
    }
    lines = [line for language, code in BLOCKS if language == "sh" for line in re.split(r"\n|&&", code)]
    used = [shlex.split(line, comments=True)[1] for line in lines if line.strip().startswith("tas ")]
    assert used
    assert set(used) <= commands


def test_every_path_of_the_readme_exists() -> None:
    for path in re.findall(r"(?:configs|scripts)/[\w./]+", TEXT):
        assert (ROOT / path).exists(), path


def listed() -> set[str]:
    """The paths of the file map."""
    block = next(code for language, code in BLOCKS if language == "" and code.startswith("tas/"))
    found, folder = set(), ""
    for line in block.splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name
        found.add(f"{folder}{name}" if line.startswith(" ") else name)
    return found


def test_the_file_map_matches_the_tree() -> None:
    there = {f"{folder}/" for folder in ("tas", "search_spaces", "configs", "scripts", "tests")}
    for folder in ("tas", "search_spaces"):
        for path in (ROOT / folder).iterdir():
            if path.suffix == ".py" and not path.name.startswith("__"):
                there.add(f"{folder}/{path.name}")
            elif (path / "__init__.py").is_file():
                there.add(f"{folder}/{path.name}/")
    assert listed() == there
