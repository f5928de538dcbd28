"""The built pages, served on loopback, and a Chromium of Debian's that looks at them."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pages", type=Path, required=True, help="the directory of the built pages")


@pytest.fixture(scope="session")
def pages(request: pytest.FixtureRequest) -> Path:
    """The directory of the built pages."""
    directory: Path = request.config.getoption("--pages")
    return directory.resolve(strict=True)


@pytest.fixture(scope="session")
def site(pages: Path) -> Iterator[str]:
    """The address of the pages, without the last slash."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(pages))  # type: ignore[arg-type]

        def log_message(self, *_args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    assert program, "the Debian package chromium is missing"
    with sync_playwright() as playwright:
        # The sandbox wants a user other than root. The pages are the project's own.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
