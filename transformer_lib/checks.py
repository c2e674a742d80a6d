"""Checks of the reader's own solutions that say what is wrong and what is left to suspect.

Written from chapters 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17 of the book: edit the chapter, then `make sync`.
"""

import copy
import functools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from transformer_lib.attention import MultiHeadAttention
from transformer_lib.embeddings import sinusoidal_positions
from transformer_lib.layers import EncoderLayer
from transformer_lib.transformer import Transformer, TransformerConfig

__all__ = [
    "check_additive_look",
    "check_additive_similarity",
    "check_attention",
    "check_attention_cost",
    "check_attention_pooling",
    "check_beam_search",
    "check_brevity_penalty",
    "check_causal_mask",
    "check_centered_rows",
    "check_clip",
    "check_clipped_matches",
    "check_contributions",
    "check_crossing",
    "check_decoder_layer",
    "check_decoder_masks",
    "check_deranged",
    "check_diagnose",
    "check_embedding",
    "check_embedding_gradient",
    "check_encoder_layer",
    "check_feed_forward",
    "check_forget_bias",
    "check_grid_positions",
    "check_groups",
    "check_gru_update",
    "check_half_peak",
    "check_halves",
    "check_heat_map",
    "check_join_heads",
    "check_last_states",
    "check_layer_flops",
    "check_layer_norm",
    "check_layer_norm_gradient",
    "check_leak_detector",
    "check_length_mask",
    "check_length_penalty",
    "check_look_back",
    "check_luong_attention",
    "check_many_queries",
    "check_maximum",
    "check_merge",
    "check_multi_head_attention",
    "check_one_pass_lookup",
    "check_overlap_by_length",
    "check_padding_detector",
    "check_padding_share",
    "check_paired_bootstrap",
    "check_parameter_counts",
    "check_parameter_formula",
    "check_predicted_shape",
    "check_read_sequence",
    "check_reads_and_says",
    "check_residual",
    "check_sentence_log_probability",
    "check_shift",
    "check_smoothed_loss",
    "check_stream_growth",
    "check_teacher_forcing",
    "check_temperature",
    "check_tolerance",
    "check_top_p",
    "check_torch_masks",
    "check_torch_padding_mask",
    "check_training_step",
    "check_uncovered",
    "check_unigram_loss",
    "check_wavelength",
    "check_window_mask",
    "check_without_head",
    "check_word_order",
    "diagnostic",
    "expect_tensor",
]


# The check of an exercise: takes the reader's attempt, raises AssertionError if that is wrong.
_Check = Callable[[Callable[..., Any]], None]


def diagnostic(label: str) -> Callable[[_Check], _Check]:
    """Turn a function of asserts into the check of an exercise.

    `check(attempt)` then prints one line if the exercise is still open (its stub raises
    NotImplementedError) or if every assert holds. Otherwise it raises AssertionError: the check's
    own, or one that says that the attempt raised, or returned nothing, followed by the error that
    came of it.

    Args:
        label: of the exercise, such as "Exercise 6.1".

    Returns:
        The decorator; the check that it makes takes the reader's attempt and returns None.
    """

    def decorate(check: _Check) -> _Check:
        @functools.wraps(check)
        def run(attempt: Callable[..., Any]) -> None:
            name = getattr(attempt, "__name__", type(attempt).__name__)
            raised: list[Exception] = []
            answers: list[Any] = []

            @functools.wraps(attempt)
            def watched(*args: Any, **kwargs: Any) -> Any:
                try:
                    answers.append(attempt(*args, **kwargs))
                except Exception as error:
                    raised.append(error)
                    raise
                return answers[-1]

            try:
                check(watched)
            except Exception as error:
                # torch has NotImplementedErrors of its own; the stub's is bare or names the exercise.
                if isinstance(error, NotImplementedError) and (
                    not error.args or label in str(error)
                ):
                    print(f"{label} is still open: fill in {name}, then run this cell again.")
                    return
                if error not in raised and answers and (answers[-1] is None or answers[-1] is ...):
                    message = f"{name} returned {answers[-1]}: does every way through it end with `return`?"
                elif isinstance(error, AssertionError):
                    raise
                elif error in raised:
                    message = f"{name} raised {type(error).__name__}: {error}"
                else:
                    message = f"the check cannot use what {name} returned: {type(error).__name__}: {error}"
                raise AssertionError(f"{label}: {message}") from error
            print(f"{label}: every check passed.")

        return run

    return decorate


def expect_tensor(value: object, shape: Sequence[int], what: str) -> Tensor:
    """Return `value` if it is a tensor of `shape`.

    Args:
        value: what an attempt returned.
        shape: that it should have.
        what: the words for it in a message, such as "the scores".

    Returns:
        `value` itself.

    Raises:
        AssertionError: if `value` is no tensor or has another shape; the message names both.
    """
    assert isinstance(value, Tensor), (
        f"{what} should be a tensor of shape {tuple(shape)}, not {type(value).__name__}"
    )
    assert value.shape == tuple(shape), (
        f"{what} should have shape {tuple(shape)}, not {tuple(value.shape)}"
    )
    return value


@diagnostic("Exercise 0.1")
def check_centered_rows(attempt: Callable[..., Tensor]) -> None:
    """Center the rows of a matrix."""
    one_row = torch.tensor([[1.0, 2.0, 6.0]])  # (1, 3)
    centered = expect_tensor(attempt(one_row), (1, 3), "one centered row of three numbers")
    assert torch.allclose(centered, torch.tensor([[-2.0, -1.0, 3.0]])), (
        f"the row 1, 2, 6 has the mean 3, so it becomes -2, -1, 3; yours becomes {centered.tolist()[0]}"
    )
    square = torch.tensor([[0.0, 2.0], [10.0, 30.0]])  # (2, 2)
    centered = expect_tensor(attempt(square), (2, 2), "a square matrix, centered,")
    assert not torch.allclose(centered, square - square.mean(dim=-1)), (
        f"a square matrix becomes {centered.tolist()}: the means of its rows were taken for a row."
        " They must stand in a column, (2, 1): keepdim=True"
    )
    rows = torch.tensor([[1.0, 2.0, 6.0], [10.0, 20.0, 60.0]])  # (2, 3)
    for x, what in ((square, "a square matrix"), (rows, "a matrix of shape (2, 3)")):
        centered = expect_tensor(attempt(x), x.shape, f"{what}, centered,")
        means = [round(mean, 3) for mean in centered.mean(dim=-1).tolist()]
        assert torch.allclose(centered.mean(dim=-1), torch.zeros(2), atol=1e-5), (
            f"each row should have the mean 0, but {what} comes out with {means}: do you subtract"
            " each row's own mean, not one for all rows, nor one for each column?"
        )


@diagnostic("Exercise 0.2")
def check_tolerance(attempt: Callable[[int], float]) -> None:
    """Choose a tolerance that holds at any seed and can still fail."""
    tolerance = attempt(10_000)
    assert isinstance(tolerance, float), f"a tolerance is one float, not {type(tolerance).__name__}"
    standard_error = math.sqrt(35 / 12 / 10_000)
    assert tolerance < 0.2 - 5 * standard_error, (
        f"a tolerance of {tolerance:.3g} lets a die of mean 3.7 pass at some seed: it is too generous"
    )
    generator = torch.Generator().manual_seed(0)
    means = torch.randint(1, 7, (400, 10_000), generator=generator).float().mean(dim=-1)  # (runs,)
    failures = int(((means - 3.5).abs() >= tolerance).sum())
    assert failures == 0, (
        f"a fair die fails your claim in {failures} of 400 runs: {tolerance:.3g} is too strict"
    )
    assert tolerance > 0.065, (
        f"{tolerance:.3g} held in 400 runs, but is under four standard errors: a seed will break it"
    )
    ratio = attempt(40_000) / tolerance
    assert abs(ratio - 0.5) < 0.01, (
        f"four times the throws should halve the tolerance; yours becomes {ratio:.3g} of it"
    )


@diagnostic("Exercise 0.3")
def check_predicted_shape(attempt: Callable[[], tuple[int, ...]]) -> None:
    """Predict the shape of query @ key.transpose(-2, -1)."""
    shape = tuple(attempt())
    assert len(shape) == 4, (
        f"four dimensions go in and four come out; yours has {len(shape)}: {shape}"
    )
    assert shape[:2] == (2, 3), (
        f"batch and heads, (2, 3), only come along; yours begins with {shape[:2]}"
    )
    assert 8 not in shape[2:], f"d_k = 8 is summed over, so it does not remain; yours is {shape}"
    scores = torch.zeros(2, 3, 5, 8) @ torch.zeros(2, 3, 7, 8).transpose(-2, -1)  # (2, 3, 5, 7)
    assert shape == tuple(scores.shape), (
        f"one row for each query, one column for each key; yours is {shape}"
    )


@diagnostic("Exercise 1.1")
def check_read_sequence(attempt: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check a plain recurrent loop: the first step isolates the input, the second the state, then a batch."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 4, 3, generator=generator)
    weight_ih, weight_hh = (
        torch.randn(5, 3, generator=generator),
        torch.randn(5, 5, generator=generator),
    )
    bias = torch.randn(5, generator=generator)

    first = expect_tensor(
        attempt(inputs[:, :1], weight_ih, weight_hh, bias), (2, 1, 5), "the states for length 1"
    )
    linear = inputs[:, 0] @ weight_ih.T + bias
    assert not torch.allclose(first[:, 0], linear, atol=1e-5), "the tanh is missing"
    assert torch.allclose(first[:, 0], linear.tanh(), atol=1e-5), (
        "the first state is off, and the state before it is zero: left to suspect are the input's map and the bias"
    )
    states = expect_tensor(
        attempt(inputs, weight_ih, weight_hh, bias), (2, 4, 5), "the states for length 4"
    )
    second = inputs[:, 1] @ weight_ih.T + bias
    transposed = torch.tanh(second + states[:, 0] @ weight_hh)
    assert not torch.allclose(states[:, 1], second.tanh(), atol=1e-5), (
        "the second state does not know the first: is the state handed on?"
    )
    assert not torch.allclose(states[:, 1], transposed, atol=1e-5), "weight_hh is transposed"
    hidden = torch.zeros(2, 5)
    for t in range(4):
        hidden = torch.tanh(inputs[:, t] @ weight_ih.T + hidden @ weight_hh.T + bias)
        assert torch.allclose(states[:, t], hidden, atol=1e-5), (
            f"state {t} is off: left to suspect are the order of the steps and which state is handed on"
        )


@diagnostic("Exercise 1.2")
def check_gru_update(attempt: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check a GRU's update: closed and open update gate isolate the parts, then the reset gate, then torch's cell."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(2, 4, generator=generator) - 0.5
    new_x, new_h = torch.randn(2, 4, generator=generator), torch.randn(2, 4, generator=generator)

    def answer(reset: float, update: float) -> Tensor:
        from_input = torch.cat(
            [torch.full((2, 4), reset), torch.full((2, 4), update), new_x], dim=-1
        )
        from_hidden = torch.cat([torch.zeros(2, 8), new_h], dim=-1)
        return expect_tensor(attempt(from_input, from_hidden, hidden), (2, 4), "the new state")

    kept, replaced = answer(0.0, 50.0), answer(50.0, -50.0)
    assert not torch.allclose(replaced, hidden, atol=1e-5), (
        "with an update gate of 0 the old state stays: in torch z is the share of the old state, yours is that of the new "
        "(or reset and update have changed places)"
    )
    assert torch.allclose(kept, hidden, atol=1e-5), (
        "with an update gate of 1 the old state should stay as it is: left to suspect are a missing sigmoid and the order of the parts"
    )
    assert not torch.allclose(replaced, new_x + new_h, atol=1e-5), (
        "the tanh of the new content is missing"
    )
    assert torch.allclose(replaced, torch.tanh(new_x + new_h), atol=1e-5), (
        "with an update gate of 0 and a reset gate of 1 the new content should come out: tanh(new_x + new_h)"
    )
    forgot = answer(-50.0, -50.0)
    assert not torch.allclose(forgot, torch.zeros(2, 4), atol=1e-5), (
        "a reset gate of 0 should hide the state, not the input: it multiplies what comes from the state only"
    )
    assert torch.allclose(forgot, new_x.tanh(), atol=1e-5), (
        "with a reset gate of 0 only the input should be left in the new content: tanh(new_x)"
    )
    theirs = torch.nn.GRUCell(3, 4)
    x = torch.randn(2, 3, generator=generator)
    with torch.no_grad():
        from_input = F.linear(x, theirs.weight_ih, theirs.bias_ih)
        from_hidden = F.linear(hidden, theirs.weight_hh, theirs.bias_hh)
        assert torch.allclose(
            attempt(from_input, from_hidden, hidden), theirs(x, hidden), atol=1e-5
        ), (
            "gates that are neither open nor shut are off: do both maps go into the gates, and is the rest 1 - z?"
        )


@diagnostic("Exercise 1.3")
def check_forget_bias(attempt: Callable[[int], float]) -> None:
    """Check the forget gate's bias for a half-life: one step, several, many."""
    one = float(attempt(1))
    assert abs(one) < 1e-6, (
        f"to keep half over one step the gate is at 1/2, so its bias is 0; yours is {one} (is it the gate itself?)"
    )
    ten = float(attempt(10))
    gate = 0.5 ** (1 / 10)
    assert abs(ten - gate) > 1e-6, "that is the gate's value: which bias has it as its sigmoid?"
    assert ten > 0, (
        f"to keep more, the gate must be more than half open: a positive bias, not {ten}"
    )
    kept = (1 / (1 + math.exp(-ten))) ** 10
    assert abs(kept - 0.5) < 1e-4, (
        f"with your bias {kept:.3f} is left after 10 steps, it should be 0.5"
    )
    kept = (1 / (1 + math.exp(-float(attempt(1000))))) ** 1000
    assert abs(kept - 0.5) < 1e-3, f"with your bias {kept:.3f} is left after 1000 steps"


@diagnostic("Exercise 1.4")
def check_last_states(attempt: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check the last real state of each row: full rows, short rows, rows of one, and where gradients go."""
    states = 24.0 - torch.arange(24.0).reshape(2, 4, 3)  # (batch, length, hidden)
    full = expect_tensor(attempt(states, torch.tensor([4, 4])), (2, 3), "the last states")
    assert torch.equal(full, states[:, 3]), (
        "for rows without padding the last column should come out (off by one: a length of 4 ends at index 3?)"
    )
    short = attempt(states, torch.tensor([2, 4]))
    assert not torch.equal(short, states[:, 3]), (
        "row 0 has 2 real words, and you took the last column"
    )
    assert not torch.equal(short[0], states[0, 2]), "off by one: a length of 2 ends at index 1"
    assert torch.equal(short, torch.stack([states[0, 1], states[1, 3]])), (
        f"row 0 should end at index 1, row 1 at index 3; got {short.tolist()}"
    )
    one = attempt(states, torch.tensor([1, 1]))
    assert torch.equal(one, states[:, 0]), "a sentence of one word ends at index 0"
    watched = states.clone().requires_grad_()
    attempt(watched, torch.tensor([2, 4])).sum().backward()
    assert watched.grad is not None and watched.grad.sum() == 6, (
        "the gradient should reach one state of each row and no other"
    )


@diagnostic("Exercise 2.1")
def check_length_mask(attempt: Callable[[Tensor, int], Tensor]) -> None:
    """Check a mask of lengths: type and shape, then which side is allowed, then the edge, then an empty sentence."""
    value = attempt(torch.tensor([2, 4, 1]), 4)
    assert tuple(value.shape) != (3, 4), (
        "the mask has shape (batch, keys): between them the queries need an axis of length 1, "
        "or it is taken for (queries, keys)"
    )
    mask = expect_tensor(value, (3, 1, 4), "the mask for lengths 2, 4, 1")
    assert mask.dtype == torch.bool, f"the mask should be boolean, yours is {mask.dtype}"
    allowed = mask[:, 0].tolist()
    real = [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert allowed != [[not word for word in row] for row in real], (
        "upside down: True means allowed, and the real words are allowed"
    )
    assert allowed[1] == [True] * 4 or allowed[0] != [True, False, False, False], (
        "one word too few: key j is real if j < length (the first key is number 0)"
    )
    assert allowed[0] != [True, True, True, False], (
        "one word too many: key j is real if j < length (the first key is number 0)"
    )
    assert allowed == real, f"lengths 2, 4, 1 should allow {real}, yours allows {allowed}"
    assert not attempt(torch.tensor([0, 3]), 3)[0].any(), "an empty sentence allows nothing"


@diagnostic("Exercise 2.2")
def check_temperature(attempt: Callable[[Tensor, float], float]) -> None:
    """Check a search for a temperature: two keys in closed form, scores ten times as large, shifted, then more keys."""
    two = float(attempt(torch.tensor([1.0, 0.0]), 0.99))
    right = 1 / math.log(99)  # from 1 / (1 + exp(-1 / T)) = 0.99
    assert math.isfinite(two) and two > 0, f"a temperature is a positive number, got {two}"
    assert abs(two * right - 1) > 0.01, (
        f"for scores 1 and 0 you return {two:.3f}, which is one over the temperature: "
        "scores are divided by it"
    )
    assert abs(two / right - 1) < 0.01, (
        f"for scores 1 and 0 and a share of 0.99 the temperature is 1 / ln 99 = {right:.3f}, yours is {two:.3f}"
    )
    ten = float(attempt(torch.tensor([10.0, 0.0]), 0.99))
    assert abs(ten / (10 * right) - 1) < 0.01, (
        f"scores ten times as large need a temperature ten times as high, {10 * right:.2f}, yours is {ten:.2f}: "
        "does your interval reach that far?"
    )
    shifted = float(attempt(torch.tensor([501.0, 500.0]), 0.99))
    assert abs(shifted / right - 1) < 0.02, (
        f"adding 500 to both scores should change nothing, but you return {shifted:.3f}: do you subtract the largest?"
    )
    for share in (0.5, 0.99):
        scores = torch.tensor([0.2, 1.0, 0.7, -0.4, 0.7])
        temperature = float(attempt(scores, share))
        found = (scores / temperature).softmax(dim=-1).max().item()
        assert abs(found - share) < 0.002, (
            f"five keys, share {share}: at your temperature {temperature:.3f} the best key gets {found:.3f}; "
            "do all the keys count, and does the share?"
        )


@diagnostic("Exercise 2.3")
def check_additive_similarity(
    attempt: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
) -> None:
    """Check the additive score: its shape, then where tanh and v stand, then all numbers, then a batch."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(3, 2, generator=generator), torch.randn(5, 4, generator=generator)
    w_query, w_key = torch.randn(2, 6, generator=generator), torch.randn(4, 6, generator=generator)
    v = torch.randn(6, generator=generator)
    scores = attempt(query, key, w_query, w_key, v)
    assert tuple(scores.shape) != (5, 3), (
        "the scores are transposed: rows are queries, columns are keys"
    )
    assert tuple(scores.shape) != (3, 5, 6), (
        "there is still a vector for each pair: v should turn it into a number"
    )
    scores = expect_tensor(scores, (3, 5), "the scores of 3 queries and 5 keys")
    added = (query @ w_query)[:, None] + (key @ w_key)[None]  # (queries, keys, hidden)
    mistakes = {
        "the tanh is missing: without it the softmax does not hear the query": added @ v,
        "the tanh is missing, and so is v": added.sum(dim=-1),
        "v is missing: you add up the hidden units as they are": added.tanh().sum(dim=-1),
        "the tanh stands outside: it belongs before v": (added @ v).tanh(),
        "the tanh comes before the sum: add first, or the softmax does not hear the query": (
            (query @ w_query).tanh()[:, None] + (key @ w_key).tanh()[None]
        )
        @ v,
    }
    for message, wrong in mistakes.items():
        assert not torch.allclose(scores, wrong, atol=1e-5), message
    assert torch.allclose(scores, added.tanh() @ v, atol=1e-5), (
        "the shape is right, the numbers are not: left to suspect are the maps (query with w_query, key with w_key)"
    )
    batched = attempt(query.expand(7, 3, 2), key.expand(7, 5, 4), w_query, w_key, v)
    assert tuple(batched.shape) == (7, 3, 5) and torch.allclose(
        batched, scores.expand(7, 3, 5), atol=1e-5
    ), "a batch is off: count the new axes from the end, with unsqueeze(-2) and unsqueeze(-3)"


@diagnostic("Exercise 2.4")
def check_one_pass_lookup(attempt: Callable[[Iterator[tuple[float, Tensor]]], Tensor]) -> None:
    """Check a lookup in one pass: one pair, equal scores, falling scores, rising scores, then huge ones."""

    def run(scores: list[float], what: str) -> tuple[Tensor, Tensor]:
        values = torch.arange(2.0 * len(scores)).view(-1, 2).square()
        try:
            output = attempt(iter(list(zip(scores, values.clone(), strict=True))))
        except OverflowError:
            raise AssertionError(
                f"{what}: an exponential overflows; subtract the largest score so far before exp"
            ) from None
        expected = torch.tensor(scores).softmax(dim=0) @ values
        output = expect_tensor(output, (2,), f"the output for {what}")
        assert not output.isnan().any(), (
            f"{what}: NaN; subtract the largest score so far, and mind the start: "
            "minus infinity less minus infinity is NaN"
        )
        return output, expected

    output, expected = run([0.5], "one pair")
    assert torch.allclose(output, expected), (
        f"with one pair its value must come out, {expected}, not {output}"
    )
    output, expected = run([1.0, 1.0, 1.0], "three equal scores")
    assert torch.allclose(output, expected), (
        f"with equal scores the mean must come out, {expected}, not {output}: do you divide by the sum of exponentials?"
    )
    output, expected = run([2.0, 1.0, -1.0], "falling scores")
    assert torch.allclose(output, expected), (
        f"falling scores are off, {output} for {expected}: each value counts with exp(score - largest)"
    )
    output, expected = run([-1.0, 1.0, 2.0, 0.0], "rising scores")
    assert torch.allclose(output, expected), (
        f"falling scores are right, rising ones are off, {output} for {expected}: when a new largest score comes, "
        "both sums so far must be multiplied by exp(old largest - new largest)"
    )
    output, expected = run([-2000.0, 1000.0, 1001.0, -3000.0], "huge scores")
    assert torch.allclose(output, expected), f"huge scores are off, {output} for {expected}"


@diagnostic("Exercise 3.1")
def check_additive_look(
    attempt: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> None:
    """Check one additive look: one token isolates the sum, equal tokens the softmax, then tanh, query, mask."""
    generator = torch.Generator().manual_seed(0)
    state, memory = (
        torch.randn(2, 4, generator=generator),
        torch.randn(2, 5, 3, generator=generator),
    )
    w_query, w_key = torch.randn(6, 4, generator=generator), torch.randn(6, 3, generator=generator)
    v = torch.randn(6, generator=generator)
    every = torch.ones(2, 5, dtype=torch.bool)

    def answer(state: Tensor, memory: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        pair = attempt(state, memory, w_query, w_key, v, real)
        assert isinstance(pair, tuple) and len(pair) == 2, "return two things: context and weights"
        rows, length = memory.shape[:2]
        return (
            expect_tensor(pair[0], (rows, 3), "the context"),
            expect_tensor(pair[1], (rows, length), "the weights"),
        )

    context, weights = answer(state, memory[:, :1], every[:, :1])
    assert torch.isfinite(context).all(), (
        "NaN: everything was forbidden; is the mask upside down? True means that a token is real"
    )
    assert torch.allclose(context, memory[:, 0], atol=1e-5), (
        "with one source token its memory is the context: is the softmax over the source?"
    )
    context, weights = answer(state, memory, every)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(2), atol=1e-5), (
        "the weights of each sentence should add up to 1: over which axis is the softmax?"
    )
    mixed = (state @ w_query.T)[:, None] + memory @ w_key.T  # (batch, source, hidden)
    expected = (mixed.tanh() @ v).softmax(dim=-1)
    assert not torch.allclose(weights, (mixed @ v).softmax(dim=-1), atol=1e-5), (
        "the tanh is missing"
    )
    assert torch.allclose(weights, expected, atol=1e-5), (
        "the weights are off: left to suspect are the two projections and v"
    )
    assert torch.allclose(context, (expected[:, None] @ memory)[:, 0], atol=1e-5), (
        "the weights are right and the context is not: it is the weighted sum of the memory, not of its projection"
    )
    some = every.clone()
    some[1, 3:] = False
    context, weights = answer(state, memory, some)
    assert (weights[1, 3:] == 0).all(), (
        "the padding of row 1 is looked at: is the mask used, and True where a token is real?"
    )
    assert torch.allclose(weights.sum(dim=-1), torch.ones(2), atol=1e-5), (
        "with padding the weights no longer add up to 1: mask before the softmax"
    )
    assert torch.allclose(weights[0], expected[0], atol=1e-5), (
        "row 0 has no padding, and row 1's mask has reached it: each row has a mask of its own"
    )
    alone = answer(state[1:], memory[1:, :3], every[1:, :3])
    assert torch.allclose(context[1], alone[0][0], atol=1e-5), "padding changes the context"


@diagnostic("Exercise 3.2")
def check_luong_attention(attempt: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check Luong's attention: one token isolates the last map, then the lookup, the order, the mask."""
    generator = torch.Generator().manual_seed(0)
    states, memory = (
        torch.randn(2, 3, 4, generator=generator),
        torch.randn(2, 5, 4, generator=generator),
    )
    w_context = torch.randn(4, 8, generator=generator)
    real = torch.ones(2, 5, dtype=torch.bool)

    def expected(states: Tensor, memory: Tensor, real: Tensor) -> Tensor:
        scores = (states @ memory.mT).masked_fill(~real[:, None], float("-inf"))
        return torch.tanh(
            torch.cat([scores.softmax(dim=-1) @ memory, states], dim=-1) @ w_context.T
        )

    one = expect_tensor(
        attempt(states, memory[:, :1], real[:, :1], w_context), (2, 3, 4), "the vectors"
    )
    assert torch.isfinite(one).all(), (
        "NaN: everything was forbidden; is the mask upside down? True means that a token is real"
    )
    found = memory[:, :1].expand(2, 3, 4)
    linear = torch.cat([found, states], dim=-1) @ w_context.T
    other_way = torch.cat([states, found], dim=-1) @ w_context.T
    assert not torch.allclose(one, linear, atol=1e-5), "the tanh is missing"
    assert not torch.allclose(one, other_way.tanh(), atol=1e-5), "first the context, then the state"
    assert torch.allclose(one, linear.tanh(), atol=1e-5), (
        "with one source token its memory is the context; left to suspect are the map of the two, put side by side, and a softmax over the target"
    )
    answer = attempt(states, memory, real, w_context)
    assert torch.allclose(answer, expected(states, memory, real), atol=1e-5), (
        "with several source tokens the vectors are off: is the softmax over the source (the last axis of the scores)?"
    )
    real[1, 2:] = False
    answer = attempt(states, memory, real, w_context)
    assert torch.allclose(answer, expected(states, memory, real), atol=1e-5), (
        "with padding the vectors are off: is the mask used before the softmax, and along the source?"
    )


@diagnostic("Exercise 3.3")
def check_word_order(attempt: Callable[[Tensor], float]) -> None:
    """Check the share of crossing pairs: order kept, reversed, one exchange, ties, rows against columns."""
    eye = torch.eye(4)
    assert abs(float(attempt(eye))) < 1e-6, "where the order is kept nothing crosses"
    assert abs(float(attempt(eye.flip(0))) - 1) < 1e-6, "a reversed order crosses in every pair: 1"
    exchanged = eye[[1, 0, 2, 3]]
    share = float(attempt(exchanged))
    assert abs(share - 1) > 1e-6, (
        "that is the number of crossing pairs: divide by the number of all pairs"
    )
    assert abs(share - 2 / 6) > 1e-6, (
        "every pair counts once; and all pairs count, not only neighbors"
    )
    assert abs(share - 1 / 6) < 1e-6, f"one of 6 pairs crosses: 1/6, not {share:.3f}"
    ties = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8]])
    assert abs(float(attempt(ties))) < 1e-6, "two words that look at the same place do not cross"
    lopsided = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
    assert abs(float(attempt(lopsided)) - 1) < 1e-6, (
        "2 target words, 3 source words: the first looks at source word 2, the second at 0; rows are target words"
    )
    most = torch.tensor([[0.4, 0.3, 0.3], [0.0, 0.6, 0.4], [0.45, 0.0, 0.55]])
    assert abs(float(attempt(most))) < 1e-6, (
        "the place that a word looks at MOST, not the mean place"
    )
    assert float(attempt(torch.ones(1, 3))) == 0.0, "one target word has no pairs: 0"


@diagnostic("Exercise 3.4")
def check_uncovered(attempt: Callable[[Tensor, float], list[int]]) -> None:
    """Check the uncovered source words: none, one, several in order, rows against columns."""
    even = torch.full((4, 2), 0.5)
    assert attempt(even, 0.5) == [], "each source word got 2.0 in all, so none is below 0.5"
    weights = torch.tensor([[0.7, 0.0, 0.1, 0.2], [0.8, 0.1, 0.0, 0.1], [0.6, 0.1, 0.2, 0.1]])
    answer = attempt(weights, 0.25)
    assert isinstance(answer, list), f"return a list of indices, not {type(answer).__name__}"
    assert 0 not in answer, "source word 0 got 2.1: add up over the target words (the rows)"
    assert answer == [1], f"only source word 1, with 0.2, is below 0.25: [1], not {answer}"
    assert attempt(weights, 0.35) == [1, 2], (
        "source words 1 (0.2) and 2 (0.3) are below 0.35, the least covered first"
    )
    assert attempt(weights[:, [0, 2, 1, 3]], 0.35) == [2, 1], "sort by coverage, not by place"
    assert all(isinstance(index, int) for index in attempt(weights, 0.35)), (
        "plain Python integers, please"
    )
    assert attempt(even, 2.0) == [], "each got 2.0, and 2.0 is not less than 2.0"


@diagnostic("Exercise 4.1")
def check_attention_pooling(attempt: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Check attention pooling: one patch, then a query of zeros, then a batch against its pictures, then large scores."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(3, 5, 4, generator=generator)
    query = torch.randn(4, generator=generator)

    answer = attempt(patches[:1, :1], query)
    assert isinstance(answer, tuple) and len(answer) == 2, "return two tensors: pooled and weights"
    pooled = expect_tensor(answer[0], (1, 4), "the pooled vector of one picture")
    weights = expect_tensor(answer[1], (1, 1), "the weights of one picture with one patch")
    assert torch.allclose(weights, torch.ones(1, 1)), "the only patch must get all the weight"
    assert torch.allclose(pooled, patches[:1, 0]), "with one patch, that patch must come out"

    pooled, weights = attempt(patches, torch.zeros(4))
    expect_tensor(pooled, (3, 4), "the pooled vectors of three pictures")
    expect_tensor(weights, (3, 5), "the weights of three pictures with five patches")
    assert torch.allclose(weights, torch.full((3, 5), 0.2)), (
        "with a query of zeros each of five patches must get a fifth: is the softmax over the patches (dim=-1 of the scores)?"
    )
    assert torch.allclose(pooled, patches.mean(dim=1), atol=1e-6), (
        "with a query of zeros the average must come out: is the sum over the patches?"
    )

    pooled, weights = attempt(patches, query)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(3)), (
        f"the weights of each picture must add up to 1, yours to {weights.sum(dim=-1).tolist()}: is the softmax over the patches?"
    )
    flipped = (-(patches @ query)).softmax(dim=-1)
    assert not torch.allclose(weights, flipped), (
        "the best match gets the least weight: a sign is wrong"
    )
    scaled = (patches @ query / 2).softmax(dim=-1)
    assert not torch.allclose(weights, scaled), (
        "the scores are divided by sqrt(d_model): equation 4.3 leaves the length of the query to training"
    )
    expected = (patches @ query).softmax(dim=-1)
    assert torch.allclose(weights, expected, atol=1e-6), (
        "the weights are off: are the scores q . h ?"
    )
    assert torch.allclose(pooled, (expected[:, :, None] * patches).sum(dim=1), atol=1e-6), (
        "the weights are right, the pooled vectors are not: each patch times its own weight, then the sum over the patches"
    )
    pooled, _ = attempt(patches, 1000 * query)
    assert torch.isfinite(pooled).all(), (
        "large scores overflow: take softmax, or the largest score off first"
    )


@diagnostic("Exercise 4.2")
def check_heat_map(attempt: Callable[[Tensor, int, int, int], Tensor]) -> None:
    """Check a heat map: patches of one pixel isolate the layout, then one row of patches, then the size and the sum."""
    weights = torch.tensor([0.1, 0.2, 0.05, 0.25, 0.3, 0.1])
    layout = expect_tensor(
        attempt(weights, 2, 3, 1), (2, 3), "the map of 2 x 3 patches of one pixel"
    )
    by_columns = weights.reshape(3, 2).T
    assert not torch.allclose(layout, by_columns), (
        "rows and columns are swapped: the patches come one row after another"
    )
    assert torch.allclose(layout, weights.reshape(2, 3)), (
        f"the patches come one row after another, so {weights.reshape(2, 3).tolist()} is wanted, not {layout.tolist()}"
    )
    strip = expect_tensor(
        attempt(weights, 1, 6, 2), (2, 12), "the map of 1 x 6 patches of 2 x 2 pixels"
    )
    tiled = weights.repeat(2)
    assert not torch.allclose(strip[0] / strip[0].sum(), tiled / tiled.sum()), (
        "the whole map is repeated; each patch should be: repeat_interleave, not repeat"
    )
    assert not torch.allclose(strip.sum(), torch.tensor(4.0)), (
        "the map adds up to 4: the weight of a patch is to be shared among its pixels"
    )
    assert torch.allclose(strip.sum(), torch.tensor(1.0)), (
        f"the map should add up to 1, yours adds up to {strip.sum().item():.3g}: how many pixels has a patch?"
    )
    image = expect_tensor(
        attempt(weights, 2, 3, 4), (8, 12), "the map of 2 x 3 patches of 4 x 4 pixels"
    )
    expected = F.interpolate(weights.reshape(1, 1, 2, 3), scale_factor=4)[0, 0] / 16
    assert torch.allclose(image, expected), (
        "every pixel of a patch should have a 16th of its weight"
    )


@diagnostic("Exercise 4.3")
def check_many_queries(attempt: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Check pooling with several queries: shapes, one query, then that no query minds the others."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 5, 4, generator=generator)
    queries = torch.randn(3, 4, generator=generator)

    answer = attempt(patches, queries)
    assert isinstance(answer, tuple) and len(answer) == 2, "return two tensors: pooled and weights"
    pooled = expect_tensor(answer[0], (2, 3, 4), "the pooled vectors of 2 pictures and 3 queries")
    weights = expect_tensor(answer[1], (2, 3, 5), "the weights of 2 pictures, 3 queries, 5 patches")
    one, _ = attempt(patches, queries[:1])
    alone = (patches @ queries[0]).softmax(dim=-1)
    assert torch.allclose(one[:, 0], (alone[:, :, None] * patches).sum(dim=1), atol=1e-6), (
        "with one query the pooling of equation 4.3 should come out: is the softmax over the patches?"
    )
    assert torch.allclose(weights.sum(dim=-1), torch.ones(2, 3)), (
        "each query's weights must add up to 1 over the patches: did the queries share one softmax?"
    )
    changed, _ = attempt(patches, torch.cat([queries[:2], -queries[2:]]))
    assert torch.allclose(changed[:, :2], pooled[:, :2], atol=1e-6), (
        "changing the third query moves the first two: the queries compete in your softmax"
    )
    every = queries.expand(2, 3, 4)
    expected = F.scaled_dot_product_attention(every, patches, patches, scale=1.0)
    assert torch.allclose(pooled, expected, atol=1e-5), (
        "each query alone is right, all together are not"
    )


@diagnostic("Exercise 4.4")
def check_contributions(attempt: Callable[[Tensor, Tensor, nn.Linear], Tensor]) -> None:
    """Check contributions: all the weight on one patch, then a patch without weight, then the sum against the scores."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 5, 4, generator=generator)
    weights = torch.randn(2, 5, generator=generator).softmax(dim=-1)
    classes = nn.Linear(4, 3)
    with torch.no_grad():
        classes.weight.copy_(torch.randn(3, 4, generator=generator))
        classes.bias.copy_(torch.tensor([1.0, -2.0, 3.0]))
        only = F.one_hot(torch.tensor([2, 0]), 5).float()
        parts = expect_tensor(attempt(only, values, classes), (2, 5, 3), "the contributions")
        assert not torch.allclose(parts[0, 2], classes(values[0, 2])), (
            "the bias is counted with the patch: it belongs to no patch, add it once at the end"
        )
        assert torch.allclose(parts[0, 2], values[0, 2] @ classes.weight.T, atol=1e-5), (
            "a patch with all the weight adds its value times the class weights, (classes, d_model) transposed"
        )
        assert (parts[0, :2] == 0).all(), (
            "a patch without weight adds nothing: is each value times its weight?"
        )
        parts = attempt(weights, values, classes)
        pooled = (weights[:, :, None] * values).sum(dim=1)
        assert torch.allclose(parts.sum(dim=1) + classes.bias, classes(pooled), atol=1e-5), (
            "the contributions of all patches and the bias must add up to the scores of the classes"
        )
        each = weights[:, :, None] * (values @ classes.weight.T)
        assert torch.allclose(parts, each, atol=1e-5), (
            "the sum is right, its terms are not: each patch with its own weight"
        )


@diagnostic("Exercise 5.1")
def check_causal_mask(attempt: Callable[[int], Tensor]) -> None:
    """Check a causal mask: length 1, then the first query, then the diagonal, then everything."""
    mask = expect_tensor(attempt(1), (1, 1), "the mask of one position")
    assert mask.dtype == torch.bool, f"the mask should be boolean, yours is {mask.dtype}"
    assert mask.item() is True, (
        "a single position may see itself: is it < where it should be <=, or does your True mean forbidden?"
    )
    mask = expect_tensor(attempt(4), (4, 4), "the mask of four positions")
    assert mask.diagonal().all(), "every position may see itself: is it < where it should be <= ?"
    assert mask[0].tolist() != [True] * 4, (
        "query 0 sees the future: rows are queries, columns are keys (transposed?)"
    )
    assert mask.tolist() == [[j <= i for j in range(4)] for i in range(4)], (
        f"row i should allow keys 0 to i, got {mask}"
    )


@diagnostic("Exercise 5.2")
def check_attention(attempt: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check masked attention: one key isolates the values, equal keys the averaging, then scale, mask, batch."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(3, 4, generator=generator), torch.randn(5, 4, generator=generator)
    value = torch.randn(5, 2, generator=generator)
    every = torch.ones(3, 5, dtype=torch.bool)

    one = expect_tensor(
        attempt(query, key[:1], value[:1], every[:, :1]),
        (3, 2),
        "the output for 3 queries and 1 key",
    )
    assert torch.isfinite(one).all(), (
        "one allowed key gives NaN: is the mask upside down (True means allowed), "
        "or do you multiply by -inf (0 * inf is NaN)?"
    )
    assert torch.allclose(one, value[:1].expand(3, 2)), (
        "with one key its value must come out: is the softmax over the keys?"
    )
    equal = attempt(query, key[:1].expand(5, 4), value, every)
    assert torch.allclose(equal, value.mean(dim=0).expand(3, 2), atol=1e-6), (
        "with equal keys the mean of all values must come out"
    )

    expected = F.scaled_dot_product_attention(query, key, value)
    unscaled = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    output = attempt(query, key, value, every)
    assert not torch.allclose(output, unscaled, atol=1e-5), (
        "the values are right, but the scores are not divided by sqrt(d_k)"
    )
    assert torch.allclose(output, expected, atol=1e-5), (
        "with every key allowed the output is off: left to suspect are the scale (square root of the query's width), "
        "the softmax's axis (the keys), and a mask upside down (True means allowed)"
    )

    only = torch.zeros(3, 5, dtype=torch.bool)
    only[:, 2] = True
    picked = attempt(query, key, value, only)
    assert torch.isfinite(picked).all(), (
        "a masked score became NaN: use masked_fill, not a product with -inf (0 * inf is NaN)"
    )
    assert torch.allclose(picked, value[2].expand(3, 2), atol=1e-5), (
        "only key 2 is allowed, so value 2 must come out: left to suspect are a mask that is not used, "
        "one applied after the softmax, and one multiplied instead of filled with -inf"
    )
    some = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=some)
    assert torch.allclose(attempt(query, key, value, some), expected, atol=1e-5), (
        "with part of the keys allowed the output is off: is the mask applied before the softmax?"
    )
    batched = attempt(query.expand(6, 3, 4), key.expand(6, 5, 4), value.expand(6, 5, 2), some)
    assert torch.allclose(batched, expected.expand(6, 3, 2), atol=1e-5), (
        "a batch is off: transpose the last two dimensions only; and is the softmax over dim=-1?"
    )


@diagnostic("Exercise 5.3")
def check_window_mask(attempt: Callable[[int, int], Tensor]) -> None:
    """Check a window mask: radius 0, then both sides, then a window wider than the sentence."""
    mask = expect_tensor(attempt(5, 0), (5, 5), "the mask for length 5")
    assert mask.dtype == torch.bool, f"the mask should be boolean, yours is {mask.dtype}"
    assert mask.tolist() == torch.eye(5).bool().tolist(), (
        "radius 0: every position sees itself and nobody else"
    )
    mask = attempt(5, 1)
    assert mask[2, 3] and mask[2, 1], "radius 1: position 2 sees both neighbors, 1 and 3"
    assert not mask[2, 4] and not mask[0, 4], (
        "radius 1: too far away is still allowed (or the window wraps around)"
    )
    assert mask.sum().item() == 13, (
        f"radius 1, length 5: 13 pairs are allowed, yours allows {mask.sum().item()}"
    )
    assert attempt(5, 9).all(), "a radius beyond the sentence allows everything"


@diagnostic("Exercise 5.4")
def check_leak_detector(attempt: Callable[[Callable[[Tensor], Tensor]], bool]) -> None:
    """Check a leak detector on honest attention, on a leak through the softmax's sum, and on a leak from one position."""

    def causal(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    def open_to_all(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    def masked_too_late(x: Tensor) -> Tensor:
        return (x @ x.T / math.sqrt(x.size(-1))).softmax(dim=-1).tril() @ x

    def peeks_once(x: Tensor) -> Tensor:
        output = causal(x)
        if x.size(0) > 2:
            output[1] = output[1] + 1e-2 * x[2]
        return output

    verdicts = {
        name.__name__: attempt(name) for name in (causal, open_to_all, masked_too_late, peeks_once)
    }
    wrong_types = {
        name: type(verdict).__name__
        for name, verdict in verdicts.items()
        if not isinstance(verdict, bool)
    }
    assert not wrong_types, f"leaks should return True or False, but returned {wrong_types}"
    assert not verdicts["causal"], (
        "causal attention does not leak: position i may depend on position i itself"
    )
    assert verdicts["open_to_all"], "attention without a mask leaks, and you did not see it"
    assert verdicts["masked_too_late"], (
        "masking after the softmax leaks through its sum: compare exactly, not roughly"
    )
    assert verdicts["peeks_once"], (
        "position 1 sees position 2 and nobody else leaks: do you try every position, and is your tolerance small enough?"
    )


@diagnostic("Exercise 6.1")
def check_join_heads(attempt: Callable[[Tensor], Tensor]) -> None:
    """Check the joining of heads: one word, then one head, then all, entry by entry."""
    one_word = expect_tensor(
        attempt(torch.arange(6.0).view(1, 3, 1, 2)), (1, 1, 6), "3 heads of width 2, one word"
    )
    assert one_word.flatten().tolist() == [0, 1, 2, 3, 4, 5], (
        f"one word: head 0's entries first, got {one_word.flatten()}"
    )
    one_head = expect_tensor(
        attempt(torch.arange(6.0).view(1, 1, 3, 2)), (1, 3, 2), "one head of width 2, 3 words"
    )
    assert one_head.flatten().tolist() == [0, 1, 2, 3, 4, 5], (
        f"one head is the whole word: got {one_head.tolist()}"
    )
    # the number says where an entry belongs: hundreds batch, tens word, ones entry
    whole = (
        100 * torch.arange(2.0)[:, None, None] + 10 * torch.arange(3.0)[:, None] + torch.arange(4.0)
    )
    heads = torch.stack([whole[..., :2], whole[..., 2:]], dim=1)  # (batch, heads, length, d_k)
    joined = expect_tensor(attempt(heads), (2, 3, 4), "2 sentences, 2 heads, 3 words, width 4")
    assert not torch.equal(joined, heads.reshape(2, 3, 4)), (
        "the shape is right, but words are mixed up: word 1 begins with "
        f"{joined[0, 1, 0]:.0f}, which belongs to word {joined[0, 1, 0] // 10:.0f}. Transpose before you join"
    )
    swapped = torch.cat([whole[..., 2:], whole[..., :2]], dim=-1)
    assert not torch.equal(joined, swapped), (
        "the heads are joined in the wrong order: head 0 comes first"
    )
    interleaved = heads.permute(0, 2, 3, 1).flatten(-2)
    assert not torch.equal(joined, interleaved), (
        "the heads' entries alternate: heads must come before d_k when you join"
    )
    assert torch.equal(joined, whole), (
        f"some entries are in the wrong place: {joined.tolist()} should be {whole.tolist()}"
    )


@diagnostic("Exercise 6.2")
def check_multi_head_attention(attempt: Callable[..., Tensor]) -> None:
    """Check multi-head attention: one key isolates W_V and W_O, one head the scale, then the split."""
    generator = torch.Generator().manual_seed(0)
    lengths = (3, 5, 5)  # cross-attention
    query, key, value = (torch.randn(2, length, 8, generator=generator) for length in lengths)
    maps = [torch.randn(8, 8, generator=generator) * 0.5 for _ in range(4)]
    w_query, w_key, w_value, w_output = maps

    one_key = expect_tensor(
        attempt(query, key[:, :1], value[:, :1], *maps, 1), (2, 3, 8), "3 queries, 1 key, 1 head"
    )
    expected = (value[:, :1] @ w_value @ w_output).expand(2, 3, 8)
    no_output = (value[:, :1] @ w_value).expand(2, 3, 8)
    assert not torch.allclose(one_key, no_output, atol=1e-5), (
        "with one key only W_V is seen: W_O is missing"
    )
    assert not torch.allclose(one_key, value[:, :1] @ w_value.T @ w_output.T, atol=1e-5), (
        "x @ W, not x @ W.T"
    )
    assert torch.allclose(one_key, expected, atol=1e-5), (
        "with one key the answer is value @ W_V @ W_O: suspect these two "
        "(and the softmax's axis: over the keys, one key has weight 1)"
    )
    two_heads = attempt(query, key[:, :1], value[:, :1], *maps, 2)
    assert torch.allclose(two_heads, expected, atol=1e-5), (
        "with one key the number of heads cannot matter, but with 2 heads the output differs: "
        "suspect the joining of heads, or which columns belong to head i"
    )

    one_head = attempt(query, key, value, *maps, 1)
    expected = (
        F.scaled_dot_product_attention(query @ w_query, key @ w_key, value @ w_value) @ w_output
    )
    assert torch.allclose(one_head, expected, atol=1e-5), (
        "one head with several keys is off: suspect W_Q, W_K (swapped?), the scale, the softmax's axis"
    )

    def reference(num_heads: int, scale: float | None = None) -> Tensor:
        pieces = zip(*(m.chunk(num_heads, dim=1) for m in (w_query, w_key, w_value)), strict=True)
        heads = [
            F.scaled_dot_product_attention(query @ q, key @ k, value @ v, scale=scale)
            for q, k, v in pieces
        ]
        return torch.cat(heads, dim=-1) @ w_output

    output = attempt(query, key, value, *maps, 2)
    assert not torch.allclose(output, reference(2, scale=8**-0.5), atol=1e-5), (
        "the scores are divided by sqrt(d_model); each head has width d_k = d_model / num_heads"
    )
    for num_heads in (2, 4, 8):
        output = attempt(query, key, value, *maps, num_heads)
        assert torch.allclose(output, reference(num_heads), atol=1e-5), (
            f"one head is right, {num_heads} are not: suspect the split (is there a transpose between view and attention, "
            "and does head i own columns i * d_k and following?)"
        )


@diagnostic("Exercise 6.3")
def check_attention_cost(attempt: Callable[[int, int, int, int], tuple[int, int]]) -> None:
    """Check a cost formula against torch's own module and torch's own counter."""

    def counted(queries: int, keys: int, d_model: int, num_heads: int) -> tuple[int, int]:
        reference = nn.MultiheadAttention(d_model, num_heads, batch_first=True)
        x, memory = torch.zeros(1, queries, d_model), torch.zeros(1, keys, d_model)
        with FlopCounterMode(display=False) as counter:
            reference(x, memory, memory)
        return sum(p.numel() for p in reference.parameters()), counter.get_total_flops() // 2

    answer = attempt(6, 6, 8, 2)
    assert isinstance(answer, tuple) and len(answer) == 2, (
        f"return (parameters, multiply_adds), not {answer!r}"
    )
    parameters, operations = counted(6, 6, 8, 2)
    assert answer[0] != parameters - 4 * 8, (
        f"{answer[0]} parameters are the matrices alone: add the four biases"
    )
    assert answer[0] == parameters, (
        f"self-attention, d_model 8: torch has {parameters} parameters, you say {answer[0]}"
    )
    assert answer[1] != 2 * operations, (
        f"{answer[1]} are floating-point operations: a multiply-add counts once here"
    )
    assert answer[1] == operations, (
        f"6 words, d_model 8, 2 heads: torch counts {operations} multiply-adds, you say {answer[1]}"
    )
    assert attempt(6, 6, 8, 4) == answer, "with 4 heads instead of 2 the bill should be the same"
    for sizes in ((3, 10, 16, 4), (10, 3, 16, 4)):
        expected, answer = counted(*sizes), attempt(*sizes)
        assert answer == expected, (
            f"{sizes[0]} queries, {sizes[1]} keys: torch counts {expected}, you say {answer}"
        )


@diagnostic("Exercise 6.4")
def check_without_head(attempt: Callable[[nn.Module, Tensor, int], Tensor]) -> None:
    """Check the removal of a head: the only head, then one of four, then all four in turn."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 8, generator=generator)

    def make(num_heads: int) -> MultiHeadAttention:
        attention = MultiHeadAttention(8, num_heads)
        for parameter in attention.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
        return attention

    only = make(1)
    output = expect_tensor(attempt(only, x, 0), (2, 5, 8), "the output without the only head")
    assert not torch.allclose(output, torch.zeros_like(output)), (
        "without its only head attention still adds its output bias"
    )
    assert torch.allclose(output, only.output_projection.bias.expand(2, 5, 8), atol=1e-5), (
        "without the only head nothing but the output bias should be left"
    )

    four = make(4)
    before = copy.deepcopy(four.state_dict())
    full = four(x, x, x)[0]
    parts = [full - attempt(four, x, head) for head in range(4)]  # what each head contributes
    changed = [
        name
        for name, parameter in four.state_dict().items()
        if not torch.equal(parameter, before[name])
    ]
    assert not changed, f"the module is not as it was: {', '.join(changed)} changed. Work on a copy"
    for head, part in enumerate(parts):
        # A head whose values are all zero writes nothing: the same question asked in another way.
        silent = copy.deepcopy(four)
        rows = slice(2 * head, 2 * head + 2)
        silent.value_projection.weight.data[rows] = 0.0
        silent.value_projection.bias.data[rows] = 0.0
        expected = full - silent(x, x, x)[0]
        others = [
            torch.allclose(part, parts[other], atol=1e-5) for other in range(4) if other != head
        ]
        assert not any(others), (
            f"head {head} contributes the same as another head: is the argument `head` used?"
        )
        assert torch.allclose(part, expected, atol=1e-4), (
            f"head {head} of 4: what is missing is not what this head writes. It owns entries {2 * head} and {2 * head + 1} "
            "of the joined vector; remove it before W_O, not after"
        )


@diagnostic("Exercise 7.1")
def check_wavelength(attempt: Callable[[int, int], float]) -> None:
    """Check wavelengths: the fastest pair, then the role of i and of d_model."""
    fastest = float(attempt(0, 512))
    assert not math.isclose(fastest, 1.0, rel_tol=1e-5), (
        "pair 0 turns by one radian at each position; a whole turn is 2 pi radians"
    )
    assert math.isclose(fastest, 2 * math.pi, rel_tol=1e-5), (
        f"pair 0 has frequency 1, so wavelength 2 pi, not {fastest}"
    )
    middle = float(attempt(128, 512))
    assert not math.isclose(middle, 2 * math.pi * 10, rel_tol=1e-5), (
        "i counts pairs: the exponent is 2i / d_model, not i / d_model"
    )
    assert not math.isclose(middle, 2 * math.pi / 100, rel_tol=1e-5), (
        "the wavelength grows with i: divide by the frequency"
    )
    assert math.isclose(middle, 2 * math.pi * 100, rel_tol=1e-5), (
        f"pair 128 of 256: 10000^(1/2) = 100 times 2 pi, not {middle}"
    )
    for i, d_model in ((3, 8), (5, 64)):
        angle = float(attempt(i, d_model)) / 10_000 ** (2 * i / d_model)
        assert math.isclose(angle, 2 * math.pi, rel_tol=1e-5), (
            f"pair {i} of width {d_model} turns by {angle:.3f} radians, not by 2 pi"
        )


@diagnostic("Exercise 7.2")
def check_halves(attempt: Callable[[int, int], Tensor]) -> None:
    """Check the layout in halves: position 0 shows the layout, position 1 the frequencies."""
    first = expect_tensor(attempt(1, 6), (1, 6), "the table of one position, width 6")[0]
    assert first.tolist() != [0, 1, 0, 1, 0, 1], (
        "sines and cosines alternate; here all sines come first"
    )
    assert first.tolist() == [0, 0, 0, 1, 1, 1], (
        f"position 0 is sin(0) three times, cos(0) three times, not {first.tolist()}"
    )
    table = expect_tensor(attempt(4, 6), (4, 6), "the table of four positions, width 6").double()
    frequency = torch.asin(table[1, :3])  # sin(1 * frequency): all three frequencies are at most 1
    paper = 10_000.0 ** (-torch.arange(0, 6, 2, dtype=torch.float64) / 6)
    assert not torch.allclose(frequency, paper, atol=1e-6), (
        "these are the paper's frequencies; the code divides by n - 1"
    )
    wanted = torch.tensor([1.0, 0.01, 0.0001], dtype=torch.float64)
    assert torch.allclose(frequency, wanted, atol=1e-6), (
        f"the frequencies should be {wanted.tolist()}, not {frequency.tolist()}"
    )
    circle = table[:, :3].square() + table[:, 3:].square()
    assert torch.allclose(circle, torch.ones_like(circle), atol=1e-5), (
        "entry i and i + n should be sine and cosine of one angle"
    )
    angle = torch.outer(torch.arange(4, dtype=torch.float64), wanted)
    assert torch.allclose(table[:, :3], angle.sin(), atol=1e-5), (
        "position 1 is right, later ones are not"
    )


@diagnostic("Exercise 7.3")
def check_look_back(attempt: Callable[[int, int], Tensor]) -> None:
    """Check a matrix that turns positions back: width 2 shows the block, then the diagonal, then where it looks."""
    table = sinusoidal_positions(60, 32)
    still = expect_tensor(attempt(0, 2), (2, 2), "the matrix for back = 0, width 2").float()
    assert torch.allclose(still, torch.eye(2), atol=1e-5), (
        f"no step back is no turn, the identity, not {still.tolist()}"
    )
    block = expect_tensor(attempt(1, 2), (2, 2), "the matrix for back = 1, width 2").float()
    origin = torch.tensor([0.0, 1.0])  # sine and cosine at position 0
    assert not torch.allclose(
        origin @ block, torch.tensor([math.sin(1), math.cos(1)]), atol=1e-5
    ), (
        "this turns forward: position 0 becomes position 1. Change the sign of the angle (or transpose)"
    )
    assert torch.allclose(origin @ block, torch.tensor([math.sin(-1), math.cos(-1)]), atol=1e-5), (
        f"width 2, one step back: position 0 should become (sin(-1), cos(-1)), not {(origin @ block).tolist()}"
    )
    turn = expect_tensor(attempt(3, 32), (32, 32), "the matrix for back = 3, width 32").float()
    outside = turn * (1 - torch.block_diag(*[torch.ones(2, 2)] * 16))
    assert outside.abs().max() < 1e-6, (
        "entries outside the 2x2 blocks on the diagonal should be 0: pairs must not mix"
    )
    assert torch.allclose((table @ turn)[3:], table[:-3], atol=1e-4), (
        "the blocks do not turn each pair by its own angle: the frequency of pair i is 10000^(-2i / d_model)"
    )
    for back in (1, 7):
        best = (table @ attempt(back, 32).float() @ table.T).argmax(dim=-1)
        assert best[back:].tolist() == list(range(60 - back)), (
            f"back = {back}: the positions looked at are {best.tolist()}"
        )


@diagnostic("Exercise 7.4")
def check_grid_positions(attempt: Callable[[int, int, int], Tensor]) -> None:
    """Check positions on a grid: one row, one column, then the order of the cells."""
    half = sinusoidal_positions(5, 4)
    one_row = expect_tensor(attempt(1, 3, 8), (3, 8), "a grid of 1 row and 3 columns")
    assert not torch.allclose(one_row[:, :4], half[:3]), (
        "the first half changes along a row: it should encode the row"
    )
    assert torch.allclose(one_row[:, :4], half[:1].expand(3, 4)), (
        "in one row the first half should be row 0 everywhere"
    )
    assert torch.allclose(one_row[:, 4:], half[:3]), (
        "in one row the second half should be columns 0, 1, 2"
    )
    one_column = expect_tensor(attempt(3, 1, 8), (3, 8), "a grid of 3 rows and 1 column")
    assert torch.allclose(one_column[:, :4], half[:3]), (
        "in one column the first half should be rows 0, 1, 2"
    )
    grid = expect_tensor(attempt(2, 5, 8), (10, 8), "a grid of 2 rows and 5 columns")
    by_columns = torch.cat([half[:2].repeat(5, 1), half.repeat_interleave(2, dim=0)], dim=-1)
    assert not torch.allclose(grid, by_columns), (
        "the cells are listed column by column; list them row by row"
    )
    expected = torch.cat([half[:2].repeat_interleave(5, dim=0), half.repeat(2, 1)], dim=-1)
    assert torch.allclose(grid, expected), (
        "single rows and columns are right; in a grid some cell has the wrong row or column"
    )


@diagnostic("Exercise 8.1")
def check_embedding(attempt: Callable[..., Tensor]) -> None:
    """One feature first, where the factor is 1 and only rows can be wrong; then wider."""
    column = torch.tensor([[10.0], [20.0], [30.0], [40.0]])  # (vocab_size 4, d_model 1)
    single = expect_tensor(
        attempt(torch.tensor([2]), column), (1, 1), "the embedding of one token, d_model 1,"
    )
    assert single.item() == 30.0, (
        f"token 2 should get row 2, which holds 30, not {single.item():g} "
        "(for d_model 1 the factor is 1)"
    )
    tokens = torch.tensor([[0, 2, 2], [1, 0, 1]])
    rows = expect_tensor(
        attempt(tokens, column), (2, 3, 1), "the embedding of a (2, 3) batch, d_model 1,"
    )
    assert torch.equal(rows, column[tokens]), (
        f"a batch gets the wrong rows: {rows.flatten().tolist()}"
    )
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(8))
    wide = expect_tensor(
        attempt(tokens, weight), (2, 3, 16), "the embedding of a (2, 3) batch, d_model 16,"
    )
    factors = wide / weight[tokens]  # (2, 3, 16)
    factor = factors.mean().item()
    assert factors.sub(factor).abs().max() < 1e-3, (
        "the rows are right for d_model 1, but mixed up for d_model 16"
    )
    assert abs(factor - 4) < 1e-3, (
        f"the rows are right; for d_model 16 the factor should be 4, not {factor:.3g}"
    )


@diagnostic("Exercise 8.2")
def check_feed_forward(attempt: Callable[..., Tensor]) -> None:
    """Biases alone, then one number through one hidden feature, then a batch."""
    zeros = (torch.zeros(2, 3), torch.zeros(3), torch.zeros(3, 2))
    attempted = attempt(torch.ones(1, 1, 2), *zeros, torch.tensor([1.0, -2.0]))
    out = expect_tensor(attempted, (1, 1, 2), "the output")
    assert out[0, 0, 0].item() == 1, (
        f"with all else zero the output should be b_2 = (1, -2), not {out.flatten().tolist()}"
    )
    assert out[0, 0, 1].item() != 0, (
        "with all else zero the output should be b_2 = (1, -2): nothing is cut off at the end"
    )
    assert out.flatten().tolist() == [1.0, -2.0], (
        f"with all else zero the output should be b_2 = (1, -2), not {out}"
    )

    def one(x: float, bias: float = 0.0) -> float:
        """One feature in, one hidden, one out: max(0, x + bias) * -3."""
        w_1, w_2 = torch.ones(1, 1), torch.full((1, 1), -3.0)
        return attempt(
            torch.full((1, 1, 1), x), w_1, torch.full((1,), bias), w_2, torch.zeros(1)
        ).item()

    assert abs(one(2.0) + 6) < 1e-5, (
        f"x 2, W_1 1, W_2 -3, no biases: should be -6, not {one(2.0):g}"
    )
    assert one(-2.0) == 0, (
        f"x -2 gives a negative hidden feature, which counts as 0; your output is {one(-2.0):g}"
    )
    assert abs(one(-2.0, 3.0) + 3) < 1e-5, (
        f"x -2, b_1 3: b_1 is added before the bend, so -3, not {one(-2.0, 3.0):g}"
    )
    generator = torch.Generator().manual_seed(8)
    shapes = ((2, 3, 4), (4, 5), (5,), (5, 4), (4,))
    x, w_1, b_1, w_2, b_2 = (torch.randn(shape, generator=generator) for shape in shapes)
    attempted = attempt(x, w_1, b_1, w_2, b_2)
    out = expect_tensor(attempted, (2, 3, 4), "the output of a (2, 3, 4) batch, d_ff 5,")
    for feature in range(4):
        expected = b_2[feature].item()
        for i in range(5):
            match = b_1[i].item() + sum(x[1, 2, j].item() * w_1[j, i].item() for j in range(4))
            expected += max(0.0, match) * w_2[i, feature].item()
        got = out[1, 2, feature].item()
        assert abs(got - expected) < 1e-4, (
            f"right for width 1, wrong for d_model 4, d_ff 5: {got:.4g}, not {expected:.4g}"
        )


@diagnostic("Exercise 8.3")
def check_parameter_counts(attempt: Callable[..., tuple[int, int, int]]) -> None:
    """Sizes of which only one part is there; then numbers counted by hand."""
    counts = attempt(10, 1, 1, 0)
    assert len(counts) == 3, (
        f"three numbers are asked for: embedding, attention, feed-forward; got {len(counts)}"
    )
    assert counts[1] == counts[2] == 0, (
        f"without layers there is no attention and no feed-forward network: {counts}"
    )
    assert counts[0] == 10, (
        f"10 tokens of width 1: one shared matrix holds 10 numbers, not {counts[0]}"
    )
    _, attention, feed_forward = attempt(10, 3, 2, 1)
    assert attention != 108, (
        "108 leaves the biases out: each of the four maps of an attention has 3"
    )
    assert attention != 96, "96 counts one attention a layer: a decoder layer has two"
    assert attention != 72, "72 leaves the biases out and counts one attention in a decoder layer"
    assert attention == 144, (
        f"d_model 3, one layer each: 3 attentions of 4 (9 + 3) numbers make 144, not {attention}"
    )
    assert feed_forward != 24, "24 leaves the biases out: there are 2 + 3 of them in each network"
    assert feed_forward == 34, (
        f"d_model 3, d_ff 2, one layer each: 2 (6 + 2 + 6 + 3) make 34, not {feed_forward}"
    )
    base = attempt(37_000, 512, 2048, 6)
    assert tuple(base) == (18_944_000, 18_911_232, 25_196_544), (
        f"right for one layer; the base model comes out as {base}"
    )


@diagnostic("Exercise 8.4")
def check_embedding_gradient(attempt: Callable[..., Tensor]) -> None:
    """Width 1 isolates which rows get what; then a repeated token; then the factor."""
    ones = torch.ones(1, 2, 1)
    attempted = attempt(torch.tensor([[1, 3]]), ones, 5)
    once = expect_tensor(attempted, (5, 1), "the gradient for 5 tokens, d_model 1,").flatten()
    assert once.tolist() == [0, 1, 0, 1, 0], (
        f"tokens 1 and 3 were read: their rows get 1, the others 0, not {once.tolist()}"
    )
    twice = attempt(torch.tensor([[3, 3]]), torch.tensor([[[1.0], [10.0]]]), 5).flatten()
    assert twice[3] not in (1, 10), (
        "token 3 was read twice, but only one of the two gradients has arrived: they overwrite"
    )
    assert twice.tolist() == [0, 0, 0, 11, 0], (
        f"token 3 was read twice, with 1 and 10: its row gets 11, not {twice[3]:g}"
    )
    attempted = attempt(torch.tensor([[0]]), torch.ones(1, 1, 16), 2)
    wide = expect_tensor(attempted, (2, 16), "the gradient for d_model 16")
    factor = wide[0].mean().item()
    assert abs(factor - 4) < 1e-3, (
        f"the forward factor is 4 for d_model 16, so the gradient's is too, not {factor:.3g}"
    )
    generator = torch.Generator().manual_seed(8)
    tokens = torch.randint(6, (2, 7), generator=generator)
    upstream = torch.randn(2, 7, 4, generator=generator)
    weight = torch.zeros(6, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(F.embedding(tokens, weight) * 2, weight, upstream)
    got = expect_tensor(
        attempt(tokens, upstream, 6), (6, 4), "the gradient of a (2, 7) batch, d_model 4,"
    )
    gap = (got - expected).abs().max().item()
    assert gap < 1e-5, f"right for one row of tokens; a batch of two is off by {gap:.3g}"


@diagnostic("Exercise 8.5")
def check_maximum(attempt: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
    """Shapes; points that need one feature after the other; then points far out, and a grid."""
    answer = attempt()
    assert isinstance(answer, tuple | list), (
        f"a tuple of four tensors is asked for, not {type(answer).__name__}"
    )
    assert len(answer) == 4, "four tensors are asked for: w_1, b_1, w_2, b_2"
    for value, shape, name in zip(
        answer, ((2, 3), (3,), (3, 2), (2,)), ("w_1", "b_1", "w_2", "b_2"), strict=True
    ):
        expect_tensor(value, shape, name)
    w_1, b_1, w_2, b_2 = (value.double() for value in answer)

    def network(a: float, b: float) -> list[float]:
        x = torch.tensor([a, b], dtype=torch.float64)
        out = torch.clamp(x @ w_1 + b_1, min=0) @ w_2 + b_2
        return [round(value, 4) for value in out.tolist()]

    assert network(0, 0) == [0, 0], (
        f"(0, 0) should give (0, 0), not {network(0, 0)}: look at the biases"
    )
    assert network(1, 3) == [3, 3], (
        f"(1, 3) should give (3, 3), not {network(1, 3)}: here b is the larger"
    )
    assert network(3, 1) == [3, 3], (
        f"(3, 1) should give (3, 3), not {network(3, 1)}: right where b is larger, wrong where a is"
    )
    negative = network(-3, -1)
    assert negative == [-1, -1], (
        f"(-3, -1) should give (-1, -1), not {negative}: b is lost when it is negative"
    )
    reach = 1000 + 2 * round(b_1.abs().max().item())  # farther out than the biases
    far = network(-2 * reach, -reach)
    assert far == [-reach, -reach], (
        f"({-2 * reach}, {-reach}) should give ({-reach}, {-reach}), not {far}: "
        "a bias only moves the bend further out; carry b past it in two features"
    )
    for a in range(-4, 5):
        for b in range(-4, 5):
            assert network(a, b) == [max(a, b)] * 2, (
                f"({a}, {b}) should give {max(a, b)} twice, not {network(a, b)}"
            )


@diagnostic("Exercise 9.1")
def check_layer_norm(attempt: Callable[..., Tensor]) -> None:
    """Known numbers: eps 0 isolates the variance, a large eps its place; then gain, shift, batch."""
    one, zero = torch.ones(2), torch.zeros(2)
    pair = expect_tensor(
        attempt(torch.tensor([[4.0, 8.0]]), one, zero, 0.0), (1, 2), "the norm of one position"
    ).flatten()
    assert not pair.isnan().any(), (
        "(4, 8) with eps 0 came out as nan: 0 / 0. Do mean and variance run over the features, the last dimension?"
    )
    assert abs(pair.sum().item()) < 1e-4, (
        f"(4, 8) should come out with mean 0, not {pair.mean().item():.3g}"
    )
    unbiased = abs(pair[1].item() - 0.5**0.5) < 1e-3
    assert not unbiased, (
        "(4, 8) came out as (-0.71, 0.71): your variance divides by d_model - 1; it should by d_model"
    )
    assert abs(pair[1].item() - 1) < 1e-3, (
        f"(4, 8) with eps 0 should come out as (-1, 1), not {pair.tolist()}"
    )
    wide = attempt(torch.tensor([[-1.0, 1.0]]), one, zero, 3.0)[0, 1].item()
    assert abs(wide - 0.25) > 1e-3, (
        "(-1, 1) with eps 3 came out as 1/4: eps stands outside the root, it belongs inside"
    )
    assert abs(wide - 0.5) < 1e-3, (
        f"(-1, 1) with eps 3 should have 1 / sqrt(1 + 3) = 0.5 on the right, not {wide:.3g}"
    )
    learned = attempt(
        torch.tensor([[4.0, 8.0]]), torch.tensor([2.0, 3.0]), torch.tensor([10.0, 20.0]), 0.0
    ).flatten()
    expected = torch.tensor([8.0, 23.0])
    message = (
        f"gain (2, 3) and shift (10, 20) should turn (-1, 1) into (8, 23), not {learned.tolist()}"
    )
    assert (learned - expected).abs().max() < 1e-3, message
    x = (
        torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(9))
        * torch.tensor([1.0, 10.0, 100.0])[:, None]
    )
    normed = expect_tensor(
        attempt(x, torch.ones(4), torch.zeros(4), 1e-5), (2, 3, 4), "the norm of a (2, 3, 4) batch"
    )
    means, stds = normed.mean(dim=-1), normed.std(dim=-1, correction=0)
    message = f"right for one position; in a batch the positions' means are {means.flatten().tolist()}: which axis?"
    assert means.abs().max() < 1e-3, message
    message = f"right for one position; in a batch the standard deviations are {stds.flatten().tolist()}: which axis?"
    assert (stds - 1).abs().max() < 1e-2, message


@diagnostic("Exercise 9.2")
def check_residual(attempt: Callable[..., Tensor]) -> None:
    """Functions so different that the number that comes out tells in which order they were called."""

    def run(norm_first: bool) -> float:
        x = torch.tensor([[1.0]])
        out = attempt(x, lambda x: x + 1, lambda x: 100 * x, lambda x: 10 * x, norm_first)
        assert x.item() == 1, (
            f"x itself was changed in place, to {x.item():g}: `x +=` does that. Make a new tensor"
        )
        return expect_tensor(out, (1, 1), "the output").item()

    # sublayer(x) = x + 1, norm(x) = 100 x, dropout(x) = 10 x, x = 1
    post_slips = {
        2000: "x is not added: 1 is missing from the sum",
        300: "dropout is not applied",
        3000: "dropout acts on the sum; it belongs on the sub-layer's output, before x is added",
        120: "only x is normalized; post-norm normalizes the sum",
        2001: "only the sub-layer's output is normalized; post-norm normalizes the sum",
        21: "nothing is normalized",
        1011: "that is pre-norm; norm_first=False asks for post-norm",
    }
    post = run(False)
    assert post == 2100, (
        f"post-norm: 100 (1 + 10 (1 + 1)) is 2100, not {post:g}: {post_slips.get(int(post), 'look at the order')}"
    )
    pre_slips = {
        1010: "x is not added",
        102: "dropout is not applied",
        1110: "the sum starts from the normalized x; the stream should pass by the norm",
        2001: "the sub-layer's output is normalized; pre-norm normalizes its input",
        21: "nothing is normalized",
        1020: "dropout acts on the sum; it belongs on the sub-layer's output, before x is added",
        2100: "that is post-norm; norm_first=True asks for pre-norm",
    }
    pre = run(True)
    assert pre == 1011, (
        f"pre-norm: 1 + 10 (100 + 1) is 1011, not {pre:g}: {pre_slips.get(int(pre), 'look at the order')}"
    )


@diagnostic("Exercise 9.3")
def check_stream_growth(attempt: Callable[..., tuple[float, float]]) -> None:
    """Numbers that come out round; then against a stream made of random numbers."""
    still = attempt(2.0, 0.0, 5)
    assert len(still) == 2, (
        f"two numbers are asked for: the final size and the last addition's share; got {len(still)}"
    )
    assert abs(still[0] - 2) < 1e-6, (
        f"additions of size 0 change nothing: the stream stays at 2, not {still[0]:g}"
    )
    size, share = attempt(3.0, 4.0, 1)
    assert abs(size - 7) > 1e-6, "3 and 4 gave 7: standard deviations do not add, variances do"
    assert abs(size - 25) > 1e-6, "3 and 4 gave 25: that is the variance; its root is asked for"
    assert abs(size - 5) < 1e-6, f"3 and 4 give sqrt(9 + 16) = 5, not {size:g}"
    assert abs(share - 0.8) > 1e-6, (
        "4/5 compares the addition with the stream after it; asked is the stream before, 3"
    )
    assert abs(share - 4 / 3) < 1e-6, (
        f"one addition of size 4 to a stream of size 3 is 4/3 of it, not {share:g}"
    )
    size, share = attempt(3.0, 4.0, 2)
    assert abs(share - 4 / 3) > 1e-6, (
        "that compares the last addition with the start; before the second of two the stream is 5"
    )
    assert abs(share - 0.8) < 1e-6, (
        f"3, then 4, is 5; a second addition of 4 is 4/5 of that, not {share:g}"
    )
    generator = torch.Generator().manual_seed(9)
    stream = torch.randn(100_000, generator=generator)
    before = stream
    for _ in range(24):
        before, stream = stream, stream + torch.randn(100_000, generator=generator)
    size, share = attempt(1.0, 1.0, 24)
    real, real_share = stream.std().item(), 1 / before.std().item()
    assert abs(size - real) < 0.1, (
        f"right for one addition; for 24 of size 1 a real stream has {real:.2f}, not {size:.2f}"
    )
    assert abs(share - real_share) < 0.01, (
        f"the 24th addition is {real_share:.2f} of the stream before it, not {share:.2f}"
    )


@diagnostic("Exercise 9.4")
def check_layer_norm_gradient(attempt: Callable[..., Tensor]) -> None:
    """Two directions in which nothing can flow, because the norm removes them; then the size; then autograd."""
    generator = torch.Generator().manual_seed(9)
    x, upstream = (
        torch.randn(2, 3, 6, generator=generator),
        torch.randn(2, 3, 6, generator=generator),
    )
    flat = expect_tensor(
        attempt(x, torch.ones(2, 3, 6), 1e-5), (2, 3, 6), "the gradient of a (2, 3, 6) batch"
    )
    message = "a constant upstream should give 0, since adding a constant to x changes nothing: see the mean"
    assert flat.abs().max() < 1e-4, message
    through_std = (
        (attempt(x, upstream, 1e-8) * (x - x.mean(dim=-1, keepdim=True)))
        .sum(dim=-1)
        .abs()
        .max()
        .item()
    )
    message = (
        "scaling x changes nothing, so the gradient should be at right angles to x - mean: see s"
    )
    assert through_std < 1e-3, message
    leaf = x.clone().requires_grad_()
    for eps in (1e-5, 0.1):
        (expected,) = torch.autograd.grad(F.layer_norm(leaf, (6,), eps=eps), leaf, upstream)
        got = attempt(x, upstream, eps)
        ratio = (got / expected).median().item()
        gap = (got - expected).abs().max().item()
        message = f"with eps {eps} off by {gap:.2g}, and {ratio:.2f} times as large as it should be"
        assert gap < 1e-4, message


@diagnostic("Exercise 10.1")
def check_torch_padding_mask(attempt: Callable[[Tensor], Tensor]) -> None:
    """Check a mask for torch: shape and type, then its meaning, then a batch of one."""
    words = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    ours = words[:, None, None, :]  # (batch, 1, 1, length)
    mask = expect_tensor(attempt(ours), (2, 5), "torch's mask")
    assert mask.dtype == torch.bool, f"the mask should be boolean, yours is {mask.dtype}"
    assert not torch.equal(mask, ours[:, 0, 0]), (
        "the shape is right; but in torch's mask True means padding"
    )
    assert mask.tolist() == [[False] * 3 + [True] * 2, [False] * 5], (
        f"only positions 3 and 4 of row 0 are padding, got {mask}"
    )
    expect_tensor(
        attempt(ours[:1, ..., :1]),
        (1, 1),
        "the mask of one sentence of one word (squeeze removes too much)",
    )


@diagnostic("Exercise 10.2")
def check_encoder_layer(attempt: Callable[..., Tensor]) -> None:
    """Check an encoder layer: each part alone, then all of them, in both norm orders."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, generator=generator)  # (batch, length, d_model)
    shape = (2, 3, 4)

    def zero(x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def same(x: Tensor) -> Tensor:
        return x

    def mix(x: Tensor) -> Tensor:
        return x.mean(dim=1, keepdim=True).expand_as(x) + 1.0

    def square(x: Tensor) -> Tensor:
        return x.square()

    def halve(x: Tensor) -> Tensor:
        return x / 2

    def cube(x: Tensor) -> Tensor:
        return x**3

    for norm_first in (False, True):
        order = "pre-norm" if norm_first else "post-norm"
        nothing = expect_tensor(
            attempt(x.clone(), zero, zero, same, same, norm_first), shape, f"{order}: the output"
        )
        assert torch.allclose(nothing, x), (
            f"{order}, both sub-layers give zeros, norms do nothing: x must come out (residuals?)"
        )
        only_mix = attempt(x.clone(), mix, zero, same, same, norm_first)
        assert not torch.allclose(only_mix, mix(x)), (
            f"{order}: the residual around attention is missing"
        )
        assert torch.allclose(only_mix, x + mix(x)), (
            f"{order}: with attention alone and no norms, x + attend(x) must come out"
        )
        only_square = attempt(x.clone(), zero, square, same, same, norm_first)
        assert not torch.allclose(only_square, square(x)), (
            f"{order}: the residual around the feed-forward network is missing"
        )
        assert torch.allclose(only_square, x + square(x)), (
            f"{order}: with the feed-forward network alone, x + ffn(x) must come out"
        )
        mixed = x + mix(x)
        both = attempt(x.clone(), mix, square, same, same, norm_first)
        assert not torch.allclose(both, x + mix(x) + square(x)), (
            f"{order}: the feed-forward network must read what attention returned"
        )
        assert torch.allclose(both, mixed + square(mixed)), (
            f"{order}: both sub-layers without norms are off: attention first"
        )

    post = halve(x + mix(x))
    post = cube(post + square(post))
    pre = x + mix(halve(x))
    pre = pre + square(cube(pre))
    got_post, got_pre = (
        attempt(x.clone(), mix, square, halve, cube, False),
        attempt(x.clone(), mix, square, halve, cube, True),
    )
    assert not torch.allclose(got_post, pre), (
        "norm_first is the wrong way round: False is post-norm, the paper's order"
    )
    assert torch.allclose(got_post, post), (
        "post-norm: the norms are off. It is norm(x + sublayer(x)), norm_1 for attention, norm_2 for the other"
    )
    assert torch.allclose(got_pre, pre), (
        "pre-norm: the norms are off. x + sublayer(norm(x)): the residual adds the x that was NOT normalized"
    )


@diagnostic("Exercise 10.3")
def check_crossing(attempt: Callable[[int, int], int]) -> None:
    """Check the crossing by trying the lengths around it, for usual and unusual shapes."""

    def attention_wins(n: int, d_model: int, d_ff: int) -> bool:
        return 8 * n * d_model**2 + 4 * n**2 * d_model >= 4 * n * d_model * d_ff

    base = attempt(512, 2048)
    assert isinstance(base, int), f"a length is a whole number (int), got {type(base).__name__}"
    assert base != 2048, (
        "at 2,048 the pairs ALONE cost as much as the feed-forward network: the maps count too"
    )
    assert base != 3072, (
        "at 3,072 the pairs cost as much as all the rest: here the maps belong to attention"
    )
    for d_model, d_ff in (
        (512, 2048),
        (1024, 4096),
        (300, 901),
        (7, 100),
        (256, 512),
        (256, 128),
    ):
        n = attempt(d_model, d_ff)
        assert n >= 1, f"d_model {d_model}, d_ff {d_ff}: a length is at least 1, got {n}"
        assert attention_wins(n, d_model, d_ff), (
            f"d_model {d_model}, d_ff {d_ff}: at length {n} attention is still cheaper"
        )
        assert n == 1 or not attention_wins(n - 1, d_model, d_ff), (
            f"d_model {d_model}, d_ff {d_ff}: {n} is not the smallest"
        )


@diagnostic("Exercise 10.4")
def check_padding_detector(
    attempt: Callable[[Callable[[Tensor, Tensor], Tensor]], bool],
) -> None:
    """Check a padding detector on an honest encoder and on four faulty ones."""

    def average(x: Tensor, mask: Tensor) -> Tensor:
        real = mask[:, 0, 0, :, None].to(x.dtype)  # (batch, length, 1)
        return x + (x * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)

    def honest(x: Tensor, mask: Tensor) -> Tensor:
        return average(average(x, mask), mask)

    def forgets_the_mask(x: Tensor, mask: Tensor) -> Tensor:
        return honest(x, torch.ones_like(mask))

    def masks_once(x: Tensor, mask: Tensor) -> Tensor:
        return average(average(x, mask), torch.ones_like(mask))

    def upside_down(x: Tensor, mask: Tensor) -> Tensor:
        return honest(x, ~mask)

    def counts_the_pads(x: Tensor, mask: Tensor) -> Tensor:
        real = mask[:, 0, 0, :, None].to(x.dtype)  # (batch, length, 1)
        return x + (x * real).sum(dim=1, keepdim=True) / x.size(1)

    encoders = (honest, forgets_the_mask, masks_once, upside_down, counts_the_pads)
    verdicts = {encoder.__name__: attempt(encoder) for encoder in encoders}
    kinds = {
        name: type(verdict).__name__
        for name, verdict in verdicts.items()
        if not isinstance(verdict, bool)
    }
    assert not kinds, f"the detector should return True or False, but returned {kinds}"
    assert verdicts["honest"], (
        "the honest encoder was accused: compare real positions only, and allow for rounding"
    )
    assert not verdicts["forgets_the_mask"], (
        "an encoder without any mask went unnoticed: does your test batch have padding?"
    )
    assert not verdicts["upside_down"], (
        "an encoder with the mask upside down went unnoticed: fill the pads with something other than zeros"
    )
    assert not verdicts["masks_once"], (
        "an encoder that masks once only went unnoticed: change the pads' content"
    )
    assert not verdicts["counts_the_pads"], (
        "an encoder that divides by the padded length went unnoticed: change the AMOUNT"
    )


@diagnostic("Exercise 11.1")
def check_shift(attempt: Callable[[Tensor, int, int], tuple[Tensor, Tensor]]) -> None:
    """Check input and answer of a decoder: shapes, ends, then the shift between the two."""
    target = torch.tensor([[5, 6, 7], [8, 9, 5]])  # (batch, length)
    pair = attempt(target, 1, 2)
    assert isinstance(pair, tuple), f"return (input, answer), got {type(pair).__name__}"
    assert len(pair) == 2, f"return (input, answer), got {len(pair)} values"
    decoder_input = expect_tensor(pair[0], (2, 4), "the decoder's input")
    answer = expect_tensor(pair[1], (2, 4), "the answer")
    for name, tensor in (("input", decoder_input), ("answer", answer)):
        assert tensor.dtype == torch.long, (
            f"the {name} should hold token ids, torch.long, got {tensor.dtype}"
        )
    assert (decoder_input[:, 0] == 1).all(), (
        f"the input should begin with bos_id = 1, got {decoder_input[:, 0].tolist()}"
    )
    assert (decoder_input != 2).all(), "eos_id is in the input: it is only ever predicted"
    assert (answer != 1).all(), "bos_id is in the answer: nobody has to predict it"
    assert (answer[:, -1] == 2).all(), (
        f"the answer should end with eos_id = 2, got {answer[:, -1].tolist()}"
    )
    assert torch.equal(answer[:, :-1], decoder_input[:, 1:]), (
        "the answer at i should be the input at i + 1"
    )
    assert torch.equal(answer[:, :-1], target), (
        f"the words themselves should be {target.tolist()}, got {answer[:, :-1].tolist()}"
    )
    other_input, other_answer = attempt(target, 3, 4)
    assert (other_input[:, 0] == 3).all() and (other_answer[:, -1] == 4).all(), (
        "with other ids the ends should change: use bos_id and eos_id"
    )


@diagnostic("Exercise 11.2")
def check_decoder_layer(attempt: Callable[..., Tensor]) -> None:
    """Check a decoder layer: what each attention is given, then each sub-layer alone, then everything."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, generator=generator)  # (batch, target, d_model)
    memory = torch.randn(2, 5, 4, generator=generator)  # (batch, source, d_model)
    calls: list[tuple[str, Tensor, Tensor, Tensor, bool]] = []

    def zero(x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def same(x: Tensor) -> Tensor:
        return x

    def attention(name: str, scale: float) -> Callable[[Tensor, Tensor, Tensor, bool], Tensor]:
        def attend(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
            if name == "cross":
                assert query.size(1) == x.size(1), (
                    "cross-attention: the TARGET asks, the memory answers"
                )
            calls.append((name, query.clone(), key.clone(), value.clone(), is_causal))
            return scale * F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)

        return attend

    def run(
        scale: float, feed_forward: Callable[[Tensor], Tensor], *norms: Callable[[Tensor], Tensor]
    ) -> Tensor:
        look_back, look_across = attention("self", scale), attention("cross", scale)
        # Clones: a solution that works in place is right too, and must not change our x.
        return attempt(x.clone(), memory.clone(), look_back, look_across, feed_forward, *norms)

    quiet = run(0, zero, same, same, same)
    expect_tensor(quiet, (2, 3, 4), "the output")
    names = [call[0] for call in calls]
    assert names == ["self", "cross"], (
        f"call attend once, then attend_across once; you called {names}"
    )
    (_, query, key, value, causal), (_, _, across_key, across_value, across_causal) = calls
    assert all(torch.equal(part, x) for part in (query, key, value)), (
        "self-attention: query, key and value are all x"
    )
    assert causal is True, "self-attention in a decoder must not look ahead: is_causal is True"
    assert torch.equal(across_key, memory), "cross-attention: the keys come from the memory"
    assert torch.equal(across_value, memory), "cross-attention: the values come from the memory too"
    assert across_causal is False, "cross-attention may see the whole source: is_causal is False"
    assert torch.allclose(quiet, x), (
        "all sub-layers give zeros and norms do nothing: x must come out (residuals?)"
    )

    calls.clear()
    output = run(1, zero, same, same, same)
    first = x + F.scaled_dot_product_attention(x, x, x, is_causal=True)
    assert torch.allclose(calls[1][1], first, atol=1e-6), (
        "cross-attention must ask with norm_1(x + attend(...)); attend returns one tensor, not a pair"
    )
    second = first + F.scaled_dot_product_attention(first, memory, memory)
    assert torch.allclose(output, second, atol=1e-6), (
        "both attentions without feed-forward are off: residuals?"
    )
    fed = run(1, torch.square, same, same, same)
    assert torch.allclose(fed, second + second.square(), atol=1e-5), (
        "the feed-forward sub-layer is off: x + ffn(x)"
    )

    def halve(x: Tensor) -> Tensor:
        return x / 2

    def shift(x: Tensor) -> Tensor:
        return x + 1.0

    def negate(x: Tensor) -> Tensor:
        return -x

    output = run(1, torch.square, halve, shift, negate)
    one = halve(first)
    two = shift(one + F.scaled_dot_product_attention(one, memory, memory))
    assert torch.allclose(output, negate(two + two.square()), atol=1e-5), (
        "without norms all is right, with norms not: norm(x + sublayer(x)), norm_1, norm_2, norm_3 in this order"
    )


@diagnostic("Exercise 11.3")
def check_decoder_masks(attempt: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """Check the two masks of a decoder: shapes, then the memory's, then causality, then padding."""
    source = torch.tensor([[9, 9, 5, 6, 7], [8, 4, 5, 6, 7]])  # (batch, source)
    target = torch.tensor([[9, 4, 5], [4, 5, 6]])  # (batch, target), 9 is padding here
    pair = attempt(source, target, 9)
    assert isinstance(pair, tuple), f"return (attn_mask, memory_mask), got {type(pair).__name__}"
    assert len(pair) == 2, f"return (attn_mask, memory_mask), got {len(pair)} values"
    attn_mask = expect_tensor(pair[0], (2, 1, 3, 3), "attn_mask")
    memory_mask = expect_tensor(pair[1], (2, 1, 1, 5), "memory_mask")
    assert attn_mask.dtype == memory_mask.dtype == torch.bool, (
        f"masks are boolean: {attn_mask.dtype}, {memory_mask.dtype}"
    )
    real = [[False, False, True, True, True], [True] * 5]
    assert memory_mask[:, 0, 0].tolist() != [[not word for word in row] for row in real], (
        "memory_mask: True means allowed"
    )
    assert memory_mask[:, 0, 0].tolist() == real, (
        f"memory_mask should follow the SOURCE's padding, got {memory_mask[:, 0, 0]}"
    )
    no_padding = attn_mask[1, 0].tolist()
    assert not no_padding[0][2], (
        "attn_mask, sentence without padding: position 0 sees position 2 (causality)"
    )
    assert no_padding == [[True, False, False], [True, True, False], [True, True, True]], (
        f"attn_mask, sentence without padding: should be causal, got {no_padding}"
    )
    padded = attn_mask[0, 0].tolist()
    assert not any(row[0] for row in padded), (
        f"attn_mask: nobody may see the pad at position 0, got {padded}"
    )
    assert not padded[0][1] and not padded[0][2], (
        f"attn_mask: the pad's own row must not look ahead either, got {padded}"
    )
    assert padded[1:] == [[False, True, False], [False, True, True]], (
        f"attn_mask: causal and without the pad, got {padded}"
    )


@diagnostic("Exercise 11.4")
def check_diagnose(attempt: Callable[[Callable[[Tensor, Tensor], Tensor]], str]) -> None:
    """Check a diagnosis on a healthy decoder and on three sick ones, two of them in two variants."""

    def look_back(x: Tensor) -> Tensor:
        return x + F.scaled_dot_product_attention(x, x, x, is_causal=True)

    def healthy(x: Tensor, memory: Tensor) -> Tensor:
        x = look_back(x)
        return x + F.scaled_dot_product_attention(x, memory, memory)

    def sees_all(x: Tensor, memory: Tensor) -> Tensor:
        x = x + F.scaled_dot_product_attention(x, x, x)
        return x + F.scaled_dot_product_attention(x, memory, memory)

    def sees_the_next_word(x: Tensor, memory: Tensor) -> Tensor:
        return healthy(x, memory) + 0.01 * F.pad(x[:, 1:], (0, 0, 0, 1))

    def self_attention_twice(x: Tensor, memory: Tensor) -> Tensor:
        return look_back(look_back(x))

    def empty_memory(x: Tensor, memory: Tensor) -> Tensor:
        return healthy(x, torch.zeros_like(memory))

    def causal_memory(x: Tensor, memory: Tensor) -> Tensor:
        x = look_back(x)
        allowed = torch.ones(x.size(1), memory.size(1), dtype=torch.bool).tril()  # (target, source)
        return x + F.scaled_dot_product_attention(x, memory, memory, attn_mask=allowed)

    patients = {
        "healthy": [healthy],
        "future": [sees_all, sees_the_next_word],
        "deaf": [self_attention_twice, empty_memory],
        "causal memory": [causal_memory],
    }
    for expected, decoders in patients.items():
        for decoder in decoders:
            got = attempt(decoder)
            assert got in patients, (
                f"the answer should be one of {', '.join(patients)}, got {got!r}"
            )
            assert got == expected, (
                f"the decoder {decoder.__name__} is {expected!r}, your diagnosis is {got!r}"
            )


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


@diagnostic("Exercise 13.1")
def check_merge(attempt: Callable[[list[str], tuple[str, str]], list[str]]) -> None:
    """Check one BPE merge: nothing to do, one and several occurrences, order, overlap, the input."""
    pieces = list("abcab")
    assert attempt(pieces, ("x", "y")) == pieces, "a pair that does not occur should change nothing"
    assert attempt(list("abc"), ("b", "c")) == ["a", "bc"], (
        "a pair at the end of the list is missed, or its rest lost"
    )
    merged = attempt(pieces, ("a", "b"))
    assert merged == ["ab", "c", "ab"], (
        f"a b c a b with (a, b) is ab c ab, yours is {' '.join(merged)}"
    )
    assert pieces == list("abcab"), "the list that came in was changed: build a new one"
    assert attempt(list("ba"), ("a", "b")) == ["b", "a"], "(a, b) is not (b, a): mind the order"
    assert attempt(list("aaa"), ("a", "a")) == ["aa", "a"], (
        "a a a with (a, a) is aa a: each piece can be used once"
    )
    assert attempt(["au", "s", "s"], ("au", "s")) == ["aus", "s"], (
        "pieces may be longer than a letter"
    )
    assert attempt(["xa", "b"], ("a", "b")) == ["xa", "b"], (
        "xa is not a: compare whole pieces, not the text they spell"
    )


@diagnostic("Exercise 13.2")
def check_reads_and_says(attempt: Callable[[list[list[int]]], tuple[Tensor, Tensor]]) -> None:
    """Check the decoder's input and output: one row first, then rows of different lengths."""
    answer = attempt([[7, 8, 9]])
    assert isinstance(answer, tuple) and len(answer) == 2, (
        "return two tensors: what is read, what should be said"
    )
    reads = expect_tensor(answer[0], (1, 4), "what the decoder reads for one target of 3 tokens")
    says = expect_tensor(answer[1], (1, 4), "what it should say for one target of 3 tokens")
    assert not reads.is_floating_point() and not says.is_floating_point(), "ids are integers"
    assert reads.tolist() != [[7, 8, 9, 2]], (
        "the two are swapped: what is read begins with <bos>, what is said ends with <eos>"
    )
    assert reads.tolist() == [[1, 7, 8, 9]], (
        f"the decoder should read 1 7 8 9, yours reads {reads.tolist()[0]}"
    )
    assert says.tolist() == [[7, 8, 9, 2]], f"it should say 7 8 9 2, yours says {says.tolist()[0]}"
    reads, says = attempt([[7, 8, 9], [5]])
    reads = expect_tensor(reads, (2, 4), "what the decoder reads for targets of 3 and 1 tokens")
    says = expect_tensor(says, (2, 4), "what it should say for targets of 3 and 1 tokens")
    assert says[1].tolist() != [5, 0, 0, 2], (
        "the short row ends with <eos>, then comes the padding: you have it the other way round"
    )
    assert reads[1].tolist() != [1, 5, 2, 0], (
        "the short row still reads <eos>: cutting off the last column takes it from the longest row only"
    )
    assert reads[1].tolist() == [1, 5, 0, 0], (
        f"the short row should read 1 5 0 0, yours reads {reads[1].tolist()}"
    )
    assert says[1].tolist() == [5, 2, 0, 0], (
        f"the short row should say 5 2 0 0, yours says {says[1].tolist()}"
    )
    assert attempt([[5], [7, 8, 9]])[1][1].tolist() == [7, 8, 9, 2], "the longest row may come last"


@diagnostic("Exercise 13.3")
def check_padding_share(attempt: Callable[[list[int], int], float]) -> None:
    """Check a predicted share of padding: none, one batch, several, a last batch that is smaller."""

    def close(lengths: list[int], batch_size: int, expected: float) -> bool:
        return abs(float(attempt(lengths, batch_size)) - expected) < 1e-9

    assert close([4, 4, 4, 4], 2, 0.0), "equal lengths need no padding"
    assert close([1, 3], 2, 1 / 3), (
        f"lengths 1 and 3: 2 of 6 positions are padding, you say {attempt([1, 3], 2)}"
    )
    assert not close([1, 3, 10, 10], 2, 1 / 6), (
        "you average the shares of the batches, but large batches count more"
    )
    assert close([1, 3, 10, 10], 2, 2 / 26), (
        f"2 of 26 positions are padding, you say {attempt([1, 3, 10, 10], 2)}"
    )
    assert close([3, 3, 9], 2, 0.0), (
        "the last batch is smaller: it has only as many rows as there are sentences left"
    )
    assert close([1, 9, 1, 9], 4, 16 / 36) and close([1, 1, 9, 9], 2, 0.0), (
        "the order of the lengths matters"
    )


@diagnostic("Exercise 13.4")
def check_groups(attempt: Callable[[list[int], int], list[list[int]]]) -> None:
    """Check batches by tokens: cover, limit, padding, use of the room, and what fits nowhere."""
    groups = attempt([3, 3, 3, 3], 6)
    assert sorted(map(sorted, groups)) != [[3, 3], [3, 3]], (
        "return the sentences' numbers, not their lengths"
    )
    generator = random.Random(0)
    lengths = [min(generator.randint(1, 12) * generator.randint(1, 5), 50) for _ in range(400)] + [
        50
    ]
    groups = attempt(lengths, 100)
    assert all(groups), "there is an empty group"
    used = Counter(index for group in groups for index in group)
    missing = [index for index in range(len(lengths)) if index not in used]
    assert not missing, (
        f"{len(missing)} of {len(lengths)} sentences are in no group: is the last group returned?"
    )
    assert used.total() == len(lengths), "a sentence is in two groups"
    padded = [len(group) * max(lengths[index] for index in group) for group in groups]
    assert max(padded) <= 100, (
        f"a group has {max(padded)} positions with padding, the limit is 100: do you count only real tokens?"
    )
    share = 1 - sum(lengths) / sum(padded)
    assert share < 0.1, f"{share:.0%} of the positions are padding: are similar lengths together?"
    assert len(groups) < 0.5 * len(lengths), (
        f"{len(groups)} groups for {len(lengths)} sentences: are they filled up to the limit?"
    )
    assert len(attempt([5, 5], 10)) == 1, "exactly max_tokens positions still fit"
    try:
        attempt([2, 11, 3], 10)
    except ValueError:
        return
    raise AssertionError("a sentence of 11 tokens cannot fit under 10: raise a ValueError")


@diagnostic("Exercise 14.1")
def check_teacher_forcing(attempt: Callable[[list[list[int]]], tuple[Tensor, Tensor]]) -> None:
    """Check teacher forcing's two tensors: one sentence, then padding, then the empty sentence."""
    answer = attempt([[5, 6, 7]])
    assert isinstance(answer, tuple), (
        f"return two tensors, target_in and target_out, not {type(answer).__name__}"
    )
    assert len(answer) == 2, (
        f"return two tensors, target_in and target_out, not {len(answer)} things"
    )
    given = expect_tensor(answer[0], (1, 4), "target_in")
    wanted = expect_tensor(answer[1], (1, 4), "target_out")
    swapped = given.tolist() == [[5, 6, 7, 2]] and wanted.tolist() == [[1, 5, 6, 7]]
    assert not swapped, "the two are swapped: the decoder READS <bos> first"
    assert given.tolist() == [[1, 5, 6, 7]], (
        f"the decoder should read <bos> 5 6 7, yours reads {given[0].tolist()}"
    )
    assert wanted.tolist() == [[5, 6, 7, 2]], (
        f"it should say 5 6 7 <eos>, yours says {wanted[0].tolist()}"
    )
    assert given.dtype == wanted.dtype == torch.long, (
        f"ids are integers, yours are {given.dtype} and {wanted.dtype}"
    )
    given, wanted = attempt([[5, 6, 7], [8]])
    other_order = attempt([[8], [5, 6, 7]])
    assert tuple(other_order[0].shape) == (2, 4), (
        "the longest sentence need not come first: the rows are as long as it, plus one"
    )
    assert torch.equal(other_order[1].flip(0), wanted), (
        "rows should keep the order of the sentences"
    )
    assert wanted[1].tolist() != [8, 0, 0, 2], (
        "<eos> comes right after the sentence, the padding after it"
    )
    assert wanted[1].tolist() == [8, 2, 0, 0], (
        f"a short sentence says 8 <eos> <pad> <pad>, yours {wanted[1].tolist()}"
    )
    assert given[1].tolist() != [1, 8, 2, 0], (
        "a short sentence reads <bos> 8 <pad> <pad>, yours <bos> 8 <eos> <pad>: an <eos> there does"
        " no harm, as no question is asked at that position, but make_batch has none"
    )
    assert given[1].tolist() == [1, 8, 0, 0], (
        f"a short sentence reads <bos> 8 <pad> <pad>, yours {given[1].tolist()}"
    )
    given, wanted = attempt([[]])
    empty = given.tolist(), wanted.tolist()
    assert empty == ([[1]], [[2]]), f"the empty sentence reads <bos> and says <eos>, not {empty}"


@diagnostic("Exercise 14.2")
def check_smoothed_loss(attempt: Callable[[Tensor, Tensor, float, int], Tensor]) -> None:
    """Check a smoothed loss, on numbers known by hand: without smoothing, with it, with padding."""

    def loss(logits: Tensor, targets: Tensor, smoothing: float) -> float:
        return float(expect_tensor(attempt(logits, targets, smoothing, 0), (), "the loss"))

    even = loss(torch.zeros(1, 2, 4), torch.tensor([[1, 2]]), 0.0)
    assert abs(even - 2 * 1.3863) > 1e-3, "this is the sum over the tokens: take the mean"
    assert abs(even - 1.3863) < 1e-3, (
        f"4 equal logits give log 4 = 1.3863 a token, yours {even:.4f}: softmax over the last axis?"
    )
    even = loss(torch.zeros(1, 2, 4), torch.tensor([[1, 2]]), 0.1)
    assert abs(even - 1.3863) < 1e-3, (
        f"4 equal logits give log 4 = 1.3863 whatever the smoothing, yours {even:.4f}:"
        " do the shares q add up to 1?"
    )
    logits = torch.tensor([[[0.0, math.log(7.0), 0.0, 0.0]]])  # probabilities 0.1, 0.7, 0.1, 0.1
    plain = loss(logits, torch.tensor([[1]]), 0.0)
    assert abs(plain - 0.3567) < 1e-3, (
        f"without smoothing it is -log 0.7 = 0.3567, yours {plain:.4f}"
    )
    smooth = loss(logits, torch.tensor([[1]]), 0.4)
    wrong_only = 0.6 * 0.35667 + 0.4 * 2.30259
    assert abs(smooth - wrong_only) > 1e-3, (
        "the share is spread over the wrong tokens only; equation 14.2 spreads it over all"
    )
    assert abs(smooth - 0.9405) < 1e-3, (
        f"0.6 (-log 0.7) + 0.4 (the mean of all four) = 0.9405, yours {smooth:.4f}"
    )
    padding = torch.tensor([[[9.0, -3.0, 0.0, 5.0]]])  # (1, 1, 4): the logits at a padded position
    padded = torch.cat([logits, padding], dim=1)  # (1, 2, 4)
    got = loss(padded, torch.tensor([[1, 0]]), 0.4)
    assert abs(got - 0.9405 / 2) > 1e-3, (
        "the padding is out of the sum, but still counts in the mean"
    )
    assert abs(got - 0.9405) < 1e-3, f"padding changed the loss from 0.9405 to {got:.4f}"
    uneven = torch.cat([logits.expand(1, 2, 4), torch.zeros(1, 2, 4)])  # (2, 2, 4)
    per_token = (2 * 0.9405 + 1.3863) / 3
    got = loss(uneven, torch.tensor([[1, 1], [1, 0]]), 0.4)
    assert abs(got - (0.9405 + 1.3863) / 2) > 1e-3, (
        "this is the mean of the sentences' means: every token should count the same"
    )
    assert abs(got - per_token) < 1e-3, f"three real tokens, mean {per_token:.4f}, yours {got:.4f}"
    got = float(attempt(torch.zeros(1, 2, 6), torch.tensor([[0, 5]]), 0.1, 5))
    assert abs(got - math.log(6)) < 1e-3, (
        f"with 6 entries and padding id 5 it is log 6 = {math.log(6):.4f}, yours {got:.4f}: both are arguments"
    )


@diagnostic("Exercise 14.3")
def check_half_peak(attempt: Callable[[int], tuple[int, int]]) -> None:
    """Check where the schedule is at half its peak, by the formula itself."""

    def rate(step: float, warmup: int) -> float:
        return float(min(step**-0.5, step * warmup**-1.5))

    for warmup in (4000, 10):
        answer = attempt(warmup)
        assert isinstance(answer, tuple), (
            f"return a tuple of two steps, not {type(answer).__name__}"
        )
        assert len(answer) == 2, f"return two steps, got {answer}"
        up, down = answer
        assert up > 0, f"steps are counted from 1, yours is {up}"
        assert up < warmup < down, (
            f"one step before the peak at {warmup}, one after it; yours are {up} and {down}"
        )
        half = rate(warmup, warmup) / 2
        of_peak = rate(up, warmup) / half / 2
        assert abs(of_peak - 0.5) < 1e-6, f"at step {up} the rate is {of_peak:.2f} of the peak"
        of_peak = rate(down, warmup) / half / 2
        assert abs(of_peak - 0.5) < 1e-6, (
            f"at step {down} it is {of_peak:.2f} of the peak: it falls with the ROOT of the step"
        )


@diagnostic("Exercise 14.4")
def check_clip(attempt: Callable[[list[Tensor], float], Tensor]) -> None:
    """Check clipping on two parameters whose gradient is (3, 4, 12): 13 long."""

    def make() -> list[Tensor]:
        parameters = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
        parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
        return parameters

    def gradients(parameters: list[Tensor]) -> list[float]:
        present = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return [float(value) for gradient in present for value in gradient]

    parameters = make()
    length = float(attempt(parameters, 6.5))
    got = gradients(parameters)
    assert got != [3.0, 4.0, 12.0], (
        "nothing was clipped: change the gradients in place, parameter.grad.mul_(...)"
    )
    assert abs(length - 13) < 1e-4, f"the whole gradient (3, 4, 12) is 13 long, yours {length}"
    off = max(abs(got[0] / got[1] - 0.75), abs(got[2] / got[1] - 3))
    assert off < 1e-3, (
        f"(3, 4, 12) became {got}: another direction. One factor for ALL parameters,"
        " not one for each parameter, nor one for each number"
    )
    assert abs(got[2] - 6) < 1e-3, (
        f"(3, 4, 12) clipped to a length of 6.5 is (1.5, 2, 6), yours {got}"
    )
    parameters = make()
    attempt(parameters, 20.0)
    got = gradients(parameters)
    assert got == [3.0, 4.0, 12.0], f"a gradient that is short enough must stay, yours became {got}"
    parameters = make()
    attempt([torch.zeros(1, requires_grad=True), *parameters], 6.5)  # the first has no gradient
    got = gradients(parameters)
    assert abs(got[2] - 6) < 1e-3, f"a parameter without a gradient must not stop the rest: {got}"


@diagnostic("Exercise 15.1")
def check_unigram_loss(attempt: Callable[[list[int], list[int], int], float]) -> None:
    """Check a unigram loss: no counts, counts, tokens never seen, which list is which."""

    def close(train: list[int], held_out: list[int], vocab_size: int, expected: float) -> bool:
        return abs(float(attempt(train, held_out, vocab_size)) - expected) < 1e-4

    expected = -math.log(3 / 5)
    assert not close([1, 1], [1], 3, expected / math.log(2)), (
        "that is in bits: use the natural logarithm"
    )
    assert close([1, 1], [1], 3, expected), (
        f"token 1 seen twice, 3 tokens in all: p = (2 + 1) / (2 + 3), so {expected:.3f}, yours is {attempt([1, 1], [1], 3):.3f}"
    )
    assert close([1, 1], [2], 3, -math.log(1 / 5)), "a token that was never seen has p = 1 / 5 here"
    assert close([1, 1], [2], 5, math.log(7)), (
        "with 5 entries a token never seen has p = 1 / (2 + 5)"
    )
    assert close([1, 1], [1, 1, 2, 2], 3, 0.5 * (expected + math.log(5))), (
        "the mean is over the held-out tokens; the counts come from the training tokens only"
    )


@diagnostic("Exercise 15.2")
def check_deranged(attempt: Callable[[Tensor, int], Tensor]) -> None:
    """Check a random assignment of sources: all there, none in place, seeded, random, input untouched."""
    source = (
        torch.arange(1, 7)[:, None].expand(6, 3).clone()
    )  # (batch, source): row i is full of i + 1
    before = source.clone()
    for seed in range(60):
        moved = attempt(source, seed)
        assert isinstance(moved, Tensor) and moved.shape == source.shape, (
            "the shape should stay (batch, source)"
        )
        assert torch.equal(source, before), "the tensor that came in was changed: return a new one"
        assert moved[:, 0].sort().values.tolist() == [1, 2, 3, 4, 5, 6], (
            "every source should be used exactly once"
        )
        assert (moved == moved[:, :1]).all(), "sources were torn apart: move whole rows"
        kept = (moved[:, 0] == source[:, 0]).sum().item()
        assert kept == 0, f"with seed {seed}, {kept} rows keep their own source"
    assert torch.equal(attempt(source, 3), attempt(source, 3)), (
        "the same seed should give the same assignment"
    )
    different = {tuple(attempt(source, seed)[:, 0].tolist()) for seed in range(60)}
    assert len(different) > 5, f"60 seeds give only {len(different)} assignments: is it random?"


@diagnostic("Exercise 15.3")
def check_training_step(attempt: Callable[..., float]) -> None:
    """Check a training step on a model with one number: the value, rate, groups, old gradients, mode."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.tensor(1.0))
            self.second = nn.Parameter(torch.tensor(2.0))
            self.modes: list[bool] = []

        def forward(self) -> Tensor:
            self.modes.append(self.training)
            return 3 * self.first + 5 * self.second  # the gradients are 3 and 5

    model = Two().eval()
    optimizer = torch.optim.SGD([{"params": [model.first]}, {"params": [model.second]}], lr=0.0)
    value = attempt(model, optimizer, lambda module: module(), 0.1)
    assert isinstance(value, float), (
        f"return the loss as a Python number (.item()), not {type(value).__name__}"
    )
    assert abs(value - 13.0) < 1e-5, f"the loss before the step is 13, yours is {value}"
    assert model.modes == [True], (
        "put the model into training mode before the loss is computed, and compute it once"
    )
    first, second = model.first.item(), model.second.item()
    assert first != 1.0, (
        "the first parameter has not moved: is backward, step or the rate missing, is the rate set after "
        "the step, or are the gradients cleared between backward and step?"
    )
    assert second != 2.0, (
        "only the first parameter group got the rate: set it in all of optimizer.param_groups"
    )
    assert abs(first - 0.7) < 1e-5, f"one step at rate 0.1 takes 1.0 to 0.7, yours is at {first}"
    attempt(model, optimizer, lambda module: module(), 0.1)
    assert abs(model.first.item() - 0.1) > 1e-5, (
        "the second step uses the gradient of both steps: clear the old one"
    )
    assert abs(model.first.item() - 0.4) < 1e-5, (
        f"the second step takes 0.7 to 0.4, yours is at {model.first.item()}"
    )
    attempt(model, optimizer, lambda module: module(), 0.0)
    assert abs(model.first.item() - 0.4) < 1e-5, (
        "at rate 0 nothing should move: is the rate set before the step?"
    )


@diagnostic("Exercise 15.4")
def check_overlap_by_length(
    attempt: Callable[[list[str], list[str], list[int]], dict[int, float]],
) -> None:
    """Check overlap by length: one pair, repeated words, the bounds, empty groups and translations."""

    def one(translation: str, reference: str) -> float:
        return float(attempt([translation], [reference], [1])[1])

    answer = attempt(["a b"], ["a b"], [1])
    assert isinstance(answer, dict) and list(answer) == [1], (
        f"return a dictionary from bound to mean, not {answer!r}"
    )
    assert abs(one("a b", "a b") - 1.0) < 1e-6, "equal texts have an overlap of 1"
    assert one("a b", "c d") == 0.0, "texts without a common word have an overlap of 0"
    assert abs(one("a a a a", "a b") - 2 / 6) < 1e-6, (
        "'a a a a' against 'a b': one word is shared, 2 * 1 / (4 + 2); a repeated word counts only as often as both have it"
    )
    assert abs(one("a", "a b c") - 0.5) < 1e-6, (
        "'a' against 'a b c': 2 * 1 / (1 + 3): count the words of both texts"
    )
    assert one("", "a b") == 0.0, "an empty translation has an overlap of 0"
    answer = attempt(["a", "x", "a b c"], ["a", "a b", "a b c"], [1, 3, 9])
    assert 9 not in answer, "a group without a sentence should be left out"
    answer_by_reference = attempt(["a b c d"], ["a"], [1, 3])
    assert list(answer_by_reference) == [1], (
        "a reference of 1 word belongs to group 1, however long the translation is"
    )
    assert abs(answer[1] - 0.5) < 1e-6, (
        f"references of 1 and 2 words are in group 1, with mean 0.5, yours is {answer[1]}"
    )
    assert abs(answer[3] - 1.0) < 1e-6, (
        "a reference of 3 words belongs to group 3: the bound is included"
    )


@diagnostic("Exercise 16.1")
def check_length_penalty(attempt: Callable[[float, int, float], float]) -> None:
    """Check a length penalty: one token, alpha 0, alpha 1, then any."""

    def near(answer: float, expected: float) -> bool:
        return abs(float(answer) - expected) < 1e-6

    assert not near(attempt(-3.0, 1, 0.6), -3.0 * (6 / 6) ** 0.6 * 2), "that is twice the score"
    assert near(attempt(-3.0, 1, 0.6), -3.0), (
        f"one token has the penalty (5 + 1) / 6 = 1, so the score is -3, yours is {attempt(-3.0, 1, 0.6)}"
    )
    assert near(attempt(-3.0, 20, 0.0), -3.0), (
        "alpha 0 leaves the log-probability as it is: is alpha the exponent?"
    )
    assert near(attempt(-6.0, 7, 1.0), -3.0), (
        f"7 tokens have the penalty 12 / 6 = 2 with alpha 1: -6 becomes -3, yours is {attempt(-6.0, 7, 1.0)} "
        "(multiplied instead of divided gives -12)"
    )
    assert near(attempt(-4.0, 19, 0.5), -2.0), (
        "19 tokens with alpha 0.5: the penalty is sqrt(4) = 2"
    )


@diagnostic("Exercise 16.2")
def check_top_p(attempt: Callable[[Tensor, float], Tensor]) -> None:
    """Check a top-p filter: nothing dropped, only the first, the token that crosses p, places, sum."""
    probability = torch.tensor([0.1, 0.5, 0.15, 0.25])
    before = probability.clone()
    everything = expect_tensor(attempt(probability, 1.0), (4,), "four probabilities")
    assert torch.equal(probability, before), "the tensor that came in was changed: return a new one"
    assert torch.allclose(everything, probability), "p = 1 keeps every token"
    first = attempt(probability, 0.3)
    assert torch.equal(probability, before), "the tensor that came in was changed: return a new one"
    assert first.count_nonzero() > 0, (
        "p = 0.3 kept nothing: the token that crosses p belongs to the kept ones"
    )
    assert first[1] > 0, "the likeliest token is number 1: put the answer back to its old place"
    assert torch.allclose(first, torch.tensor([0.0, 1.0, 0.0, 0.0])), (
        f"p = 0.3: token 1 alone has more than that, so it gets probability 1; yours: {first.tolist()}"
    )
    two = attempt(probability, 0.6)
    assert two[3] > 0, "p = 0.6: token 1 has 0.5, so token 3 is still needed to get there"
    assert two[0] == two[2] == 0, "p = 0.6: tokens 1 and 3 have 0.75 together, the others go"
    assert abs(two.sum().item() - 1) < 1e-5, "what is kept should sum to 1 again"
    exactly = attempt(torch.tensor([0.5, 0.25, 0.25]), 0.5)
    assert exactly[0] == 1, "p = 0.5, and the first token has just that: no other is needed"


@diagnostic("Exercise 16.3")
def check_beam_search(
    attempt: Callable[[Callable[[list[int]], list[float]], int, int, int], list[int]],
) -> None:
    """Check a beam search on tables: beam 1, a better second start, the end token, an early short one."""
    end = 2

    def table(rows: dict[tuple[int, ...], list[float]]) -> Callable[[list[int]], list[float]]:
        def next_token(tokens: list[int]) -> list[float]:
            row = rows.get(tuple(tokens), [0.01, 0.01, 0.98])
            return [math.log(p) for p in row]

        return next_token

    steps = table({(): [0.6, 0.39, 0.01], (0,): [0.3, 0.3, 0.4], (1,): [0.01, 0.01, 0.98]})
    greedy = attempt(steps, 1, end, 5)
    assert isinstance(greedy, list), f"return a list of tokens, not {type(greedy).__name__}"
    assert end not in greedy, "leave the end token out of the answer"
    assert greedy == [0], f"a beam of 1 is greedy: token 0, then the end; yours gives {greedy}"
    wide = attempt(steps, 2, end, 5)
    assert wide != [0], (
        "with a beam of 2 the start 1 survives, and 0.39 * 0.98 beats 0.6 * 0.4: are log-probabilities "
        "added up over all tokens, the end included?"
    )
    assert wide == [1], f"the likeliest sentence is [1], yours is {wide}"
    longer = table(
        {
            (): [0.5, 0.08, 0.42],
            (0,): [0.97, 0.02, 0.01],
            (0, 0): [0.01, 0.97, 0.02],
            (0, 0, 1): [0.01, 0.01, 0.98],
        }
    )
    found = attempt(longer, 2, end, 6)
    assert found != [], (
        "the empty sentence has 0.42, but [0, 0, 1] has more: the search stopped at the first finished one"
    )
    assert found == [0, 0, 1], f"the likeliest sentence is [0, 0, 1], yours is {found}"
    endless = table({(0,) * n: [0.9, 0.05, 0.05] for n in range(9)})
    assert attempt(endless, 2, end, 4) == [], (
        "of at most 4 tokens, the end counted, [] is the likeliest finished sentence, with 0.05: "
        "an unfinished sentence is no answer, however likely"
    )
    limited = table({(): [0.9, 0.09, 0.01], (0,): [0.9, 0.09, 0.01], (0, 0): [0.01, 0.01, 0.98]})
    found = attempt(limited, 2, end, 2)
    assert found != [0, 0], "[0, 0] and its end are 3 tokens, and the limit was 2"
    assert found == [1], f"of at most 2 tokens, the end counted, [1] is the likeliest, not {found}"
    assert attempt(limited, 2, end, 3) == [0, 0], (
        "[0, 0] and its end are 3 tokens, as many as allowed"
    )
    narrow = table(
        {
            (): [0.55, 0.44, 0.01],
            (0,): [0.5, 0.49, 0.01],
            (1,): [0.5, 0.49, 0.01],
            (0, 0): [0.5, 0.4, 0.1],
            (0, 1): [0.5, 0.4, 0.1],
        }
    )
    assert attempt(narrow, 4, end, 5) == [1, 0], "a beam of 4 finds [1, 0], with 0.22"
    assert attempt(narrow, 2, end, 5) == [0, 0, 0], (
        "a beam of 2 goes on with the two likeliest beginnings only and loses [1, 0]; does yours keep more?"
    )


@diagnostic("Exercise 17.1")
def check_clipped_matches(
    attempt: Callable[[list[str], list[list[str]], int], tuple[int, int]],
) -> None:
    """Check clipped matches: clipping, one reference, several, longer runs, none."""
    answer = attempt(["the"] * 4, [["the", "cat"]], 1)
    assert isinstance(answer, tuple) and len(answer) == 2, f"return (matches, runs), not {answer!r}"
    assert answer != (4, 4), "'the the the the' against 'the cat': clip, one 'the' is allowed"
    assert answer == (1, 4), f"'the the the the' against 'the cat' is (1, 4), yours {answer}"
    answer = attempt(["the", "the", "cat"], [["the", "the", "dog"]], 1)
    assert answer[0] != 1, "'the' stands twice on both sides and counts twice: a set forgets that"
    assert answer == (2, 3), f"'the the cat' against 'the the dog' is (2, 3), yours {answer}"
    answer = attempt(["the"] * 4, [["the", "cat"], ["a", "the", "the"]], 1)
    assert answer[0] != 3, "references with one and with two 'the' allow two, the most, not three"
    assert answer == (2, 4), f"one 'the' in a reference, two in the other: (2, 4), yours {answer}"
    answer = attempt(["a", "b", "c", "d"], [["b", "c", "d", "a"]], 2)
    assert answer == (2, 3), f"'a b c d' against 'b c d a', runs of 2: (2, 3), yours {answer}"
    answer = attempt(["a"], [["a", "b"]], 2)
    assert answer == (0, 0), f"one word has no run of 2: (0, 0), yours {answer}"
    answer = attempt(["a", "b"], [["a"], ["b"]], 1)
    assert answer == (2, 2), (
        f"each run may use the reference that has it most often: (2, 2), yours {answer}"
    )


@diagnostic("Exercise 17.2")
def check_brevity_penalty(attempt: Callable[[list[int], list[list[int]]], float]) -> None:
    """Check the brevity penalty: long, short, several sentences, several references, nothing."""
    upside_down = "upside down: it is exp(1 - r/h), the reference's length over the hypothesis's"
    answer = attempt([12], [[10]])
    assert abs(answer - math.exp(1 - 12 / 10)) > 1e-6, upside_down
    assert not answer > 1, f"12 words for 10: a long text gets no bonus, yours {answer}"
    assert answer == 1, f"12 words for 10: long enough, so 1, yours {answer}"
    answer = attempt([8], [[10]])
    assert abs(answer - math.exp(1 - 8 / 10)) > 1e-6, upside_down
    assert abs(answer - 0.8) > 1e-6, "8/10 is the ratio itself: the penalty is exponential in r/h"
    assert abs(answer - math.exp(1 - 10 / 8)) < 1e-6, (
        f"8 words for 10: exp(1 - 10/8) = 0.779, yours {answer}"
    )
    answer = attempt([5, 15], [[10], [10]])
    assert answer == 1, f"5 and 15 words for 10 and 10, 20 for 20: 1, yours {answer}; add up first"
    answer = attempt([8], [[12, 7, 20]])
    assert answer == 1, f"8 words for 12, 7 or 20: the closest is 7, so 1, yours {answer}"
    answer = attempt([9], [[12, 5]])
    assert abs(answer - math.exp(1 - 12 / 9)) < 1e-6, (
        f"9 words for 12 or 5: the closest is 12, so exp(1 - 12/9) = 0.717, yours {answer}"
    )
    answer = attempt([8], [[10, 6]])
    assert answer == 1, f"8 words for 10 or 6, equally close: the shorter, so 1, yours {answer}"
    answer = attempt([8], [[6, 10]])
    assert answer == 1, f"8 words for 6 or 10, equally close: the shorter, so 1, yours {answer}"
    answer = attempt([5, 5], [[5, 9], [9, 5]])
    assert answer == 1, f"each sentence has a reference of its own length, so 1, yours {answer}"
    answer = attempt([0], [[5]])
    assert answer == 0, f"no words at all: 0, yours {answer}"


@diagnostic("Exercise 17.3")
def check_paired_bootstrap(
    attempt: Callable[[Tensor, Tensor, Callable[[Tensor], float], int, int], float],
) -> None:
    """Check a paired bootstrap on two systems of which one is always a little better."""
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(50, 1, generator=generator) * 10  # (sentences, 1)
    better = torch.cat([torch.ones(50, 1), right], dim=1)  # (sentences, 2)
    worse = torch.cat([torch.ones(50, 1), right - 0.01], dim=1)  # (sentences, 2)
    drawn: list[Tensor] = []

    def score(summed: Tensor) -> float:
        assert tuple(summed.shape) == (2,), (
            f"score wants counts summed over the drawn sentences, shape (2,), got {tuple(summed.shape)}"
        )
        drawn.append(summed)
        return float(summed[1] / summed[0])

    answer = attempt(better, worse, score, 40, 1)
    assert len(drawn) == 80, f"40 draws, 2 systems: score should run 80 times, it ran {len(drawn)}"
    numbers = {round(float(summed[0])) for summed in drawn}
    assert numbers == {50}, f"50 sentences: each draw takes 50 rows, yours took {sorted(numbers)}"
    assert len({round(float(summed[1]), 2) for summed in drawn}) > 2, (
        "every draw has the same sum: draw WITH replacement, anew each time"
    )
    assert answer != 40, "return the share of the draws, not their number"
    assert answer == 1.0, (
        f"the first is better by 0.01 in every sentence, so in every draw: 1.0, yours {answer}."
        " Are both systems given the SAME drawn sentences?"
    )
    answer = attempt(worse, better, score, 40, 1)
    assert answer == 0.0, f"the other way around it never wins: 0.0, yours {answer}"
    answer = attempt(better, better, score, 40, 1)
    assert answer == 0.0, f"a system is never strictly better than itself: 0.0, yours {answer}"
    noise = torch.randn(50, 1, generator=generator) * 3  # (sentences, 1)
    other = torch.cat([torch.ones(50, 1), right + noise - noise.mean()], dim=1)  # (sentences, 2)
    shares = [attempt(better, other, score, 200, seed) for seed in (1, 1, 2)]
    assert shares[0] == shares[1], f"the same seed should give the same share, not {shares[:2]}"
    drawn.clear()
    attempt(better, other, score, 1, 1)
    attempt(better, other, score, 1, 2)
    assert not torch.equal(drawn[0], drawn[2]), "another seed should draw other sentences"
    assert 0.3 < shares[2] < 0.7, f"equal on average, it wins in about half: yours {shares[2]}"


@diagnostic("Exercise 17.4")
def check_layer_flops(attempt: Callable[[int, int, int], int]) -> None:
    """Check the FLOPs of an encoder layer against torch's counter."""
    for length, d_model, d_ff in ((5, 8, 24), (11, 16, 40)):
        layer = EncoderLayer(d_model, 2, d_ff)
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter:
            layer(torch.zeros(1, length, d_model))
        expected, answer = counter.get_total_flops(), attempt(length, d_model, d_ff)
        product = 2 * length * length * d_model  # one of attention's two
        matrix = 2 * length * d_model * d_model
        network = 2 * length * d_model * d_ff
        assert answer != expected // 2, "these are multiply-adds: each is two FLOPs"
        assert answer != 3 * expected, "this is forward and backward: forward only"
        assert answer != expected - 2 * product, (
            "attention itself is missing: queries with keys, and weights with values"
        )
        assert answer != expected - product, "attention has TWO products, one of them is missing"
        assert answer != expected - matrix, "there are FOUR matrices of d x d, W_O is one of them"
        assert answer != expected - network, "the feed-forward network has TWO matrices"
        assert answer == expected, (
            f"length {length}, d_model {d_model}, d_ff {d_ff}: torch counts {expected}, you {answer}"
        )
