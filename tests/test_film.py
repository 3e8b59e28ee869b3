"""The training film in a browser, with the network off: the slider, the button, the heads and the curves."""
import math
import re

import pytest
import torch

from multiformer.interpretability.film import Film, FilmView

HOSTILE = ["<!--", "</script><script>window.harmed = 1</script>", "<img src=x onerror='window.harmed = 1'>", " the", " cat"]
STEPS = [0, 10, 20]


class Tokenizer:
    def tokens(self, ids):
        return [HOSTILE[i] for i in ids]


@pytest.fixture(scope="module")
def film():
    film = Film(torch.arange(5)[None])
    for step in STEPS:
        torch.manual_seed(step)
        scores = torch.randn(3, 4, 4).masked_fill(torch.ones(4, 4, dtype=torch.bool).triu(1), -torch.inf)
        film.frames[step] = {"loss": torch.rand(4), "blocks.0.attn.hook_pattern": scores.softmax(-1).half(), "blocks.0.hook_resid_post": torch.rand(4),
                             "gradient.blocks.0.attn": torch.rand(3), "update.embed.weight": torch.tensor(math.inf if step == 0 else .001)}
    return film


@pytest.fixture
def page(new_page, film, tmp_path):
    FilmView(film, Tokenizer()).to_html(tmp_path / "film.html")
    page = new_page(viewport={"width": 800, "height": 700})
    page.goto(f"file://{tmp_path / 'film.html'}")
    return page


def says(page, film, frame, position):
    text, chance = page.inner_text(".mf-readout"), math.exp(-film["loss"][frame, position])
    assert text.startswith(f"step {STEPS[frame]}: ") and f"token {position} " in text, text
    assert abs(float(text.split()[-1]) - chance) < 2e-3, text
    assert page.get_by_role("slider").get_attribute("aria-valuetext") == f"step {STEPS[frame]}"


def in_order(page, head, weights):
    "Whether the pixels of a head's map are the darker, the more weight they stand for."
    pixels = page.evaluate("""(head) => {
      const canvas = document.querySelectorAll('.mf-head canvas')[head];
      return Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data);
    }""", head)
    drawn = sorted(range(16), key=lambda i: -sum(pixels[4 * i:4 * i + 3]))
    return all(weights[a] < weights[b] + .02 for a, b in zip(drawn, drawn[1:]))


def test_slider_shows_the_frame(page, film):
    says(page, film, 2, 3)
    page.get_by_role("slider").focus()
    for frame in (1, 0):
        page.keyboard.press("ArrowLeft")
        says(page, film, frame, 3)
    patterns = film["blocks.0.attn.hook_pattern"].flatten(2).tolist()
    for head in range(3):
        assert in_order(page, head, patterns[0][head])
    page.keyboard.press("End")
    says(page, film, 2, 3)


def test_play_runs_to_the_end_and_stops(page, film):
    page.clock.install(time=0)
    page.clock.pause_at(1000)                         # time goes on only where we say so
    button = page.get_by_role("button", name="Play")
    button.click()
    says(page, film, 0, 3)                            # from the end it starts over
    assert page.get_by_role("status").get_attribute("aria-live") == "off"
    page.clock.run_for(5000)
    assert button.is_visible()
    says(page, film, 2, 3)
    assert page.get_by_role("status").get_attribute("aria-live") == "polite"
    button.click()
    page.get_by_role("button", name="Pause").click()
    page.clock.run_for(5000)
    says(page, film, 0, 3)                            # it stands still


def test_choices_reach_the_curves(page, film):
    page.get_by_role("gridcell", name="layer 0, head 2").click()
    curve = page.get_by_role("img", name=re.compile("gradient"))
    assert curve.locator(".mf-chosen title").text_content() == "layer 0, head 2"
    label = curve.get_attribute("aria-label")
    assert float(label.split()[-1]) == pytest.approx(film["gradient.blocks.0.attn"][2, 2].item(), rel=6e-3)
    page.get_by_role("option").nth(1).click()
    says(page, film, 2, 1)
    box = page.get_by_role("img", name=re.compile("loss")).bounding_box()
    page.mouse.click(box["x"] + 2, box["y"] + 10)
    says(page, film, 0, 1)


def test_tokens_are_data(page):
    assert page.evaluate("window.harmed") is None and page.locator("img").count() == 0 and page.locator("script").count() == 2
    assert page.locator(".mf-token").all_text_contents() == HOSTILE[1:]
    assert "Infinity" not in page.content() and "NaN" not in page.content()


def test_narrow_page(new_page, film, tmp_path):
    FilmView(film).to_html(tmp_path / "film.html")
    page = new_page(viewport={"width": 360, "height": 800}, color_scheme="dark")
    page.goto(f"file://{tmp_path / 'film.html'}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
