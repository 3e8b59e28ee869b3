"""What a real compiler makes of a decoding step and of a training step says the same as the plain code; the notebooks only trace both."""
import shutil

import pytest
import torch

from multiformer.inference.cache import KVCache
from multiformer.inference.fast import CompiledDecoder
from multiformer.models import BLM, GPT2, BLMConfig, GPT2Config
from multiformer.optimization import TrainConfig, Trainer

SIZES = dict(vocab_size=61, context=48, d_model=32, n_layers=1, n_heads=4)

pytestmark = pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="compiling takes a C++ compiler")


@pytest.fixture(autouse=True)
def compiled_anew(tmp_path, monkeypatch):
    "Nothing that an earlier run compiled."
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    torch.manual_seed(0)
    yield
    assert list(tmp_path.rglob("*.so")), "nothing was compiled"
    torch.compiler.reset()


@pytest.mark.parametrize(("model", "batches"), [(lambda: BLM(BLMConfig(**SIZES, n_kv_heads=2)), (1, 3)), (lambda: GPT2(GPT2Config(**SIZES)), (1,))], ids=["BLM", "GPT2"])
@torch.no_grad()
def test_compiled_decoder_reads_as_the_model_does(model, batches):
    model = model().eval()
    decoder = CompiledDecoder(model)
    for rows in batches:   # each a program of its own
        text, cache = torch.randint(61, (rows, 48)), KVCache(model, rows, 48)
        logits = torch.cat([decoder(tokens, cache) for tokens in (text[:, :5], *text[:, 5:].split(1, 1))], 1)
        torch.testing.assert_close(logits, model(text), rtol=1e-5, atol=1e-5)


def test_compiled_steps_lose_what_plain_ones_lose():
    windows, losses = torch.randint(61, (32, 17)), {}
    for compiled in (False, True):
        torch.manual_seed(1)
        trainer = Trainer(BLM(BLMConfig(**SIZES)), windows, TrainConfig(steps=6, batch_size=8, warmup=1, compile=compiled))
        losses[compiled] = [trainer.advance().item() for _ in range(6)]
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert losses[True][-1] < losses[True][0]
