"""`benchmark fleet` with a real balancer and real replicas, for as short a time as possible."""

import json
from pathlib import Path

import pytest

from benchmarks import command
from benchmarks.fleet import measure_fleet
from benchmarks.fleet.replicas import missing_packages

MODEL = Path(__file__).parents[2] / "model_store" / "shapes" / "1"


def test_the_cost_and_the_losses_are_measured(tmp_path, capsys, monkeypatch):
    if missing := missing_packages():
        pytest.skip(f"not installed (Debian packages): {', '.join(missing)}")
    monkeypatch.setattr(measure_fleet, "EVENT_AFTER", 0.5)
    monkeypatch.setattr(measure_fleet, "EVENT_SECONDS", 4.0)
    options = ["--rounds", "1", "--seconds", "0.5", "--clients", "3", "--out", str(tmp_path)]
    assert command.main(["fleet", str(MODEL), *options]) == 0
    figures = json.loads((tmp_path / "fleet.json").read_text())
    assert figures["rate_ratio"] > 0
    assert len(figures["events"]) == 3
    for event in figures["events"].values():
        assert event["requests"] > 0
        assert event["lost"] == {}
    assert "a replica is killed (SIGKILL)" in capsys.readouterr().out
