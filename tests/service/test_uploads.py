import base64

import pytest

from service.problems import Problem
from service.uploads import from_json

DATA = bytes(range(256))
TEXT = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"data:image/png;base64,{TEXT}",
        f"data:;base64,{TEXT}",
        "\\n".join(TEXT[i : i + 76] for i in range(0, 344, 76)),
    ],
)
def test_base64_is_read_plain_wrapped_or_as_a_data_url(text):
    assert from_json(f'{{"image": "{text}"}}'.encode()) == DATA


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"nan", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"image": "\xff"}', "JSON"),
        (b'{"image": "\\ud800"}', "JSON"),
        (b"[]", "object"),
        (b'"image"', "object"),
        (b'{"picture": "aaaa"}', "object"),
        (b'{"image": 5}', "object"),
        (b'{"image": null}', "object"),
        (b'{"image": "aaaa", "threshold": 1}', "object"),
        (b'{"image": "a"}', "base64"),
        (b'{"image": "a*aa"}', "base64"),
        ('{"image": "äöü="}'.encode(), "base64"),
        (b'{"image": "data:image/png,aaaa"}', "base64"),
        (b'{"image": "https://example.org/picture.jpg"}', "base64"),
    ],
)
def test_json_of_another_shape_is_a_bad_request_that_says_what_to_send(body, word):
    with pytest.raises(Problem) as caught:
        from_json(body)
    assert caught.value.status == 400
    assert word in caught.value.detail
    assert '{"image": "<base64' in caught.value.detail
