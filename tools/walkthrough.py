"""Run the lessons of the walkthrough on a corpus, and write one page about the model that was trained.

    python tools/walkthrough.py [--corpus storybook] [--out out] [--steps 1500]

The corpus is storybook, stdlib, a text file, a folder or the name of a data set on the hub. The notebooks are run as
they are and not changed. What they save lies in OUT/NAME-OF-THE-CORPUS; the page is OUT/report.html and loads nothing.
Exit codes: 0 done, 1 a lesson failed, 2 the corpus or the folder can't be used, 130 stopped.
"""
import argparse
import base64
import html
import json
import os
import platform
import re
import shlex
import signal
import socket
import sys
import time
from importlib.metadata import version
from io import BytesIO
from math import log
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
LESSONS = sorted((ROOT / "nbs/walkthrough").glob("0*.ipynb"))
SMALLEST = 3_000      # characters: less text gives no windows to train on and to put aside
TRAINING = re.compile(r"(\d+)/(\d+) \[.*?loss ([\d.]+), ([\d,]+) tokens/s")


# The corpus

def hub_answers() -> bool:
    "Whether the hub can be reached. Without a network, its client would go on trying for half a minute."
    if any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try: socket.create_connection((address.hostname, address.port or 443), timeout=5).close()
    except OSError: return False
    return True


def check_corpus(corpus: str) -> str:
    "The corpus with an absolute path, if it is one. Raises `ValueError` if it is unknown, empty or too small."
    path = Path(corpus).expanduser()
    here = bool(corpus.strip()) and path.exists()
    if not here and corpus not in ("storybook", "stdlib", "") and not hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"
    from multiformer.data_wrangling import load_text
    room = SMALLEST
    for text in load_text(corpus, streaming=True):
        room -= len(text)
        if room <= 0: break
    else: raise ValueError(f"the corpus {corpus!r} has {SMALLEST - room:,} characters; at least {SMALLEST:,} are needed")
    return str(path.resolve()) if here and corpus not in ("storybook", "stdlib") else corpus


# The lessons

class Lessons(NotebookClient):
    "Notebooks in one kernel of this environment, one after the other, with their progress on the terminal."

    def run(self, notebook: nbformat.NotebookNode, title: str) -> None:
        "Execute all cells, and forget their names but not their imports, which take longer than many a lesson. Raises `CellExecutionError` for the first that fails."
        self.nb, self.training = notebook, None
        self.reset_execution_trackers()
        cells = [(i, cell) for i, cell in enumerate(self.nb.cells) if cell.cell_type == "code"]
        with tqdm(total=len(cells), desc=title, unit="cell", dynamic_ncols=True, bar_format="{desc} {bar} {n_fmt}/{total_fmt} cells  {elapsed}") as bar:
            for index, cell in cells:
                self.execute_cell(cell, index)
                bar.update()
        if self.training: self.training.close()
        self.kc.execute("%reset -f", silent=True)

    def process_message(self, msg, cell, cell_index):
        "Look for the training's progress in what a cell writes to stderr."
        if msg["msg_type"] == "stream" and msg["content"]["name"] == "stderr":
            for step, total, loss, speed in TRAINING.findall(msg["content"]["text"])[-1:]:
                self.show_training(int(step), int(total), f"loss {loss}, {speed} tokens/s")
        return super().process_message(msg, cell, cell_index)

    def show_training(self, step: int, total: int, state: str) -> None:
        if self.training is None:
            self.training = tqdm(total=total, desc="    training", unit="step", dynamic_ncols=True, bar_format="{desc} {bar} {n_fmt}/{total_fmt} steps{postfix}")
        self.training.set_postfix_str(state, refresh=False)
        self.training.update(step - self.training.n)


def run_lessons() -> dict[str, str]:
    "Run all lessons; returns the pictures of the cells that have a label, as PNG in base64."
    pictures, notebooks = {}, [nbformat.read(path, as_version=4) for path in LESSONS]
    lessons = Lessons(notebooks[0], timeout=None, kernel_name="python3", shutdown_kernel="immediate", store_widget_state=False,
                      resources={"metadata": {"path": str(LESSONS[0].parent)}})
    lessons.create_kernel_manager()
    lessons.km.kernel_spec.argv[0] = sys.executable
    with lessons.setup_kernel():
        for number, notebook in enumerate(notebooks, 1):
            title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
            lessons.run(notebook, f"{number}/{len(notebooks)} {title:<22}")
            for cell in notebook.cells:
                label = re.search(r"^#\| label: (\S+)", cell.source, re.MULTILINE)
                for output in cell.get("outputs", []) if label else []:
                    if "image/png" in output.get("data", {}): pictures[label[1]] = output.data["image/png"]
    return pictures


# The report

STYLE = """
:root { color-scheme: light dark; --ink: #1d2b36; --quiet: #55656f; --line: #dfe6ec; --paper: #fff; --ground: #f4f6f8; --deep: #0b3954; --gold: #b7791f; --mark: #fbeed3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4eaee; --quiet: #9db0bd; --line: #33434f; --paper: #18232b; --ground: #10181e; --deep: #9cc9e6; --gold: #e3b261; --mark: #3a3120; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.6 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
header { background: #0b3954; color: #fff; padding: 2.6rem 1.2rem 4.6rem; }
header > div { max-width: 62rem; margin: 0 auto; }
header p { margin: .3rem 0 0; color: #c9dbe7; max-width: 46rem; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 2rem; letter-spacing: -.01em; line-height: 1.2; }
h2 { margin: 0 0 .3rem; font-size: 1.25rem; color: var(--deep); }
h3 { margin: 1.2rem 0 .3rem; font-size: .95rem; }
main { max-width: 64.4rem; padding: 0 1.2rem 3rem; margin: -3.2rem auto 0; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1.3rem 1.5rem; margin-bottom: 1.2rem; }
section > p { margin: .2rem 0 .9rem; color: var(--quiet); max-width: 48rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1px; padding: 0; overflow: hidden; background: var(--line); }
.tiles div { background: var(--paper); padding: 1rem 1.2rem; }
.tiles b { display: block; font-size: 1.5rem; line-height: 1.25; color: var(--deep); font-variant-numeric: tabular-nums; }
.tiles span { color: var(--quiet); font-size: .85rem; }
img { display: block; max-width: 100%; height: auto; }
.plate { background: #fff; border-radius: 6px; }
.columns { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 1.5rem; align-items: start; }
.three { grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); display: grid; gap: 1.2rem; align-items: start; }
@media (max-width: 46rem) { .columns { grid-template-columns: minmax(0, 1fr); } td:first-child { white-space: normal; } h1 { font-size: 1.5rem; } }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td.n, th.n { text-align: right; white-space: nowrap; }
th { font-weight: 600; color: var(--quiet); }
td:first-child { white-space: nowrap; }
tr.us td { background: var(--mark); font-weight: 600; }
blockquote { margin: .6rem 0; padding: .7rem 1rem; border-left: 3px solid var(--gold); background: var(--ground); border-radius: 0 6px 6px 0; white-space: pre-wrap; overflow-wrap: anywhere; }
blockquote.before { border-color: var(--quiet); color: var(--quiet); }
blockquote i { font-style: normal; color: var(--quiet); border-bottom: 1px dotted var(--quiet); }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: .85rem/1.55 ui-monospace, "DejaVu Sans Mono", monospace; }
iframe { border-radius: 6px; }
footer { color: var(--quiet); font-size: .85rem; text-align: center; padding: 0 1rem; }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';script-src 'unsafe-inline';style-src 'unsafe-inline';img-src data:">
<link rel="icon" href="data:,"><title>{title}</title><style>{style}</style></head>
<body><header><div><h1>{title}</h1><p>{subtitle}</p></div></header><main>
{sections}
<footer>{footer}</footer></main></body></html>
"""


def esc(text) -> str:
    "Text for HTML: markup is shown, and control characters, which HTML can't hold, become visible."
    return html.escape(re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", str(text)))


def section(title: str, lead: str, *parts: str) -> str:
    "One card of the page; `lead` and `parts` are HTML."
    return f"<section><h2>{title}</h2><p>{lead}</p>{''.join(parts)}</section>"


def table(rows: list[tuple], head: tuple = (), marked: int = -1) -> str:
    "A table of texts; all columns but the first are aligned like numbers if there is a head."
    kind = lambda column: " class=n" if head and column else ""
    line = lambda cells, tag: "".join(f"<{tag}{kind(i)}>{esc(cell)}</{tag}>" for i, cell in enumerate(cells))
    body = "".join(f"<tr{' class=us' if i == marked else ''}>{line(row, 'td')}</tr>" for i, row in enumerate(rows))
    return f"<div class=scroll><table>{'<tr>' + line(head, 'th') + '</tr>' if head else ''}{body}</table></div>"


def picture(draw, size: tuple[float, float], alt: str) -> str:
    "What `draw(ax)` draws, as an image for light and for dark pages."
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    sources = {}
    for scheme, style in {"light": "default", "dark": "dark_background"}.items():
        with plt.style.context(style):
            fig, ax = plt.subplots(figsize=size, layout="constrained")
            draw(ax)
            ax.spines[["top", "right"]].set_visible(False)
            file = BytesIO()
            fig.savefig(file, format="svg", transparent=True)
            plt.close(fig)
        sources[scheme] = f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
    return f'<picture><source media="(prefers-color-scheme: dark)" srcset="{sources["dark"]}"><img alt="{esc(alt)}" src="{sources["light"]}"></picture>'


def loss_curve(work: Path, nats: dict[str, float]) -> str:
    "The losses of the run, with those of the tables of counts as lines."
    from multiformer.optimization import History
    history = History.from_jsonl((work / "history.jsonl").read_text())

    def draw(ax):
        history.plot(ax)
        for name in ("unigram", "bigram"):
            ax.axhline(nats[name], color="grey", linestyle="--", linewidth=1)
            ax.text(len(history.losses), nats[name], f"{name} ", va="bottom", ha="right", color="grey")
        ax.set_yscale("log")
        ax.set_yticks([.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        ax.set_yticks([], minor=True)
        ax.set_ylim(.8 * min(history.losses), 1.1 * max(history.losses))
        ax.legend(frameon=False, ncols=3, loc="upper right")

    return picture(draw, (9, 3.4), f"Loss over {len(history.losses)} steps; it ends at {history.losses[-1]:.2f} nats per token.")


def attention(work: Path, start: str, continuation: str) -> str:
    "The model's attention on a text that it wrote, as a frame that works by itself."
    from multiformer.interpretability import AttentionView
    from multiformer.models import load
    model, tokenizer = load(work / "model")
    ids = tokenizer.encode(start + continuation)[:40]
    return AttentionView(model, ids).frame()


def states_view(work: Path, tokens: list[int]) -> str:
    "The base, the adapted and the quantized model on one text, as a frame that works by itself."
    from multiformer.interpretability import CompareView
    from multiformer.lora import load_adapter
    from multiformer.models import load
    (base, tokenizer), (adapted, _), (small, _) = load(work / "model"), load(work / "model"), load(work / "4-bit")
    return CompareView({"base": base, "LoRA": load_adapter(adapted, work / "adapter").eval(), "4-bit": small}, tokens, tokenizer).frame()


def plate(pictures: dict[str, str], label: str, alt: str) -> str:
    "A picture of a lesson, if it drew one."
    return f'<img class=plate alt="{esc(alt)}" src="data:image/png;base64,{"".join(pictures[label].split())}">' if label in pictures else ""


def size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.2f} MB"


def state_sections(work: Path, pictures: dict[str, str]) -> list[str]:
    "The end of the page: adapted, shrunk, and all three states side by side."
    adapt, shrink, end = (json.loads((work / f"lesson{i}.json").read_text()) for i in (4, 5, 6))
    before, after, rows, states = adapt["before"], adapt["after"], shrink["rows"], end["states"]
    losses = [(f"texts {kind}", f"{before[kind]:.3f}", f"{after[kind]:.3f}") for kind in before]
    small = [(name, f"{row['bits a number']:.1f}", size(row["bytes"]), f"{row['perplexity']:.2f}", f"{row['perplexity'] / rows['float32']['perplexity'] - 1:+.1%}") for name, row in rows.items()]
    figures = [("size on disk", *(size(state["bytes"]) for state in states.values())),
               *((f"{what}, texts {kind}", *(show(state[kind]) for state in states.values())) for kind in before for what, show in (("loss", lambda x: f"{log(x):.3f}"), ("perplexity", lambda x: f"{x:.2f}"))),
               *((what, *(f"{row[key]:.{digits}f}" for row in end["table"].values())) for what, key, digits in (("KL from the base, nats per token", "mean KL", 4), ("same likeliest token as the base", "same token", 2)))]
    told = "".join(f"<div><h3>{esc(name)}</h3>{bold(end['beginning'], state['text'].split('<|endoftext|>')[0])}</div>" for name, state in states.items())
    return [
        section("A new manner", esc(f"LoRA of rank {adapt['rank']}: {adapt['learning']:,} numbers beside the model's own, {adapt['share']:.1%} of them, trained for {adapt['steps']} steps at learning rate {adapt['learning_rate']}. "
                                    f"The adapter is a file of {size(adapt['bytes'])}; switched off, it leaves the base as it was, bit for bit."),
                f"<div class=columns><div>{table(losses, ('nats per token', 'base', 'adapted'))}</div><div>{plate(pictures, 'fig-changed', 'How far each layer was moved.')}</div></div>",
                plate(pictures, "fig-adapting", "The loss of the adapter in training."),
                "<h3>One beginning and one seed: adapter off, then on</h3>", bold(adapt["prompt"], adapt["off"], "before"), bold(adapt["prompt"], adapt["on"])),
        section("Smaller", f"Every matrix in fewer bits: a byte per number with a scale for each row, four and two bits in groups of {shrink['group_size']}. Perplexity is on text put aside.",
                table(small, ("", "bits a number", "on disk", "perplexity", "change"))),
        section("Base, LoRA, 4-bit", "Three states of one model side by side. LoRA is counted with the base that it needs. The texts are what each finds likeliest after the same beginning.",
                table(figures, ("", *states)), f"<div class=three>{told}</div>",
                "<h3>Where they part</h3><p>The darker a token, the further the state's prediction is from the base's. Choose a token, a layer or a head, by mouse or with Tab, Enter and the arrow keys.</p>", states_view(work, end["text"]))]


def bold(start: str, text: str, kind: str = "") -> str:
    "A generated text, with its given beginning marked."
    return f'<blockquote{" class=" + kind if kind else ""}><i>{esc(start)}</i>{esc(text)}</blockquote>'


def report(corpus: str, work: Path, pictures: dict[str, str], seconds: float) -> str:
    "The page about the run whose results lie in `work`."
    data, run, inside = (json.loads((work / f"lesson{i}.json").read_text()) for i in (1, 2, 3))
    nats, bits, config = run["nats"], run["bits"], run["config"]
    name, gain = Path(corpus).name, nats["bigram"] - run["valid_loss"]
    tiles = [(f"{run['parameters']:,}", "parameters"), (f"{run['valid_loss']:.3f}", "loss on text put aside, nats per token"), (f"{bits['this model']:.3f}", "bits per byte"),
             (f"{abs(gain):.2f}", f"nats per token {'better' if gain >= 0 else 'worse'} than the bigram"), (f"{run['tokens_per_second']:,}", "tokens per second in training")]
    marks = [(mark, f"{nats[mark]:.3f}", f"{bits[mark]:.3f}") for mark in nats]
    amount = f"{data['texts']:,} text{'s' if data['texts'] > 1 else ''}, {data['characters']:,} characters" + " (the beginning of a larger corpus)" * data["cut"]
    asked = inside["who_has_it"]
    made = [("command", f"MULTIFORMER_STEPS={run['steps']} make walkthrough CORPUS={shlex.quote(name)}"), ("corpus", amount), ("tokenizer", f"byte-level BPE, {data['vocabulary']} tokens, {data['bytes_per_token']} bytes per token"),
            ("model", "BLM: " + ", ".join(f"{key} {value}" for key, value in config.items() if value is not None)),
            ("training", f"{run['steps']} steps of {run['batch_size']} windows of {config['context']} tokens; AdamW, learning rate {run['learning_rate']}, seed {run['seed']}"),
            ("training data", f"{data['training_tokens']:,} tokens, read {run['steps'] * run['batch_size'] * config['context'] / data['training_tokens']:.1f} times"),
            ("whole run", f"{seconds:.0f} s on {os.cpu_count()} cores ({platform.machine()})"),
            ("versions", ", ".join([f"Python {platform.python_version()}", *(f"{package} {version(package)}" for package in ("multiformer", "torch", "tokenizers", "safetensors"))]))]
    checks = [("loss before training", f"{run['untrained']:.3f}"), ("what noise scores: ln V + σ²/2", f"{run['expected']:.3f}"), ("loss in training, last 20 steps", f"{run['train_loss']:.3f}"),
              ("loss on text put aside", f"{run['valid_loss']:.3f}")]
    heads = plate(pictures, "fig-heads", "What the right name loses when a head is switched off, for each layer and head.")
    sections = [
        f"<section class=tiles>{''.join(f'<div><b>{esc(value)}</b><span>{esc(what)}</span></div>' for value, what in tiles)}</section>",
        section("How it learned", "The mean surprise per token while training went on. The dashed lines are what tables of counted tokens and pairs score on the same text.", loss_curve(work, nats)),
        "<div class=columns>" + section("Against the marks", "On text that was put aside. The tables are counted from the same training data, and may choose their best setting on this very text.", table(marks, ("", "nats per token", "bits per byte"), marked=len(marks) - 1))
        + section("Does it add up?", "An untrained model must score what noise of its variance scores, and training and held-out loss must lie close together.", table(checks, ("", "nats per token"))) + "</div>",
        section("What it writes", "The underlined beginning was given. First by the model before training, then by the same model after it.", bold(*run["before"], "before"), *(bold(*pair) for pair in run["after"])),
        section("Where it looks", "The attention of all heads on a text that the model wrote. Choose a head, then move over the words or use the arrow keys.", attention(work, *run["after"][0])),
        section("Who has it?", "Each story of the storybook ends with the name of the one who has the thing. The figures are the share of probability that the right name gets among the names of the story. "
                f"The picture shows what it loses when one head of the shipped model is switched off; most of all with layer {inside['layer']}, head {inside['head']}.",
                f"<div class=columns><div>{table([(who, f'{value:.3f}') for who, value in {'guessing': asked['guessing'], **({'the model just trained': asked['baby']} if 'baby' in asked else {}), 'the shipped model': asked['teacher']}.items()], ('', 'right name'))}</div><div>{heads}</div></div>"),
        section("What it read", esc(f"{name}: {amount}."), *(f"<blockquote>{esc(text)}{'…' if len(text) == 600 else ''}</blockquote>" for text in data["sample"])),
        section("How it was made", "Enough to make it again.", table(made)), *state_sections(work, pictures)]
    return PAGE.format(title="A baby language model, opened", style=STYLE, sections="\n".join(sections), footer="Written by Multiformer's walkthrough. This page loads nothing from anywhere.",
                       subtitle=esc(f"Trained on {name} in {run['steps']:,} steps, from random numbers to the text below."))


# The command

def stop(*_):
    raise KeyboardInterrupt


def walk(corpus: str, out: Path) -> None:
    "Run the lessons and write the report."
    start, work = time.time(), out / Path(corpus).resolve().stem
    pictures = run_lessons()
    from multiformer.models.base import write_atomically
    page = report(corpus, work, pictures, time.time() - start)
    write_atomically(out / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    data, run, adapt, shrink = (json.loads((work / f"lesson{i}.json").read_text()) for i in (1, 2, 4, 5))
    whole, small = (shrink["rows"][name] for name in ("float32", "4-bit"))
    if data["cut"]: print(f"The corpus is larger than needed: the first {data['characters']:,} characters were used.")
    print(f"{run['parameters']:,} parameters, loss {run['valid_loss']:.3f} nats per token (bigram {run['nats']['bigram']:.3f}), "
          f"{run['bits']['this model']:.3f} bits per byte, {run['tokens_per_second']:,} tokens/s\n"
          f"adapter: {adapt['learning']:,} numbers, loss in the new manner {adapt['before']['in the new manner']:.3f} -> {adapt['after']['in the new manner']:.3f}; "
          f"4-bit: {small['bytes'] / whole['bytes']:.0%} of the size, perplexity {small['perplexity'] / whole['perplexity'] - 1:+.1%}\n{time.time() - start:.0f} s in all\n{out / 'report.html'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="storybook")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--steps", type=int, default=int(os.environ.get("MULTIFORMER_STEPS", 1500)))
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    try:
        if args.steps < 1: raise ValueError(f"steps = {args.steps}; expected at least 1")
        corpus, out = check_corpus(args.corpus), args.out.resolve()
        out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"walkthrough: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt: return 130
    os.environ.update(MULTIFORMER_CORPUS=corpus, MULTIFORMER_OUT=str(out), MULTIFORMER_STEPS=str(args.steps))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")   # where others want the cores too, threads that wait in a loop slow everything down tenfold
    os.environ.pop("MPLBACKEND", None)   # a kernel chooses its own, which shows pictures
    try: walk(corpus, out)
    except CellExecutionError as error:
        print(f"walkthrough: a lesson failed with {error.ename}: {error.evalue}\n\n{error.traceback}", file=sys.stderr)
        return 1
    except DeadKernelError as error:
        print(f"walkthrough: {error}; there may be too little memory", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nwalkthrough: stopped; there is no new report", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
