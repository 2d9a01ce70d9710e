"""The command `faster-rcnn`: its help, its imports, and its messages if a part is not installed."""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service import command_line
from service.command_line import COMMANDS, main

ROOT = Path(__file__).parents[2]


@pytest.mark.contract("6.1")
def test_help_lists_every_command_with_the_most_common_ones_first(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    usual, _, rest = text.partition("further commands:")
    further, _, _ = rest.partition("options with the same meaning")
    listed = [line.split()[0] for line in usual.splitlines() if line.startswith("  ")]
    assert listed == ["check", "train", "evaluate", "export", "serve"]
    assert [line.split()[0] for line in further.splitlines() if line.startswith("  ")] == [
        name for name in COMMANDS if name not in listed
    ]


def test_without_a_command_the_help_is_printed_as_an_error(capsys):
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: faster-rcnn COMMAND")


def test_the_printed_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == importlib.metadata.version("faster-rcnn-service") + "\n"


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("trian", "did you mean train?"),
        ("quantice", "did you mean quanti"),
        ("--hlep", "choose from check, train, evaluate, export, serve"),
        ("zzz", "choose from check, train, evaluate, export, serve"),
    ],
)
def test_an_unknown_command_gets_the_nearest_one_as_a_suggestion(capsys, word, answer):
    assert main([word]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"faster-rcnn: unknown command {word}; {answer}")


def test_a_command_receives_the_words_after_its_name(monkeypatch):
    module = type(sys)("stand_in")
    module.main = lambda argv: len(argv)
    monkeypatch.setitem(sys.modules, "faster_rcnn.commands.quantise", module)
    assert main(["quantise", "a", "--b"]) == 2
    assert main(["quantize"]) == 0


def test_if_torch_is_not_installed_the_error_names_the_remedy(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "faster_rcnn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it now fails as if it were not installed
    assert main(["train", "--help"]) == 1
    assert capsys.readouterr().err == (
        "faster-rcnn train: torch is not installed; install it with pip install 'faster-rcnn-service[train]'\n"
    )


def test_a_missing_module_of_the_project_is_reported_as_a_bug(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_rcnn.commands.shapes", None)
    with pytest.raises(ModuleNotFoundError):
        main(["shapes"])


def test_benchmarks_need_a_checkout(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command_line, "CHECKOUT", tmp_path)
    assert main(["benchmark", "--help"]) == 1
    assert capsys.readouterr().err == (
        "faster-rcnn benchmark: the benchmarks are not installed; run it from a checkout\n"
    )


def test_help_imports_neither_torch_nor_the_server_nor_any_command():
    program = """
import sys
from service.command_line import main
main(["--help"])
heavy = ("torch", "numpy", "pydantic", "uvicorn", "onnxruntime", "faster_rcnn", "service.serve")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_installed_command_calls_this_module(tmp_path):
    script = Path(sys.executable).with_name("faster-rcnn")
    done = subprocess.run([script, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == command_line.help_text() + "\n"


def test_the_serving_half_alone_can_serve_and_names_what_is_not_installed(tmp_path):
    """As in the container, which contains only service/."""
    shutil.copytree(ROOT / "service", tmp_path / "service", ignore=shutil.ignore_patterns("__pycache__"))
    alone = f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]  # finds this checkout
sys.path.insert(0, {str(tmp_path)!r})
from service.command_line import CHECKOUT, main
assert str(CHECKOUT) == {str(tmp_path)!r}
for words in (["serve", "--prot"], ["train", "--help"], ["benchmark", "graph"]):
    main(words)
"""
    done = subprocess.run([sys.executable, "-c", alone], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "faster-rcnn serve: unknown option --prot; did you mean --port?",
        "faster-rcnn train: faster_rcnn is not installed; install it with pip install 'faster-rcnn-service[train]'",
        "faster-rcnn benchmark: the benchmarks are not installed; run it from a checkout",
    ]
