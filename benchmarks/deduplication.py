"""De-duplication of 20,000 stories, a tenth of them planted copies with words replaced, at a Jaccard similarity of 0.7: what `dedup` finds
against brute force, and its speed against a pipeline of `datasets.map` and rensa, and one of datasketch.

    python benchmarks/deduplication.py

`datasets.map` + rensa comes in two forms, both in batches and with the same shingles and bands as ours: as these libraries offer it (whoever meets
a kept text in a bucket is dropped, duplicate or not), and with the same result as ours (each candidate verified from the shingles). datasketch is
used as its documentation shows it: 128 permutations, its own choice of bands, nothing verified.
"""
from random import Random

import datasets
import numpy as np
from datasketch import MinHash, MinHashLSH
from rensa import RMinHash, RMinHashLSH
from scipy.sparse import csr_matrix
from timing import ratio, report, side_by_side

from multiformer.data_wrangling import dedup, storybook
from multiformer.data_wrangling.minhash import lsh_shape

N, THRESHOLD = 20_000, .7
datasets.disable_progress_bars()
datasets.disable_caching()


def corpus() -> list[str]:
    "18,000 stories and a copy of every ninth, with 1 to 12 % of its words replaced, shuffled."
    rng, stories = Random(0), [story.text for story in storybook(N * 9 // 10)]
    words = sorted({word for story in stories[:200] for word in story.split()})

    def copy(story):
        share = rng.uniform(.01, .12)
        return " ".join(rng.choice(words) if rng.random() < share else word for word in story.split())

    texts = stories + [copy(story) for story in stories[::9]]
    rng.shuffle(texts)
    return texts


def shingles(text: str) -> set[str]:
    words = text.lower().split()
    return {" ".join(words[i:i + 3]) for i in range(max(1, len(words) - 2))}


def brute_force(texts: list[str]) -> dict[tuple[int, int], float]:
    "Every pair of texts at the threshold or above, from the overlap of all with all."
    numbers, rows = {}, [shingles(text) for text in texts]
    columns = [numbers.setdefault(item, len(numbers)) for row in rows for item in row]
    sizes = np.array([len(row) for row in rows])
    table = csr_matrix((np.ones(len(columns), np.int32), columns, np.r_[0, np.cumsum(sizes)]))
    pairs = {}
    for start in range(0, N, 500):
        shared = (table[start:start + 500] @ table.T).toarray()
        similarity = shared / (sizes[start:start + 500, None] + sizes - shared)
        for a, b in np.argwhere(similarity >= THRESHOLD):
            if a + start < b: pairs[int(a) + start, int(b)] = similarity[a, b]
    return pairs


def map_and_rensa(data: datasets.Dataset, verify: bool) -> datasets.Dataset:
    "`datasets.map` with rensa: a text that meets a kept one is dropped; if `verify`, only after their shingles have been compared."
    (bands, rows), kept = lsh_shape(THRESHOLD), []
    lsh = RMinHashLSH(THRESHOLD, bands * rows, bands)

    def similar(a, b): return len(a & b) >= THRESHOLD * len(a | b)

    def mark(batch):
        sets, keep = [shingles(text) for text in batch["text"]], []
        for items, minhash in zip(sets, RMinHash.from_token_sets(sets, bands * rows, 0)):
            candidates = lsh.query(minhash)
            keep.append(not any(similar(items, kept[i]) for i in candidates) if verify else not candidates)
            if keep[-1]:
                lsh.insert(len(kept), minhash)
                kept.append(items if verify else None)
        return {"keep": keep}

    marked = data.map(mark, batched=True)
    return marked.select(np.flatnonzero(marked["keep"][:]))


def sketch_pipeline(data: datasets.Dataset) -> datasets.Dataset:
    "datasketch: one signature a text, dropped if the index holds anything in the same bucket."
    lsh, kept = MinHashLSH(threshold=THRESHOLD, num_perm=128), []
    for i, text in enumerate(data["text"][:]):
        minhash = MinHash(num_perm=128)
        minhash.update_batch([item.encode() for item in shingles(text)])
        if not lsh.query(minhash):
            lsh.insert(i, minhash)
            kept.append(i)
    return data.select(kept)


if __name__ == "__main__":
    texts = corpus()
    data, wanted = datasets.Dataset.from_dict({"text": texts}), brute_force(texts)
    result = dedup(data, "near", THRESHOLD)
    found, kept = {(a, b) for a, b, _ in result.pairs}, sorted(result.kept["text"])
    assert all(abs(wanted.get((a, b), 0) - similarity) < 1e-9 for a, b, similarity in result.pairs)
    orders = [Random(seed).sample(range(N), N) for seed in (1, 2)]
    same = [sorted(dedup([texts[i] for i in order], "near", THRESHOLD, shards=shards).kept) == kept for order in orders for shards in (1, 7)]
    runs = {"ours": lambda: dedup(data, "near", THRESHOLD), "datasketch": lambda: sketch_pipeline(data),
            "map + rensa": lambda: map_and_rensa(data, verify=False), "map + rensa, verified": lambda: map_and_rensa(data, verify=True)}
    for name, run in runs.items(): print(f"  {name:58} {len(run().kept if name == 'ours' else run()):6,} texts kept")
    seconds = side_by_side(runs, rounds=9)
    report(f"De-duplication of {N:,} documents at Jaccard {THRESHOLD}, {len(wanted):,} true pairs, {N / min(seconds['ours']):,.0f} documents per second", {
        "recall against brute force": (len(found & wanted.keys()) / len(wanted), ">=", .99),
        "precision": (len(found & wanted.keys()) / len(found), ">=", 1.),
        "same kept texts in 2 other orders, in 1 and 7 shards": (sum(same) / len(same), ">=", 1.),
        "datasets.map + rensa, verified / ours": (ratio(seconds, "map + rensa, verified", "ours"), ">=", 3.),
        "datasets.map + rensa, unverified / ours": (ratio(seconds, "map + rensa", "ours"), ">=", 3.),
        "datasketch / ours": (ratio(seconds, "datasketch", "ours"), ">=", 10.)})
