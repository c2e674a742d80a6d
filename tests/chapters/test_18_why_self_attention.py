"""Costs of layers: predictions against counts, chains, arrivals, and what autograd keeps."""

import json
import math
import re
from importlib import import_module, resources
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention
from transformer_lib.book.checks.chapter_18 import (
    check_crossing,
    check_layers_needed,
    check_longest_text,
    check_two_hops,
)
from transformer_lib.costs import arrival, layer_costs, longest_chain, saved_shapes
from transformer_lib.recurrent import GRUCell

RESULTS = resources.files("transformer_lib.book").joinpath("results", "long_range.json")


def test_costs_of_the_papers_base_layer() -> None:
    costs = layer_costs(25, 512)
    assert costs["self-attention"] == (2 * 25 * 25 * 512, 4 * 25 * 512 * 512, 625, 1, 1)
    assert costs["recurrent"] == (2 * 25 * 512 * 512, 0, 0, 25, 24)


def test_paths_of_convolutions() -> None:
    costs = layer_costs(1024, 8, kernel=4)
    assert (costs["convolution"].path, costs["dilated convolution"].path) == (341, 5)
    for kernel in (2, 3, 5, 10):  # powers of the kernel, where a logarithm of floats is off
        for layers in range(1, 6):
            path = [
                layer_costs(n, 8, kernel)["dilated convolution"].path
                for n in (kernel**layers, kernel**layers + 1)
            ]
            assert path == [layers, layers + 1]


def test_a_single_position_has_no_path_to_go() -> None:
    assert {cost.path for name, cost in layer_costs(1, 8).items() if name != "self-attention"} == {
        0
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length must be int from 1 to inf, got 0"),
        ({"d_model": 2.5}, "d_model must be int from 1 to inf, got 2.5"),
        ({"kernel": 1}, "kernel must be int from 2 to inf, got 1"),
        ({"neighborhood": 1}, "neighborhood must be int from 2 to inf, got 1"),
    ],
)
def test_sizes_that_make_no_layer_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        layer_costs(**{"length": 8, "d_model": 8, **arguments})


def test_longest_chain_of_small_graphs() -> None:
    x = torch.randn(3, requires_grad=True)
    assert longest_chain(x.exp()) == 1
    assert longest_chain(x.exp().sin().cos()) == 3
    long, short = x.exp().sin().cos(), x.exp()
    assert longest_chain(short + long) == longest_chain(long + short) == 4
    y = x
    for _ in range(5000):  # deeper than Python's stack
        y = y * 2
    assert longest_chain(y) == 5000
    with pytest.raises(ValueError, match="nothing was recorded"):
        longest_chain(torch.randn(3))


def test_a_graph_that_forks_again_and_again_is_walked_once() -> None:
    x = torch.randn(3, requires_grad=True)
    for _ in range(60):  # 2^60 ways
        x = x.sin() + x.cos()
    assert longest_chain(x) == 120


def test_the_chain_of_a_cell_grows_by_the_same_number_a_step() -> None:
    cell, chains = GRUCell(4, 4), []
    for n in (5, 6, 7):
        hidden = torch.zeros(1, 4)
        for x in torch.randn(n, 1, 4):
            hidden = cell(x, hidden)
        chains.append(longest_chain(hidden))
    assert chains[2] - chains[1] == chains[1] - chains[0] > 0


def test_arrival() -> None:
    shift = lambda x, _: F.pad(x, (0, 0, 1, 0))[:, :-1]  # noqa: E731
    assert arrival(shift, 6, 3) == [0, 1, 2, 3, 4, 5]
    assert arrival(lambda x, i: torch.roll(x, 2**i, dims=1) + x, 8, 3) == [0, 1, 2, 2, 3, 3, 3, 3]
    assert arrival(lambda x, _: x, 4, 3) == [0, -1, -1, -1]
    attention = MultiHeadAttention(8, 2).double()
    assert arrival(lambda x, _: attention(x, x, x), 5, 8) == [0, 1, 1, 1, 1]


def test_saved_shapes_are_what_backward_needs() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    assert sorted(saved_shapes(model, x)) == [(3, 4), (3, 8)]  # the ReLU's output is kept once
    with torch.no_grad():
        assert saved_shapes(model, x) == []


def test_the_stored_results_are_of_the_chapters_code() -> None:
    experiment = import_module("experiments.18_long_range")
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert stored["settings"]["code"] == experiment.fingerprint(experiment.chapter_code())
    runs = [
        f"{name}, distance {distance}, seed {seed}"
        for name in stored["settings"]["parameters"]
        for distance in experiment.DISTANCES[name]
        for seed in experiment.SEEDS
    ]
    assert list(stored["runs"]) == runs


# What readers are likely to hand in, and what the check must say of it.


def by_search(d_model: int, maps: int) -> int:
    lengths = [
        n for n in range(1, 4 * d_model) if 4 * d_model**2 + 2 * n * d_model <= maps * d_model**2
    ]
    return max(lengths, default=0)


def by_formula(length: int, kernel: int, dilated: bool) -> int:
    if not dilated:
        return -(-(length - 1) // (kernel - 1))
    return next(layers for layers in range(99) if kernel**layers >= length)


def by_recursion(length: int, kernel: int, dilated: bool) -> int:
    if length <= 1:
        return 0
    left = math.ceil(length / kernel) if dilated else length - kernel + 1
    return 1 + by_recursion(left, kernel, dilated)


def by_trying(budget: int, batch: int, num_heads: int, num_layers: int) -> int:
    n = 0
    while 4 * batch * num_heads * num_layers * (n + 1) ** 2 <= budget:
        n += 1
    return n


def town_crier(length: int) -> Tensor:
    mask = torch.eye(length, dtype=torch.bool)
    mask[0] = mask[:, 0] = True
    return mask


def streets_and_stops(length: int) -> Tensor:
    """Blocks, and everybody hears the first of each block, who hears its block."""
    side = math.isqrt(length)
    block = torch.arange(length) // side
    return (block == block[:, None]) | (torch.arange(length) % side == 0)


def window(length: int) -> Tensor:
    position = torch.arange(length)
    return (position - position[:, None]).abs() <= math.isqrt(length)


def blocks(length: int) -> Tensor:
    block = torch.arange(length) // math.isqrt(length)
    return block == block[:, None]


def only_the_stops(length: int) -> Tensor:
    return (torch.arange(length) % math.isqrt(length) == 0).expand(length, length)


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    check_crossing: [by_search, lambda d, maps: max(0, math.floor((maps / 2 - 2) * d))],
    check_layers_needed: [by_formula, by_recursion],
    check_longest_text: [
        by_trying,
        lambda budget, b, h, layers: int((budget / (4 * b * h * layers)) ** 0.5),
    ],
    check_two_hops: [town_crier, streets_and_stops],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    check_crossing: [
        (lambda d, maps: maps * d // 2, "projections"),
        (lambda d, maps: (maps - 4) * d, "2 n d"),
        (lambda d, maps: d, "LSTM"),
        (lambda d, maps: (maps - 4) * d // 2, "so 0"),
        (lambda d, maps: max((maps - 4) * d / 2, 0), "int"),
        (lambda d, maps: max(-(-(maps - 4) * d // 2), 0), "3.5"),
        (lambda d, maps: None, "int|None"),
    ],
    check_layers_needed: [
        (lambda n, k, dilated: -(-n // k) + 1, r"k - 1"),
        (lambda n, k, dilated: (n - 1) // (k - 1), "round up"),
        (lambda n, k, dilated: -(-(n - 1) // (k - 1)), "five layers"),
        (
            lambda n, k, dilated: int(math.log(n, k)) if dilated else -(-(n - 1) // (k - 1)),
            "round up",
        ),
        (
            lambda n, k, dilated: math.ceil(math.log(n, k)) if dilated else -(-(n - 1) // (k - 1)),
            "floating point",
        ),
        (lambda n, k, dilated: max(by_formula(n, k, dilated), 1), "single position"),
        (lambda n, k, dilated: (n - 1) / (k - 1), "int"),
    ],
    check_longest_text: [
        (lambda budget, b, h, layers: math.isqrt(budget // (b * h * layers)), "float32"),
        (lambda budget, b, h, layers: budget // (4 * b * h * layers), "each pair"),
        (lambda budget, b, h, layers: math.isqrt(budget // (4 * h * layers)), "batch"),
        (lambda budget, b, h, layers: math.isqrt(budget // (4 * b * layers)), "heads"),
        (lambda budget, b, h, layers: math.isqrt(budget // (4 * b * h)), "layers"),
        (
            lambda budget, b, h, layers: round((budget / (4 * b * h * layers)) ** 0.5),
            "longest that fits",
        ),
        (lambda budget, b, h, layers: (budget / (4 * b * h * layers)) ** 0.5, "int"),
    ],
    check_two_hops: [
        (lambda n: torch.ones(n, n, dtype=torch.bool), "too many pairs"),
        (window, "cannot hear of"),
        (blocks, "cannot hear of"),
        (only_the_stops, "cannot hear of"),
        (lambda n: town_crier(n).float(), "boolean"),
        (lambda n: town_crier(n)[None], "shape"),
        (lambda n: town_crier(n).tril(), "cannot hear of"),
    ],
}
