"""An HTML file with a figure and tables that needs nothing else: no scripts, no fonts, no network."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from zoo.terminal import visible

Table = tuple[str, Sequence[str], Sequence[Mapping[str, str]]]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; }
svg { width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: 0.25rem 0.75rem; text-align: left; vertical-align: top; }
p { color: #555; margin: 0.25rem 0; }
"""


def page(title: str, svg: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Returns the page as HTML, with all texts escaped and control characters visible.

    Args:
        title: of the page, plain text.
        svg: a figure, as matplotlib writes it.
        tables: of each the heading or "", the names of its columns, and for each column a mapping row -> text.
        notes: plain text, a paragraph each.
    """
    figure = svg[svg.index("<svg") :]  # without the XML declaration, which names a DTD on the net
    figure = re.sub(r"<metadata>.*?</metadata>", "", figure, flags=re.DOTALL)
    body = [f"<h1>{escape(title)}</h1>", figure, *(f"<p>{escape(note)}</p>" for note in notes)]
    for heading, columns, content in tables:
        body += [f"<h2>{escape(heading)}</h2>"] if heading else []
        body.append(_table(columns, content))
    return visible(
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8" />\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _table(columns: Sequence[str], content: Sequence[Mapping[str, str]]) -> str:
    rows = list(dict.fromkeys(name for column in content for name in column))
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *columns))
    lines = [
        f"<tr><th>{escape(row)}</th>" + "".join(f"<td>{escape(column.get(row, ''))}</td>" for column in content)
        for row in rows
    ]
    return f"<table>\n<tr>{head}</tr>\n" + "\n".join(f"{line}</tr>" for line in lines) + "\n</table>"
