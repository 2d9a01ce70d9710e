"""scripts/bootstrap and scripts/server, in a copy of the project that has not been set up yet."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.end_to_end.conftest import ROOT


@pytest.fixture
def fresh(tmp_path):
    """A project folder without .venv, with only the files that the scripts read."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/bootstrap", "scripts/server", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def run(folder, script, *arguments, **environment):
    return subprocess.run(
        [folder / "scripts" / script, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def old_python(folder):
    path = folder / "python-old"
    path.write_text("#!/bin/sh\nexit 1\n")  # like `sys.exit(version < 3.11)`
    path.chmod(0o755)
    return str(path)


def test_a_python_version_that_is_too_old_is_refused(fresh):
    done = run(fresh, "bootstrap", PYTHON=old_python(fresh))
    assert done.returncode == 1
    assert "is not Python 3.11 or newer" in done.stderr
    assert not (fresh / ".venv").exists()


def test_a_missing_python_is_reported(fresh):
    tools = fresh / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "cat", "cmp", "env"):
        (tools / tool).symlink_to(shutil.which(tool))
    done = run(fresh, "server", PATH=str(tools))
    assert done.returncode == 1
    assert "no Python 3.11 or newer found" in done.stderr


def test_the_server_starts_at_once_if_the_project_is_installed(fresh):
    (fresh / ".venv" / "bin").mkdir(parents=True)
    # replaces the service, and prints its command line
    python = fresh / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\necho "$MODEL_STORE" "$@"\n')
    python.chmod(0o755)
    extra = "cuda" if shutil.which("nvidia-smi") else "base"
    stamp = fresh / ".venv" / f"installed-{extra}"
    stamp.write_text(f"{fresh}\n{(fresh / 'pyproject.toml').read_text()}")
    done = run(fresh, "server", MODEL_STORE="/elsewhere")
    assert (done.stdout, done.stderr) == ("/elsewhere -P -m service\n", "")
    environment = {name: value for name, value in os.environ.items() if name != "MODEL_STORE"}
    done = subprocess.run([fresh / "scripts" / "server"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{fresh}/model_store -P -m service\n"
    assert run(fresh, "server", "--port", "9000", MODEL_STORE="/x").stdout == "/x -P -m service --port 9000\n"
    (fresh / "pyproject.toml").write_text("# changed\n")  # the stamp depends on this file
    assert "bootstrap: installing" in run(fresh, "server").stderr
