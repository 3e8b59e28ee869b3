"""Views in a browser: pages of their own with the network off, and a live widget in JupyterLab.

Needs Chromium; without it the tests are skipped, or fail if MULTIFORMER_REQUIRE_BROWSER=1.
"""
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

from multiformer.interpretability import AttentionView, CompareView, LensView, PatchView
from multiformer.models import BLM, BLMConfig

ROOT = Path(__file__).parents[1]
HOSTILE = ["</script><script>window.harmed = 1</script>", "<img src=x onerror='window.harmed = 1'>", " the", "\n", " cat", "<!--"]
N = len(HOSTILE)


@pytest.fixture
def open_page(new_page):
    "A function that opens a file with the network off."
    def open_(path, **options):
        page = new_page(**options)
        page.goto(f"file://{path}")
        return page

    return open_


def random_patterns(layers=2, heads=3, n=N):
    torch.manual_seed(0)
    scores = 2 * torch.randn(layers, heads, n, n)
    scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
    return {f"blocks.{i}.attn.hook_pattern": pattern for i, pattern in enumerate(scores.softmax(-1))}


@pytest.fixture(scope="module")
def patterns():
    return random_patterns()


@pytest.fixture
def path(patterns, tmp_path):
    view = AttentionView(patterns, HOSTILE)
    view.query, view.key = 4, 2
    view.to_html(tmp_path / "view.html", title="Attention <b>")
    return tmp_path / "view.html"


def says(page, patterns, layer, head, query, key):
    "Whether the readout gives these positions and the weight there."
    text = page.inner_text(".mf-readout")
    weight = patterns[f"blocks.{layer}.attn.hook_pattern"][head, query, key].item()
    assert text.startswith(f"layer {layer}, head {head}: ")
    assert [int(i) for i in re.findall(r"\((\d+)\)", text)] == [query, key], text
    assert abs(float(text.split()[-1]) - weight) < 1e-4


def test_click_and_hover(open_page, path, patterns):
    page = open_page(path)
    says(page, patterns, 0, 0, 4, 2)
    page.get_by_role("gridcell", name="layer 1, head 2").click()
    says(page, patterns, 1, 2, 4, 2)
    assert page.get_by_role("gridcell", selected=True).get_attribute("aria-label") == "layer 1, head 2"

    box = page.locator(".mf-plane").bounding_box()
    at = lambda query, key: (box["x"] + box["width"] * (key + .5) / N, box["y"] + box["height"] * (query + .5) / N)
    page.mouse.move(*at(5, 1))
    says(page, patterns, 1, 2, 5, 1)
    page.mouse.move(2, 2)                      # hovering only previews
    says(page, patterns, 1, 2, 4, 2)
    page.mouse.click(*at(3, 0))
    page.mouse.move(2, 2)
    says(page, patterns, 1, 2, 3, 0)
    page.locator(".mf-token").nth(5).click()   # a token of the text becomes the query
    page.mouse.move(2, 2)
    says(page, patterns, 1, 2, 5, 0)


def test_keyboard_alone(open_page, path, patterns):
    page = open_page(path)
    press = lambda *keys: [page.keyboard.press(key) for key in keys]
    press("Tab", "ArrowDown", "ArrowRight", "Enter")   # among the heads
    says(page, patterns, 1, 1, 4, 2)
    press("Tab", "ArrowDown", "ArrowLeft")             # in the map
    says(page, patterns, 1, 1, 5, 1)
    press("ArrowDown", "Home")                         # stops at the edge
    says(page, patterns, 1, 1, 5, 0)
    press("Tab", "ArrowLeft", "ArrowLeft", "Enter")    # in the text
    says(page, patterns, 1, 1, 3, 0)
    press("Shift+Tab", "Shift+Tab")                    # Tab comes back to the head that was chosen
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "layer 1, head 1"


def test_tokens_are_data(open_page, path):
    page = open_page(path)
    assert page.evaluate("window.harmed") is None
    assert page.locator("img").count() == 0 and page.locator("script").count() == 2
    shown = page.locator(".mf-token").all_text_contents()
    assert shown == [token.replace("\n", "⏎") for token in HOSTILE]
    assert page.inner_text("h1") == "Attention <b>"


def test_roles_and_live_region(open_page, path):
    page = open_page(path)
    assert page.locator("[role=status][aria-live=polite]").count() == 1
    for role, name in (("grid", "All heads"), ("application", "layer 0, head 0"), ("listbox", "The text"), ("img", "Scale")):
        assert page.get_by_role(role, name=re.compile(name)).count() == 1, role
    assert page.get_by_role("option", name=re.compile(r"^2 the, 0\.\d{3}$")).count() == 1


def luminance(colour):
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    return sum(w * (c / 12.92 if c <= .04045 else ((c + .055) / 1.055) ** 2.4) for w, c in zip((.2126, .7152, .0722), channels))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours(open_page, tmp_path, theme):
    "Weights keep their order in grayscale, in the pixels as in the text, and the text stays readable."
    n = 40
    weights = torch.linspace(0, 1, n).expand(1, n, n)
    AttentionView({"ramp": weights}, [f" w{i}" for i in range(n)]).to_html(tmp_path / "ramp.html")
    page = open_page(tmp_path / "ramp.html", color_scheme=theme)
    styles = page.evaluate("[...document.querySelectorAll('.mf-token')].map(t => [t.style.background, t.style.color])")
    tones = [luminance(background) for background, _ in styles]
    assert tones == sorted(tones, reverse=theme == "light") and len(set(tones)) == n
    for tone, (_, ink) in zip(tones, styles):
        dim, bright = sorted((tone, luminance(ink)))
        assert (bright + .05) / (dim + .05) > 4.4
    pixels = page.evaluate("""(() => {
      const canvas = document.querySelector('.mf-plane canvas');
      return Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, 1).data);
    })()""")
    drawn = [luminance(" ".join(map(str, pixels[4 * i:4 * i + 3]))) for i in range(n)]
    assert max(abs(a - b) for a, b in zip(drawn, tones)) < .02


def test_narrow_page_and_sandboxed_frame(open_page, path, patterns, tmp_path):
    page = open_page(path, viewport={"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    grid, plane = (page.locator(place).bounding_box() for place in (".mf-heads", ".mf-plane"))
    assert plane["y"] > grid["y"] + grid["height"]         # one below the other

    (tmp_path / "frame.html").write_text("<!doctype html><meta charset=utf-8>" + AttentionView(patterns, HOSTILE).frame(), encoding="utf-8")
    frame = open_page(tmp_path / "frame.html").frames[1]
    frame.get_by_role("gridcell", name="layer 1, head 0").click()
    says(frame, patterns, 1, 0, N - 1, patterns["blocks.0.attn.hook_pattern"][0, -1].argmax().item())


def test_layers_of_different_shape(open_page, tmp_path):
    "Cross-attention over three positions beside self-attention: the cursor stays inside."
    patterns = {"blocks.0.attn.hook_pattern": torch.eye(4).expand(3, 4, 4), "blocks.0.cross_attn.hook_pattern": torch.full((1, 4, 3), 1 / 3)}
    AttentionView(patterns, ["a", "b", "c", "d"]).to_html(tmp_path / "cross.html")
    page = open_page(tmp_path / "cross.html")
    assert "d (3) → d (3) 1.0000" in page.inner_text(".mf-readout")
    page.get_by_role("gridcell", name="cross_attn").click()
    assert "d (3) → 2 (2) 0.3333" in page.inner_text(".mf-readout")
    assert page.locator(".mf-strip").count() == 2
    page.get_by_role("listbox", name="Queries").get_by_role("option").nth(1).click()
    page.mouse.move(2, 2)
    assert "b (1) → 2 (2)" in page.inner_text(".mf-readout")


def test_long_text_is_smooth(open_page, tmp_path):
    "128 tokens, 6 layers, 8 heads: moving the cursor costs a fraction of a frame."
    n = 128
    AttentionView(random_patterns(6, 8, n), [f" w{i}" for i in range(n)]).to_html(tmp_path / "long.html")
    page = open_page(tmp_path / "long.html")
    per_move = page.evaluate("""() => {
      const plane = document.querySelector('.mf-plane'), box = plane.getBoundingClientRect();
      const start = performance.now();
      for (let i = 0; i < 200; i++) {
        plane.dispatchEvent(new PointerEvent('pointermove', { clientX: box.left + 2 * i, clientY: box.top + 2 * i }));
        plane.offsetHeight;
      }
      return (performance.now() - start) / 200;
    }""")
    assert per_move < 50   # milliseconds, on a busy machine


class Hostile:
    "A tokenizer whose tokens would do harm if they could."
    vocab_size = 12
    def encode(self, text): return list(range(N))
    def tokens(self, ids): return [HOSTILE[i % N] for i in ids]


@pytest.fixture(scope="module")
def small_model():
    torch.manual_seed(0)
    model = BLM(BLMConfig(vocab_size=12, context=16, d_model=8, n_layers=2, n_heads=2, d_ff=16)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=.5)
    model.tokenizer = Hostile()
    return model


def is_harmless(page, strips=0):
    assert page.evaluate("window.harmed") is None and page.locator("img").count() == 0 and page.locator("script").count() == 2
    assert page.locator("[role=status]").count() >= 1
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_lens_view(open_page, small_model, tmp_path):
    "By keyboard and by mouse, each cell tells its candidates and how the token that came did."
    view = LensView(small_model, "", k=3)
    view.to_html(tmp_path / "lens.html")
    page = open_page(tmp_path / "lens.html", viewport={"width": 700, "height": 700})
    is_harmless(page)

    def says(layer, position):
        text = page.inner_text(".mf-readout")
        assert text.startswith(view.data["rows"][layer]) and f"({position})" in text, text
        shown = [float(p) for p in re.findall(r"\d\.\d{4}", page.inner_text(".mf-bars"))]
        assert shown == [pytest.approx(p, abs=1e-4) for _, p in view.data["cells"][layer][position]]

    says(2, N - 1)
    page.keyboard.press("Tab")
    for key in ("ArrowDown", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    says(1, N - 3)                                       # the output is on top, so down is a layer back
    page.locator(".mf-value").nth(2 * N).hover()          # the last row of the table is the embedding
    says(0, 0)
    page.mouse.move(2, 690)
    says(1, N - 3)
    assert page.get_by_role("gridcell", selected=True).count() == 1


def test_patch_view(open_page, tmp_path):
    effects = torch.tensor([[0., 0., 1., 0., 0., 0.], [0., 0., .5, -.25, .125, .0625]])
    other = HOSTILE[:2] + [" dog"] + HOSTILE[3:]
    PatchView(effects, ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"], HOSTILE, other).to_html(tmp_path / "patch.html")
    page = open_page(tmp_path / "patch.html")
    is_harmless(page)
    assert "1.0000" in page.inner_text(".mf-readout") and "·the | ·dog" in page.inner_text(".mf-readout")
    assert page.locator(".mf-value").count() == 2 * (N - 2)             # nothing before the first difference
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert re.search(r"0 resid_post, at .* \(3\): -0\.2500", page.inner_text(".mf-readout"))
    assert page.get_by_role("gridcell", selected=True).inner_text() == "−"


def test_compare_view(open_page, small_model, tmp_path):
    "Linked panes: one choice moves the cursor in all maps, and the table is that of the chosen state."
    import copy
    changed = copy.deepcopy(small_model)
    changed.blocks[1].mlp.down_proj.weight.data += .3
    view = CompareView({"base": small_model, "same": copy.deepcopy(small_model), "</script>": changed}, "")
    view.to_html(tmp_path / "compare.html")
    page = open_page(tmp_path / "compare.html", viewport={"width": 900, "height": 900})
    is_harmless(page)
    assert page.inner_text(".mf-facts") == "same: equal to base at every hook point"
    page.get_by_role("listbox").nth(1).get_by_role("option").nth(3).click()
    page.mouse.move(2, 2)
    assert page.inner_text(".mf-facts").startswith("</script>: differs first in layer 1, at blocks.1.hook_mlp_out")
    kl = view.data["states"][2]["kl"][3]
    assert f"(3): KL {kl:.4f} nats" in page.inner_text(".mf-readout")
    page.get_by_role("gridcell", name="layer 1, head 1").click()
    page.locator(".mf-plane").nth(0).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    tops = page.evaluate("[...document.querySelectorAll('.mf-trio .mf-cell')].map(box => box.style.top + box.style.left)")
    assert len(tops) == 3 and len(set(tops)) == 1 and "(4): KL" in page.inner_text(".mf-readout")


NOTEBOOK = [
    "import torch, ipywidgets\nfrom multiformer.interpretability import AttentionView\n"
    "patterns = {f'blocks.{i}.attn.hook_pattern': torch.eye(5).expand(3, 5, 5) for i in range(2)}\n"
    "view = AttentionView(patterns, ['a', 'b', 'c', '</script>', 'e'])\n"
    "label = ipywidgets.HTML()\n"
    "def tell(_=None): label.value = f'<p class=\"told\">{view.layer} {view.head} {view.query} {view.key}</p>'\n"
    "view.observe(tell, ['layer', 'head', 'query', 'key'])\n"
    "button = ipywidgets.Button(description='from Python')\n"
    "button.on_click(lambda _: setattr(view, 'head', 0))",
    "tell()\ndisplay(view, label, button)",
]


@pytest.fixture
def lab(tmp_path):
    "JupyterLab on localhost, with one notebook in a folder of its own."
    import nbformat
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in NOTEBOOK])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "python3"}
    nbformat.write(notebook, tmp_path / "live.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(tmp_path / ".config"), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
             "--IdentityProvider.token=test", f"--ServerApp.root_dir={tmp_path}", "--LabApp.news_url=None",
             "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"],
            cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=2)
                break
            except OSError:
                time.sleep(.5)
        yield f"http://127.0.0.1:{port}/doc/tree/live.ipynb?reset&token=test"
    finally:
        server.terminate()
        server.wait(30)


def run_all(page):
    "Run all cells, again where JupyterLab lost the request: it calls a kernel idle before it has connected to it."
    prompt = page.locator(".jp-InputPrompt").first
    page.click(".jp-Notebook .jp-Cell >> nth=0")
    for _ in range(90):                          # three minutes: a kernel imports torch on a busy machine
        if prompt.inner_text() == "[ ]:":        # [*] while it waits, [1] when it is done
            page.get_by_role("menuitem", name="Run").first.click()
            page.get_by_text("Run All Cells", exact=True).click()
        page.wait_for_timeout(2_000)
        if prompt.inner_text() == "[1]:": return


def test_live_in_jupyterlab(browser, lab):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)            # a busy machine
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(lab)
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
    run_all(page)
    told = lambda text: page.wait_for_function("text => document.querySelector('.told')?.innerText === text", arg=text)
    told("0 0 4 4")
    page.get_by_role("gridcell", name="layer 1, head 2").click()
    told("1 2 4 4")
    page.locator(".mf-plane").focus()
    active = "document.querySelectorAll('.jp-Notebook .jp-Cell').length + ':' + [...document.querySelectorAll('.jp-Notebook .jp-Cell')].findIndex(c => c.classList.contains('jp-mod-active'))"
    before = page.evaluate(active)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    told("1 2 3 3")
    assert page.evaluate(active) == before       # the arrows were not taken as the notebook's own shortcuts
    page.get_by_role("button", name="from Python").click()
    page.wait_for_function("document.querySelector('.mf-readout').innerText.startsWith('layer 1, head 0')")
    assert "</script> (3) → </script> (3) 1.0000" in page.inner_text(".mf-readout")
    assert not errors
    page.close()


def test_committed_output_is_the_page():
    "The stored notebook shows the static page, and no widget that needs a kernel."
    notebook = json.loads((ROOT / "nbs/interpretability/01_attention_view.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    frames = [output for output in outputs if "<iframe" in "".join(output.get("data", {}).get("text/html", ""))]
    assert len(frames) == 1 and set(frames[0]["data"]) == {"text/html"}
