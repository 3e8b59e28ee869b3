"""The playground in a browser: its page with the network off, and the live view against a real model.

Needs Chromium; without it the tests are skipped, or fail if MULTIFORMER_REQUIRE_BROWSER=1.
"""
import json
from types import SimpleNamespace

import pytest
import torch

from multiformer.interpretability.playground import Playground
from multiformer.interpretability.view import embed_json
from multiformer.models import BLM, BLMConfig

PIECES = ["</script><script>window.harmed = 1</script>", "<img src=x onerror='window.harmed = 1'>", "\n", "<!--", *[f" w{i}" for i in range(12)]]
SETTINGS = ("prompt", "temperature", "top_k", "top_p", "length", "seed", "kept", "chosen")


@pytest.fixture
def view():
    torch.manual_seed(0)
    model = BLM(BLMConfig(vocab_size=16, context=40, d_model=8, n_layers=1, n_heads=2, d_ff=16)).eval()
    for parameter in model.parameters(): torch.nn.init.normal_(parameter, std=.5)
    model.tokenizer = SimpleNamespace(encode=lambda text: [4 + len(word) % 8 for word in text.split()], token=PIECES.__getitem__, eos_id=15, start=[15])
    return Playground(model, "a bb </script> ccc", length=20, seed=3)


@pytest.fixture
def page(new_page, view, tmp_path):
    "The view as a page."
    view.to_html(tmp_path / "view.html", title="Playground <b>")
    page = new_page()
    page.goto(f"file://{tmp_path / 'view.html'}")
    return page


def says(page, view, place):
    "Whether readout and list show this place."
    text = page.inner_text(".mf-readout")
    assert f"({place}): probability {view.data['probability'][place]:.4f}" in text, text
    shown = [float(value) for value in page.locator(".mf-choice .mf-value").all_text_contents()]
    assert max(abs(a - share) for a, (_, _, share) in zip(shown, view.data["alternatives"][place], strict=True)) < 1e-4


def test_page_shows_what_was_written(page, view):
    pieces = page.locator(".mf-token").all_text_contents()
    assert pieces == [piece.replace("\n", "⏎") for piece in view.data["tokens"]]
    assert page.input_value("textarea") == view.prompt and page.inner_text("h1") == "Playground <b>"
    says(page, view, 0)


def test_tokens_are_data(page, view):
    assert any("<" in piece for piece in view.data["tokens"])
    assert page.evaluate("window.harmed") is None
    assert page.locator("#view img, #view script").count() == 0


def test_page_hover_and_click(page, view):
    page.locator(".mf-token").nth(7).hover()
    says(page, view, 7)
    page.mouse.move(2, 2)                        # hovering only previews
    says(page, view, 0)
    page.locator(".mf-token").nth(5).click()
    page.mouse.move(2, 2)
    says(page, view, 5)


def test_page_keyboard(page, view):
    page.keyboard.press("Tab")                   # the settings are disabled, so the text comes first
    for _ in range(3): page.keyboard.press("ArrowRight")
    says(page, view, 3)
    page.keyboard.press("Enter")
    assert page.get_by_role("option", selected=True).first.get_attribute("aria-label").startswith("3 ")
    page.keyboard.press("Tab")                   # among the alternatives
    page.keyboard.press("ArrowDown")
    second = view.data["alternatives"][3][1]
    assert f"probability {second[2]:.4f}" in page.evaluate("document.activeElement.getAttribute('aria-label')")


def test_page_has_no_model(page, view):
    assert page.locator("input:disabled").count() == 5 == page.locator("input").count()
    assert page.locator("textarea:disabled").count() == 1 and page.locator("button:enabled").count() == 0
    page.locator(".mf-choice").nth(1).click()
    assert "no kernel runs behind this page" in page.get_by_role("alert").inner_text()
    assert page.locator(".mf-token").all_text_contents() == [piece.replace("\n", "⏎") for piece in view.data["tokens"]]
    page.locator(".mf-token").nth(2).click()     # the answer goes when something else is looked at
    assert page.get_by_role("alert").inner_text() == ""
    says(page, view, 2)


def test_page_answers_enter(page, view):
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    other = view.data["alternatives"][0][1][1].replace(" ", "·").replace("\n", "⏎")
    assert f"To go on from {other} needs the model" in page.get_by_role("alert").inner_text()
    assert "needs a kernel" in page.locator(".mf-choices").get_attribute("aria-label")


def test_narrow_page(new_page, view, tmp_path):
    view.to_html(tmp_path / "narrow.html")
    page = new_page(viewport={"width": 360, "height": 800})
    page.goto(f"file://{tmp_path / 'narrow.html'}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


LIVE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><style>{css}</style><div id="view"></div>
<script type="application/json" id="state">{state}</script>
<script type="module">{code}
const state = JSON.parse(document.getElementById("state").textContent), listeners = new Map();
let changed = {{}};
const model = {{
  get: (name) => state[name], send() {{}},
  set(name, value) {{ state[name] = changed[name] = value; }},
  on: (events, listener) => events.split(" ").forEach((event) => listeners.set(event, [...(listeners.get(event) ?? []), listener])),
  off() {{}},
  async save_changes() {{
    const answer = await window.kernel(changed);
    changed = {{}};
    const news = Object.keys(answer).filter((name) => JSON.stringify(answer[name]) !== JSON.stringify(state[name]));
    Object.assign(state, answer);
    news.forEach((name) => (listeners.get(`change:${{name}}`) ?? []).forEach((listener) => listener()));
    window.answers = (window.answers ?? 0) + 1;
  }},
}};
render({{ model, el: document.getElementById("view") }});
</script>"""


@pytest.fixture
def live(new_page, view, tmp_path):
    "The view with a kernel behind it: what the page sets goes to the widget, and its state comes back."
    def kernel(changes):
        for name, value in changes.items():
            assert name in SETTINGS
            setattr(view, name, value)
        return json.loads(json.dumps(view.page_state()))

    (tmp_path / "live.html").write_text(LIVE.format(css=view._css, state=embed_json(view.page_state()), code=view._esm), encoding="utf-8")
    page = new_page()
    page.expose_function("kernel", kernel)
    page.goto(f"file://{tmp_path / 'live.html'}")
    return page


def answered(page, n):
    page.wait_for_function("n => window.answers === n", arg=n, timeout=10_000)


def test_live_alternative_goes_on_from_there(live, view):
    before = list(view.data["ids"])
    live.locator(".mf-token").nth(6).click()
    answered(live, 1)
    row = next(i for i, (id, _, _) in enumerate(view.data["alternatives"][6]) if id != before[6])
    other = view.data["alternatives"][6][row][0]
    live.locator(".mf-choice").nth(row).click()
    answered(live, 2)
    assert view.kept == [*before[:6], other] == view.data["ids"][:7]
    assert live.locator(".mf-token").all_text_contents() == [piece.replace("\n", "⏎") for piece in view.data["tokens"]]
    assert live.locator(".mf-kept").count() == 7
    says(live, view, 6)
    assert live.evaluate("document.activeElement.getAttribute('aria-label')").startswith("6 ")   # the focus isn't lost
    live.get_by_role("button", name="Drop my choices").click()
    answered(live, 3)
    assert view.data["ids"] == before


def test_live_alternative_by_keyboard(live, view):
    before = list(view.data["ids"])
    live.locator("textarea").focus()
    while "mf-token" not in live.evaluate("document.activeElement.className"): live.keyboard.press("Tab")
    for _ in range(4): live.keyboard.press("ArrowRight")
    live.keyboard.press("Enter")                 # the alternatives of the fifth token stay in view
    answered(live, 1)
    live.keyboard.press("Tab")
    row = next(i for i, (id, _, _) in enumerate(view.data["alternatives"][4]) if id != before[4])
    for _ in range(row): live.keyboard.press("ArrowDown")
    other = view.data["alternatives"][4][row]
    assert live.evaluate("document.activeElement.getAttribute('aria-label')").endswith(f"probability {other[2]:.4f}")
    live.keyboard.press("Enter")
    answered(live, 2)
    assert view.kept == [*before[:4], other[0]] == view.data["ids"][:5]
    says(live, view, 4)
    assert live.evaluate("document.activeElement.getAttribute('aria-label')").startswith("4 ")


def test_live_settings(live, view):
    live.get_by_role("slider", name="temperature").fill("0")
    answered(live, 1)
    assert view.temperature == 0 and all(a[0][0] == i for a, i in zip(view.data["alternatives"], view.data["ids"]))
    live.get_by_role("slider", name="length").fill("7")
    answered(live, 2)
    assert live.locator(".mf-token").count() == len(view.data["ids"]) <= 7
    live.get_by_role("button", name="Another text").click()
    answered(live, 3)
    assert view.seed == 4
    live.get_by_role("textbox", name="Prompt").fill("w " * 50)
    live.get_by_role("textbox", name="Prompt").press("Control+Enter")
    answered(live, 4)
    assert "leaves no room in a context of 40" in live.get_by_role("alert").inner_text()
