"The website: built once, then read as a visitor does, in headless Chromium."
import functools
import inspect
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from multiformer.cells.hooks import record

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import build_docs  # noqa: E402

PREFIX = "under/some/prefix"


# ---------------------------------------------------------------- building

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["nbdev.serve", "nbdev.quarto", "nbdev.showdoc", "smalldocs.site", "latex2mathml.converter", "execnb.shell"])   # imported once


def build(log, arguments, environment):
    "The build tool with these arguments; what it says goes to the file `log`."
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(1, 2)
    os.environ.update(environment)
    sys.argv = ["build_docs.py", *arguments]
    sys.exit(build_docs.main())


def run_build(root, out, *options, **environment):
    "Run the build tool as `make docs` does; returns its exit code and what it said."
    with tempfile.NamedTemporaryFile() as log:
        process = FORKS.Process(target=build, args=(log.name, ["--root", str(root), "--out", str(out), *options], environment))
        process.start()
        process.join(300)
        return process.exitcode, Path(log.name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The build's result, and the folder that a server would serve."
    served = tmp_path_factory.mktemp("served")
    return run_build(ROOT, served / PREFIX, "--renderer", "smalldocs"), served


@pytest.fixture(scope="module")
def site(built):
    "The folder of the built site."
    (_, said), served = built
    assert (served / PREFIX).is_dir(), said
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
    (code, said), _ = built
    assert code == 0, said


def test_build_names_what_is_wrong(tiny_project):
    root = tiny_project('![far](https://example.org/far.png) [dead](nowhere.html) [lost](#lost) [rooted](</x>)\n\n'
                        '```{=html}\n<iframe srcdoc="&lt;script src=\'//example.org/s.js\'&gt;&lt;/script&gt;"></iframe>'
                        '<style>p { background: url(https://example.org/p.png) }</style>\n```', sidebar="[gone.ipynb]")
    code, said = run_build(root, root / "_docs", "--renderer", "smalldocs")
    assert code == 1, said
    for problem in ("the sidebar misses index.ipynb", "lists gone.ipynb, which does not exist",
                    "loads https://example.org/far.png", "loads //example.org/s.js", "loads https://example.org/p.png",
                    "links to nowhere.html, which is not there", "links to #lost: no such place"):
        assert problem in said, f"{problem!r} not in\n{said}"


def test_build_refuses_unknown_maths(tiny_project):
    root = tiny_project(r"$\notacommand{x}$")
    code, said = run_build(root, root / "_docs", "--renderer", "smalldocs")
    assert code == 1 and r"\notacommand" in said


def test_build_keeps_a_folder_that_is_not_a_site(tiny_project):
    root = tiny_project("Text.")
    (root / "precious").mkdir()
    (root / "precious/thesis.txt").write_text("years of work")
    code, said = run_build(root, root / "precious", "--renderer", "smalldocs")
    assert code == 1 and "not a built site" in said
    assert (root / "precious/thesis.txt").exists()


def test_quarto_is_used_where_it_is_installed(tiny_project):
    root = tiny_project("Text.")
    (root / "bin").mkdir()
    fake = root / "bin/quarto"
    fake.write_text('#!/bin/sh\ntest "$1" = render && test -f _quarto.yml && test -f index.ipynb || exit 3\n'
                    'mkdir -p _docs/site_libs\n'
                    'echo \'<a href="https://multiformer.github.io/multiformer/index.html">made by quarto</a>\' > _docs/index.html\n')
    fake.chmod(0o755)
    code, said = run_build(root, root / "_docs", PATH=f"{root / 'bin'}:{os.environ['PATH']}")
    assert code == 0, said
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


@contextmanager
def visitor(browser, address, width=1280, height=900):
    "Opens a page of the site; whatever the browser complains about or asks elsewhere for is an error in the end."
    complaints = []
    context = browser.new_context(viewport={"width": width, "height": height})
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


@pytest.fixture
def visit(browser, address):
    "Opens a page of the site, as a visitor does."
    with visitor(browser, address) as go:
        yield go


def html_pages(site):
    "Every page of the site, by its path."
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))


def first_page_with(site, text):
    "The path of a page whose HTML contains `text`."
    found = next((name for name in html_pages(site) if text in (site / name).read_text(encoding="utf-8")), None)
    assert found, f"no page contains {text!r}"
    return found


LOOK = """(() => {
  const flat = [...document.querySelectorAll("mfrac")].map((f) => [...f.children].map((c) => c.getBoundingClientRect()))
    .filter(([over, under]) => !(over.height > 0 && over.bottom <= under.top + 1)).length;
  const wider = ["html", "main"].filter((part) => {   // what is wider scrolls in a box of its own
    const e = document.querySelector(part);
    return e.scrollWidth > e.clientWidth;
  });
  const maths = [...document.querySelectorAll(".math")];
  return { title: document.querySelector("h1").innerText.trim(), broken: [...document.images].filter((i) => !i.naturalWidth).length,
           maths: maths.length, raw: maths.filter((m) => !m.querySelector("math") || m.innerText.includes("\\\\")).length, flat, wider };
})()"""


@pytest.fixture(scope="module")
def tour(browser, address, site):
    "What a visitor with a phone meets on every page."
    with visitor(browser, address, 390, 844) as go:
        return {name: go(name).evaluate(LOOK) for name in html_pages(site)}


def test_every_page_loads_by_itself(tour):
    assert len(tour) >= len(build_docs.notebooks(ROOT))
    assert all(page["title"] for page in tour.values())
    assert {name: page["broken"] for name, page in tour.items() if page["broken"]} == {}


def test_pages_fit_a_phone(tour):
    assert {name: page["wider"] for name, page in tour.items() if page["wider"]} == {}


def test_maths_is_drawn(tour):
    assert any(page["maths"] for page in tour.values())
    assert {name: page["raw"] for name, page in tour.items() if page["raw"]} == {}
    assert {name: page["flat"] for name, page in tour.items() if page["flat"]} == {}, "fractions whose numerator isn't above their denominator"


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
