"""Chapter 25: the fast versions of loss, dropout and attention, and the exercises."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from transformer_lib.book.checks import chapter_25

# --- the exercises

Layers = list[nn.Module]


def right_recompute(layers: Layers, x: Tensor, upstream: Tensor) -> Tensor:
    inputs = []
    with torch.no_grad():
        for layer in layers:
            inputs.append(x)
            x = layer(x)
    for layer, entered in zip(reversed(layers), reversed(inputs), strict=True):
        piece = entered.detach().requires_grad_()
        layer(piece).backward(upstream)
        assert piece.grad is not None
        upstream = piece.grad
    return upstream


def right_by_grad(layers: Layers, x: Tensor, upstream: Tensor) -> Tensor:
    inputs = [x]
    with torch.no_grad():
        for layer in layers[:-1]:
            inputs.append(layer(inputs[-1]))
    while inputs:
        piece, layer = inputs.pop().clone().requires_grad_(), layers[len(inputs)]
        parameters = list(layer.parameters())
        upstream, *grads = torch.autograd.grad(layer(piece), [piece, *parameters], upstream)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
    return upstream


def right_recursive(layers: Layers, x: Tensor, upstream: Tensor) -> Tensor:
    if not layers:
        return upstream
    with torch.no_grad():
        y = layers[0](x)
    upstream = right_recursive(layers[1:], y, upstream)
    piece = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        layers[0](piece).backward(upstream)
    assert piece.grad is not None
    return piece.grad


def keeps_all(layers: Layers, x: Tensor, upstream: Tensor) -> Tensor:
    start = x.detach().clone().requires_grad_()
    y = start
    for layer in layers:
        y = layer(y)
    y.backward(upstream)
    assert start.grad is not None
    return start.grad


def keeps_pieces(layers: Layers, x: Tensor, upstream: Tensor) -> Tensor:
    pairs = []
    for layer in layers:  # without no_grad: all graphs are alive
        piece = x.detach().clone().requires_grad_()
        x = layer(piece)
        pairs.append((piece, x))
    for piece, y in reversed(pairs):
        y.backward(upstream)
        assert piece.grad is not None
        upstream = piece.grad
    return upstream


def by_torch(layers: Layers, x: Tensor, upstream: Tensor) -> Tensor:
    start = x.detach().clone().requires_grad_()
    y = start
    for layer in layers:
        y = checkpoint(layer, y, use_reentrant=False)
    y.backward(upstream)
    assert start.grad is not None
    return start.grad


def variant(
    *,
    forwards: bool = False,
    ones: bool = False,
    outputs: bool = False,
    only_x: bool = False,
    overwrite: bool = False,
    from_x: bool = False,
    last_only: bool = False,
    clear: bool = False,
    in_place: bool = False,
) -> object:
    def attempt(layers: Layers, x: Tensor, upstream: Tensor) -> Tensor:
        values = [x]
        with torch.no_grad():
            for layer in layers:
                values.append(layer(values[-1]))
        if clear:
            for layer in layers:
                layer.zero_grad()
        if ones:
            upstream = torch.ones_like(upstream)
        order = range(len(layers)) if forwards else reversed(range(len(layers)))
        for i in order:
            entered = values[i + outputs]
            if from_x:
                entered = x
                with torch.no_grad():
                    for layer in layers[:i]:
                        entered = layer(entered)
            piece = entered.detach().clone().requires_grad_()
            if only_x:
                (new,) = torch.autograd.grad(layers[i](piece), piece, upstream)
            else:
                if overwrite:
                    layers[i].zero_grad()
                layers[i](piece).backward(upstream)
                assert piece.grad is not None
                new = piece.grad
            if in_place:
                upstream.copy_(new)
            else:
                upstream = new
            if last_only:
                break
        return upstream

    return attempt


@pytest.mark.parametrize("right", [right_recompute, right_by_grad, right_recursive])
def test_check_recompute_accepts(right: object) -> None:
    chapter_25.check_recompute(right)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (keeps_all, "autograd kept"),
        (keeps_pieces, "autograd kept"),
        (by_torch, "by hand"),
        (variant(forwards=True), "last comes first"),
        (variant(ones=True), "begin with `upstream`"),
        (variant(outputs=True), "from its OUTPUT"),
        (variant(only_x=True), "got no gradient"),
        (variant(overwrite=True), "overwritten"),
        (variant(clear=True), "overwritten"),
        (variant(from_x=True), "from ITS input"),
        (variant(last_only=True), "pass it on"),
        (variant(in_place=True), "in place"),
        (lambda layers, x, upstream: upstream, "upstream itself"),
        (lambda layers, x, upstream: None, "returned None"),
        (lambda layers, x, upstream: layers.sum(), "raised AttributeError"),
    ],
)
def test_check_recompute_rejects(wrong: object, word: str) -> None:
    with pytest.raises(AssertionError, match=word):
        chapter_25.check_recompute(wrong)


def right_eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().amax(dim=1).clamp(min=1e-30) / 127
    return (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def right_row_by_row(weight: Tensor) -> tuple[Tensor, Tensor]:
    integers, scales = [], []
    for row in weight.tolist():
        scale = max(abs(value) for value in row) / 127 or 1.0
        integers.append([round(value / scale) for value in row])
        scales.append(scale)
    return torch.tensor(integers, dtype=torch.int8), torch.tensor(scales)


def eight_bits(
    *,
    dim: int | None = 1,
    largest: bool = False,
    by: int = 127,
    cut: bool = False,
    zero: bool = False,
    dtype: torch.dtype = torch.int8,
    in_place: bool = False,
    column: bool = False,
) -> object:
    def attempt(weight: Tensor) -> tuple[Tensor, Tensor]:
        size = weight if largest else weight.abs()
        scale = size.amax() if dim is None else size.amax(dim=dim, keepdim=True)
        scale = (scale if zero else scale.clamp(min=1e-30)) / by
        divided = weight.div_(scale) if in_place else weight / scale
        divided = divided if cut else divided.round()
        scale = scale if column else scale.flatten()
        return divided.to(torch.int32).to(dtype), scale

    return attempt


@pytest.mark.parametrize("right", [right_eight_bits, right_row_by_row])
def test_check_eight_bits_accepts(right: object) -> None:
    chapter_25.check_eight_bits(right)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (eight_bits(dim=None), "whole matrix"),
        (eight_bits(dim=0), "COLUMN"),
        (eight_bits(largest=True), "ABSOLUTE"),
        (eight_bits(by=128), "128 does not fit"),
        (eight_bits(by=100), "uses only"),
        (eight_bits(cut=True), "round first"),
        (eight_bits(zero=True), "all 0"),
        (eight_bits(dtype=torch.int32), "not torch.int8"),
        (eight_bits(dtype=torch.uint8), "not torch.int8"),
        (eight_bits(in_place=True), "in place"),
        (eight_bits(column=True), "should have shape"),
        (lambda weight: right_eight_bits(weight)[0], "two tensors"),
        (lambda weight: None, "returned None"),
    ],
)
def test_check_eight_bits_rejects(wrong: object, word: str) -> None:
    with pytest.raises(AssertionError, match=word):
        chapter_25.check_eight_bits(wrong)
