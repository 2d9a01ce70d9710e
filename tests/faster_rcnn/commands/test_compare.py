"""`faster-rcnn compare`: its options, those that it passes on to training, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest

from faster_rcnn.commands.compare import split_at_dashes
from tests.faster_rcnn.commands.conftest import Done


def test_options_after_two_dashes_are_passed_on_to_training() -> None:
    words = ["proposals", "--data", "shapes", "--", "--min-size", "96"]
    assert split_at_dashes(words) == (["proposals", "--data", "shapes"], ["--min-size", "96"])
    assert split_at_dashes(["pooling"]) == (["pooling"], [])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--out", "x"), "--data is missing; name annotated images"),
        (("--data", "shapes"), "--out is missing; name the folder"),
        (("pools", "--data", "shapes", "--out", "x"), "unknown comparison pools; choose from schedules, pooling, prop"),
        (("--data", "imagenet", "--out", "x"), "unknown kind, and not a folder or file that exists"),
        (("--seed", "3"), "unknown option --seed; did you mean --seeds?"),
        (("--min-size", "3"), "unknown option --min-size"),
        (("pooling", "--data", "shapes", "--out", "x", "--", "--val-share", "0.5"), "name it before --"),
    ],
)
def test_a_mistake_prints_one_line(
    run: Callable[..., Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint in run("compare", *options).refusal
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_is_named_with_its_log(run: Callable[..., Done], tmp_path: Path) -> None:
    done = run(
        "compare", "pooling", "--data", "shapes", "--iterations", 1, "--seeds", 0, "--out", tmp_path / "runs",
        "--", "--backbone", "nosuch",
    )  # fmt: skip
    assert done.code == 1
    log = tmp_path / "runs" / "joint-roialign-0.log"
    assert f"failed; {log} says why. Fix that and run the same command again" in done.err.splitlines()[-1]
    assert "invalid choice: 'nosuch'" in log.read_text()
