"""What the commands share: how they fail, the checks before any work, and the wrappers in scripts/."""

import argparse
import errno
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from faster_rcnn.commands.argument_types import path, positive
from faster_rcnn.commands.command_line import Parser, check_writable, run_command
from faster_rcnn.commands.train import build_parser as build_train_parser
from tests.faster_rcnn.commands.conftest import Done

ROOT = Path(__file__).resolve().parents[3]
DOORS = {
    "train.py": "train",
    "check_data.py": "check",
    "evaluate.py": "evaluate",
    "export.py": "export",
    "quantise.py": "quantise",
    "propose.py": "propose",
    "compare.py": "compare",
    "benchmark.py": "benchmark",
    "write_shapes.py": "shapes",
}


@pytest.mark.parametrize("command", [*DOORS.values(), "serve"])
def test_help_shows_an_example(run: Callable[..., Done], command: str) -> None:
    done = run(command, "--help")
    assert done.code == 0
    assert done.out.startswith(f"usage: faster-rcnn {command} ")
    assert done.out.count(f"faster-rcnn {command} ") > 1  # the usage is one


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.contract("6.1")
def test_each_script_runs_its_command(door: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / door, "--help"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: faster-rcnn {DOORS[door]} ")


def refusal(capsys: pytest.CaptureFixture[str], error: Exception, out: Path | None = None) -> str:
    """What `run_command` prints if a command raises `error`."""

    def fail() -> None:
        raise error

    assert run_command("faster-rcnn x", fail, out) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.contract("6.2")
def test_the_message_of_an_operating_system_error_names_the_file_and_a_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    line = refusal(capsys, full, Path("runs/x"))
    assert re.fullmatch(
        r"faster-rcnn x: runs/x: no room on the disk \([\d.]+ \w+ free\); free some space, or write to another disk",
        line,
    )
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "a.json")
    assert refusal(capsys, missing, Path("runs/x")) == ("faster-rcnn x: a.json: does not exist; check the path")


def test_an_error_of_the_project_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, ValueError("a; do b")) == "faster-rcnn x: a; do b"
    assert refusal(capsys, FileNotFoundError("no.npz does not exist")) == "faster-rcnn x: no.npz does not exist"
    assert refusal(capsys, KeyboardInterrupt()) == "faster-rcnn x: interrupted"  # type: ignore[arg-type]


def test_only_the_last_line_of_a_worker_error_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from_worker = ValueError("Traceback (most recent call last):\n  …\nValueError: a.jpg cannot be read")
    assert refusal(capsys, from_worker) == "faster-rcnn x: a.jpg cannot be read"


def test_out_of_memory_is_reported_in_one_line_and_other_runtime_errors_keep_their_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch

    assert "the device ran out of memory; lower --batch-size" in refusal(capsys, torch.OutOfMemoryError("CUDA"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        refusal(capsys, RuntimeError("shapes differ"))


def test_a_folder_that_cannot_be_written_is_refused_and_nothing_is_left_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(OSError, match="file is a file; name a folder"):
            check_writable(tmp_path / place)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux has a folder that even root cannot write")
def test_a_folder_that_nobody_can_write_is_refused() -> None:
    with pytest.raises(OSError, match=r"/proc/x cannot be written \(.+\); name another folder"):
        check_writable(Path("/proc/x"))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--batchsize", "3"], "unknown option --batchsize; did you mean --batch-size?"),
        (["--batchsize=3"], "unknown option --batchsize; did you mean --batch-size?"),
        (["--batch", "3"], "unknown option --batch; did you mean --batch-size?"),  # options are not abbreviated
        (["--zzz"], "unknown option --zzz; --help lists the options"),
        (["--former-name-x", "3"], "unknown option --former-name-x; --help lists the options"),  # hidden ones stay so
        (["stray"], "unexpected argument 'stray'; --help shows what the command accepts"),
        (["--batch-size", "many"], "argument --batch-size: 'many' is not a whole number"),
    ],
)
@pytest.mark.contract("6.2")
def test_the_error_for_an_unknown_option_suggests_the_nearest_one(
    capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    parser = Parser("x", "[OPTION ...]", "An example.")
    parser.add_argument("--batch-size", type=positive)
    parser.add_argument("--former-name", help=argparse.SUPPRESS)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(words)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"faster-rcnn x: {complaint}\n"


REFUSED = ("0,5", "nan", "inf", "1e400", "-1", "99999999999999999999", "many", "", "é")  # for every number
NUMBERS = {
    "train": "epochs iterations batch-size min-size max-size workers validate-every checkpoint-every validation-images "
    "seed learning-rate warm-up accumulate anchor-scales anchor-ratios proposal-nms detection-nms rois rpn-lambda "
    "rpn-beta head-beta proposal-limit",
    "check": "workers min-size max-size anchor-scales anchor-ratios",
    "evaluate": "limit-images show seed workers",
    "export": "version limit-images seed num-classes batch-norm-epsilon",
    "quantise": "version limit-images seed",
    "propose": "limit limit-images workers seed",
    "compare": "iterations seeds",
    "shapes": "limit-images seed",
}


@pytest.mark.parametrize(
    ("command", "option"), [(command, option) for command, options in NUMBERS.items() for option in options.split()]
)
@pytest.mark.contract("6.10")
def test_a_number_that_cannot_be_meant_is_refused_in_one_line(
    run: Callable[..., Done], command: str, option: str
) -> None:
    for value in REFUSED:
        if value == "99999999999999999999" and option in FRACTIONS:
            continue
        done = run(command, f"--{option}={value}")
        assert done.code == 2, value
        assert f"--{option}: {value}" in done.refusal or f"--{option}: {value!r} is not" in done.refusal


FRACTIONS = {
    "learning-rate", "anchor-scales", "anchor-ratios", "rpn-lambda", "rpn-beta", "head-beta", "batch-norm-epsilon",
}  # fmt: skip


@pytest.mark.contract("6.10")
def test_a_decimal_comma_gets_the_right_spelling(run: Callable[..., Done]) -> None:
    assert run("train", "--learning-rate", "0,5").refusal.endswith("'0,5' is not a number; write 0.5")


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        (("train", "--lr", "1"), "--learning-rate"),
        (("train", "--imgsz", "640"), "--min-size"),
        (("train", "--batch_size", "4"), "--batch-size"),
        (("train", "--num-workers", "4"), "--workers"),
        (("train", "-b", "4"), "--batch-size"),
        (("check", "--dataset", "x"), "--data"),
        (("evaluate", "--output-dir", "x"), "--out"),
    ],
)
@pytest.mark.contract("6.10")
def test_the_names_that_other_programs_use_lead_to_ours(
    run: Callable[..., Done], words: tuple[str, ...], ours: str
) -> None:
    assert run(*words).refusal == f"faster-rcnn {words[0]}: unknown option {words[1]}; did you mean {ours}?"


@pytest.mark.parametrize("word", ["--optimizer=adamw", "--rpn-normalizer=anchors", "--target-normalization=none"])
@pytest.mark.contract("6.10")
def test_american_spellings_of_options_are_accepted(word: str) -> None:
    name, value = word.removeprefix("--").replace("iz", "is").replace("-", "_").split("=")
    assert getattr(build_train_parser().parse_args([word]), name) == value


@pytest.mark.contract("6.10")
def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--out=~/run", "--data=coco:~/images", "--weights=~/w.pth", "--proposals", "rpn:~/other"]
    arguments = build_train_parser().parse_args(words)
    assert arguments.out == tmp_path / "run"
    assert arguments.data == f"coco:{tmp_path}/images"
    assert arguments.weights == f"{tmp_path}/w.pth"
    assert arguments.proposals == [f"rpn:{tmp_path}/other"]


def test_a_path_that_is_too_long_is_refused_in_one_line(run: Callable[..., Done]) -> None:
    assert "name" in run("train", "--data", "shapes", "--out", "x" * 300, "--device", "cpu").refusal


@pytest.mark.parametrize("url", ["s3://bucket/models", "file:///srv/models"])
def test_a_url_is_not_taken_for_a_folder(url):
    with pytest.raises(argparse.ArgumentTypeError, match="is a URL; name a file or folder"):
        path(url)
