"""The checks of chapter 18's exercises."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


def _expect_int(value: object, what: str) -> int:
    assert isinstance(value, int) and not isinstance(value, bool), (
        f"{what} should be a whole number (int), yours is {value!r}"
    )
    return value


@diagnostic("Exercise 18.1")
def check_crossing(attempt: Callable[[int, int], int]) -> None:
    """Check a crossing: the GRU's first, then LSTM, then the networks that are always cheaper."""
    gru = _expect_int(attempt(512, 6), "the length")
    assert gru != 3 * 512, (
        "1,536 for a GRU of width 512 forgets the projections: attention has 4 maps of its own"
    )
    assert gru != 2 * 512, (
        "1,024 for a GRU of width 512 counts n d for a position's mixing: scores and weighted sum make 2 n d"
    )
    assert gru == 512, f"a GRU of width 512: the two are equal at 512, yours is {gru}"
    lstm = attempt(512, 8)
    assert lstm == 1024, (
        f"an LSTM has 8 maps: 4 d^2 + 2 n d = 8 d^2 at n = 2 d = 1,024, yours is {lstm}"
    )
    plain = attempt(512, 2)
    assert plain == 0, (
        f"a plain cell has 2 maps, attention 4 before it mixes anything: always dearer, so 0, yours is {plain}"
    )
    odd = _expect_int(attempt(7, 5), "the length at an odd width")
    assert odd == 3, (
        f"width 7, 5 maps: equal at 3.5, so 3 is the last length that costs no more, yours is {odd}"
    )


@diagnostic("Exercise 18.2")
def check_layers_needed(attempt: Callable[[int, int, bool], int]) -> None:
    """Check numbers of layers: plain, rounding, dilated, powers of the kernel, and a single position."""
    plain = _expect_int(attempt(10, 4, False), "the number of layers")
    assert plain == 3, (
        f"plain, kernel 4: each layer adds 3 new positions (k - 1), so 10 positions take 3 layers, yours takes {plain}"
    )
    ragged = attempt(11, 4, False)
    assert ragged == 4, f"plain, 11 positions need a fourth layer: round up, yours takes {ragged}"
    dilated = _expect_int(attempt(1024, 4, True), "the number of layers")
    assert dilated == 5, f"dilated, 4^5 = 1,024: five layers, yours takes {dilated}"
    more = attempt(1025, 4, True)
    assert more == 6, (
        f"dilated, 1,025 positions are one too many for 5 layers: round up, yours takes {more}"
    )
    for length, kernel, layers in ((125, 5, 3), (243, 3, 5), (1000, 10, 3)):
        found = attempt(length, kernel, True)
        assert found == layers, (
            f"dilated, {kernel}^{layers} = {length}, so {layers} layers, yours takes {found}: "
            "is it a logarithm in floating point, a last digit off?"
        )
    for kind in (False, True):
        alone = attempt(1, 4, kind)
        assert alone == 0, f"a single position needs no layer to know itself, yours takes {alone}"


@diagnostic("Exercise 18.3")
def check_longest_text(attempt: Callable[[int, int, int, int], int]) -> None:
    """Check a longest text: one of everything, then batch, heads and layers one at a time, then rounding."""
    found = _expect_int(attempt(4 * 100**2, 1, 1, 1), "the length")
    assert found != 200, "200 for 40,000 bytes forgets that a float32 has 4 bytes"
    assert found != 10_000, "10,000 for 40,000 bytes: there is a weight for each pair, n^2 of them"
    assert found == 100, f"40,000 bytes hold 10,000 weights: length 100, yours is {found}"
    for name, arguments in (("batch", (4, 1, 1)), ("heads", (1, 4, 1)), ("layers", (1, 1, 4))):
        found = attempt(4 * 100**2, *arguments)
        assert found == 50, f"4 times the {name}: half the length, 50, yours is {found}"
    found = attempt(4 * 100**2 - 1, 1, 1, 1)
    assert found == 99, f"a byte less than 100 needs: 99 is the longest that fits, yours is {found}"
    found = attempt(31, 1, 8, 1)
    assert found == 0, f"31 bytes do not hold one weight for each of 8 heads: 0, yours is {found}"


@diagnostic("Exercise 18.4")
def check_two_hops(attempt: Callable[[int], Tensor]) -> None:
    """Check a mask: its form, its number of pairs, then who hears of whom in two layers."""
    for length in (16, 25, 30, 101):
        mask = expect_tensor(attempt(length), (length, length), f"the mask of {length} positions")
        assert mask.dtype == torch.bool, f"the mask should be boolean, yours is {mask.dtype}"
        pairs, most = int(mask.sum()), int(3 * length * math.sqrt(length))
        assert pairs <= most, (
            f"too many pairs at length {length}: {pairs}, at most 3 n sqrt(n) = {most} are allowed"
        )
        heard = (mask.double() @ mask.double()) > 0  # (queries, keys): by a position between
        deaf = (~heard).nonzero().tolist()
        assert not deaf, (
            f"at length {length}, position {deaf[0][0]} cannot hear of {deaf[0][1]} in two layers "
            f"(and {len(deaf) - 1} other pairs neither): is there somebody whom it hears and who hears it?"
        )
