"""The pages at / and /docs, each of them a single file. A real browser tests them if one is installed."""

import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_loads_nothing_from_other_servers(server, path):
    response = server.http.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.search(r"""(src|href)=["'](https?:)?//""", response.text)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_the_page_shows_detections_in_its_example_image(server, tmp_path):
    dom = opened(f"{server.url}/#sample", tmp_path)
    assert re.search(r'id="model">shapes/1', dom)
    assert re.search(r'id="count">\d+ objects?<', dom)
    assert "inference" in dom
    assert re.search(r'id="fault"[^>]*hidden', dom)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_the_documentation_lists_every_route(server, tmp_path):
    dom = opened(f"{server.url}/docs", tmp_path)
    for path in server.http.get("/openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in dom
    assert f"{server.url}/detect" in dom


def opened(url, tmp_path):
    """The page's elements once its scripts have run."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu"]
    command += [f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=20000", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
