"""The checks of chapter 23's exercises."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor
from transformer_lib.language_model import LanguageModelConfig, MaskedLanguageModel


@diagnostic("Exercise 23.1")
def check_pack(attempt: Callable[[list[int], list[int], int], tuple[list[int], list[int]]]) -> None:
    """Check the special tokens, then the sides of [SEP], then the padding, on texts of two lengths."""
    for first, second, length in (([7, 8], [9, 10, 11], 8), ([5, 6, 7], [8], 10)):
        answer = attempt(list(first), list(second), length)
        assert isinstance(answer, tuple | list) and len(answer) == 2, (
            f"return ids and sides, got {answer!r}"
        )
        ids, sides = ([int(x) for x in row] for row in answer)
        real = [1, *first, 2, *second, 2]
        assert ids[:1] == [1], f"the row begins with [CLS], 1: {ids}"
        assert ids.count(2) == 2, f"there is a [SEP], 2, behind each of the two texts: {ids}"
        assert ids[: len(real)] == real, f"the ids should be {real}, then padding, got {ids}"
        assert len(ids) == len(sides) == length, (
            f"ids and sides should be {length} each, padding included, got {len(ids)} and {len(sides)}"
        )
        assert not any(ids[len(real) :]), f"padding is 0: {ids}"
        border = len(first) + 1  # the first [SEP]
        assert sides[0] == 0, f"[CLS] is on the first side, 0: {sides}"
        assert sides[border] == 0, f"the first [SEP] ends the first text, so its side is 0: {sides}"
        assert all(sides[border + 1 : len(real)]), (
            f"the second text and the [SEP] that ends it have side 1: {sides}"
        )
        assert not any(sides[len(real) :]), f"padding has side 0: {sides}"
        assert not any(sides[:border]), f"the first text has side 0: {sides}"


@diagnostic("Exercise 23.2")
def check_whole_words(
    attempt: Callable[[Tensor, Tensor, list[int], int], tuple[Tensor, Tensor]],
) -> None:
    """Check a text of words of one to three pieces, of which one stands there twice as an id."""
    tokens = torch.tensor([1, 20, 21, 22, 30, 40, 41, 30, 2])
    word_of = torch.tensor([-1, 0, 0, 0, 1, 2, 2, 3, -1])
    for chosen, mask_id in (([0, 3], 99), ([2], 99), ([], 99), ([1], 50)):
        answer = attempt(tokens, word_of, chosen, mask_id)
        assert isinstance(answer, tuple | list) and len(answer) == 2, (
            f"return shown and wanted, got {type(answer).__name__}"
        )
        shown, wanted = (
            expect_tensor(x, (9,), name)
            for x, name in zip(answer, ("shown", "wanted"), strict=True)
        )
        hidden = torch.tensor([int(w) in chosen for w in word_of])
        assert (shown[[0, 8]] == tokens[[0, 8]]).all(), f"special tokens are never hidden: {shown}"
        assert (shown[hidden] == mask_id).all(), (
            f"all pieces of words {chosen} should be {mask_id}, the mask: {shown.tolist()}"
        )
        assert (shown[~hidden] == tokens[~hidden]).all(), (
            f"only words {chosen} should be hidden: {shown.tolist()}"
        )
        assert (wanted[hidden] == tokens[hidden]).all(), (
            f"at a gap the token that stood there is wanted: {wanted.tolist()}"
        )
        assert (wanted[~hidden] == -100).all(), (
            f"where nothing is hidden, -100 is wanted: {wanted.tolist()}"
        )


@diagnostic("Exercise 23.3")
def check_score(attempt: Callable[[Any, Tensor], float]) -> None:
    """Check the score by a loop over the gaps, with a model whose every guess depends on all tokens."""
    rng = torch.get_rng_state()
    torch.manual_seed(0)
    model = MaskedLanguageModel(LanguageModelConfig(30, 16, 2, 32, 2, max_length=16)).eval()
    torch.set_rng_state(rng)
    tokens = torch.tensor([1, 5, 9, 20, 7, 11])
    log_p = []
    with torch.no_grad():
        for place in range(len(tokens)):
            row = tokens.clone()
            row[place] = model.mask_id
            log_p.append(model(row[None])[0, place].log_softmax(dim=-1)[tokens[place]].item())
        shown = model(tokens[None])[0].log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
        row = tokens.clone()
        row[1:] = model.mask_id
        at_once = model(row[None])[0].log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
    right = sum(log_p[1:])
    found = float(attempt(model, tokens))

    def near(other: float) -> bool:
        return math.isclose(found, other, rel_tol=1e-4)

    assert not near(-right), "log-probabilities are below 0: the sum has the wrong sign"
    assert not near(sum(log_p)), "[CLS] is no word: do not ask for the first token"
    assert not near(right / 5), "that is the mean; the sum is wanted"
    assert not near(math.exp(right)), (
        "that is the product of probabilities; the sum of logs is wanted"
    )
    assert not near(shown[1:].sum().item()), "nothing was hidden: each token can see itself"
    assert not near(at_once[1:].sum().item()), (
        "all were hidden at once; each should see all the others"
    )
    assert near(right), f"the score should be {right:.4f}, got {found:.4f}"
