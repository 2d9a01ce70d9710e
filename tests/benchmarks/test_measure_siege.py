"""`faster-rcnn benchmark siege` and `benchmark worst`, run through scripts/benchmark.py."""

import io
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.load import servers
from benchmarks.load.http_connection import Answer
from benchmarks.load.uploads import of_one_image
from benchmarks.memory_group import NoMemoryGroupError, memory_group
from benchmarks.siege.attackers import KINDS, Attack, Attackers, Images, Suffered
from benchmarks.siege.good_client import NO_TIME, GoodClient, Served
from benchmarks.siege.measure_siege import Options, Round, Row, notes, plan, table
from benchmarks.siege.measure_worst import judge
from benchmarks.siege.worst_images import WORST

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "model_store" / "shapes" / "1"
EXAMPLE = MODEL / "example.jpg"
MB = 10**6


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "benchmark.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_siege_prints_a_row_for_each_kind_and_number(tmp_path: Path) -> None:
    arguments = ("--kinds", "garbage", "--clients", 5, "--requests", 10, "--rounds", 1, "--nofile", 512)
    done = run("siege", *arguments, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "benchmark.md").read_text()
    assert text.strip() in done.stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    assert [row[:3] for row in rows[2:]] == [["garbage", "5", "10 of 10"]]
    assert all(float(row[6]) > 0 for row in rows[2:])  # the ratio of the p99
    assert re.search(r"garbage, 5: the others opened \d+ connections, 0 more .*answers to them: .*\d+ × 400", text)


def test_an_unknown_kind_is_refused_with_the_kinds_that_exist() -> None:
    done = run("siege", "--kinds", "slow")
    assert done.returncode == 2
    assert "slow-body" in done.stderr


def test_few_greedy_clients_are_enough() -> None:
    options = Options(MODEL, EXAMPLE, kinds=("idle", "greedy"), clients=(500, 2000))
    assert plan(options) == [("idle", 500), ("idle", 2000), ("greedy", 64)]
    assert plan(Options(MODEL, EXAMPLE, kinds=("greedy",), clients=(10,))) == [("greedy", 10)]


def one_round(quiet: float, siege: float, outcomes: Counter[str]) -> Round:
    suffered = Suffered(opened=3, refused=2, cut=1, answers=Counter({"408": 4}))
    return Round(
        Served([quiet] * 10, Counter({"200": 10})), Served([siege] * 9, outcomes), suffered, 0.1, 0.05, 1, 0.5, 2e3, 3
    )


def test_the_table_compares_within_a_round_and_takes_the_median() -> None:
    lost = Counter({"200": 9, "429": 1})
    rounds = [one_round(0.01, 0.02, lost), one_round(0.1, 0.1, lost), one_round(0.01, 0.04, lost)]
    row = Row("idle", 500, rounds, Counter({"head_timeout": 7, "slow_upload": 0}))
    cells = [cell.strip() for cell in table([row]).splitlines()[2].strip("|").split("|")]
    # p50 and p99: the median of 20, 100 and 40 ms; quiet: of 10, 100 and 10; the ratio: of 2, 1 and 4
    assert cells[:7] == ["idle", "500", "27 of 30", "40.0", "40.0", "10.0", "2.00"]
    assert cells[7:] == ["+10.0%", "+5.0%", "1.00", "0.50", "2.0", "3.00"]
    assert notes([row]) == (
        "idle, 500: of the good client's requests 3 × 429; the others opened 9 connections, 6 more were refused, "
        "3 were cut; answers to them: 12 × 408; closed by reason: 7 × head_timeout\n"
    )


def test_a_row_without_any_answer_has_dashes() -> None:
    none = Round(Served(), Served(outcomes=Counter({NO_TIME: 5})), Suffered(), None, None, None, 0.0, None, None)
    assert table([Row("idle", 1, [none])]).splitlines()[2].count("–") == 9


def test_every_kind_of_hostile_client_reaches_a_real_service_and_stops() -> None:
    with servers.own_service(MODEL) as server:
        good = GoodClient(server.url, of_one_image(EXAMPLE), every=0)
        assert good.turn(3).outcomes == {"200": 3}
        host, port = re.findall(r"//([\d.]+):(\d+)", server.url)[0]
        noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
        large = io.BytesIO()
        Image.fromarray(noise).save(large, "JPEG")
        images = Images(EXAMPLE.read_bytes(), large.getvalue())
        with ThreadPoolExecutor(len(KINDS)) as pool:
            attacks = [Attack(kind, 2, host, int(port), images, addresses=3) for kind in KINDS]
            crowds = dict(zip(KINDS, pool.map(Attackers, attacks), strict=True))
        suffered = {kind: crowd.stop() for kind, crowd in crowds.items()}
        for crowd in crowds.values():
            crowd.close()
        assert all(each.opened >= 2 and each.refused == 0 for each in suffered.values()), suffered
        assert suffered["greedy"].answers["200"] > 0
        assert suffered["slow-reader"].answers == {"200": 2}
        assert suffered["idle-keepalive"].answers == {"200": 2}
        assert suffered["garbage"].answers.total() + suffered["garbage"].cut > 0
        assert good.back_to_normal(30) is not None


def test_the_worst_images_are_valid_and_decode_to_their_size() -> None:
    sizes = {}
    for kind, make in WORST.items():
        with Image.open(io.BytesIO(make(64))) as image:
            image.load()
            sizes[kind] = (image.format, image.size)
    assert sizes == {
        "16-bit RGBA PNG": ("PNG", (64, 64)),
        "progressive JPEG": ("JPEG", (64, 64)),
        "palette PNG": ("PNG", (64, 64)),
        "WebP": ("WEBP", (64, 64)),
    }


def test_an_answer_to_a_worst_image_is_right_only_if_it_is_the_whole_image() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    assert judge(Answer(200, file.getvalue()), 8) == "200"
    assert judge(Answer(200, file.getvalue()), 9) == "wrong image"
    assert judge(Answer(200, b"{}"), 8) == "wrong image"
    assert judge(Answer(413, b'{"reason":"memory"}'), 8) == "413 memory"
    assert judge(Answer(502, b"<html>"), 8) == "502"


def test_the_worst_images_are_sent_within_limited_memory() -> None:
    needs_memory_group()
    done = run("worst", "--side", 500, "--images", 8, "--memory", 2000)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| 16-bit RGBA PNG +\| +2 \| +2 \| +– \|", done.stdout)
    found = re.search(r"the group used (\d+) MB at most, the process (\d+) MB; killed 0 times", done.stdout)
    assert found
    assert 100 < int(found[1]) < 2000
    assert re.search(r"small images beside them: \d+ × 200; p50", done.stdout)


def needs_memory_group() -> None:
    try:
        with memory_group(100 * MB):
            pass
    except NoMemoryGroupError as reason:
        pytest.skip(str(reason))


def test_a_process_in_a_memory_group_is_limited_and_its_peak_is_known() -> None:
    needs_memory_group()
    with memory_group(100 * MB) as group:
        small = subprocess.run([*group.prefix, sys.executable, "-c", "b'x' * 50_000_000"])
        assert small.returncode == 0
        assert 50 * MB < group.peak() <= 100 * MB
        assert group.kills() == 0
        large = subprocess.run([*group.prefix, sys.executable, "-c", "b'x' * 200_000_000"])
        assert large.returncode == -9
        assert group.kills() == 1
        folder = group.folder
    assert not folder.exists()
