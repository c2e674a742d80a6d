"""The runs behind chapter 25's scaling law: character models of several sizes on Jane Austen's novels."""

from functools import cache

import torch
from torch import Tensor

from transformer_lib.language_model import (
    LanguageModel,
    LanguageModelConfig,
    load_austen,
    text_windows,
)
from transformer_lib.training import TrainingSettings, evaluate_loss, next_token_loss, train

LENGTH, ROWS = 32, 16  # characters of a window, windows of a batch
HELD_OUT = 1200  # windows of the novel that no model has read
WIDTHS, STEPS = (16, 32, 64), (500, 1000, 2000)
SEEDS = (1, 2, 3)
FOURTH = (96, 3000)  # wider and longer than all of them
PEAK = 0.32  # of the learning rate, times the width: found at 200 steps, then left alone


@cache
def load_characters() -> tuple[Tensor, Tensor, int]:
    """Ids of the characters of five novels and of the sixth, and how many different ones there are."""
    text, [held_out] = "\n".join(load_austen("train")), load_austen("test")
    ids = {character: i for i, character in enumerate(sorted(set(text)))}
    read = [torch.tensor([ids[c] for c in some if c in ids]) for some in (text, held_out)]
    return read[0], read[1], len(ids)


def make_model(width: int) -> LanguageModel:
    """Two layers, heads of 16; no dropout: hardly any character is read twice."""
    sizes = (load_characters()[2], width, width // 16, 4 * width, 2)
    model = LanguageModel(LanguageModelConfig(*sizes, dropout=0.0, max_length=LENGTH, pad_id=-1))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # GPT-2's beginnings are for a width of 768
                parameter.mul_((768 / width) ** 0.5)
    return model


def count_weights(model: LanguageModel) -> int:
    """The weights of the layers; embeddings and positions aside, which do no matrix products."""
    return sum(parameter.numel() for parameter in model.stack.parameters())


def run(width: int, steps: int, seed: int) -> dict[str, float]:
    """Train one model; its weights, the characters that it read, and its held-out loss in nats each."""
    torch.manual_seed(seed)
    text, held_out, _ = load_characters()
    model = make_model(width)
    settings = TrainingSettings(
        steps, label_smoothing=0.0, max_norm=1.0, report_every=steps, save_every=steps
    )

    def rate(step: int) -> float:
        """Up in a tenth of the steps, down in the last half."""
        return PEAK / width * min(10 * step / steps, 1.0, 2 * (steps + 1 - step) / steps)

    batches = text_windows(text, LENGTH, ROWS, seed)
    train(model, batches, next_token_loss, settings=settings, rate=rate)
    windows = held_out.unfold(0, LENGTH + 1, LENGTH)[:HELD_OUT]  # (windows, length + 1)
    loss = evaluate_loss(model, windows.split(100), next_token_loss)
    return {"weights": count_weights(model), "tokens": steps * ROWS * LENGTH, "loss": loss}
