"""Pages for a person, as HTML that needs nothing else: templates over one frame, ``page.html.jinja``, every text escaped."""

from collections.abc import Callable
from typing import Any

import jinja2

from stages.summary import percent, points, probability, span

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("stages", ""),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {"percent": percent, "span": span, "points": points, "probability": probability}


def render(template: str, filters: dict[str, Callable[..., Any]], **values: Any) -> bytes:
    """A page in UTF-8. File names and labels come from whoever made the videos.

    Args:
        template: a file beside this one.
        filters: those that it has beside the common ones.
        values: what it is filled with.
    """
    environment = _ENVIRONMENT.overlay()
    environment.filters = {**_ENVIRONMENT.filters, **filters}
    return environment.get_template(template).render(values).encode()
