"""Builds the web page of an evaluation: plain HTML without scripts. Its images are files in the same folder."""

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1500px; margin: 2rem auto; padding: 0 1.5rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.note { opacity: .75; margin-top: .2rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.tile { background: var(--soft); border-radius: .6rem; padding: .6rem 1rem; min-width: 6rem; }
.tile b { display: block; font-size: 1.5rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; border-radius: .3rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, 420px); gap: .8rem; align-items: start; }
"""


def page(title: str, note: str, sections: Sequence[str]) -> str:
    """A complete HTML document; `sections` are HTML, the other arguments plain text."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f'<body><h1>{escape(title)}</h1><p class="note">{escape(note)}</p>\n'
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def section(heading: str, note: str, *parts: str) -> str:
    """A heading, a line that explains what follows, and the content; `parts` are HTML."""
    return f'<h2>{escape(heading)}</h2><p class="note">{escape(note)}</p>\n' + "\n".join(parts)


def sentences(texts: Sequence[str]) -> str:
    """A paragraph for each of the texts, which are plain."""
    return "\n".join(f"<p>{escape(text)}</p>" for text in texts)


def tiles(values: dict[str, str]) -> str:
    """The most important numbers in large type, each above its name."""
    cells = (f'<div class="tile"><b>{escape(value)}</b>{escape(name)}</div>' for name, value in values.items())
    return f'<div class="tiles">{"".join(cells)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; all cells are plain text."""
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><tr>{header}</tr>\n{body}</table>"


def image(path: str) -> str:
    """An image by its path relative to the page. It loads when it scrolls into view; a click opens it."""
    return f'<a href="{escape(path)}"><img loading="lazy" src="{escape(path)}" alt=""></a>'


def gallery(heading: str, paths: Sequence[str]) -> str:
    """Images in a grid under a heading, or an empty string if there are no images."""
    if not paths:
        return ""
    return f'<h3>{escape(heading)}</h3><div class="gallery">{"".join(map(image, paths))}</div>'
