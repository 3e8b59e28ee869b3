"""Greedy generation of 128 tokens at batch 1 by the shipped BLM in float32, int8 and 4 bits, decoded for each call or kept unpacked.

    python benchmarks/quantized_decoding.py

The ratios are kept beside this file, in quantized_decoding.json, from where the notebook Q/04_report reads them.
"""
import json
from contextlib import nullcontext
from pathlib import Path

import torch
from timing import ratio, side_by_side

from multiformer.inference import generate
from multiformer.models import load
from multiformer.quantization import QuantConfig, quantize, unpacked

torch.set_num_threads(1)   # one row through small layers: a second thread only waits
RESULT = Path(__file__).with_suffix(".json")


def speeds() -> dict[str, float]:
    "How many times as fast as float32 each state of the model generates."
    model, tokenizer = load("blm-storybook")
    prompt = torch.tensor([tokenizer.encode("Once upon a time, there were two friends named Lily and Tom.")])
    states = {"float32": model, "int8": quantize(model, QuantConfig(bits=8)), "4-bit": quantize(model)}

    def run(state, context):
        with context(state): return generate(state, prompt, 128, temperature=0)

    runs = {name: lambda state=state: run(state, nullcontext) for name, state in states.items()}
    runs |= {f"{name}, unpacked": lambda state=states[name]: run(state, unpacked) for name in ("int8", "4-bit")}
    seconds = side_by_side(runs, rounds=15)
    return {name: round(ratio(seconds, "float32", name), 3) for name in runs}


if __name__ == "__main__":
    speed = speeds()
    RESULT.write_text(json.dumps({"threads": 1, "speed relative to float32": speed}, indent=2) + "\n")
    for name, value in speed.items(): print(f"{name:20} {value:6.3f}")
