"""Forms: which ones are taken, and that every other one is refused without a guess."""

import asyncio
import logging
import time

import pytest

from service.http import multipart
from service.http.problems import Problem

DATA = bytes(range(256)) * 4
FORM = "multipart/form-data; boundary=x"
NAMED = b'Content-Disposition: form-data; name="image"; filename="a.png"'


def read(body: bytes, content_type: str = FORM, step: int = 2**20) -> bytes | str:
    """The file in a form that arrives in chunks of `step` bytes, or the detail of the 400."""

    async def chunks():
        for start in range(0, len(body), step):
            yield body[start : start + step]

    try:
        return asyncio.run(multipart.read(content_type, chunks()))
    except Problem as problem:
        return f"{problem.status} {problem.reason} {problem.detail}"


def form(*heads: bytes, data: bytes = DATA, start: bytes = b"", end: bytes = b"--x--\r\n") -> bytes:
    return start + b"".join(b"--x\r\n" + head + b"\r\n\r\n" + data + b"\r\n" for head in heads) + end


TAKEN = {
    "a file name": NAMED,
    "the field file": b'Content-Disposition: form-data; name="file"; filename="a.png"',
    "filename* alone": b"Content-Disposition: form-data; name=image; filename*=utf-8''%e2%82%ac.png",
    "both": b'Content-Disposition: form-data; name="image"; filename="a"; filename*=utf-8\'\'b',
    "a continued filename*": b'Content-Disposition: form-data; name="image"; filename*0="a"; filename*1=".png"',
    "a broken filename*": b"Content-Disposition: form-data; name=image; filename*=nonsense''%zz",
    "an escaped name": b'Content-Disposition: form-data; name="image"; filename="a\\"; name=\\"b"',
    "a semicolon in the name": b'Content-Disposition: form-data; name="image"; filename="a; name=b; filename=c"',
    "a Windows path": b'Content-Disposition: form-data; name="image"; filename="C:\\\\a\\\\b.png"',
    "UTF-8": 'Content-Disposition: form-data; name="image"; filename="日本語.png"'.encode(),
    "bytes in no encoding": b'Content-Disposition: form-data; name="image"; filename="\xff\xfe"',
    "an empty name": b'Content-Disposition: form-data; name="image"; filename=""',
    "a path": b'Content-Disposition: form-data; name="image"; filename="../../etc/passwd"',
    "a name of 3,000 characters": b'Content-Disposition: form-data; name="image"; filename="' + b"a" * 3000 + b'"',
    "another case": b'CONTENT-DISPOSITION: Form-Data; NAME="image"; FileName="a"',
    "spaces": b'Content-Disposition:form-data ;  name = "image" ;filename=a',
    "no quotes": b"Content-Disposition: form-data; name=image; filename=a.png",
    "a media type instead": b'Content-Disposition: form-data; name="image"\r\nContent-Type: image/png',
    "octet-stream instead": b"Content-Type: Application/Octet-Stream;a=b\r\nContent-Disposition: form-data; name=image",
    "another media type": NAMED + b"\r\nContent-Type: text/html",
    "binary": NAMED + b"\r\nContent-Transfer-Encoding: BINARY",
    "other headers": NAMED + b"\r\nContent-Length: 5\r\nX-A: b\r\nX-B: ",
}


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("step", [2**20, 1, 7])
@pytest.mark.contract("3.1")
def test_these_parts_are_files(name, step):
    assert read(form(TAKEN[name]), step=step) == DATA


REFUSED = {
    "no disposition": b"Content-Type: image/png",
    "an empty disposition": b"Content-Disposition: ",
    "two dispositions": NAMED + b"\r\n" + NAMED,
    "two names": b'Content-Disposition: form-data; name="image"; name="other"; filename="a"',
    "two file names": b'Content-Disposition: form-data; name="image"; filename="a"; filename="b"',
    "no name": b'Content-Disposition: form-data; filename="a"',
    "name* alone": b"Content-Disposition: form-data; name*=utf-8''image; filename=a",
    "attachment": b'Content-Disposition: attachment; name="image"; filename="a"',
    "a field": b'Content-Disposition: form-data; name="image"',
    "a text": b'Content-Disposition: form-data; name="image"\r\nContent-Type: text/plain; charset=utf-8',
    "another field": b'Content-Disposition: form-data; name="photo"; filename="a"',
    "a name in another case": b'Content-Disposition: form-data; name="Image"; filename="a"',
    "a name with a space": b'Content-Disposition: form-data; name="image "; filename="a"',
    "an encoded name": b'Content-Disposition: form-data; name="%69mage"; filename="a"',
    "a folded header": b'Content-Disposition: form-data;\r\n name="image"; filename="a"',
    "base64": NAMED + b"\r\nContent-Transfer-Encoding: base64",
    "quoted-printable": NAMED + b"\r\nContent-Transfer-Encoding: quoted-printable",
    "a header without a colon": NAMED + b"\r\nnonsense",
    "a space before the colon": b'Content-Disposition : form-data; name="image"; filename="a"',
    "a header without a name": NAMED + b"\r\n: a",
    "nine headers": NAMED + b"".join(b"\r\nX-%d: a" % number for number in range(8)),
    "a header of 5,000 bytes": NAMED + b"\r\nX: " + b"a" * 5000,
    "a header name of 5,000 bytes": NAMED + b"\r\n" + b"a" * 5000 + b": a",
    "a bare line feed": NAMED.replace(b"; filename", b";\n filename") + b"\nX: y",
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("step", [2**20, 1, 7])
@pytest.mark.contract("3.1")
def test_these_parts_are_refused(name, step):
    assert str(read(form(REFUSED[name]), step=step)).startswith("400 bad_multipart ")


def test_a_form_has_one_part():
    for body in (form(NAMED, NAMED), form(NAMED, REFUSED["a field"]), form(*[NAMED] * 10_000, data=b"a"), form(), b""):
        assert str(read(body)).startswith("400 bad_multipart ")


@pytest.mark.parametrize("start", [b"", b"\r\n", b"\r\n\r\n"])
@pytest.mark.parametrize("end", [b"--x--", b"--x--\r\n", b"--x--\r\nepilogue\r\n--x\r\n", b"--x--" + b"a" * 10_000])
def test_only_line_ends_precede_the_first_boundary_and_anything_may_follow_the_last(start, end):
    assert read(form(NAMED, start=start, end=end)) == DATA


@pytest.mark.parametrize("start", [b"preamble\r\n", b" ", b"-", b"--y\r\n\r\n", b"\0"])
def test_a_text_before_the_first_boundary_is_refused(start):
    assert str(read(form(NAMED, start=start))).startswith("400 ")


@pytest.mark.parametrize("end", [b"", b"--x", b"--x-", b"--x\r\n", b"--y--\r\n", b"--x -", b"--X--\r\n"])
def test_a_form_without_its_final_boundary_is_refused(end):
    assert str(read(form(NAMED, end=end))).startswith("400 ")


@pytest.mark.parametrize(
    "data", [b"", b"--x", b"\r\n--", b"\r\n--y--\r\n", b"\r\n-x", b"\n--x\n", b"\r\n--X", b"\r", b"\r\n"]
)
@pytest.mark.parametrize("step", [2**20, 1, 3])
def test_a_file_keeps_what_only_looks_like_a_boundary(data, step):
    data = b"a" + data + b"b"
    assert read(form(NAMED, data=data), step=step) == data


def test_a_form_inside_the_form_stays_as_it_is():
    inner = b"--y\r\nContent-Disposition: file; filename=b\r\n\r\nb\r\n--y--\r\n"
    assert read(form(NAMED + b"\r\nContent-Type: multipart/mixed; boundary=y", data=inner)) == inner


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=x; boundary=y",
        "multipart/form-data; boundary=y; boundary=x",
        "multipart/form-data; BOUNDARY=x; boundary=x",
        "multipart/form-data; boundary*=utf-8''x",
        "multipart/form-data; boundary=" + "x" * 71,
        "multipart/form-data; boundary=y",
        "multipart/form-data, boundary=x",
    ],
)
def test_the_boundary_is_given_once_and_occurs(content_type):
    assert str(read(form(NAMED), content_type)).startswith("400 bad_multipart ")


@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/form-data; boundary="x"',
        "multipart/form-data;charset=utf-16; Boundary=x",
        "multipart/form-data; a=b;boundary=x;",
    ],
)
def test_the_boundary_may_be_quoted_and_a_charset_changes_nothing(content_type):
    assert read(form(NAMED), content_type) == DATA


def test_boundaries_of_browsers_are_taken():
    for boundary in ("----WebKitFormBoundary7MA4YWxkTrZu0gW", "-" * 27 + "9051914041544843365972754266", "x" * 70):
        body = form(NAMED).replace(b"--x", b"--" + boundary.encode())
        assert read(body, f"multipart/form-data; boundary={boundary}") == DATA


def test_a_broken_form_writes_no_log_line(caplog):
    with caplog.at_level(logging.INFO):
        assert str(read(b"garbage\r\n\xff")).startswith("400 ")
    assert caplog.records == []


@pytest.mark.parametrize(
    "value", [b'"' + b'\\"' * 30_000, b'"' * 60_000, b"\\" * 60_000, b";" * 60_000, b';a="' * 15_000]
)
def test_no_header_takes_long_to_parse(value):
    # A search from every quotation mark again would take 10 s for the first value, and this one takes milliseconds.
    began = time.process_time()
    multipart.parameter_names(b"form-data; name=image; a=" + value)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (b"form-data; name=a; filename*=b", [b"name", b"filename*"]),
        (b'form-data; name="a; b=c"; D = e', [b"name", b"d"]),
        (b'form-data; name="a\\"; b=c"; d=e', [b"name", b"d"]),
        (b'form-data; name="a\\\\"; b=c', [b"name", b"b"]),
        (b'form-data; name="a; b=c', [b"name"]),
        (b'form-data; name="a; b=c\\', [b"name"]),
        (b"form-data", []),
    ],
)
def test_the_names_of_parameters_are_found_outside_of_quotations(value, names):
    assert multipart.parameter_names(value) == names
