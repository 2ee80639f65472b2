"""HTML and SVG as strings in which nothing from outside is markup.

>>> print(element("p", "a < b & ", element("b", "c"), title='"'))
<p title="&quot;">a &lt; b &amp; <b>c</b></p>
"""

import html
from collections.abc import Sequence
from typing import Any

EMPTY = {"img", "meta", "br"}


class Markup(str):
    """Text that is markup already."""


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element; children and attributes are escaped unless they are `Markup`.

    Args:
        name: of the element.
        children: text, numbers, markup, lists of these; None is nothing.
        attributes: `class_` is `class`, other `_` are `-`; None and False leave one out.
    """
    written = [
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    ]
    inside = "".join(map(_child, children))
    end = "" if name in EMPTY else f"{inside}</{name}>"
    return Markup(f"<{name}{''.join(written)}>{end}")


def _child(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, list | tuple):
        return "".join(map(_child, child))
    return html.escape(str(child), quote=False)


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markup:
    """A table that sorts by a click on a head, and scrolls within itself.

    Args:
        heads: the columns' names.
        rows: cells: text, or a pair of text and the number to sort by.
    """
    columns = [element("th", element("button", head, type="button"), scope="col") for head in heads]
    lines = [element("tr", *map(_cell, row)) for row in rows]
    inner = element("table", element("thead", element("tr", *columns)), element("tbody", *lines))
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label="table")


def _cell(cell: Any) -> Markup:
    if isinstance(cell, tuple):
        text, number = cell
        return element("td", text, data_v=f"{number:.10g}", class_="number")
    return element("td", cell)
