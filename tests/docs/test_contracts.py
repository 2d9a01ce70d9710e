"""docs/contracts.md: every section has a test with its number, and no test names a section that does not exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECTION = re.compile(r"^\*\*(\d\.\d+) ", re.MULTILINE)


def sections() -> set[str]:
    return set(SECTION.findall((ROOT / "docs" / "contracts.md").read_text()))


def marks() -> Iterator[tuple[str, str]]:
    """(section, file) for every `pytest.mark.contract(...)` of a test."""
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.contract":
                for argument in node.args:
                    assert isinstance(argument, ast.Constant), f"{file}: the section must be written out"
                    yield argument.value, str(file.relative_to(ROOT))


def test_every_section_of_the_contracts_has_a_test() -> None:
    assert sections() - {section for section, _ in marks()} == set()


def test_every_section_that_a_test_names_exists() -> None:
    known = sections()
    assert [(section, file) for section, file in marks() if section not in known] == []
