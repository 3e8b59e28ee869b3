"""The command that runs the lessons, on a small corpus that tries to break out of the page, and on corpora that it must refuse."""
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from random import Random

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import walkthrough  # noqa: E402

HOSTILE = '</script><img src=x onerror="document.title=1">&amp; <b>bold</b> ünïcödé 漢字 👩‍🚀 \x00\u202e'
WORDS = "the cat sat on a mat and saw a big red dog run to the house".split()


def command(*arguments) -> list[str]:
    return [sys.executable, ROOT / "tools/walkthrough.py", *arguments]


def run(*arguments, timeout: float = 300, **environment) -> subprocess.CompletedProcess:
    "Run the command, offline, and return what it did."
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout, env={**os.environ, "HF_HUB_OFFLINE": "1", **environment})


def files(folder: Path) -> dict:
    "The files in a folder and when they were written."
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


class Page(HTMLParser):
    "The elements of a page, those of its frames included, and its visible text."
    def __init__(self, text: str):
        super().__init__()
        self.elements, self.said, self.frames = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "iframe": self.frames.append(Page(dict(attrs)["srcdoc"]))

    def handle_data(self, data): self.said += data

    def all_elements(self) -> list:
        return self.elements + [element for frame in self.frames for element in frame.all_elements()]


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    "The result of a short run on a hostile text, its folder, and the notebooks before and after."
    folder = tmp_path_factory.mktemp("walk")
    rng = Random(0)
    lines = (f"{HOSTILE if i % 9 == 0 else ''} {' '.join(rng.choices(WORDS, k=12))}." for i in range(300))
    (folder / "a <b> & c.txt").write_text("\n".join(lines), encoding="utf-8")
    before = files(ROOT / "nbs")
    done = run("--corpus", folder / "a <b> & c.txt", "--out", folder / "out", "--steps", "20", OMP_NUM_THREADS="2", MPLBACKEND="agg")
    assert done.returncode == 0, done.stderr
    return done, folder / "out", before


@pytest.fixture(scope="module")
def page(walked):
    return (walked[1] / "report.html").read_text(encoding="utf-8")


def test_run_shows_progress_and_figures(walked):
    done, out, _ = walked
    for lesson in ("1/6 From text to tokens", "2/6 Train a baby", "3/6 Look inside", "4/6 Adapt it", "5/6 Shrink it", "6/6 Compare and carry away"): assert lesson in done.stderr
    assert re.search(r"20/20 steps, loss [\d.]+, [\d,]+ tokens/s", done.stderr)
    assert re.search(r"[\d,]+ parameters, loss [\d.]+ nats per token \(bigram [\d.]+\), [\d.]+ bits per byte", done.stdout)
    assert re.search(r"adapter: [\d,]+ numbers, loss in the new manner [\d.]+ -> [\d.]+; 4-bit: \d+% of the size, perplexity [+-][\d.]+%", done.stdout)
    assert done.stdout.rstrip().endswith("report.html")


def test_run_leaves_notebooks_alone(walked):
    assert {path: when for path, when in files(ROOT / "nbs").items() if path.parent.name == "walkthrough"} == {
        path: when for path, when in walked[2].items() if path.parent.name == "walkthrough"}


def test_report_tells_what_a_reader_would_check(page):
    said = Page(page).said
    for what in ("parameters", "bits per byte", "loss on text put aside", "tokens per second", "bigram", "what noise scores", "seed 0", "learning rate", "torch ", "20 steps"):
        assert what in said
    assert Page(page).frames and "srcdoc" in page and page.count("data:image/svg+xml;base64,") == 2


def test_report_ends_with_the_states_side_by_side(page):
    parsed = Page(page)
    titles = [title for title in re.findall(r"<h2>(.*?)</h2>", page)]
    assert titles[-3:] == ["A new manner", "Smaller", "Base, LoRA, 4-bit"]
    last = page[page.rindex("<section>"):]
    assert re.search(r"<th></th><th class=n>base</th><th class=n>LoRA</th><th class=n>4-bit</th>".replace("<th></th>", "<th.*?></th>"), last)
    for what in ("size on disk", "loss, texts", "perplexity, texts", "KL from the base"): assert what in last
    assert last.count("<blockquote>") == 3 and [dict(a)["title"] for tag, a in parsed.elements if tag == "iframe"] == ["AttentionView", "CompareView"]


def test_report_works_in_a_browser(walked, new_page):
    page = new_page()
    page.goto((walked[1] / "report.html").as_uri())
    for frame in page.locator("iframe").all(): frame.scroll_into_view_if_needed()
    states = page.frame_locator("iframe[title=CompareView]").locator(".mf-state")
    states.nth(1).wait_for()
    assert states.count() == 2 and page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_was_made_can_be_carried_away(walked):
    work, = (path for path in walked[1].iterdir() if path.is_dir())
    assert {"model", "adapter", "4-bit", "hf", "hf-merged"} <= {path.name for path in work.iterdir()}
    assert (work / "4-bit/model.safetensors").stat().st_size < .25 * (work / "model/model.safetensors").stat().st_size
    assert "LlamaForCausalLM" in (work / "hf/config.json").read_text()


def test_report_loads_nothing(page):
    allowed = re.compile(r"data:|#|$")
    for tag, attributes in Page(page).all_elements():
        assert tag not in ("link", "object", "embed") or (attributes.get("href") or "").startswith("data:")
        for name in ("src", "href", "srcset", "action", "poster"):
            assert allowed.match(attributes.get(name) or ""), (tag, attributes)
    outside_frames = re.sub(r'srcdoc="[^"]*"', "", page)
    assert not re.search(r"https?:|@import|url\(|\bsrc=[\"']?//", outside_frames)
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page


def test_hostile_text_is_text(page):
    parsed = Page(page)
    assert HOSTILE[:30] in parsed.said and "a <b> & c.txt" in parsed.said
    assert not [(tag, a) for tag, a in parsed.all_elements() if "onerror" in a or a.get("src") == "x"]
    assert not any(tag == "script" for tag, _ in parsed.elements) and "\x00" not in page
    assert [tag for tag, _ in parsed.elements].count("b") == 5   # those of the five figures at the top


@pytest.fixture
def refused(monkeypatch, capsys):
    "A function that calls the command in this process, which must refuse, and returns what it said."
    def call(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["walkthrough", *map(str, arguments)])
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert walkthrough.main() == 2
        return capsys.readouterr().err

    return call


@pytest.mark.parametrize("corpus, complaint", [
    ("no_such_corpus", "no built-in source, there is no file or folder of that name"),
    ("no_such_file.txt", "there is no file or folder 'no_such_file.txt'"),
    ("", "the source is an empty name"),
    ("EMPTY", "is empty: there is no text in it"),
    ("SMALL", "has 11 characters; at least 3,000 are needed"),
    ("BINARY", "is no UTF-8 text"),
])
def test_unusable_corpus_is_refused_before_any_work(corpus, complaint, tmp_path, refused):
    for name, content in {"EMPTY": b"", "SMALL": b"hello world", "BINARY": b"\xff\xfe\x00" * 2000}.items(): (tmp_path / name).write_bytes(content)
    corpus = str(tmp_path / corpus) if corpus.isupper() else corpus
    assert complaint in refused("--corpus", corpus, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unusable_folder_is_refused(tmp_path, refused):
    (tmp_path / "out").write_text("a file")
    assert "out" in refused("--corpus", "storybook", "--out", tmp_path / "out")


def test_a_refusal_is_one_line(tmp_path):
    done = run("--corpus", tmp_path / "gone.txt", "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("walkthrough: ") and done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_interrupt_stops_cleanly(tmp_path):
    process = subprocess.Popen(command("--corpus", "storybook", "--out", tmp_path / "out"), stderr=subprocess.PIPE, text=True, start_new_session=True)
    while "cells" not in process.stderr.read(200): time.sleep(.1)
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(30) == 130 and "stopped; there is no new report" in said and "Traceback" not in said
    assert not (tmp_path / "out/report.html").exists()
