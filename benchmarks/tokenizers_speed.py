"""Encoding with Tokenizer against tokenizers' encode_batch_fast with the same vocabulary: megabytes for each CPU second.

    python benchmarks/tokenizers_speed.py
"""
import resource
import time
from statistics import median

from timing import report

from multiformer.data_wrangling import stdlib_texts, storybook
from multiformer.tokenize import Tokenizer

ROUNDS, BOUND = 5, 4.0


def cpu_ratios(functions: dict, megabytes: float) -> tuple[dict[str, float], float]:
    "Megabytes per CPU second of both functions, in turns, and the median of their ratio in a turn."
    seconds = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.process_time()
            function()
            seconds[name].append(time.process_time() - start)
    slow, fast = seconds.values()
    return {name: megabytes / median(found) for name, found in seconds.items()}, median(a / b for a, b in zip(slow, fast))


def compare(name: str, train: list[str], test: list[str], vocab_size: int) -> dict:
    "The ratios for one sort of text, in one batch and text by text."
    tokenizer = Tokenizer.train(train, vocab_size)
    tokenizer.backend.encode_special_tokens = True
    megabytes = sum(len(text.encode()) for text in test) / 1e6

    def theirs_batched(): return [found.ids for found in tokenizer.backend.encode_batch_fast(test, add_special_tokens=False)]
    def theirs_single(): return [tokenizer.backend.encode_batch_fast([text], add_special_tokens=False)[0].ids for text in test]
    def ours_batched(): return tokenizer.encode_batch(test)
    def ours_single(): return [tokenizer.encode(text) for text in test]

    assert ours_batched() == theirs_batched() == ours_single(), "the ids differ"
    rows = {}
    for way, functions in (("one batch", (theirs_batched, ours_batched)), ("text by text", (theirs_single, ours_single))):
        speeds, ratio = cpu_ratios(dict(zip(("theirs", "ours"), functions)), megabytes)
        rows[f"{name}, {way}: {speeds['ours']:.1f} against {speeds['theirs']:.1f} MB/s"] = (ratio, ">=", BOUND)
    return rows


def long_document(texts: list[str], megabytes: int = 50) -> None:
    "Encode and decode one document of 50 MB, and print what it took."
    tokenizer, whole = Tokenizer.train(texts[:40], 4096), "\n".join(texts)
    text = (whole * (megabytes * 1_000_000 // len(whole) + 1))[:megabytes * 1_000_000]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    ids = tokenizer.encode(text)
    seconds, after = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert tokenizer.decode(ids) == text
    print(f"One document of {megabytes} MB: {len(ids):,} tokens, {seconds:.1f} CPU seconds, {(after - before) / 1024:.0f} MB more memory")


if __name__ == "__main__":
    code, stories = stdlib_texts(), [story.text for story in storybook(5000)]
    report("Encoding, ratio of MB per CPU second to encode_batch_fast",
           compare("source code", code[::4], code[1::4], 4096) | compare("stories", stories[:1000], stories[1000:], 1024))
    long_document(code)
