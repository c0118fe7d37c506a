"""Markdown for the Prefect UI, which also draws HTML: values that come from elsewhere are shown as they are and do nothing.

Pictures are ``data:`` addresses: both user interfaces of Prefect 3.8 draw them, offline and whoever looks, while a picture on a
web server needs that server. An image artifact would print the whole address below the picture.
"""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

from pipeline.logs import on_one_line

PICTURE_WIDTH_PX = 1400
PICTURE_COLOURS = 128
LONGEST = 2000
"""Characters of one value; what is more is cut off."""


def code(value: object) -> str:
    """A value to be shown letter by letter."""
    text = on_one_line(str(value))
    text = (text if len(text) <= LONGEST else f"{text[:LONGEST]} …") or " "
    longest = max((len(found) for found in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if text.startswith(("`", " ")) or text.endswith(("`", " ")) else ""
    return f"{fence}{space}{text}{space}{fence}"


def plain(value: object) -> str:
    """A value as running text: nothing in it is a mark of Markdown or HTML."""
    text = on_one_line(str(value))
    return re.sub(r"[^\w\s.,;:/()=+%'…’–-]|(?<!\w)_|_(?!\w)", lambda found: f"&#{ord(found.group())};", text)


def table(rows: Iterable[Sequence[object]], head: Sequence[str]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def facts(values: Mapping[str, object], head: tuple[str, str] = ("what", "value")) -> str:
    """A table of two columns: names, and values that are Markdown already."""
    return table(values.items(), head)


def link(text: str, address: str) -> str:
    """A link, where a browser follows it from a page; otherwise the address to be copied: pages may not lead to files."""
    if address.startswith(("http://", "https://")):
        return f"[{plain(text)}](<{address.replace('>', '%3E').replace('<', '%3C')}>)"
    return code(address)


def picture(title: str, png: bytes) -> str:
    """A picture with its title, in few colours so that it takes little room in the server's database."""
    data = base64.b64encode(_small(png)).decode()
    return f"**{plain(title)}**\n\n![{plain(title)}](data:image/png;base64,{data})"


def _small(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as opened:
        image = opened.convert("RGB")
    image.thumbnail((PICTURE_WIDTH_PX, 4 * PICTURE_WIDTH_PX))
    file = io.BytesIO()
    image.quantize(PICTURE_COLOURS).save(file, "PNG", optimize=True)
    return min(png, file.getvalue(), key=len) if image.width < PICTURE_WIDTH_PX else file.getvalue()
