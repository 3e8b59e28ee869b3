"""Tokenizers on one megabyte of source code: seconds to train, megabytes encoded and decoded for each CPU second, and what the tokens are worth.
Ours, ours from scratch, `tokenizers`, SentencePiece and tiktoken, each where it is installed; one thread each; a table, and a plot where asked for.

    python benchmarks/tokenizer_comparison.py [--vocab-size 4096] [--plot FILE]
"""
import os

os.environ["RAYON_NUM_THREADS"] = os.environ["TOKENIZERS_PARALLELISM"] = "1"

import argparse
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from multiformer.data_wrangling import stdlib_texts
from multiformer.tokenize import Tokenizer
from multiformer.tokenize.bpe import PATTERNS, BytePairEncoding, train_from_scratch

ROUNDS, BOUND = 3, 20.0   # the bound is for training from scratch, in CPU seconds a megabyte


@dataclass
class Candidate:
    "What the table needs of a tokenizer."
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    encode_batch: Callable[[list[str]], list[list[int]]] | None
    vocab_size: int


def cpu_seconds(function: Callable) -> tuple[float, object]:
    "CPU seconds of one call, and what it returned."
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def ours(texts: list[str], size: int) -> Candidate:
    tokenizer = Tokenizer.train(texts, size)
    return Candidate(tokenizer.encode, tokenizer.decode, tokenizer.encode_batch, tokenizer.vocab_size)


def from_scratch(texts: list[str], size: int) -> Candidate:
    bpe = train_from_scratch(texts, size)
    return Candidate(bpe.encode, bpe.decode, None, bpe.vocab_size)


def hugging_face(texts: list[str], size: int) -> Candidate:
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"], show_progress=False))
    return Candidate(lambda text: backend.encode(text).ids, backend.decode, lambda batch: [found.ids for found in backend.encode_batch_fast(batch)], backend.get_vocab_size())


def sentencepiece(texts: list[str], size: int) -> Candidate:
    import sentencepiece
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=(line for text in texts for line in text.splitlines() if line), model_writer=model, vocab_size=size, model_type="bpe",
                                             byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=1, minloglevel=2)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue(), num_threads=1)
    return Candidate(processor.encode, processor.decode, processor.encode, processor.vocab_size())


def tiktoken(texts: list[str], size: int) -> Candidate:
    "It doesn't train: the vocabulary is the one from scratch."
    import tiktoken
    bpe: BytePairEncoding = train_from_scratch(texts, size)
    ranks = {piece: i - 1 for piece, i in bpe.vocab.items()}
    encoding = tiktoken.Encoding("ours", pat_str=PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)})
    return Candidate(encoding.encode_ordinary, encoding.decode, lambda batch: encoding.encode_ordinary_batch(batch, num_threads=1), encoding.n_vocab)


CANDIDATES = {"ours": ours, "from scratch": from_scratch, "tokenizers": hugging_face, "sentencepiece": sentencepiece, "tiktoken": tiktoken}


def measure(make: Callable, train: list[str], test: list[str], size: int) -> dict:
    "One row of the table."
    seconds, candidate = cpu_seconds(lambda: make(train, size))
    megabytes = sum(len(text.encode()) for text in test) / 1e6
    speeds = {"encode": [], "batch": [], "decode": []}
    for _ in range(ROUNDS):
        spent, ids = cpu_seconds(lambda: [candidate.encode(text) for text in test])
        speeds["encode"].append(megabytes / spent)
        if candidate.encode_batch: speeds["batch"].append(megabytes / cpu_seconds(lambda: candidate.encode_batch(test))[0])
        spent, back = cpu_seconds(lambda: [candidate.decode(row) for row in ids])
        speeds["decode"].append(megabytes / spent)
    return {"train s": None if make is tiktoken else seconds, **{name: median(found) if found else None for name, found in speeds.items()},
            "bytes/token": 1e6 * megabytes / sum(map(len, ids)), "unused": 1 - len({i for row in ids for i in row}) / candidate.vocab_size,
            "lossless": sum(a == b for a, b in zip(back, test)) / len(test)}


def plot(rows: dict[str, dict], path: str) -> None:
    "Megabytes for each CPU second as bars."
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(8, 3), layout="constrained")
    for at, name in enumerate(("encode", "batch", "decode")): ax.bar([i + .27 * (at - 1) for i in range(len(rows))], [row[name] or 0 for row in rows.values()], .25, label=name)
    ax.set_xticks(range(len(rows)), rows)
    ax.set(yscale="log", ylabel="MB per CPU second")
    ax.legend(frameon=False, ncols=3)
    fig.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--plot", help="write a picture of the speeds to this file")
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    texts = stdlib_texts()
    train, test, size = [], [], 0
    for i, text in enumerate(texts):
        (train if i % 2 else test).append(text)
        size += (i % 2) * len(text.encode())
        if size > 1_000_000: break
    rows = {name: measure(make, train, test, options.vocab_size) for name, make in CANDIDATES.items() if find_spec(name) or make in (ours, from_scratch)}
    columns = list(next(iter(rows.values())))
    print(f"Trained on {size / 1e6:.2f} MB of source code, {options.vocab_size} tokens; speeds in MB per CPU second, one thread, other files\n")
    print(f"{'':14}" + "".join(f"{column:>13}" for column in columns))
    for name, row in rows.items(): print(f"{name:14}" + "".join(f"{'-' if row[column] is None else f'{row[column]:.3f}':>13}" for column in columns))
    per_megabyte = rows["from scratch"]["train s"] / (size / 1e6)
    print(f"\ntraining from scratch: {per_megabyte:.2f} CPU seconds a megabyte   <= {BOUND}  {'ok' if per_megabyte <= BOUND else 'MISSED'}")
    if options.plot: plot(rows, options.plot)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file: json.dump(rows, file, indent=1)


if __name__ == "__main__": main()
