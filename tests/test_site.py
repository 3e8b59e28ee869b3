"The website: built once, then read as a visitor does, in headless Chromium."
import functools
import inspect
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from multiformer.cells.hooks import record

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import build_docs  # noqa: E402

PREFIX = "under/some/prefix"


# ---------------------------------------------------------------- building

def run_build(root, out, *options, **environment):
    "Run the build tool as `make docs` does."
    command = [sys.executable, str(ROOT / "tools/build_docs.py"), "--root", str(root), "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The build's result, and the folder that a server would serve."
    served = tmp_path_factory.mktemp("served")
    return run_build(ROOT, served / PREFIX, "--renderer", "smalldocs"), served


@pytest.fixture(scope="module")
def site(built):
    "The folder of the built site."
    result, served = built
    assert (served / PREFIX).is_dir(), result.stdout + result.stderr
    return served / PREFIX


@pytest.fixture
def tiny_project(tmp_path):
    "A project of one page, with the real settings."
    def write(markdown, sidebar="[index.ipynb]"):
        shutil.copy(ROOT / "settings.ini", tmp_path)
        config = f"project:\n  type: website\nmetadata-files: [nbdev.yml]\nwebsite:\n  sidebar:\n    contents: {sidebar}\n"
        (tmp_path / "_quarto.yml").write_text(config)
        cells = [{"cell_type": "markdown", "id": f"c{i}", "metadata": {}, "source": source}
                 for i, source in enumerate(["# Home\n\n> A page.", markdown])]
        (tmp_path / "nbs").mkdir()
        notebook = {"cells": cells, "metadata": {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}},
                    "nbformat": 4, "nbformat_minor": 5}
        (tmp_path / "nbs/index.ipynb").write_text(json.dumps(notebook))
        return tmp_path
    return write


def test_sidebar_lists_every_notebook():
    problems = build_docs.sidebar_problems(ROOT)
    assert not problems, "\n".join(problems)


def test_build_finds_no_problem(built):
    result, _ = built
    assert result.returncode == 0, result.stdout + result.stderr


def test_build_names_what_is_wrong(tiny_project):
    root = tiny_project('![far](https://example.org/far.png) [dead](nowhere.html) [lost](#lost) [rooted](</x>)\n\n'
                        '```{=html}\n<iframe srcdoc="&lt;script src=\'//example.org/s.js\'&gt;&lt;/script&gt;"></iframe>'
                        '<style>p { background: url(https://example.org/p.png) }</style>\n```', sidebar="[gone.ipynb]")
    result = run_build(root, root / "_docs", "--renderer", "smalldocs")
    assert result.returncode == 1, result.stdout + result.stderr
    for problem in ("the sidebar misses index.ipynb", "lists gone.ipynb, which does not exist",
                    "loads https://example.org/far.png", "loads //example.org/s.js", "loads https://example.org/p.png",
                    "links to nowhere.html, which is not there", "links to #lost: no such place"):
        assert problem in result.stdout, f"{problem!r} not in\n{result.stdout}"


def test_build_refuses_unknown_maths(tiny_project):
    root = tiny_project(r"$\notacommand{x}$")
    result = run_build(root, root / "_docs", "--renderer", "smalldocs")
    assert result.returncode == 1 and r"\notacommand" in result.stderr


def test_build_keeps_a_folder_that_is_not_a_site(tiny_project):
    root = tiny_project("Text.")
    (root / "precious").mkdir()
    (root / "precious/thesis.txt").write_text("years of work")
    result = run_build(root, root / "precious", "--renderer", "smalldocs")
    assert result.returncode == 1 and "not a built site" in result.stderr
    assert (root / "precious/thesis.txt").exists()


def test_quarto_is_used_where_it_is_installed(tiny_project):
    root = tiny_project("Text.")
    (root / "bin").mkdir()
    fake = root / "bin/quarto"
    fake.write_text('#!/bin/sh\ntest "$1" = render && test -f _quarto.yml && test -f index.ipynb || exit 3\n'
                    'mkdir -p _docs/site_libs\n'
                    'echo \'<a href="https://multiformer.github.io/multiformer/index.html">made by quarto</a>\' > _docs/index.html\n')
    fake.chmod(0o755)
    result = run_build(root, root / "_docs", PATH=f"{root / 'bin'}:{os.environ['PATH']}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert '<a href="./index.html">made by quarto' in (root / "_docs/index.html").read_text()


# ---------------------------------------------------------------- visiting

@pytest.fixture(scope="module")
def address(built, site):
    "Where the site is served on this machine, below a prefix."
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(built[1])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{PREFIX}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def visit(browser, address):
    "Opens a page of the site; whatever the browser complains about or asks elsewhere for fails the test."
    complaints = []
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(10_000)
    page = context.new_page()
    page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"script: {error}"))
    aborted = "net::ERR_ABORTED"  # by our own next step, as an icon that still loads when the page is left
    page.on("requestfailed", lambda request: request.failure == aborted or complaints.append(f"failed: {request.url} {request.failure}"))
    page.on("response", lambda response: response.status >= 400 and complaints.append(f"{response.status}: {response.url}"))
    own = (address, "data:", "blob:", "about:")
    page.on("request", lambda request: request.url.startswith(own) or complaints.append(f"foreign: {request.url}"))

    def go(name):
        response = page.goto(f"{address}/{name}")
        assert response.status == 200, name
        page.evaluate("document.querySelectorAll('iframe').forEach(frame => frame.loading = 'eager')")
        return page

    yield go
    context.close()
    assert not complaints, "\n".join(complaints)


def html_pages(site):
    "Every page of the site, by its path."
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))


def first_page_with(site, text):
    "The path of a page whose HTML contains `text`."
    found = next((name for name in html_pages(site) if text in (site / name).read_text(encoding="utf-8")), None)
    assert found, f"no page contains {text!r}"
    return found


def test_every_page_loads_by_itself(visit, site):
    names = html_pages(site)
    assert len(names) >= len(build_docs.notebooks(ROOT))
    for name in names:
        page = visit(name)
        assert page.locator("h1").first.inner_text().strip(), name
        assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 0, f"{name}: broken image"


def test_pages_fit_a_phone(visit, site):
    for name in html_pages(site):
        page = visit(name)
        page.set_viewport_size({"width": 390, "height": 844})
        for part in ("html", "main"):  # what is wider scrolls in a box of its own
            assert page.locator(part).evaluate("e => e.scrollWidth - e.clientWidth") <= 0, f"{name}: {part} is too wide"


def test_sidebar_leads_to_another_page(visit):
    page = visit("index.html")
    page.locator("#quarto-sidebar").get_by_text("Hook points", exact=True).click()
    page.wait_for_url("**/anatomy/hooks.html")
    assert page.locator("h1").inner_text() == "Hook points"


def search_for(page, words, result):
    "Type into the search box and follow the result that leads to `result`."
    page.locator(".smalldocs-search input").fill(words)
    page.locator(f'.search-result[href*="{result}"]').first.click()
    page.wait_for_url(f"**/{result}*")


def test_search_finds_a_page(visit):
    page = visit("models/base.html")
    search_for(page, "intervene", "anatomy/hooks.html")
    assert page.locator("h1").inner_text() == "Hook points"


def test_api_entry_shows_parameters(visit):
    page = visit("anatomy/hooks.html#record")
    entry = page.locator(".cell-output-markdown", has=page.locator("#record"))
    for name, parameter in inspect.signature(record).parameters.items():
        assert f"{name}:" in entry.inner_text(), parameter
    assert inspect.getdoc(record).split(".")[0].replace("`", "") in entry.inner_text()
    assert "/multiformer/cells/hooks.py#L" in entry.get_by_text("source").get_attribute("href")


def test_names_in_prose_link_to_their_entry(visit, site):
    page = visit(first_page_with(site, 'hooks.html#record"><code>record'))
    page.locator('main a[href$="hooks.html#record"]').first.click()
    page.wait_for_url("**/anatomy/hooks.html#record")
    assert page.locator("#record").is_visible()


def test_maths_is_drawn(visit, site):
    with_maths = [name for name in html_pages(site) if 'class="math' in (site / name).read_text(encoding="utf-8")]
    assert with_maths
    for page in map(visit, with_maths):
        assert page.locator(".math:not(:has(math))").count() == 0, page.url
        assert "\\" not in "".join(page.locator(".math").all_inner_texts()), page.url
        flat = page.locator("mfrac").evaluate_all("""all => all.map(f => [...f.children].map(c => c.getBoundingClientRect()))
            .filter(([over, under]) => !(over.height > 0 && over.bottom <= under.top + 1)).length""")
        assert flat == 0, f"{page.url}: {flat} fractions whose numerator isn't above their denominator"


def test_widget_answers_a_click(visit, site):
    page = visit(first_page_with(site, " srcdoc=\""))
    widget = page.locator("iframe[srcdoc]").first.content_frame
    choice = widget.locator('[role=gridcell][aria-selected=false]').first
    label = choice.get_attribute("aria-label")
    choice.click()
    assert widget.locator('[role=gridcell][aria-selected=true]').get_attribute("aria-label") == label


def test_works_from_the_file_system(browser, site):
    page = browser.new_page()
    page.goto((site / "models/base.html").as_uri())
    search_for(page, "intervene", "anatomy/hooks.html")
    assert page.locator("h1").inner_text() == "Hook points"
    page.close()
