"""Cleaning on one core: documents and megabytes per second of a pipeline, against the same functions in `datasets.map`; one process each;
and the seconds that each step takes alone on one document of 50 MB.

    python benchmarks/pipeline.py
"""
import random
import time

import datasets
from pydoc_data.topics import topics
from timing import ratio, report, side_by_side

from multiformer.data_wrangling import load_text, pipeline
from multiformer.data_wrangling.pipeline_steps import named_step

NAMES = ("length", "html", "unicode", "spaces", "language", "gopher", "repetition", "pii")
datasets.disable_progress_bars()
datasets.disable_caching()


def corpus() -> list[str]:
    "Manual, code, stories, and web pages made from the manual: about 15 MB."
    manual, code = list(topics.values()), load_text("stdlib")
    pages = [f"<html><body><nav>Home</nav><p>{text}</p></body></html>" for text in manual]
    texts = [*manual, *code, *pages, *(f"{text} – caf\u00e9" for text in manual), *load_text("storybook", n=3_000)]
    random.Random(0).shuffle(texts)
    return texts


def by_map(data: datasets.Dataset) -> list[str]:
    "Each step as a map over batches that returns only the texts that stay."
    for name in NAMES:
        function = named_step(name).function

        def apply(batch, function=function):
            return {"text": [verdict.text for verdict in map(function, batch["text"]) if not verdict.dropped]}

        data = data.map(apply, batched=True)
    return data["text"][:]


if __name__ == "__main__":
    texts = corpus()
    data, steps, megabytes = datasets.Dataset.from_dict({"text": texts}), pipeline(*NAMES), sum(len(text.encode()) for text in texts) / 1e6
    result = steps(texts)
    assert sorted(by_map(data)) == sorted(result.kept)
    seconds = side_by_side({"ours": lambda: steps(texts), "datasets.map": lambda: by_map(data)}, rounds=3)
    best = min(seconds["ours"])
    report(f"{len(texts):,} documents, {megabytes:.1f} MB, {len(result.kept):,} kept: {len(texts) / best:,.0f} documents and {megabytes / best:.2f} MB per second", {
        "datasets.map / ours": (ratio(seconds, "datasets.map", "ours"), ">=", 1.)})
    long = ("The dog went to the lake, and it was happy – for a while.\n" * 900_000)[:50_000_000]
    for name in NAMES:
        start = time.process_time()
        named_step(name).function(long)
        print(f"  {name:12} one document of 50 MB: {time.process_time() - start:7.2f} s")
