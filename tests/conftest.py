"""What the tests share: one tiny model, one batch, one way to copy weights, one seed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from transformer_lib.attention import MultiHeadAttention
from transformer_lib.convert import attention_partners, copy_weights
from transformer_lib.pairs import Batch, Example, make_batch
from transformer_lib.transformer import Transformer, TransformerConfig


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers for every test, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> Callable[..., Transformer]:
    """Make a small Transformer, in eval mode: tiny(), tiny(num_heads=4), tiny(seed=1)."""

    def make(seed: int = 0, **sizes: Any) -> Transformer:
        torch.manual_seed(seed)
        small = {"vocab_size": 23, "d_model": 16, "num_heads": 2, "d_ff": 32, "max_length": 64}
        layers = {"num_encoder_layers": 2, "num_decoder_layers": 2}
        return Transformer(TransformerConfig(**(small | layers | sizes))).eval()

    return make


@pytest.fixture
def batch() -> Batch:
    """Two short sentence pairs of the tiny model's vocabulary, both sides with padding."""
    return make_batch([Example([5, 6, 7, 8, 2], [9, 10]), Example([11, 2], [12, 13, 14, 15])])


@pytest.fixture
def copy_attention() -> Callable[[MultiHeadAttention, nn.MultiheadAttention], None]:
    """Give our attention the numbers of torch's."""

    def copy(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
        copy_weights(attention_partners(ours, theirs))

    return copy
