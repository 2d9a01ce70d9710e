"""The page at /: served from one file, and working in a real browser where there is one."""

import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_the_page_asks_nobody_but_us(server):
    response = server.http.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.search(r"""(src|href)=["'](https?:)?//""", response.text)


@pytest.mark.skipif(BROWSER is None, reason="no chromium here to open the page with")
def test_the_page_finds_things_in_a_picture_that_it_draws(server, tmp_path):
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu"]
    command += [f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=20000", "--dump-dom", f"{server.url}/#sample"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert re.search(r'id="model">shapes/1', dom)
    assert re.search(r'id="count">\d+ objects?<', dom)
    assert "inference" in dom
    assert re.search(r'id="fault"[^>]*hidden', dom)
