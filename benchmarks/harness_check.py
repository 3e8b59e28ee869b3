"""lm-evaluation-harness itself on our model: its perplexity and accuracies against our own functions, on files and offline,
a task in its own BLiMP layout, the command line, and its own Hugging Face model with the same weights. Also self-BLEU against sacrebleu.

    pip install -e ".[harness]"      # lm-eval
    python benchmarks/harness_check.py
"""
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import nn

from multiformer.data_wrangling import storybook
from multiformer.evaluate import bits_per_byte, harness_class, minimal_pairs, read_pairs, story_facts, storybook_tasks
from multiformer.models import load
from multiformer.weights_adapter import to_hf

N, SEED = 40, 4_000_000
CONTINUE = {"task": "storybook_continue", "dataset_path": "json", "test_split": "test", "output_type": "generate_until",
            "doc_to_text": "{{prompt}}", "doc_to_target": " {{choices[answer].strip(' .')}}", "generation_kwargs": {"until": ["."], "max_gen_toks": 5, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}], "metadata": {"version": 1}}


def results(lm, tasks: list[str], folder: Path) -> dict[str, dict]:
    "What the harness says of each task, bootstrap left out."
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(lm, tasks=tasks, task_manager=manager, bootstrap_iters=0)["results"]


def its_own_blimp(folder: Path) -> None:
    "A task that includes the harness's own BLiMP template and only says where the documents are."
    template = Path(lm_eval.__file__).parent / "tasks" / "blimp" / "_template_yaml"
    data = str(folder / "storybook_pairs_article.jsonl")
    task = {"include": str(template), "task": "blimp_storybook", "dataset_path": "json", "dataset_kwargs": {"data_files": {"train": data}}}
    (folder / "blimp_storybook.yaml").write_text(json.dumps(task))


def command_line(folder: Path) -> float:
    "The accuracy on story facts that the command prints into its results file."
    out = folder / "out"
    subprocess.run([sys.executable, "-m", "multiformer.evaluate.harness", "run", "--model", "multiformer", "--model_args", "pretrained=blm-storybook",
                    "--include_path", str(folder), "--tasks", "storybook_facts", "--output_path", str(out)], check=True, capture_output=True)
    return json.loads(next(out.rglob("*.json")).read_text())["results"]["storybook_facts"]["acc,none"]


def check_self_bleu() -> float:
    "The largest difference between our BLEU and sacrebleu's, unsmoothed, on stories as each other's references."
    from sacrebleu.metrics import BLEU

    from multiformer.evaluate import self_bleu
    texts = [story.text for story in storybook(8, seed=1)]
    metric = BLEU(smooth_method="none", effective_order=False, tokenize="none")
    theirs = [metric.corpus_score([text], [[other] for other in texts[:i] + texts[i + 1:]]).score / 100 for i, text in enumerate(texts)]
    return abs(self_bleu(texts) - sum(theirs) / len(theirs))


def spoiled() -> nn.Module:
    "The shipped model with noise in its weights: where nothing is right or wrong throughout, a fault can't hide."
    model, _ = load("blm-storybook")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters(): parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.7)
    return model


class Comparison:
    "Prints each number of the harness beside ours and remembers which differ."
    def __init__(self): self.failed = []

    def __call__(self, name: str, theirs: float, ours: float, bound: float = 0.) -> None:
        off = abs(theirs - ours) / max(abs(ours), 1e-12)
        print(f"  {name:44} {theirs:.8f}   ours {ours:.8f}   relative difference {off:.1e}   {'ok' if off <= bound else 'MISSED'}")
        if off > bound: self.failed.append(name)


def check(model: nn.Module, folder: Path, tasks: list[str], compare: Comparison) -> None:
    "All tasks on one model, and on its export under the harness's own Hugging Face class."
    found = results(harness_class()(model), [*tasks, "blimp_storybook", "storybook_continue"], folder)
    ours = bits_per_byte(model, [story.text for story in storybook(N, SEED)])
    compare("bits per byte", found["storybook_stories"]["bits_per_byte,none"], ours, 1e-6)
    compare("perplexity of a byte", found["storybook_stories"]["byte_perplexity,none"], 2 ** ours, 1e-6)
    compare("facts", found["storybook_facts"]["acc,none"], story_facts(model, storybook(N, SEED)).accuracy)
    for name in tasks[2:]: compare(name, found[name]["acc,none"], minimal_pairs(model, read_pairs(folder / f"{name}.jsonl")))
    compare("its own BLiMP template", found["blimp_storybook"]["acc,none"], minimal_pairs(model, [(f" {good}", f" {bad}") for good, bad in read_pairs(folder / "storybook_pairs_article.jsonl")]))  # it puts a space before each
    print(f"  answers written by generate_until: {found['storybook_continue']['exact_match,none']:.3f} right")
    with TemporaryDirectory() as exported:
        to_hf(model, exported)
        hf = results(HFLM(pretrained=exported, device="cpu", batch_size=8, prefix_token_id=model.tokenizer.eos_id), ["storybook_stories", "blimp_storybook"], folder)
    compare("its Hugging Face model: bits per byte", hf["storybook_stories"]["bits_per_byte,none"], ours, 1e-5)  # another float32 implementation
    compare("its Hugging Face model: BLiMP", hf["blimp_storybook"]["acc,none"], found["blimp_storybook"]["acc,none"])


def main() -> None:
    compare, shipped = Comparison(), load("blm-storybook")[0]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tasks = storybook_tasks(folder, N, SEED)
        its_own_blimp(folder)
        (folder / "continue.yaml").write_text(json.dumps({**CONTINUE, "dataset_kwargs": {"data_files": {"test": str(folder / "storybook_facts.jsonl")}}}))
        for name, model in {"the shipped model": shipped, "the same, spoiled": spoiled()}.items():
            print(name)
            check(model, folder, tasks, compare)
        print("other ways in")
        compare("the command line: facts", command_line(folder), story_facts(shipped, storybook(N, SEED)).accuracy)
    difference = check_self_bleu()
    print(f"  self-BLEU and sacrebleu differ by {difference:.1e}")
    if compare.failed or difference > 1e-9: sys.exit(f"missed: {', '.join(compare.failed) or 'self-BLEU'}")


if __name__ == "__main__":
    main()
