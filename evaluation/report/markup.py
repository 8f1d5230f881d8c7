"""HTML as text that knows it is HTML: whatever else is put into an element is escaped."""

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

VOID = {"img", "meta", "circle", "line", "path"}  # elements without content
LARGEST = 128  # pixels: the side that larger images are shown at, so that a report stays small
SMALL = 64  # pixels: images up to this are kept exact, and enlarged without smoothing
ROOM, WIDE = 400_000, 1680  # bytes that a picture may take as it is; pixels that it is reduced to else


class Html(str):
    """Text that is markup already."""


def element(name: str, /, *children: str, **attributes: Any) -> Html:
    """`<name attributes>children</name>`; children that are no `Html`, and all attributes, are escaped.

    Attributes that are None are left out. Python's words take an underscore: `class_`; inner underscores become hyphens.
    """
    fields = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{fields}>" if name in ("img", "meta") else f"<{name}{fields}/>")
    return Html(f"<{name}{fields}>{join(children)}</{name}>")


def join(parts: Iterable[str], separator: str = "") -> Html:
    """Parts after one another, escaped where they are no `Html`."""
    return Html(separator.join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def scrolling(*children: str, **attributes: Any) -> Html:
    """A box of its own for what may be wider than the window; reached by keyboard as well."""
    return element("div", *children, class_="scroll", tabindex=0, **attributes)


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, class_: str | None = None, numbers_from: int = 1
) -> Html:
    """A table in a box that scrolls by itself; columns from `numbers_from` on are set as numbers."""

    def cells(kind: str, row: Sequence[str]) -> Html:
        return element("tr", *(
            element("th" if column == 0 else kind, cell, scope=("row" if kind == "td" else "col") if column == 0 else None,
                    class_="number" if column >= numbers_from else None)
            for column, cell in enumerate(row)
        ))  # fmt: skip

    body = [cells("td", row) for row in rows]
    top = [element("thead", cells("th", head))] if head else []
    return scrolling(element("table", *top, element("tbody", *body), class_=class_))


def definitions(pairs: Iterable[tuple[str, str]], **attributes: Any) -> Html:
    """A list of names and values."""
    rows = [element("div", element("dt", name), element("dd", value)) for name, value in pairs]
    return element("dl", *rows, **attributes)


def section(title: str, *children: str, lead: str = "") -> Html:
    """A part of the page under its heading; nothing where nothing is in it."""
    content = [child for child in children if child]
    if not content:
        return Html()
    leads = [element("p", lead, class_="lead")] if lead else []
    return element("section", element("h2", title), *leads, *content, id=anchor(title))


def anchor(title: str) -> str:
    """The id of a section."""
    return "-".join(word for word in title.lower().split() if word.isalnum())


def image(pixels: UInt8[np.ndarray, "H W C"], *, alt: str, **attributes: Any) -> Html:
    """An image inside the page: small ones exact as PNG, large ones as JPEG at `LARGEST` pixels at most."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    exact = max(picture.size) <= SMALL
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG" if exact else "JPEG", optimize=True, quality=88)
    kind = "png" if exact else "jpeg"
    width, height = picture.size
    attributes["class_"] = "pixels" if exact else None
    return element(
        "img", src=data_uri(buffer.getvalue(), f"image/{kind}"), alt=alt, width=width, height=height, **attributes
    )


def png_file(path: Path, *, alt: str) -> Html:
    """A PNG file inside the page: as it is, or, where it takes too much room, as a JPEG of `WIDE` pixels, shown at half."""
    content, kind = path.read_bytes(), "png"
    with Image.open(io.BytesIO(content)) as picture:
        width, height = picture.size
        if len(content) > ROOM:
            reduced, buffer = picture.convert("RGB"), io.BytesIO()
            reduced.thumbnail((WIDE, height))
            reduced.save(buffer, format="JPEG", optimize=True, quality=88)
            content, kind, width, height = buffer.getvalue(), "jpeg", reduced.width // 2, reduced.height // 2
    exact = "pixels" if kind == "png" else None
    return element("img", src=data_uri(content, f"image/{kind}"), alt=alt, width=width, height=height, class_=exact)


def data_uri(content: bytes, kind: str) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def number(value: float) -> str:
    """A number of unknown size with four digits: 0.0312, 2.630, 1,314,176, 2e-5."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1e4:
        return f"{value:,.0f}"
    return plain(f"{value:.4g}")


def as_number(value: Any) -> float | None:
    """A number, or None for whatever else stands in a file."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def words(value: Any) -> str:
    """A setting in short: 16,384, 0.05, (0, 1); a dash for None."""
    if isinstance(value, list | tuple):
        return "(" + ", ".join(words(item) for item in value) + ")"
    if (known := as_number(value)) is not None:
        return number(known)
    return "–" if value is None else str(value)


def counted(count: int, noun: str) -> str:
    """1 field, 2 fields."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def plain(text: str) -> str:
    """2e-5 for 2e-05."""
    mantissa, letter, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if letter else text
