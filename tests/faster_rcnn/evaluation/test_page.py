"""The page of a report: text from the data is escaped."""

import re

from faster_rcnn.evaluation.page import gallery, page, section, table


def test_text_from_the_data_cannot_inject_html() -> None:
    text = page("<b>", "a & b", [section("<h>", "", table(["<c>"], [["<d>"]])), gallery("<e>", ['"><script>'])])
    assert not re.search(r"<(b|h|c|d|e|script)>", text)
    assert "a &amp; b" in text
