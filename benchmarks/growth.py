"""How many tokens per second a BLM trains on and decodes, as its context and its number of parameters grow;
writes growth.json. On one thread, so that a small model isn't slowed down by the meeting of two.

    python benchmarks/growth.py
"""
import json
import os
import time
from pathlib import Path

import torch

from multiformer.inference import generate
from multiformer.models import BLM, BLMConfig
from multiformer.optimization import next_token_loss

TOKENS, DECODED = 512, 16
WIDTHS = {64: 4, 128: 5, 192: 6, 320: 8, 512: 9}   # width -> layers: about 0.3 to 30 million parameters
CONTEXTS = (128, 256, 512, 1024, 2048, 4096)


def shortest(function, repeats: int = 2) -> float:
    "The fewest seconds of a call; other work on the machine can only add."
    function()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def speeds(width: int, layers: int, context: int) -> dict:
    "Tokens per second in training, in rows as long as the context, and in decoding one row at its end."
    torch.manual_seed(0)
    model = BLM(BLMConfig(vocab_size=1024, context=context, d_model=width, n_layers=layers, n_heads=width // 32))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    windows = torch.randint(1024, (max(1, TOKENS // context), context + 1))

    def step():
        next_token_loss(model, windows).backward()
        optimizer.step()
        optimizer.zero_grad()

    prompt = windows[:1, :context - DECODED]
    train = shortest(step)
    first = shortest(lambda: generate(model, prompt, max_new_tokens=1, temperature=0))
    all_of_them = shortest(lambda: generate(model, prompt, max_new_tokens=DECODED, temperature=0))
    return {"parameters": model.n_parameters, "context": context, "train": round(windows[:, 1:].numel() / train),
            "decode": round((DECODED - 1) / max(all_of_them - first, 1e-9))}


if __name__ == "__main__":
    torch.set_num_threads(1)
    plan = {"size": [(width, layers, 256) for width, layers in WIDTHS.items()], "context": [(128, 5, context) for context in CONTEXTS]}
    result = {axis: [] for axis in plan}
    print("    parameters  context  train tokens/s  decode tokens/s")
    for axis, shapes in plan.items():
        for shape in shapes:
            row = speeds(*shape)
            print(f"  {row['parameters']:12,} {row['context']:8} {row['train']:15,} {row['decode']:16,}", flush=True)
            result[axis].append(row)
    path = Path(__file__).with_suffix(".json")
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(fresh, path)
