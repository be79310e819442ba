"""The parts every HTML view is made of: the page with its style, its head, tables, figures. No network, no script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape, unescape

from sve_cli.render.html_style import STYLE
from sve_cli.render.tables import Table


def page(title: str, blocks: Sequence[str]) -> str:
    """A complete document from its blocks; empty ones are left out. Four sections or more get a list of contents."""
    shown = _with_contents([block for block in blocks if block])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(shown)
        + "\n</main>\n</body>\n</html>\n"
    )


def _with_contents(blocks: list[str]) -> list[str]:
    """Every h2 gets an id; links to them stand before the block of the first one. All tags here are our own: text is escaped."""
    used: list[tuple[str, str]] = []

    def named(found: re.Match[str]) -> str:
        stem = re.sub(r"[^a-z0-9]+", "-", unescape(found[1]).lower()).strip("-") or "section"
        same = sum(name == stem or re.fullmatch(re.escape(stem) + r"-\d+", name) is not None for name, _ in used)
        used.append((f"{stem}-{same + 1}" if same else stem, found[1]))
        return f'<h2 id="{used[-1][0]}">{found[1]}</h2>'

    marked = [re.sub(r"<h2>(.*?)</h2>", named, block, flags=re.DOTALL) for block in blocks]
    if len(used) < 4:
        return marked
    links = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in used)
    first = next(i for i, block in enumerate(marked) if "<h2 id=" in block)
    return [*marked[:first], f'<nav aria-label="Contents"><ul>{links}</ul></nav>', *marked[first:]]


def head(title: str, subtitle: str, headline: Sequence[str], warnings: Sequence[str] = ()) -> str:
    """Title, subtitle, the first sentence large, the others as a list, and the warnings."""
    parts = [f'<header>\n<h1>{escape(title)}</h1>\n<p class="soft">{escape(subtitle)}</p>\n</header>']
    if headline:
        parts.append(f'<p class="lead">{escape(headline[0])}</p>')
        parts.append(bullets(headline[1:]))
    if warnings:
        parts.append(f'<div class="warnings" role="note"><strong>Warnings</strong>\n{bullets(warnings)}</div>')
    return "\n".join(part for part in parts if part)


def bullets(lines: Sequence[str]) -> str:
    """A list; nothing for no lines."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def code(lines: Sequence[str]) -> str:
    """Commands, one after another, to be copied; long ones wrap."""
    return "".join(f"<pre><code>{escape(line)}</code></pre>" for line in lines)


def section(title: str, content: Table | None, style: str, level: int = 2) -> str:
    """A heading with its table; nothing without one."""
    return f"<h{level}>{escape(title)}</h{level}>\n{table(content, title, style)}" if content else ""


def folded(summary: str, content: str) -> str:
    """Content behind a line to click; open on paper. Nothing for no content."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>" if content else ""


def note(*sentences: str) -> str:
    """A paragraph in the soft colour; nothing for no sentences."""
    text = " ".join(sentence for sentence in sentences if sentence)
    return f'<p class="soft">{escape(text)}</p>' if text else ""


def table(content: Table, label: str, style: str = "") -> str:
    """A table in its own scrolling box; on a phone each row of a wide one is a card: cells under each other, with their heads."""
    kind = f"{style} cards".strip() if "words" not in style and len(content.columns) > 2 else style

    def heading(i: int, text: str) -> str:
        shown = escape(re.sub(" (?=[%↑↓])", "\N{NO-BREAK SPACE}", text))
        return f'<th scope="col" class="num">{shown}</th>' if i in content.numeric else f'<th scope="col">{shown}</th>'

    def cell(i: int, text: str) -> str:
        named = f'data-head="{escape(content.columns[i])}"'  # a card says it beside the cell
        if i == 0:  # a number alone says nothing as the title of a card
            return heading(0, text).replace('scope="col"', f'scope="row" {named}' if i in content.numeric else 'scope="row"')
        if i not in content.numeric:
            shown = escape(text)
            return (
                f"<td><code>{shown}</code></td>" if content.columns[i] == "Report key" else f'<td class="text" {named}>{shown}</td>'
            )
        value, bracket, interval = text.partition(" (")
        tail = f' <span class="ci">({escape(interval)}</span>' if bracket else ""
        return f'<td class="num" {named}>{escape(value)}{tail}</td>'

    heads = "".join(heading(i, text) for i, text in enumerate(content.columns))
    body = "\n".join(
        ('<tr class="strong">' if r in content.strong else "<tr>") + "".join(cell(i, text) for i, text in enumerate(row)) + "</tr>"
        for r, row in enumerate(content.rows)
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">\n<table class="{kind}">\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def figure(caption: str, detail: str, drawing: str) -> str:
    """A drawing with its caption; nothing for an empty drawing."""
    return f"<figure><figcaption><b>{escape(caption)}</b>{escape(detail)}</figcaption>{drawing}</figure>" if drawing else ""


def figures(drawn: Sequence[str]) -> str:
    """Figures side by side where there is room; empty ones are left out."""
    shown = [drawing for drawing in drawn if drawing]
    return '<div class="figures">' + "\n".join(shown) + "</div>" if shown else ""
