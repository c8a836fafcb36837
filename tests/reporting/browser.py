"""A real browser without a screen, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    f"--{flag}"
    for flag in (
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
    )
]


@dataclass
class Seen:
    """What happened while a page was shown.

    Attributes:
        said: messages on the console, and errors.
        asked: addresses of all requests but those for data in the page itself.
    """

    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def browser(profile: Path) -> Iterator[Any]:
    """Chromium with an empty profile; skips the test where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"there is no browser: none of {', '.join(NAMES)} is on the path")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=program, args=FLAGS, headless=True, viewport=None
        )
        try:
            yield launched
        finally:
            launched.close()


@contextmanager
def shown(context: Any, page: Path, width: int, theme: str = "light") -> Iterator[tuple[Any, Seen]]:
    """The page from disk, so many pixels wide, under a theme."""
    tab, seen = context.new_page(), Seen()
    tab.on("console", lambda message: seen.said.append(message.text))
    tab.on("pageerror", lambda error: seen.said.append(str(error)))
    tab.on("request", lambda request: None if request.url.startswith("data:") else seen.asked.append(request.url))
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(color_scheme=theme)
    tab.goto(page.resolve().as_uri())
    try:
        yield tab, seen
    finally:
        tab.close()
