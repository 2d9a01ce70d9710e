"""The command for a software bill of materials in SECURITY.md: its result is valid and lists what the service needs."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytest.importorskip("cyclonedx_py", reason="cyclonedx-bom is not installed; it is in the extra dev")

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).parents[2]


def test_the_bill_of_materials_lists_every_dependency_with_its_version(tmp_path):
    line = re.search(r"^cyclonedx-py (.*)$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert line
    out = tmp_path / "sbom.json"
    places = {"sbom.cdx.json": str(out), ".venv": sys.executable}  # this test's own environment, wherever it is
    # The command validates all of it, which takes ten seconds for an environment for tests.
    options = [places.get(word, word) for word in shlex.split(line[1])] + ["--no-validate"]
    subprocess.run([sys.executable, "-m", "cyclonedx_py", *options], cwd=ROOT, check=True, capture_output=True)

    document = json.loads(out.read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["component"]["name"] == "faster-rcnn-service"
    listed = {canonicalize_name(each["name"]): each for each in document["components"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [Requirement(each) for each in project["dependencies"]]
    ours = []
    for requirement in needed:
        if requirement.marker is None or requirement.marker.evaluate():
            ours.append(listed[canonicalize_name(requirement.name)])
            assert ours[-1]["version"] in requirement.specifier
            assert ours[-1]["purl"].startswith("pkg:pypi/")
    assert len(ours) >= 13
    document |= {"components": ours, "dependencies": []}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None
