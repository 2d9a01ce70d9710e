"""Schemathesis: what the service answers agrees with its OpenAPI document, for generated requests of every kind.

SCHEMATHESIS_SECONDS sets the length of a run; by default it is short and repeats the same requests every time.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service import graphs

pytest.importorskip("schemathesis", reason="schemathesis is not installed; it is in the extra dev")

HERE = Path(__file__).parent
SHORT = 20  # seconds


@pytest.mark.contract("3.6")
def test_the_service_keeps_to_its_openapi_document(start, tmp_path):
    graphs.publish(tmp_path / "store")
    server = start(MODEL_STORE=tmp_path / "store").ready()
    document = server.http.get("/openapi.json").json()
    for parameter in document["paths"]["/detect"]["post"]["parameters"]:
        if parameter["name"] == "label":
            parameter["schema"]["items"]["enum"] = graphs.LABELS  # they depend on the model, so the document omits them
    (tmp_path / "openapi.json").write_text(json.dumps(document))

    wanted = os.environ.get("SCHEMATHESIS_SECONDS")
    repeatable = [] if wanted else ["--seed", "1", "--generation-database", "none"]
    # One worker: on Python 3.11 the parser of the standard library fails in threads if the stack is deep.
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", HERE / "schemathesis.toml"),
        *("run", tmp_path / "openapi.json", "--url", server.url, "--checks", "all", "--workers", "1"),
        *("--max-time", wanted or str(SHORT), *repeatable),
    ]
    hooks = {"SCHEMATHESIS_HOOKS": "tests.end_to_end.schemathesis_hooks", "PYTHONPATH": str(HERE.parents[1])}
    run = subprocess.run(command, cwd=tmp_path, env=os.environ | hooks, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2_000:]
    assert server.http.get("/readyz").status_code == 200
    assert server.metric("detector_failed_total") == 0
