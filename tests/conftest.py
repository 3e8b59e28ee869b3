"The browser that several tests share."
import os
import shutil

import pytest

FLAGS = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync").split()


@pytest.fixture(scope="module")
def browser():
    "Headless Chromium, or a skip (a failure where MULTIFORMER_REQUIRE_BROWSER=1)."
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        (pytest.fail if os.environ.get("MULTIFORMER_REQUIRE_BROWSER") == "1" else pytest.skip)("no Chromium on this machine")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def new_page(browser):
    "A function that makes a page without network; whatever it complains about or asks for fails the test."
    contexts, complaints = [], []

    def new(**options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(("file:", "data:", "about:")) else complaints.append(request.url))
        return page

    yield new
    for context in contexts:
        context.close()
    assert not complaints
