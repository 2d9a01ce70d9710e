"""Hostile and unusual files: each is answered or refused, and none causes an internal error.

hostile_files.py makes some of them. REAL_DATA_DIR/abuse holds others; its index.csv describes each file and gives
Pillow's result for it.
"""

import csv
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.end_to_end import hostile_files
from tests.end_to_end.conftest import Server, problem

FOLDER = Path(os.environ.get("REAL_DATA_DIR", "")) / "abuse"
TAKEN = {"JPEG", "PNG", "WEBP", "BMP", "GIF", "MPO", "TIFF", "AVIF"}


@pytest.mark.parametrize("accept", ["application/json", "image/png"])
def test_valid_files_of_every_kind_are_answered(server: Server, accept: str) -> None:
    for name, data in hostile_files.valid().items():
        response = server.http.post("/detect", content=data, headers={"Accept": accept})
        assert (response.status_code, response.headers["content-type"]) == (200, accept), name
        if accept == "application/json":
            image = response.json()["image"]
            assert (image["width"], image["height"]) == (hostile_files.WIDTH, hostile_files.HEIGHT), name


def test_every_hostile_file_is_answered_or_refused(server: Server) -> None:
    def ask(item: tuple[str, bytes]) -> str | None:
        name, data = item
        for headers in ({}, {"Accept": "image/png"}):
            response = server.http.post("/detect", content=data, headers=headers)
            if response.status_code in (400, 413):
                problem(response, response.status_code)
            elif response.status_code != 200:
                return f"{name}: {response.status_code} {response.text[:200]}"
        return None

    with ThreadPoolExecutor(4) as pool:
        wrong = [each for each in pool.map(ask, hostile_files.hostile().items()) if each]
    assert wrong == []
    assert server.metric("detector_failed_total") == 0
    assert server.http.get("/readyz").status_code == 200


@pytest.mark.skipif(
    not os.environ.get("REAL_DATA_DIR") or not FOLDER.is_dir(), reason="the corpus, REAL_DATA_DIR/abuse, does not exist"
)
def test_every_file_is_answered_or_refused(start: Callable[..., Server]) -> None:
    server = start(IMAGE_FORMATS="jpeg,png,webp,bmp,gif,tiff,avif,heif").ready()
    with (FOLDER / "index.csv").open(newline="") as index:
        rows = list(csv.DictReader(index))
    assert rows

    def ask(row: dict[str, str]) -> str | None:
        response = server.http.post("/detect", content=(FOLDER / row["path"]).read_bytes())
        pixels = int(row["width"] or 0) * int(row["height"] or 0)
        if response.status_code == 200:
            image = response.json()["image"]
            if row["rgb"] and f"{image['width']}x{image['height']}" != row["rgb"]:
                return f"{row['path']}: {image} is not {row['rgb']}"
        elif response.status_code in (400, 413):
            problem(response, response.status_code)
            if row["category"] == "valid" and row["format"] in TAKEN and pixels <= 64_000_000:
                return f"{row['path']}: {response.text}"
        else:
            return f"{row['path']}: {response.status_code}"
        return None

    with ThreadPoolExecutor(8) as pool:
        wrong = [each for each in pool.map(ask, rows) if each]
    assert wrong == []
    assert server.metric("detector_failed_total") == 0
    assert server.http.get("/readyz").status_code == 200
    quiet = re.compile(r"serving |metrics |\S+Z (INFO|WARNING service\.)")
    assert [line for line in server.lines if not quiet.match(line)] == []  # no decoder fills the log
