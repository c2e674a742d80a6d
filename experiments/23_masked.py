"""What chapter 23 shows of longer runs: python -m experiments.23_masked

First the masked language model that the package ships, on Jane Austen's novels but Persuasion; then
small ones of letters, each with one thing changed, three seeds, by the chapter's own cells (those
tagged "masked"). About 8 minutes on one core; resumable.
"""

import ast
import hashlib
import itertools
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.resumable import Results
from tools.chapters import chapters
from transformer_lib.attention import KeyValueCache
from transformer_lib.checkpoint import write_tensors
from transformer_lib.language_model import (
    LanguageModel,
    LanguageModelConfig,
    MaskedLanguageModel,
    encode_stream,
    load_austen,
    load_language_model,
    text_windows,
)
from transformer_lib.tokenizer import BOS_ID
from transformer_lib.training import (
    TrainingSettings,
    evaluate_loss,
    mask_tokens,
    masked_token_loss,
    next_token_loss,
    train,
)

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python -m experiments.23_masked"
SEEDS = (1, 2, 3)
PRETRAINING_SEED, WINDOW, BATCH_SIZE, VALIDATION = 23, 31, 32, 0.03
STEPS, PEAK = 3300, 2e-3
LETTER_STEPS = 600


def hidden_windows(tokens: Tensor, mask_id: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows behind [CLS], with other gaps each time."""
    generator = torch.Generator().manual_seed(seed)
    for window in text_windows(tokens, WINDOW, BATCH_SIZE, seed):
        window[:, 0] = BOS_ID
        yield mask_tokens(window, mask_id, generator=generator)


def rate(step: int) -> float:
    """Warmed up in 100 steps, cooled down slowly, and faster in the end."""
    return PEAK * min(step / 100, 1.0, (4001 - step) / 1500, (STEPS + 1 - step) / 330)


def pretrain() -> None:
    """Train the model that is shipped, and write it with its notes."""
    file = ROOT / "transformer_lib" / "pretrained" / "austen-masked" / "weights.safetensors"
    if file.exists():
        return
    torch.manual_seed(PRETRAINING_SEED)
    _, tokenizer = load_language_model("austen")  # chapter 22's tokens
    novels = [f"{novel.strip()}\n" for novel in load_austen("train")]
    cuts = [round(len(novel) * (1 - VALIDATION)) for novel in novels]
    pairs = list(zip(novels, cuts, strict=True))
    tokens = encode_stream(tokenizer, [novel[:cut] for novel, cut in pairs])
    held_out = encode_stream(tokenizer, [novel[cut:] for novel, cut in pairs])
    vocab_size = tokenizer.get_vocab_size() + 1  # and [MASK]
    config = LanguageModelConfig(vocab_size, 128, 4, 512, num_layers=2, dropout=0.0, max_length=64)
    model = MaskedLanguageModel(config)
    settings = TrainingSettings(
        STEPS, label_smoothing=0.0, max_norm=1.0, bfloat16="auto", report_every=100, save_every=100
    )
    same_gaps = list(itertools.islice(hidden_windows(held_out, model.mask_id, 0), 12))

    def say(p: Any) -> None:
        print(f"{p.step:5d}  {p.train_loss:.3f}  {p.validation_loss:.3f}", flush=True)

    reports = train(
        model,
        hidden_windows(tokens, model.mask_id, PRETRAINING_SEED),
        masked_token_loss,
        settings=settings,
        rate=rate,
        validation=same_gaps,
        on_report=say,
        checkpoint=ROOT / "build" / "austen-masked" / "checkpoint.safetensors",
    )
    model = model.half().float()  # as it comes out of the file
    file.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(
        file,
        {name: x.half() for name, x in model.state_dict().items()},
        is_masked=True,
        config=asdict(config),
        tokenizer=tokenizer.to_str(),
        training={
            "command": COMMAND,
            "seed": PRETRAINING_SEED,
            "settings": asdict(settings),
            "rate": f"{PEAK}, warmed up, cooled down from step 2,500 on, faster from 3,104 on",
            "batch_size": BATCH_SIZE,
            "window": WINDOW,
            "training_tokens": len(tokens),
            "log": [asdict(report) for report in reports],
            "nats_a_gap_on_persuasion": persuasion(model, tokenizer),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        },
    )


def persuasion(model: MaskedLanguageModel, tokenizer: Any) -> float:
    """Nats a gap on the held-out novel, each 8th of its tokens a gap, [MASK] in all of them."""
    ids = encode_stream(tokenizer, load_austen("test"))
    windows = ids.unfold(0, WINDOW, WINDOW)  # (windows, length)
    wanted = torch.full_like(windows, -100)
    wanted[:, 3::8] = windows[:, 3::8]
    shown = windows.masked_fill(wanted >= 0, model.mask_id)
    begin = (1, 0)  # [CLS]
    batches = zip(
        F.pad(shown, begin, value=BOS_ID).split(64),
        F.pad(wanted, begin, value=-100).split(64),
        strict=True,
    )
    return evaluate_loss(model, list(batches), masked_token_loss)


def letters() -> None:
    """Train the small models, and keep what the chapter's `examine` says of each."""
    (chapter,) = chapters(["23"])
    code = "\n\n".join(cell.source for cell in chapter.tagged("masked"))
    needs: tuple[Any, ...] = (
        *(Iterator, KeyValueCache, LanguageModel, LanguageModelConfig, MaskedLanguageModel),
        *(Tensor, TrainingSettings, load_austen, mask_tokens, masked_token_loss, next_token_loss),
        *(text_windows, torch, train),
    )
    names: dict[str, Any] = {"Any": Any, "BOS_ID": BOS_ID, "F": F}
    names |= {need.__name__: need for need in needs}
    exec(compile(code, "chapter 23", "exec"), names)
    variants: dict[str, dict[str, Any]] = {
        "80/10/10": {},
        "only [MASK]": {"parts": (1.0, 0.0)},
        "no other token": {"parts": (0.8, 0.0)},
        "never as it is": {"parts": (0.8, 0.2)},
        "left side only": {"kind": names["LeftOnly"]},
        "next letter": {"kind": LanguageModel},
        "40 % hidden": {"share": 0.4},
        "5 % hidden": {"share": 0.05},
    }
    fingerprint = hashlib.sha256(ast.dump(ast.parse(code)).encode()).hexdigest()[:16]
    results = Results(
        "masked",
        COMMAND,
        variants=list(variants),
        seeds=SEEDS,
        steps=LETTER_STEPS,
        code=fingerprint,
    )
    for name, how in variants.items():
        for seed in SEEDS:
            run = f"{name}, seed {seed}"
            if run not in results:
                model, reports = names["letter_model"](seed, LETTER_STEPS, **how)
                found = {key: round(value, 4) for key, value in names["examine"](model).items()}
                results[run] = found | {"learned_from": reports[-1].tokens}
                print(run, results[run], flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    pretrain()
    letters()
