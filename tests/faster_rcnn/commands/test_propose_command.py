"""The command that writes tables of proposals."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from faster_rcnn.proposal_sources.table import ProposalTable

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "propose.py"


@pytest.fixture(scope="module")
def command() -> ModuleType:
    spec = importlib.util.spec_from_file_location("propose", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(command: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["propose.py", *map(str, arguments)])
    command.main()


def test_the_command_writes_a_table_and_prints_a_summary(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "table.npz"
    options = ("--source", "sliding-window", "--split", "val", "--pictures", 3, "--limit", 200, "--seed", 5)
    run(command, monkeypatch, *options, "--out", out)
    assert re.fullmatch(
        rf"wrote {re.escape(str(out))}: 3 images, \d+ boxes an image \(\d+ to \d+\), \S+ seconds an image\n",
        capsys.readouterr().out,
    )
    table = ProposalTable.load(out)
    assert list(table) == ["val/5/0", "val/5/1", "val/5/2"]
    assert table.made.endswith("limit 200; data shapes/val")


def test_the_name_of_a_table_must_end_in_npz(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"--out x does not end in \.npz"):
        run(command, monkeypatch, "--source", "sliding-window", "--out", "x")
