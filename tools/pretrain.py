"""Train the shipped model on storybook, and record how.

    python tools/pretrain.py [--out multiformer/weights/blm-storybook]

The run is seeded, and goes on where it stopped when it is started again.
"""
import argparse
import json
from dataclasses import asdict
from pathlib import Path
from random import Random

import torch
from tqdm import tqdm

from multiformer.data_wrangling import storybook
from multiformer.inference import generate_text
from multiformer.models import BLM, BLMConfig, save
from multiformer.optimization import TrainConfig, train
from multiformer.tokenize import Tokenizer

TRAIN_SEED, VALID_SEED, TEST_SEED = 0, 1_000_000, 2_000_000
ROUNDS = [TrainConfig(steps=steps, lr=lr, seed=seed, batch_size=16, optimizer="muon", min_lr_ratio=0., warmup=200, schedule="linear", weight_decay=0.1,
                      bf16=True, compile=True, eval_every=500, save_every=500, log_every=20)
          for seed, (steps, lr) in enumerate([(20_000, 5e-3), (10_000, 2.5e-3), (3_000, 1.5e-3)])]   # warm restarts (Loshchilov and Hutter 2017)
MADE_UP = [1 / 3, 1 / 3, 1 / 10]   # the share of stories with made-up names, round by round: from many a model learns to copy any name, with few it expects the usual ones


def texts(n: int, seed: int) -> list[str]:
    return [story.text for story in storybook(n, seed=seed)]


def mixed_texts(n: int, seed: int, share: float) -> list[str]:
    "Stories of which chance gives a share made-up names; the order tells a model nothing."
    books = storybook(n, seed=seed), storybook(n, seed=seed, made_up=True)
    return [books[Random(i).random() < share][i].text for i in tqdm(range(n), desc="stories")]


def story_windows(tokenizer: Tokenizer, texts: list[str], size: int) -> torch.Tensor:
    "For each text a window that begins with it, after an end-of-text token, and goes on with the texts that follow."
    rows = tokenizer.encode_batch(texts)
    stream = torch.tensor([tokenizer.eos_id, *(token for row in (*rows, *rows[:2]) for token in (*row, tokenizer.eos_id))], dtype=torch.int16)
    starts = torch.tensor([0, *(len(row) + 1 for row in rows[:-1])]).cumsum(0)
    return stream[starts[:, None] + torch.arange(size)]


def accuracy(model, stories) -> float:
    "How often the greedy continuation of a story names the one who has the thing."
    length = {story.answer: len(model.tokenizer.encode(f" {story.answer}")) for story in stories}
    right = [generate_text(model, story.prompt, length[story.answer], temperature=0) == f" {story.answer}" for story in stories]
    return sum(right) / len(right)


def curve(history, before: int) -> list[dict]:
    "Every twentieth step of a round that came after `before` steps."
    return [{"step": before + step, "loss": round(history.losses[step - 1], 4)} | ({"valid": round(history.valid[step], 4)} if step in history.valid else {})
            for step in history.steps if step % 20 == 0]


def main(out: Path, n_stories: int, work: Path) -> None:
    torch.manual_seed(0)
    training = mixed_texts(n_stories, TRAIN_SEED, MADE_UP[0])
    tokenizer = Tokenizer.train(training[:20_000], vocab_size=1024)
    config = BLMConfig(vocab_size=tokenizer.vocab_size, context=160, d_model=144, n_layers=4, n_heads=4, n_kv_heads=2, d_ff=384)
    model = BLM(config)
    valid = story_windows(tokenizer, texts(500, VALID_SEED), config.context + 1)
    print(f"{model.n_parameters:,} parameters, {sum(r.steps * r.batch_size for r in ROUNDS) / n_stories:.2f} epochs")
    rows = []
    for i, settings in enumerate(ROUNDS):
        windows = story_windows(tokenizer, training if i == 0 else mixed_texts(n_stories, TRAIN_SEED, MADE_UP[i]), config.context + 1)
        history = train(model, windows, settings, valid=valid, out=work / f"round-{i}")
        rows += curve(history, sum(r.steps for r in ROUNDS[:i]))
    model.eval()
    model.tokenizer = tokenizer
    save(model, out)
    (out / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = {"parameters": model.n_parameters, "licence": "Apache-2.0",
              "data": f"storybook, {n_stories:,} stories of seed {TRAIN_SEED}", "made_up_names": MADE_UP, "command": f"make pretrain (tools/pretrain.py --stories {n_stories})",
              "rounds": [asdict(settings) for settings in ROUNDS], "valid_loss": rows[-1]["valid"], "valid_data": f"storybook, 500 stories of seed {VALID_SEED}",
              "answers_right": accuracy(model, storybook(500, seed=TEST_SEED)), "answers_right_new_names": accuracy(model, storybook(500, seed=TEST_SEED, held_out=True)),
              "answers_data": f"storybook, 500 stories of seed {TEST_SEED}"}
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("multiformer/weights/blm-storybook"))
    parser.add_argument("--stories", type=int, default=300_000)
    parser.add_argument("--work", type=Path, default=Path("out/pretrain"), help="checkpoints, so that an interrupted run can go on")
    args = parser.parse_args()
    main(args.out, args.stories, args.work)
