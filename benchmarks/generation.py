"""Greedy generation of 200 tokens at batch 1: BLM against transformers' `generate` with the same weights.

    python benchmarks/generation.py
"""
import torch
from timing import llama, ratio, report, side_by_side

from multiformer.inference import generate
from multiformer.weights_adapter import from_hf


def compare(n_kv_heads: int) -> float:
    "How many times faster BLM generates the same tokens."
    hf = llama(n_kv_heads)
    blm = from_hf(hf)
    prompt = torch.randint(hf.config.vocab_size, (1, 16))
    theirs = lambda: hf.generate(prompt, max_new_tokens=200, do_sample=False, pad_token_id=0, eos_token_id=None)
    ours = lambda: generate(blm, prompt, 200, temperature=0)
    assert torch.equal(theirs(), ours()), "the greedy tokens differ"
    return ratio(side_by_side({"llama": theirs, "blm": ours}, rounds=7), "llama", "blm")


if __name__ == "__main__":
    report("Generation of 200 tokens, batch 1", {f"transformers' generate / BLM, {n} of 6 key-value heads": (compare(n), ">=", 1.2) for n in (6, 2)})
