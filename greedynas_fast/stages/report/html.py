"""Small pieces of HTML. Every argument called `text` is escaped here; every one called `html` is taken as it is."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path


def section(anchor: str, title: str, html: str, lead: str = "") -> str:
    """A card of the page; `lead` is a sentence of text under the heading."""
    intro = f"<p>{escape(lead)}</p>" if lead else ""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{intro}{html}</section>'


def missing(text: str, folder: Path, command: str) -> str:
    """What is not there yet, and the command that makes it (`search` -> `greedynas-fast search RUN`)."""
    option = "--run " if command in ("train", "run") else ""
    line = f"greedynas-fast {command} {option}{shlex.quote(str(folder))}"
    return f'<div class="missing">{escape(text)} To make it: <code>{escape(line)}</code></div>'


def note(text: str) -> str:
    """A remark in the soft colour."""
    return f'<p class="soft">{escape(text)}</p>'


def warning(text: str) -> str:
    """A remark that the reader should not miss."""
    return f'<p class="warning">{escape(text)}</p>'


def code(text: str) -> str:
    """Text in the fixed-width face."""
    return f"<code>{escape(text)}</code>"


def tiles(items: Sequence[tuple[str, str]]) -> str:
    """(value, what it is) pairs as large figures."""
    cells = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(name)}</span></div>' for v, name in items)
    return f'<div class="tiles">{cells}</div>'


def grid(html: Sequence[str]) -> str:
    """Figures side by side where the page is wide enough; empty ones are left out."""
    shown = [item for item in html if item]
    return f'<div class="grid">{"".join(shown)}</div>' if shown else ""


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = (), fixed: Sequence[int] = ()
) -> str:
    """A table of text; the columns in `numeric` stand to the right, those in `fixed` are in the fixed-width face."""

    def cells(tag: str, values: Sequence[str]) -> str:
        out = []
        for i, value in enumerate(values):
            html = code(value) if tag == "td" and i in fixed and value else escape(value)
            css = ' class="n"' if i in numeric else ""
            out.append(f"<{tag}{css}>{html}</{tag}>")
        return "<tr>" + "".join(out) + "</tr>"

    body = "".join(cells("td", row) for row in rows)
    return f'<div class="scroll"><table><thead>{cells("th", head)}</thead><tbody>{body}</tbody></table></div>'
