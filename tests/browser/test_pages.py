"""What a reader sees: every page, wide and narrow, light and dark, in Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

WIDTHS = {"desk": 1400, "telephone": 390}

#: What axe-core says of the markup of Sphinx and its theme furo, which pages cannot change.
OF_THE_THEME = ("aria-required-attr", "definition-list", "landmark-unique", "page-has-heading-one")

#: How far a phone's page may be wider than its window: nothing, but for a fraction that is rounded.
ROUNDING = 1


def _files(pages: Path) -> list[Path]:
    return [file.relative_to(pages) for file in sorted(pages.rglob("*.html"))]


@pytest.fixture(
    params=[(name, scheme) for name in WIDTHS for scheme in ("light", "dark")], ids="-".join
)
def window(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    """A page of Chromium, of one width and one colour scheme."""
    name, scheme = request.param
    context = browser.new_context(
        viewport={"width": WIDTHS[name], "height": 900}, color_scheme=scheme
    )
    yield context.new_page()
    context.close()


def test_every_page_fits_its_window_and_can_be_read(window: Page, pages: Path, site: str) -> None:
    """No sideways scroll, no error of a script, and nothing of what axe-core checks: contrast, names, order of headings."""
    problems = []
    window.on("pageerror", lambda error: problems.append(f"{window.url}: {error}"))
    window.on("requestfailed", lambda request: problems.append(f"{window.url}: {request.url}"))
    options: dict[str, object] = {"rules": {rule: {"enabled": False} for rule in OF_THE_THEME}}
    axe = Axe()
    for file in _files(pages):
        window.goto(f"{site}/{file}")
        wide = window.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        if wide > ROUNDING:
            problems.append(f"{file}: {wide} pixels to the side")
        for violation in axe.run(window, options=options).response["violations"]:
            problems += [
                f"{file}: {violation['id']}: {node['html'][:120]}: {node['failureSummary']}"
                for node in violation["nodes"]
            ]
    assert not problems, "\n".join(problems)


def test_no_link_is_dead(browser: Browser, pages: Path, site: str) -> None:
    """Of links to other sites only the form is looked at: a test makes no traffic there."""
    window = browser.new_page()
    ids: dict[str, set[str]] = {}
    links: list[tuple[Path, str]] = []
    for file in _files(pages):
        window.goto(f"{site}/{file}")
        ids[f"/{file}"] = set(
            window.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        )
        links += [
            (file, link)
            for link in window.evaluate(
                "[...document.querySelectorAll('a[href]')].map(e => e.href)"
            )
        ]
    window.close()
    assert len(links) > len(ids)
    dead = []
    for file, link in links:
        parts = urlsplit(link)
        if not link.startswith(site):
            if not (parts.scheme == "https" and re.fullmatch(r"[\w.-]+\.\w+", parts.netloc)):
                dead.append(f"{file}: {link}")
            continue
        path = parts.path + ("index.html" if parts.path.endswith("/") else "")
        known = ids.get(path)
        if known is None:
            if not (pages / unquote(path).lstrip("/")).is_file():
                dead.append(f"{file}: {link}")
        elif parts.fragment and unquote(parts.fragment) not in known:
            dead.append(f"{file}: {link}")
    assert not dead, "\n".join(dict.fromkeys(dead))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_toggle_changes_the_colours_and_is_remembered(
    browser: Browser, site: str, scheme: Literal["light", "dark"]
) -> None:
    context = browser.new_context(
        viewport={"width": WIDTHS["desk"], "height": 900}, color_scheme=scheme
    )
    window = context.new_page()
    window.goto(f"{site}/index.html")
    colours = (
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    seen = {}
    for _press in range(3):  # light, dark, the system's
        seen[window.evaluate("document.body.dataset.theme")] = window.evaluate(colours)
        window.locator(".theme-toggle:visible").first.click()
    assert seen.keys() == {"auto", "light", "dark"}
    assert seen["light"] != seen["dark"]
    assert seen["auto"] == seen[scheme]
    window.locator(".theme-toggle:visible").first.click()
    chosen = window.evaluate("document.body.dataset.theme")
    window.goto(f"{site}/how-to/install.html")
    assert window.evaluate("document.body.dataset.theme") == chosen != "auto"
    context.close()


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        ("install", "how-to/install.html"),
        ("logs", "how-to/logs.html"),
        ("troubleshooting", "how-to/troubleshooting.html"),
        ("nspawn", "explanation/alternatives.html"),
        ("hardened_capabilities", "reference/parameters.html"),
        ("chrootfw_mount", "reference/hooks.html"),
        ("InstanceInfo", "reference/library.html"),
    ],
)
def test_the_search_finds_first(browser: Browser, site: str, asked: str, first: str) -> None:
    window = browser.new_page()
    window.goto(f"{site}/search.html?q={asked}")
    link = window.locator("ul.search li a").first
    link.wait_for()
    assert urlsplit(str(link.get_attribute("href"))).path.split("#")[0] == first
    window.close()
