"""Shared by the benchmarks: the model of 10 million parameters, and timing of several functions side by side."""
import ctypes
import os
import time
from random import Random
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

THREADS = 2
torch.set_num_threads(THREADS)


def llama(n_kv_heads: int = 6) -> LlamaForCausalLM:
    "A random Llama of about 10 million parameters; large weights, so that greedy choices are clear."
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=2048, hidden_size=384, num_hidden_layers=5, num_attention_heads=6,
                         num_key_value_heads=n_kv_heads, intermediate_size=1024, max_position_embeddings=512,
                         initializer_range=0.06, tie_word_embeddings=False)
    return LlamaForCausalLM(config).eval()


def side_by_side(functions: dict, rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    "Seconds of each function, round by round and in changing order, so that a drift of the machine meets all of them alike."
    seconds, order = {name: [] for name in functions}, Random(0)
    for turn in range(warmup + rounds):
        for name, function in order.sample(list(functions.items()), len(functions)):
            start = time.perf_counter()
            function()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def keep_freed_memory() -> None:
    "Tell glibc to keep what is freed, instead of giving it back to the system and asking for it again page by page."
    libc, trim_threshold, mmap_threshold = ctypes.CDLL(None), -1, -3
    for parameter in (trim_threshold, mmap_threshold):
        libc.mallopt(parameter, 2 ** 30)


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    "The median over the rounds of `slow` / `fast`: above 1, `fast` is faster."
    return median(a / b for a, b in zip(seconds[slow], seconds[fast]))


def report(title: str, rows: dict[str, tuple[float, str, float]]) -> None:
    "Print each measured ratio beside the bound that it should keep."
    print(f"{title} ({torch.get_num_threads()} threads)")
    for name, (value, sign, bound) in rows.items():
        kept = value >= bound if sign == ">=" else value <= bound
        print(f"  {name:58} {value:6.3f}   {sign} {bound:<5} {'ok' if kept else 'MISSED'}")
