"""How many tokens per second a BLM trains on and decodes, as its context and its number of parameters grow;
writes growth.json. On one thread, so that a small model isn't slowed down by the meeting of two. All of them take turns,
and the fastest turn of each counts, so that a moment in which the machine was busy meets none of them alone.

    python benchmarks/growth.py
"""
import json
import os
from pathlib import Path

import torch

from multiformer.inference import generate
from multiformer.models import BLM, BLMConfig
from multiformer.optimization import next_token_loss
from multiformer.optimization.performance import take_turns

TOKENS, DECODED, ROUNDS = 512, 32, 8
WIDTHS = {64: 4, 128: 5, 192: 6, 320: 8, 512: 9}   # width -> layers: about 0.3 to 30 million parameters
CONTEXTS = (128, 256, 512, 1024, 2048, 4096)


def tasks(width: int, layers: int, context: int) -> tuple[BLM, dict]:
    "A model, and what is timed: a training step in rows as long as the context, and decoding one row at its end."
    torch.manual_seed(0)
    model = BLM(BLMConfig(vocab_size=1024, context=context, d_model=width, n_layers=layers, n_heads=width // 32))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    windows = torch.randint(1024, (max(1, TOKENS // context), context + 1))

    def step():
        next_token_loss(model, windows).backward()
        optimizer.step()
        optimizer.zero_grad()

    prompt = windows[:1, :context - DECODED]
    return model, {"train": step, "first": lambda: generate(model, prompt, max_new_tokens=1, temperature=0),
                   "all": lambda: generate(model, prompt, max_new_tokens=DECODED, temperature=0)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    plan = {"size": [(width, layers, 256) for width, layers in WIDTHS.items()], "context": [(128, 5, context) for context in CONTEXTS]}
    models = {shape: tasks(*shape) for shapes in plan.values() for shape in shapes}
    seconds = take_turns({(shape, task): function for shape, (_, found) in models.items() for task, function in found.items()}, rounds=ROUNDS)
    result = {axis: [] for axis in plan}
    print("    parameters  context  train tokens/s  decode tokens/s")
    for axis, shapes in plan.items():
        for shape in shapes:
            context, took = shape[2], {task: seconds[shape, task] for task in ("train", "first", "all")}
            row = {"parameters": models[shape][0].n_parameters, "context": context, "train": round(max(TOKENS, context) / took["train"]),
                   "decode": round((DECODED - 1) / max(took["all"] - took["first"], 1e-9))}
            print(f"  {row['parameters']:12,} {row['context']:8} {row['train']:15,} {row['decode']:16,}")
            result[axis].append(row)
    path = Path(__file__).with_suffix(".json")
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(fresh, path)
