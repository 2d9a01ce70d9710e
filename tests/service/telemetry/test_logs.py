"""The log: one line for each message, whole, without control characters, and never in the way of the service."""

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.telemetry import logs
from service.telemetry.log_format import JsonFormatter, TextFormatter

FULL = "/dev/full"
TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", re.MULTILINE)


def record(message, *arguments, level=logging.WARNING, exc_info=None):
    return logging.LogRecord("service.x", level, "x.py", 1, message, arguments, exc_info)


@pytest.fixture
def pipes():
    """Two pipes in place of the standard streams: (reading end, writing end) of output and of errors."""
    return os.pipe(), os.pipe()


@pytest.fixture
def writer(pipes):
    (_, stdout), (_, stderr) = pipes
    writer = logs.Writer(stdout, stderr)
    yield writer
    for reading, _ in pipes:
        with contextlib.suppress(OSError):
            os.close(reading)  # now nothing can hold up the writer
    writer.finish(30)
    for _, writing in pipes:
        os.close(writing)


@pytest.fixture
def output(pipes):
    return pipes[0]


@pytest.fixture
def errors(pipes):
    return pipes[1]


def received(pipe):
    """What a pipe holds, without the time at the beginning of each line of the log."""
    return TIME.sub("", os.read(pipe[0], 2**20).decode())


def redirect(writing, path):
    """Makes the descriptor `writing` lead to the file at `path`."""
    opened = os.open(path, os.O_WRONLY)
    os.dup2(opened, writing)
    os.close(opened)


@settings(deadline=None)
@given(st.text(max_size=100))
def test_a_message_is_one_line_without_control_characters(text):
    (line,) = TextFormatter().format(record("request %s", text)).split("\n")
    assert TIME.sub("", line).startswith("WARNING service.x: request ")
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", line)


@pytest.mark.contract("7.6")
def test_escapes_of_a_terminal_and_line_breaks_are_shown_and_not_obeyed():
    line = TextFormatter().format(record("%s", "a\r\nERROR forged\x1b[31m\u202e"))
    assert TIME.sub("", line) == r"WARNING service.x: a\x0d\x0aERROR forged\x1b[31m\u202e"


def test_a_traceback_cannot_forge_a_line_either():
    try:
        raise ValueError("a\nERROR service.x: forged \x1b[2J")
    except ValueError:
        text = TextFormatter().format(record("failed", exc_info=sys.exc_info()))
    first, *others = text.split("\n")
    assert TIME.sub("", first) == "WARNING service.x: failed"
    assert others[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") and line.isprintable() for line in others)


def test_the_time_of_a_line_is_that_of_the_record_in_utc():
    made = record("x")
    made.created = 1_000_000_000.0625
    assert TextFormatter().format(made) == "2001-09-09T01:46:40.062Z WARNING service.x: x"


@settings(deadline=None)
@given(st.text(max_size=100))
def test_a_line_of_json_holds_the_message_and_no_control_characters(text):
    line = JsonFormatter().format(record("request %s", text))
    assert json.loads(line) | {"timestamp": ""} == {
        "timestamp": "",
        "severity_text": "WARNING",
        "severity_number": 13,
        "body": f"request {text}",
        "scope": {"name": "service.x"},
    }
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", line)


def test_a_traceback_is_an_attribute_of_a_line_of_json():
    try:
        raise ValueError("a\nb")
    except ValueError:
        line = JsonFormatter().format(record("failed", exc_info=sys.exc_info()))
    attributes = json.loads(line)["attributes"]
    assert attributes["exception.type"] == "builtins.ValueError"
    assert attributes["exception.message"] == "a\nb"
    assert attributes["exception.stacktrace"].startswith("Traceback (most recent call last):")


def test_the_writer_tells_of_lost_lines_in_its_own_format(writer, output, errors):
    writer.setFormatter(JsonFormatter())
    os.close(output[0])
    writer.put(output[1], "serving x")
    writer.finish(30)
    assert json.loads(received(errors))["body"].endswith("this line is lost: serving x")


def test_a_very_long_message_is_cut_and_says_so(writer, errors):
    writer.handle(record("x" * 20_000))
    writer.finish(30)
    whole = len("2026-11-29T01:02:03.456Z WARNING service.x: ") + 20_000
    assert received(errors).endswith(f"x… ({whole - logs.LONGEST_LINE} more characters)\n")


def test_lines_of_many_threads_stay_whole(writer, errors):
    lines = {f"WARNING service.x: {number} " + "x" * 100 for number in range(400)}  # 400 × 120 bytes fit into a pipe

    def say(numbers):
        for number in numbers:
            writer.handle(record(f"{number} " + "x" * 100))

    threads = [threading.Thread(target=say, args=(range(first, 400, 8),)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.finish(30)
    assert set(received(errors).splitlines()) == lines


def test_a_message_whose_arguments_do_not_fit_is_reported_in_one_line(writer, errors, capfd):
    writer.handle(record("%d apples", "many"))
    writer.finish(30)
    assert received(errors) == "ERROR service.x: a message could not be formatted (TypeError): '%d apples'\n"
    assert capfd.readouterr() == ("", "")


@pytest.mark.contract("7.6")
@pytest.mark.skipif(not Path(FULL).exists(), reason="this machine has no /dev/full")
def test_a_full_disk_is_reported_once_on_the_other_stream(writer, output, errors):
    redirect(errors[1], FULL)
    for _ in range(5):
        writer.handle(record("lost"))
    writer.finish(30)
    said = "standard error cannot be written (no space left on device); log lines are lost"
    assert received(output) == f"WARNING service.telemetry.logs: {said}\n"
    assert writer.lost == 5


@pytest.mark.contract("7.6")
def test_an_announcement_that_is_lost_is_repeated_on_the_other_stream(writer, output, errors):
    os.close(output[0])  # nobody reads the pipe any more
    writer.put(output[1], "serving x")
    writer.finish(30)
    said = "standard output cannot be written (broken pipe); this line is lost: serving x"
    assert received(errors) == f"WARNING service.telemetry.logs: {said}\n"


def test_when_the_stream_can_be_written_again_the_number_of_lost_lines_is_said(writer, errors):
    if not Path(FULL).exists():
        pytest.skip("this machine has no /dev/full")
    before = os.dup(errors[1])
    redirect(errors[1], FULL)
    for _ in range(3):
        writer.handle(record("lost"))
    writer.finish(30)
    os.dup2(before, errors[1])
    os.close(before)
    writer.handle(record("kept"))
    writer.finish(30)
    kept, said = received(errors).lstrip("\n").splitlines()
    assert kept == "WARNING service.x: kept"
    assert said.endswith("3 lines are lost, because standard error could not be written in time")


@pytest.mark.contract("7.6")
def test_a_reader_that_has_stopped_reading_does_not_stop_the_writer_of_a_message(writer, errors):
    sent = logs.MOST_WAITING + 2000  # the pipe takes 64 kB, the queue MOST_WAITING lines; this is more than both
    for _ in range(sent):
        writer.handle(record("x" * 100))
    assert writer.lost > 0
    text = ""
    while "lines are lost" not in text:
        text += received(errors)
    lost = int(re.search(r"(\d+) lines are lost", text)[1])
    assert lost <= writer.lost


def test_a_nonblocking_stream_takes_everything(writer, errors):
    os.set_blocking(errors[1], False)
    for _ in range(1000):
        writer.handle(record("x" * 100))  # 1000 × 120 bytes are more than the 64 kB that a pipe takes
    text = ""
    while text.count("\n") < 1000:
        text += received(errors)
    assert writer.lost == 0


def test_without_a_writer_announcements_are_printed(capsys, monkeypatch):
    monkeypatch.setattr(logs, "_writer", None)
    logs.announce("serving x")
    assert capsys.readouterr().out == "serving x\n"
    assert logs.lines_lost() == 0


@pytest.mark.contract("7.6")
def test_closed_streams_are_held_open_so_that_no_socket_gets_their_numbers():
    program = """
import os, socket
from service.telemetry import logs
from service.telemetry.log_format import JsonFormatter, TextFormatter
writer = logs.start("info", False)
opened = socket.socket()
writer.put(logs.STDOUT, "an announcement")
writer.finish(30)
os._exit(0 if opened.fileno() > 2 and writer.lost == 1 else 1)
"""
    command = f"exec {sys.executable} -c '{program}' <&- >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, TIME.sub("", done.stderr)) == (
        0,
        "WARNING service.telemetry.logs: standard output cannot be written (it is closed); this line is lost: "
        "an announcement\n",
    )
