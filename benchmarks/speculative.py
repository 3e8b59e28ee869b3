"""Speculative decoding against plain `generate`: the same greedy tokens, batch 1.

    python benchmarks/speculative.py
"""
import torch
from timing import ratio, report, side_by_side

from multiformer.inference import generate
from multiformer.inference.speculative import PromptLookup, speculative_generate
from multiformer.models import load
from multiformer.models.surgery import deepen, keep_layers


def compare(model, draft, tokens, n_new: int, n_draft: int = 4) -> float:
    "How many times faster the same tokens are written with a draft."
    plain = lambda: generate(model, tokens, n_new, temperature=0)
    speculative = lambda: speculative_generate(model, draft, tokens, n_new, n_draft, temperature=0).tokens
    assert torch.equal(plain(), speculative()), "the greedy tokens differ"
    return ratio(side_by_side({"plain": plain, "speculative": speculative}, rounds=7), "plain", "speculative")


def drilled(model, tokens, steps: int = 60):
    "The model after it was taught one text by heart, so that it repeats what it has just written."
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1])[0], tokens[0, 1:])
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    return model.eval()


if __name__ == "__main__":
    model, tokenizer = load("blm-storybook")
    opening = torch.tensor([tokenizer.encode("One day, Tom")])
    deep = deepen(model, list(range(model.config.n_layers)) * 3)  # four times as many layers, the same logits: a draft that is always right
    refrain = torch.tensor([tokenizer.encode("Tom had a red ball and Mia had a blue kite. ") * 12])[:, :150]
    copier = drilled(load("blm-storybook")[0], refrain)
    report("Greedy tokens with a draft, plain generate / speculative", {
        "looking up in a text that repeats itself": (compare(copier, PromptLookup(), refrain[:, :40], 100), ">=", 1.5),
        "the perfect draft, a quarter of the layers (upper limit)": (compare(deep, model, opening, 100), ">=", 1.3),
        "three layers of four as a draft (too dear to pay)": (compare(model, keep_layers(model, [0, 1, 3]), opening, 100), ">=", 0.5)})
