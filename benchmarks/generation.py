"""Generation beside transformers, with the same weights and the same greedy tokens: one row and eight, reading a prompt, and longer contexts.

    python benchmarks/generation.py
"""
import shutil

import torch
from timing import llama, ratio, report, side_by_side
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from multiformer.inference import generate
from multiformer.inference.fast import CompiledDecoder, FastDecoder
from multiformer.weights_adapter import from_hf


def gpt2() -> PreTrainedModel:
    "A random GPT-2 of about 12 million parameters."
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=2048, n_positions=512, n_embd=384, n_layer=6, n_head=6,
                        bos_token_id=None, eos_token_id=None, initializer_range=0.06, tie_word_embeddings=False)
    return GPT2LMHeadModel(config).eval()


def decoding(hf: PreTrainedModel, rows: int, new: int = 100, rounds: int = 5) -> dict[str, float]:
    "How many times faster the model, the fast decoder, one that is made for this text alone and, where there is a C++ compiler, a compiled one generate the same tokens."
    model = from_hf(hf)
    fast, prompt = FastDecoder(model), torch.randint(hf.config.vocab_size, (rows, 16))
    ways = {"transformers": lambda: hf.generate(prompt, max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None),
            "model": lambda: generate(model, prompt, new, temperature=0),
            "fast": lambda: generate(fast, prompt, new, temperature=0),
            "fast, made anew": lambda: generate(FastDecoder(model), prompt, new, temperature=0)}
    if rows == 1 and (shutil.which("c++") or shutil.which("g++")):
        compiled = CompiledDecoder(model)
        ways["compiled"] = lambda: generate(compiled, prompt, new, temperature=0)
    texts = [way() for way in ways.values()]
    assert all(torch.equal(texts[0], text) for text in texts), "the greedy tokens differ"
    seconds = side_by_side(ways, rounds)
    return {way: ratio(seconds, "transformers", way) for way in ways}


@torch.no_grad()
def prefill(hf: PreTrainedModel, length: int = 256) -> float:
    "How many times faster the fast decoder reads a prompt of `length` tokens."
    fast, prompt = FastDecoder(from_hf(hf)), torch.randint(hf.config.vocab_size, (1, length))
    return ratio(side_by_side({"transformers": lambda: hf(prompt), "fast": lambda: fast(prompt)}, rounds=15), "transformers", "fast")


def rows() -> dict[str, tuple[float, str, float]]:
    "All comparisons, each with the bound that it should keep."
    found = {}
    for name, hf in {"Llama": llama(), "Llama, 2 of 6 key heads": llama(2), "GPT-2": gpt2()}.items():
        for batch, bound in ((1, 2.0), (8, 1.4)) if name != "Llama, 2 of 6 key heads" else ((1, 2.0),):
            speed = decoding(hf, batch, rounds=5 if batch == 1 else 3)
            if batch == 1: found[f"{name}, 1 row, the model itself"] = speed["model"], ">=", 1.0
            if batch == 1: found[f"{name}, 1 row, fast decoder made anew"] = speed["fast, made anew"], ">=", 1.2
            found[f"{name}, {batch} row{'s' * (batch > 1)}, fast decoder"] = speed["fast"], ">=", bound
            if "compiled" in speed: found[f"{name}, 1 row, compiled decoder"] = speed["compiled"], ">=", bound
        found[f"{name}, reading 256 tokens"] = prefill(hf), ">=", 1.0
    return found


if __name__ == "__main__":
    report("Times faster than transformers' generate, 100 tokens", rows())
