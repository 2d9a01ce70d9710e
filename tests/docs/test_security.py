"""SECURITY.md: the settings and the tests in its table of promises exist."""

import re
from pathlib import Path

from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()
PROMISES = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.split("## What the service promises")[1].split("\n## ")[0].splitlines()
    if line.startswith("| ") and not line.startswith("| **") and "promise" not in line
]
FIELDS = {name.upper() for name in Settings.model_fields}


def test_every_promise_has_a_test_that_exists() -> None:
    assert len(PROMISES) > 20
    for promise, _, tests in PROMISES:
        files = re.findall(r"`(tests/[\w/]+\.py)`", tests)
        assert files, promise
        assert [file for file in files if not (ROOT / file).is_file()] == [], promise


def test_every_setting_of_a_promise_exists() -> None:
    of_compose = set(re.findall(r"\$\{(\w+):-", (ROOT / "docker-compose.yml").read_text()))
    for promise, settings, _ in PROMISES:
        named = set(re.findall(r"`([A-Z_]+)`", settings))
        assert named <= (of_compose if "docker-compose.yml" in settings else FIELDS), promise
