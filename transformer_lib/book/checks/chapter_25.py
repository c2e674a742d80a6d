"""The checks of chapter 25's exercises."""

import math
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from transformer_lib.book.checks import diagnostic, expect_tensor


class _Held:
    """A tensor that autograd keeps."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Kept(saved_tensors_hooks):
    """Counts the tensors that autograd keeps for the way back: now, and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0
        super().__init__(self.pack, lambda held: held.tensor)

    def pack(self, tensor: Tensor) -> _Held:
        held = _Held(tensor)
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(held, self.release)
        return held

    def release(self) -> None:
        self.now -= 1


class _Layer(nn.Module):
    """tanh(x W), and a note of each call."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)
        self.calls = 0
        self.by_torch = False  # called by torch's own checkpoint

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        frame: Any = sys._getframe()
        while frame is not None:
            self.by_torch |= frame.f_code.co_filename.endswith("utils/checkpoint.py")
            frame = frame.f_back
        return x + torch.tanh(self.map(x))


@diagnostic("Exercise 25.1")
def check_recompute(attempt: Callable[[list[nn.Module], Tensor, Tensor], Tensor]) -> None:
    """Check recomputation: gradients against autograd's, calls counted, what autograd keeps counted."""
    for depth, width, rows in [(1, 3, 2), (2, 4, 5), (6, 8, 3)]:
        _try_recompute(attempt, depth, width, rows)
    layer: Any = _Layer(4)  # whose parameters have no gradient yet
    attempt([layer], torch.ones(1, 4), torch.ones(1, 4))
    grads = [parameter.grad for parameter in layer.parameters()]
    assert all(grad is not None for grad in grads), "a parameter without .grad should get one"


def _try_recompute(attempt: Callable[..., Any], depth: int, width: int, rows: int) -> None:
    where = f"with {depth} layer{'s' * (depth > 1)}"
    layers: list[Any] = [_Layer(width) for _ in range(depth)]
    named = [(f"layer {i}'s {n}", p) for i, x in enumerate(layers) for n, p in x.named_parameters()]
    x, upstream = torch.randn(2, rows, width)
    alone = _Kept()
    with alone:
        layers[0](x.clone().requires_grad_())
    start = x.clone().requires_grad_()
    y: Tensor = start
    for layer in layers:
        y = layer(y)
    found = torch.autograd.grad(y, [start, *(p for _, p in named)], upstream)
    for _, parameter in named:
        parameter.grad = torch.ones_like(parameter)  # of an earlier piece of the batch
    for layer in layers:
        layer.calls, layer.by_torch = 0, False
    meter = _Kept()
    with meter:
        got = attempt(list(layers), x, upstream)
    got = expect_tensor(got, tuple(x.shape), "the gradient for x")
    assert not any(layer.by_torch for layer in layers), (
        "this is torch's checkpoint; do by hand what it does"
    )
    calls = [layer.calls for layer in layers]
    assert max(calls) <= 2, (
        f"{where} they were called {calls} times: recompute a layer from ITS input, which you kept,"
        " not all the way from x"
    )
    assert meter.most <= alone.most, (
        f"{where} autograd kept {meter.most} tensors at once, those of one layer are {alone.most}:"
        " go forward under torch.no_grad(), and use up each layer's graph before you make the next"
    )
    _judge_x(got, found[0], layers, x, upstream, where)
    for (name, parameter), expected in zip(named, found[1:], strict=True):
        grad = parameter.grad
        assert grad is not None, f"{where} the gradient of {name} is gone: {_ADD}"
        assert not torch.equal(grad, torch.ones_like(grad)), (
            f"{where} {name} got no gradient: backward leaves it in .grad, torch.autograd.grad of the"
            " input alone does not"
        )
        assert not torch.allclose(grad, expected, atol=1e-6), (
            f"{where} what stood in the .grad of {name} before was overwritten: {_ADD}"
        )
        off = (grad - 1 - expected).abs().max().item()
        assert off < 1e-5, f"{where} the gradient of {name} is wrong by up to {off:.3f}"


_ADD = "backward ADDS to the .grad that is there, as with several pieces of a batch"


def _judge_x(
    got: Tensor, right: Tensor, layers: list[Any], x: Tensor, upstream: Tensor, where: str
) -> None:
    """Name the cause of a wrong gradient for x."""

    def gradient(order: list[Any], upstream: Tensor) -> Tensor:
        start = x.clone().requires_grad_()
        y = start
        for layer in order:
            y = layer(y)
        return torch.autograd.grad(y, start, upstream)[0]

    def one_by_one(order: list[int], shift: int) -> Tensor:
        values = [x]
        for layer in layers:
            values.append(layer(values[-1]).detach())
        passed = upstream
        for i in order:
            piece = values[i + shift].clone().requires_grad_()
            passed = torch.autograd.grad(layers[i](piece), piece, passed)[0]
        return passed

    if torch.allclose(got, right, atol=1e-5):
        return
    depth = len(layers)
    assert not torch.allclose(got, upstream), f"{where} you return upstream itself"
    assert not torch.allclose(got, gradient(layers, torch.ones_like(upstream)), atol=1e-5), (
        f"{where} this is the gradient of the output's sum: begin with `upstream`"
    )
    assert depth == 1 or not torch.allclose(got, one_by_one(list(range(depth)), 0), atol=1e-5), (
        f"{where} you went back from the first layer to the last: the last comes first"
    )
    assert not torch.allclose(got, one_by_one(list(range(depth))[::-1], 1), atol=1e-5), (
        f"{where} each layer was recomputed from its OUTPUT: keep what goes into it"
    )
    last = one_by_one([depth - 1], 0)
    assert depth == 1 or not torch.allclose(got, last, atol=1e-5), (
        f"{where} this is the gradient for the last layer's input: pass it on to the layer before"
    )
    worst = (got - right).abs().max().item()
    raise AssertionError(f"{where} the gradient for x is wrong by up to {worst:.3f}")


@diagnostic("Exercise 25.2")
def check_eight_bits(attempt: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Check rounding to int8, row by row: range, error, zeros, signs, and several shapes."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([[1e-3], [1.0], [30.0], [1e-6]])
    weights = {
        "three small numbers": torch.tensor([[0.5, -1.0, 0.26]]),
        "rows of different size": torch.randn(4, 50, generator=generator) * spread,
        "a tall matrix": torch.randn(70, 3, generator=generator),
        "only negative numbers": -torch.rand(5, 9, generator=generator) - 0.1,
        "a row of zeros": torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 3.0]]),
    }
    for name, weight in weights.items():
        answer = attempt(weight)
        assert isinstance(answer, tuple | list) and len(answer) == 2, (
            "return two tensors: (integers, scale)"
        )
        integers = expect_tensor(answer[0], tuple(weight.shape), "the integers")
        assert isinstance(answer[1], Tensor), (
            f"the scale is a tensor, not {type(answer[1]).__name__}"
        )
        assert answer[1].numel() != 1 or len(weight) == 1, (
            "one scale for the whole matrix: a row of small numbers next to a row of large ones is lost;"
            " each row has its own"
        )
        assert answer[1].shape != (weight.size(1),) or weight.size(0) == weight.size(1), (
            f"{name}: the scale has a number for each COLUMN; each row has its own, shape ({len(weight)},)"
        )
        scale = expect_tensor(answer[1], (len(weight),), "the scale")
        assert integers.dtype == torch.int8, f"the integers are {integers.dtype}, not torch.int8"
        assert (scale.isfinite() & (scale > 0)).all(), (
            f"{name}: the scale is {scale.tolist()}: what if a row is all 0, and 0 / 0 is NaN?"
        )
        back = integers.float() * scale[:, None]
        largest = weight.abs().amax(dim=1)
        needed = (largest / scale.abs().clamp(min=1e-30)).max().item()
        assert needed < 129, (
            f"{name}: with your scale, integers up to {needed:.0f} would be needed, 127 is the largest:"
            " divide by the largest ABSOLUTE value of the row, over 127"
        )
        assert not ((back * weight < 0) & (weight.abs() > scale[:, None].abs())).any(), (
            f"{name}: a number changed its sign: 128 does not fit into int8, it becomes -128"
        )
        reached = integers.int().abs().amax(dim=1)
        off = (back - weight).abs()
        step = largest / 127
        assert (integers.int().abs() <= 127).all() or (off <= 0.51 * step[:, None]).all(), (
            f"{name}: {int(integers.min())} to {int(integers.max())}: the range is -127 to 127"
        )
        for row in range(len(weight)):
            size = f"{name}: the row {[round(v, 6) for v in weight[row, :3].tolist()]}..."
            if largest[row] == 0:
                assert (back[row] == 0).all(), (
                    f"{size} of zeros should come back as zeros: {back[row]}"
                )
                continue
            assert reached[row] >= 127, (
                f"{size} uses only -{int(reached[row])} to {int(reached[row])} of -127 to 127: divide by"
                " the largest ABSOLUTE value of the row, over 127"
            )
            worst = (off[row].max() / step[row]).item()
            assert worst < 0.9, (
                f"{size} is off by {worst:.2f} steps, half a step is possible: .to(torch.int8) cuts"
                " the fraction off, round first"
            )
            assert worst <= 0.51, f"{size} is off by {worst:.2f} steps, half a step is possible"


@diagnostic("Exercise 25.3")
def check_ring(attempt: Callable[[list[Tensor]], tuple[list[Tensor], int]]) -> None:
    """Check the sums of two, three and five ranks, then the count of what each has sent."""
    for ranks, length in ((2, 4), (3, 12), (5, 10)):
        start = [torch.arange(length) + 100.0 * 2**rank for rank in range(ranks)]
        answer = attempt(start)
        assert isinstance(answer, tuple | list) and len(answer) == 2, (
            f"return the list of what each rank holds, and a number, not {type(answer).__name__}"
        )
        held, sent = answer
        assert len(held) == ranks, f"{ranks} ranks hold a vector each, got {len(held)}"
        total = torch.stack(start).sum(dim=0)  # (length,)
        for rank, vector in enumerate(held):
            expect_tensor(vector, (length,), f"what rank {rank} of {ranks} holds")
            assert ranks == 1 or not torch.allclose(vector, total / ranks), (
                f"rank {rank} of {ranks} holds the mean, the sum is wanted"
            )
            assert not (vector > total).any(), (
                f"rank {rank} of {ranks} holds more than the sum: something was added twice; copy what is sent before anybody adds, and replace, not add, in the second half"
            )
            right = vector == total  # (length,)
            assert not 0 < int(right.sum()) <= length // ranks, (
                f"rank {rank} of {ranks} holds the sum of one piece only: the second half, which hands the sums around, is missing"
            )
            assert right.all(), (
                f"rank {rank} of {ranks} should hold {total.tolist()}, got {vector.tolist()}"
            )
        wanted = 2 * (ranks - 1) * length // ranks
        names = {
            wanted * ranks: "that is what all ranks send together",
            wanted // 2: "that is one half of the way: the sums are handed around, too",
            (ranks - 1) * length: "that is whole vectors: send one piece in a round",
            2 * (ranks - 1): "that is the number of messages: count the numbers in them",
        }
        if ranks > 2:  # of two ranks some of these are the same
            assert sent == wanted, (
                f"each of {ranks} ranks sends {wanted} numbers of {length}, got {sent}; {names.get(sent, 'count those of one rank')}"
            )


def _loss(a: float, alpha: float, b: float, beta: float, n: float, d: float) -> float:
    return float(a / n**alpha + b / d**beta)


@diagnostic("Exercise 25.4")
def check_best_split(
    attempt: Callable[[float, float, float, float, float], tuple[float, float]],
) -> None:
    """Check that the compute is spent, then that neither a larger nor a smaller model is better."""
    for a, alpha, b, beta, flops in (
        (400.0, 0.34, 410.0, 0.28, 1e18),
        (350.0, 0.8, 600.0, 0.5, 1e12),
        (20.0, 0.3, 90.0, 0.6, 1e15),
    ):
        answer = attempt(a, alpha, b, beta, flops)
        assert isinstance(answer, tuple | list) and len(answer) == 2, (
            f"return N and D, got {answer!r}"
        )
        n, d = map(float, answer)
        assert n > 0 and d > 0, f"N and D should be positive, got {n} and {d}"
        spent = 6 * n * d / flops
        assert not math.isclose(spent, 6, rel_tol=1e-3), (
            "N times D is all the FLOPs: where is the 6 of 6 N D?"
        )
        assert math.isclose(spent, 1, rel_tol=1e-3), (
            f"6 N D should be the FLOPs, it is {spent:.3g} times as much"
        )
        best = (alpha * a / (beta * b) * (flops / 6) ** beta) ** (1 / (alpha + beta))
        right = _loss(a, alpha, b, beta, best, flops / 6 / best)
        if _loss(a, alpha, b, beta, n, d) < right * (1 + 1e-4):
            continue
        assert not math.isclose(n, flops / 6 / best, rel_tol=1e-2), "N and D are swapped"
        assert not math.isclose(n, (flops / 6) ** 0.5, rel_tol=1e-2), (
            "N = D is best only by chance: look at the exponents"
        )
        unweighted = (a / b * (flops / 6) ** beta) ** (1 / (alpha + beta))
        assert not math.isclose(n, unweighted, rel_tol=1e-2), (
            "both terms are equal there, but it is their slopes that should be: the derivative brings alpha and beta down"
        )
        side = "small" if n < best else "large"
        assert math.isclose(n, best, rel_tol=1e-2), (
            f"the model is too {side}: N = {n:.3g}, the loss is smallest at {best:.3g}"
        )
