"""A real browser, for the tests of pages; where there is none they are skipped and say why."""

import shutil
from collections import namedtuple

import pytest

Opened = namedtuple("Opened", "page dialogs")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install 'chainograd[test]'"
    )
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Return a function that opens a file as a user does; errors of its script fail the test."""
    contexts, errors = [], []

    def open_(path, **options):
        context = options.pop("context", None) or browser.new_context(**options)
        contexts.append(context)
        page, dialogs = context.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.accept()))
        page.goto(path.as_uri())
        return Opened(page, dialogs)

    yield open_
    for context in {id(c): c for c in contexts}.values():
        context.close()
    assert errors == []
