"""The checks of chapter 12's exercises."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor
from transformer_lib.transformer import Transformer, TransformerConfig


@diagnostic("Exercise 12.1")
def check_bert_parameters(attempt: Callable[..., int]) -> None:
    """Check a parameter count: one size at a time, by differences, then the total."""
    sizes = {
        "vocab_size": 50,
        "num_positions": 11,
        "num_segments": 2,
        "d_model": 6,
        "d_ff": 10,
        "num_layers": 2,
    }
    least = attempt(*sizes.values())
    assert isinstance(least, int), (
        f"a number of parameters is an int, yours is a {type(least).__name__}: {least!r}"
    )

    def grows(by: int, suspect: str, **change: int) -> None:
        (name,) = change
        got = attempt(*(sizes | change).values()) - least
        assert got == by, (
            f"at d_model 6 and d_ff 10, {name} {change[name]} in place of {sizes[name]} should add {by} parameters, "
            f"yours adds {got}: {suspect}"
        )

    grows(
        3 * 6,
        "each token is one row of one matrix; there is no map to logits",
        vocab_size=53,
    )
    grows(3 * 6, "each position has a learned vector of its own", num_positions=14)
    grows(3 * 6, "each segment has a vector of its own", num_segments=5)
    assert attempt(*(sizes | {"d_ff": 13}).values()) != least, (
        "your number does not depend on d_ff: it is not always 4 d_model"
    )
    one_layer = 4 * (36 + 6) + 2 * 60 + 10 + 6 + 4 * 6
    layer = attempt(*(sizes | {"num_layers": 3}).values()) - least
    assert layer != 2 * 4 * (36 + 6) + 2 * 60 + 10 + 6 + 6 * 6, (
        "one layer more adds a decoder layer: BERT has no cross-attention, and two norms a layer"
    )
    assert layer != 4 * 36 + 2 * 60 + 4 * 6, (
        "the maps of the layers have biases: 4 d_model in attention, d_ff + d_model in the network"
    )
    assert layer != 4 * (36 + 6) + 2 * 60 + 4 * 6, (
        "the feed-forward network has two biases, d_ff and d_model numbers"
    )
    missing_norms = (one_layer - layer) / (2 * 6)
    assert missing_norms not in (1, 2), (
        f"each layer has two norms of 2 d_model numbers, {missing_norms:.0f} of them missing"
    )
    grows(
        one_layer,
        "a layer is one attention of four maps with biases, a feed-forward network of two, and two norms",
        num_layers=3,
    )
    grows(
        2 * 3 * 13,
        "each unit of d_ff has d_model weights in, d_model out and a bias, in each layer",
        d_ff=13,
    )
    total = (50 + 11 + 2) * 6 + 2 * one_layer
    rest = least - total
    norm, pooler = 2 * 6, 36 + 6
    causes = {
        0: "the norm of the sum and the pooler are missing",
        norm: "the pooler is missing",
        pooler: "the norm of the sum of the three vectors is missing",
        36 + norm: "the pooler's bias is missing",
        36: "the pooler's bias and the norm of the sum are missing",
        norm + pooler + norm: "one norm too many: post-norm layers need no norm behind them",
    }
    cause = causes.get(rest, "look at what stands outside the layers: a norm and a pooler")
    assert rest == norm + pooler, (
        f"the layers and the three matrices are right, {norm + pooler} numbers are to be outside them, you have {rest}: "
        f"{cause}"
    )
    got = attempt(30_522, 512, 2, 768, 3072, 12)
    assert got == 109_482_240, (
        f"BERT-base has 109,482,240 parameters, yours {got:,}, though all is right for d_model 6: which term does not "
        "grow with d_model as it should?"
    )


def _masks_of_torch(source: Tensor, target: Tensor, pad_id: int) -> dict[str, Tensor]:
    length = target.size(1)
    return {
        "src_key_padding_mask": source == pad_id,
        "tgt_key_padding_mask": target == pad_id,
        "memory_key_padding_mask": source == pad_id,
        "tgt_mask": torch.ones(length, length, dtype=torch.bool).triu(1),
    }


@diagnostic("Exercise 12.2")
def check_torch_masks(attempt: Callable[[Tensor, Tensor, int], dict[str, Tensor]]) -> None:
    """Check masks for torch.nn.Transformer: keys, shapes, then what each forbids, for several batches."""
    longer = torch.tensor([[5, 6, 2], [7, 2, 0]]), torch.tensor([[1, 5, 6, 8], [1, 7, 0, 0]])
    _check_masks(attempt, *longer, 0)
    shorter = torch.tensor([[4, 5, 6, 7, 2], [5, 2, 0, 0, 0], [9, 8, 2, 0, 0]])
    _check_masks(attempt, shorter, torch.tensor([[1, 4], [1, 0], [1, 9]]), 0)
    _check_masks(attempt, torch.tensor([[4, 2]]), torch.tensor([[1]]), 0)
    # another id of padding; 0 is a word, and <bos> is no padding
    source, target = (torch.where(x == 0, 9, torch.where(x == 5, 0, x)) for x in longer)
    _check_masks(attempt, source, target, 9)


def _check_masks(attempt: Callable[..., Any], source: Tensor, target: Tensor, pad_id: int) -> None:
    masks = attempt(source, target, pad_id)
    expected = _masks_of_torch(source, target, pad_id)
    assert isinstance(masks, dict), f"return a dictionary, not {type(masks).__name__}"
    assert set(masks) == set(expected), (
        f"the keys should be {sorted(expected)}, yours are {sorted(masks)}"
    )
    for name, wanted in expected.items():
        got = masks[name]
        if isinstance(got, Tensor) and name == "memory_key_padding_mask":
            assert got.shape != target.shape or source.shape == target.shape, (
                "memory_key_padding_mask has the target's shape: what the decoder looks at is the memory, one vector for "
                "each source token"
            )
        if isinstance(got, Tensor) and name == "tgt_mask":
            length = target.size(1)
            assert got.dim() < 3, (
                f"tgt_mask should be one for all sentences, ({length}, {length}), yours is {tuple(got.shape)}"
            )
            assert got.shape != (source.size(1), source.size(1)) or source.size(1) == length, (
                "tgt_mask has the source's length: it is for the decoder's self-attention, target by target"
            )
        mask = expect_tensor(got, wanted.shape, name)
        assert mask.dtype == torch.bool, f"{name} should be boolean, yours is {mask.dtype}" + (
            " (numbers that are added to the scores: another way to say it)"
            if mask.is_floating_point()
            else ""
        )
    where = f"for source {source.tolist()}, target {target.tolist()} and pad_id {pad_id}"
    for name in ("src_key_padding_mask", "tgt_key_padding_mask", "memory_key_padding_mask"):
        ids = target if name.startswith("tgt") else source
        assert not torch.equal(masks[name], ~expected[name]), (
            f"{name} is ours: torch's says True for padding ({where})"
        )
        if pad_id != 0:
            assert not torch.equal(masks[name], ids == 0), f"{name}: use pad_id, not 0 ({where})"
        assert torch.equal(masks[name], expected[name]), (
            f"{name} should be True where the id is pad_id and nowhere else {where}, got {masks[name].tolist()}"
        )
    future = masks["tgt_mask"]
    if len(future) > 1:
        assert not torch.equal(future, ~expected["tgt_mask"]), (
            "tgt_mask is ours: torch's says True where attention is forbidden"
        )
    assert not future.diagonal().any(), (
        "every position may see itself: a row with nothing to see gives NaN in torch"
    )
    assert not future[-1].any(), "the last position may see everything: is tgt_mask upside down?"
    assert torch.equal(future, expected["tgt_mask"]), (
        f"row i of tgt_mask should forbid the keys after i and no others, got {future.tolist()} {where}"
    )


@diagnostic("Exercise 12.3")
def check_sentence_log_probability(
    attempt: Callable[[Transformer, Tensor, list[int]], Tensor],
) -> None:
    """Check a sentence's log-probability against what the chain rule gives, token by token."""
    state = torch.random.get_rng_state()
    try:
        for sentence, source in (([3, 5], [3, 4, 2]), ([4, 4, 3, 6, 1], [5, 2]), ([], [6, 3, 2])):
            _check_score(attempt, torch.tensor([source]), sentence)
    finally:
        torch.random.set_rng_state(state)


def _check_score(attempt: Callable[..., Tensor], source: Tensor, sentence: list[int]) -> None:
    torch.manual_seed(len(sentence))
    config = TransformerConfig(7, 8, 2, 16, 1, 1, dropout=0.3)
    model = Transformer(config)
    given, wanted = torch.tensor([[1, *sentence]]), torch.tensor([*sentence, 2])
    model.eval()
    with torch.no_grad():
        logits = model(source, given)[0]  # (target, vocab_size)
        unshifted = model(source, wanted[None])[0]  # (target, vocab_size)
    model.train()

    def score() -> float:
        with torch.no_grad():
            answer = attempt(model, source, sentence)
        assert isinstance(answer, Tensor | float), (
            f"return one number, a tensor of shape (), not {type(answer).__name__}"
        )
        assert not isinstance(answer, Tensor) or answer.numel() == 1, (
            f"return one number for the sentence, the sum; yours has shape {tuple(answer.shape)}"
        )
        return float(answer)

    def picked(values: Tensor, ids: Tensor = wanted) -> float:
        """The entries of `values`, (target, vocab_size), of these ids, added up."""
        return float(values[torch.arange(len(ids)), ids].sum())

    got, again = score(), score()
    total = picked(logits.log_softmax(dim=-1))
    if abs(got - again) > 1e-6:
        raise AssertionError(
            f"asked twice, you give {got:.4f} and {again:.4f}: dropout is at work, so score in eval mode"
        )
    length = len(wanted)
    causes = {
        -total: "the sign: cross-entropy is the negative log-probability",
        math.exp(total): "this is the probability; its logarithm is asked for",
        picked(logits): "these are the logits themselves, so the softmax is missing",
        picked(
            logits.softmax(dim=-1)
        ): "these are probabilities added up: multiply them, or add their logarithms",
        picked(
            logits.log_softmax(dim=0)
        ): "the softmax goes over the positions; it should go over the vocabulary",
        picked(
            logits.log_softmax(dim=-1).softmax(dim=-1).log_softmax(dim=-1)
        ): "softmax is applied twice",
        picked(
            unshifted.log_softmax(dim=-1)
        ): "the decoder is given the answer itself: it should get <bos> and the sentence",
    }
    if length > 1:
        causes |= {
            picked(
                logits[:-1].log_softmax(dim=-1), wanted[:-1]
            ): "the <eos> at the end is missing: a sentence must also stop",
            total
            / length: "this is the mean over the tokens: the probability of a sentence is a product, so add",
            picked(
                logits.log_softmax(dim=-1), given[0]
            ): "each position is asked for the token it was given: compare position t with the token after it",
            float(
                logits.log_softmax(dim=-1)[-1, 2]
            ): "this is the last step alone: every token counts",
        }
    else:
        causes[0.0] = (
            "the empty sentence has a probability, too: that of <eos> (2) right after <bos> (1)"
        )
    if abs(got - total) > 1e-5:
        cause = next((text for value, text in causes.items() if abs(got - value) < 1e-5), None)
        raise AssertionError(
            f"for the sentence {sentence} the steps add up to {total:.4f}, yours to {got:.4f}: "
            + (
                cause
                or "look at what the decoder is given, <bos> and the sentence, and at what it has to say, the sentence and <eos>"
            )
        )
    assert model.training and all(part.training for part in model.modules()), (
        "the model comes back in eval mode: its training would go on without dropout. Give it back as it was"
    )
