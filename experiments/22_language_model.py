"""Train the language model that the package ships, on Jane Austen's novels but Persuasion.

    python experiments/22_language_model.py

Interrupted, it goes on from build/austen when called again. The last part of each novel, VALIDATION
of it, is left out: its loss shows how training goes. Persuasion is read once, in the end.
"""

import math
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from transformer_lib.checkpoint import write_tensors
from transformer_lib.language_model import (
    LanguageModel,
    LanguageModelConfig,
    encode_stream,
    load_austen,
    surprise,
    text_windows,
)
from transformer_lib.tokenizer import train_tokenizer
from transformer_lib.training import (
    Progress,
    TrainingSettings,
    learning_rate,
    next_token_loss,
    train,
)

ROOT = Path(__file__).resolve().parent.parent
SEED, VOCAB_SIZE, BATCH_SIZE, VALIDATION = 22, 2000, 8, 0.03
CONFIG = LanguageModelConfig(VOCAB_SIZE, 192, 6, 768, num_layers=3, dropout=0.05, max_length=128)
STEPS, COOL_DOWN = 5000, 1000
SETTINGS = TrainingSettings(
    STEPS,
    label_smoothing=0.0,
    max_norm=1.0,
    bfloat16="auto",
    report_every=250,
    save_every=100,
)


def rate(step: int) -> float:
    """Half of the paper's rate, with a cool-down at the end."""
    cool_down = min(1.0, (STEPS + 1 - step) / COOL_DOWN)
    return 0.5 * learning_rate(step, CONFIG.d_model, warmup_steps=500) * cool_down


def main() -> None:
    """Train, measure, and write the weights with their notes."""
    torch.manual_seed(SEED)
    novels = [f"{novel.strip()}\n" for novel in load_austen("train")]
    tokenizer = train_tokenizer(
        [line for novel in novels for line in novel.split("\n")], VOCAB_SIZE
    )
    cuts = [round(len(novel) * (1 - VALIDATION)) for novel in novels]
    ends = [novel[cut:] for novel, cut in zip(novels, cuts, strict=True)]
    tokens = encode_stream(
        tokenizer, [novel[:cut] for novel, cut in zip(novels, cuts, strict=True)]
    )
    held_out = encode_stream(tokenizer, ends)
    length = CONFIG.max_length
    validation = held_out.unfold(0, length + 1, length).split(32)  # (windows, length + 1)
    model = LanguageModel(CONFIG)

    def say(p: Progress) -> None:
        print(
            f"{p.step:5d}  {p.train_loss:.3f}  {p.validation_loss:.3f}  {p.seconds:.0f} s",
            flush=True,
        )

    reports = train(
        model,
        text_windows(tokens, length, BATCH_SIZE, SEED),
        next_token_loss,
        settings=SETTINGS,
        rate=rate,
        validation=validation,
        on_report=say,
        checkpoint=ROOT / "build" / "austen" / "checkpoint.safetensors",
    )
    model = model.half().float()  # as it comes out of the file
    [novel] = load_austen("test")
    bits = surprise(model, encode_stream(tokenizer, [novel])).sum().item() / math.log(2)
    folder = ROOT / "transformer_lib" / "pretrained" / "austen"
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(
        folder / "weights.safetensors",
        {name: x.half() for name, x in model.state_dict().items()},
        config=asdict(CONFIG),
        tokenizer=tokenizer.to_str(),
        training={
            "command": "python experiments/22_language_model.py",
            "seed": SEED,
            "settings": asdict(SETTINGS),
            "rate": f"half of the paper's, warmed up in 500 steps, cooled down in {COOL_DOWN}",
            "batch_size": BATCH_SIZE,
            "training_tokens": len(tokens),
            "log": [asdict(report) for report in reports],
            "bits_a_character_on_persuasion": bits / len(novel),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        },
    )
    print(f"Persuasion: {bits / len(novel):.3f} bits a character")


if __name__ == "__main__":
    main()
