"""Sections → one HTML page without a script and without anything that is elsewhere."""

import base64
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from blockkd.reporting.sections import Example, Section
from blockkd.reporting.style import Picture, theme

TEMPLATE = "page.html.j2"


def page(title: str, facts: Sequence[tuple[str, str]], notes: Sequence[str], sections: Sequence[Section]) -> str:
    """The page. All text is escaped, and its policy forbids scripts and requests: names may come from a stranger.

    Args:
        title: of the page.
        facts: what was reported, by name.
        notes: what a reader must know first, such as that a run is unfinished.
        sections: in order.
    """
    surroundings = Environment(
        loader=PackageLoader("blockkd.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    surroundings.filters |= {"drawing": _drawing, "image": _image}
    template = surroundings.get_template(TEMPLATE)
    return template.render(title=title, facts=facts, notes=notes, sections=sections, theme=Markup(theme()))


def _drawing(picture: Picture) -> Markup:
    return Markup(picture.inline())  # matplotlib has escaped what is in it


def _image(example: Example) -> str:
    return f"data:image/png;base64,{base64.b64encode(example.png).decode('ascii')}"
