"""The checks of chapter 12's exercises."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor
from transformer_lib.transformer import Transformer, TransformerConfig


@diagnostic("Exercise 12.1")
def check_parameter_formula(attempt: Callable[[TransformerConfig], int]) -> None:
    """Check a parameter count: width 2 by hand, then one size at a time, by differences."""
    least = TransformerConfig(
        1, d_model=2, num_heads=1, d_ff=1, num_encoder_layers=1, num_decoder_layers=1
    )
    got = attempt(least)

    def grows(by: int, suspect: str, **change: Any) -> None:
        difference = attempt(replace(least, **change)) - got
        assert difference == by, (
            f"{change} should add {by} parameters, yours adds {difference}: {suspect}"
        )

    grows(2, "one more entry is one more row of one shared matrix", vocab_size=2)
    grows(
        2 * 5,
        "a unit of d_ff has d_model weights in, d_model out and a bias, in each of the two layers",
        d_ff=2,
    )
    grows(0, "heads split the width, they do not add to it", num_heads=2)
    grows(
        24 + 7 + 8,
        "an encoder layer has one attention, one feed-forward network, two norms",
        num_encoder_layers=2,
    )
    grows(
        48 + 7 + 12,
        "a decoder layer has two attentions, one feed-forward network, three norms",
        num_decoder_layers=2,
    )
    grows(8, "final norms: one at the end of each stack", final_norm=True)
    grows(8, "final_norm=None means: as norm_first", norm_first=True)
    assert got == 2 + 39 + 67, (
        f"the smallest model has 108 parameters, yours {got}: all differences are right, so look for a constant"
    )
    wide = attempt(replace(least, d_model=6))
    assert wide == 6 + 211 + 391, (
        f"d_model=6 makes 608 parameters, yours {wide}: all is right for d_model=2, where d * d is "
        "also 2 * d, so look where you took one for the other"
    )


@diagnostic("Exercise 12.2")
def check_torch_masks(attempt: Callable[[Tensor, Tensor, int], dict[str, Tensor]]) -> None:
    """Check masks for torch.nn.Transformer: keys, shapes, then what each forbids."""
    source, target = (
        torch.tensor([[5, 6, 2], [7, 2, 0]]),
        torch.tensor([[1, 5, 6, 8], [1, 7, 0, 0]]),
    )
    masks = attempt(source, target, 0)
    shapes = {
        "src_key_padding_mask": (2, 3),
        "tgt_key_padding_mask": (2, 4),
        "memory_key_padding_mask": (2, 3),
    }
    shapes["tgt_mask"] = (4, 4)
    assert set(masks) == set(shapes), (
        f"the keys should be {sorted(shapes)}, yours are {sorted(masks)}"
    )
    for name, shape in shapes.items():
        mask = expect_tensor(masks[name], shape, name)
        assert mask.dtype == torch.bool, f"{name} should be boolean, yours is {mask.dtype}"
    source_pads = masks["src_key_padding_mask"].tolist()
    assert source_pads != [[True, True, True], [True, True, False]], (
        "src_key_padding_mask is ours: torch's says True for padding"
    )
    assert source_pads == [[False, False, False], [False, False, True]], (
        f"only the last token of row 1 is padding, got {source_pads}"
    )
    assert masks["memory_key_padding_mask"].tolist() == source_pads, (
        "the memory has the padding of the source"
    )
    target_pads = masks["tgt_key_padding_mask"].tolist()
    assert target_pads == [[False] * 4, [False, False, True, True]], (
        f"the last two tokens of row 1 are padding, got {target_pads}"
    )
    future = masks["tgt_mask"]
    ours = [[j <= i for j in range(4)] for i in range(4)]
    assert future.tolist() != ours, (
        "tgt_mask is ours: torch's says True where attention is forbidden"
    )
    assert not future.diagonal().any(), (
        "every position may see itself: a row with nothing to see gives NaN in torch"
    )
    assert not future[-1].any(), "the last position may see everything: is the mask upside down?"
    assert future.tolist() == [[j > i for j in range(4)] for i in range(4)], (
        f"row i should forbid the keys after i, got {future}"
    )
    other = attempt(torch.where(source == 0, 9, source), torch.where(target == 0, 9, target), 9)
    for name in ("src_key_padding_mask", "tgt_key_padding_mask", "memory_key_padding_mask"):
        assert torch.equal(other[name], masks[name]), f"{name}: use pad_id, not 0"


@diagnostic("Exercise 12.3")
def check_sentence_log_probability(
    attempt: Callable[[Transformer, Tensor, list[int]], Tensor],
) -> None:
    """Check a sentence's log-probability against what the chain rule gives, token by token."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    config = TransformerConfig(
        6, d_model=8, num_heads=2, d_ff=16, num_encoder_layers=1, num_decoder_layers=1
    )
    model = Transformer(config).eval()
    torch.random.set_rng_state(state)
    source = torch.tensor([[3, 4, 2]])

    def step(prefix: list[int], token: int) -> float:
        with torch.no_grad():
            return float(model(source, torch.tensor([prefix]))[0, -1].log_softmax(dim=-1)[token])

    steps = [step([1], 3), step([1, 3], 5), step([1, 3, 5], 2)]
    total = sum(steps)
    with torch.no_grad():
        got = float(attempt(model, source, [3, 5]))
    assert abs(got - sum(steps[:2])) > 1e-5, (
        "the <eos> at the end is missing: a sentence must also stop"
    )
    assert abs(got + total) > 1e-5, "the sign: cross-entropy is the negative log-probability"
    assert abs(got - math.exp(total)) > 1e-5, "this is the probability; its logarithm is asked for"
    assert abs(got - total / 3) > 1e-5, (
        "this is the mean over the tokens: the probability of a sentence is a product, so add"
    )
    assert abs(got - total) < 1e-5, (
        f"the three steps add up to {total:.4f}, yours to {got:.4f}: suspect the shift"
    )
    wanted = step([1], 2)
    with torch.no_grad():
        empty = float(attempt(model, source, []))
    assert abs(empty - wanted) < 1e-5, (
        f"the empty sentence is <eos> (2) after <bos> (1): {wanted:.4f}, yours {empty:.4f}"
    )
