"""What computing costs: FLOPs of a training step, and what each kind of layer takes (Table 1).

Written from chapters 17, 18 of the book: edit the chapter, then `make sync`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from transformer_lib.door import check_numbers
from transformer_lib.transformer import TransformerConfig

__all__ = ["LayerCost", "arrival", "layer_costs", "longest_chain", "saved_shapes", "training_flops"]


def training_flops(
    config: TransformerConfig,
    sentences: int,
    source_length: int,
    target_length: int,
    target_tokens: int | None = None,
) -> int:
    """Count the floating-point operations of one training step's matrix products, by formula.

    A multiplication and the addition that follows are two. Backward costs twice the forward pass:
    each product has two factors, and each wants a gradient. What is no matrix product (softmax,
    norms, dropout, the optimizer) is left out.

    Args:
        config: sizes of the model.
        sentences: rows of the batch.
        source_length, target_length: its columns, padding included: it is computed, too.
        target_tokens: real target tokens, which alone get logits; None means all.

    Raises:
        ValueError: if a size is below 1, or target_tokens are more than the batch can hold.
    """
    check_numbers(int, 1, sentences=sentences, source=source_length, target=target_length)
    target = sentences * target_length  # positions
    real = target if target_tokens is None else target_tokens
    check_numbers(int, 1, target, target_tokens=real)
    source = sentences * source_length  # positions
    d, d_ff = config.d_model, config.d_ff
    encoder = source * (4 * d * d + 2 * d * d_ff) + 2 * source * source_length * d
    decoder = target * (4 * d * d + 2 * d * d_ff) + 2 * target * target_length * d
    decoder += (target + source) * 2 * d * d + 2 * target * source_length * d  # cross-attention
    forward = config.num_encoder_layers * encoder + config.num_decoder_layers * decoder
    forward += real * config.vocab_size * d  # logits
    return 3 * 2 * forward


class LayerCost(NamedTuple):
    """What one layer costs for one sequence: Table 1 of the paper, and what it leaves out."""

    multiply_adds: int  # of what mixes positions
    projections: int  # multiply-adds of the maps to query, key, value and output
    weights: int  # attention weights, for each head
    sequential: int  # operations that wait for each other, up to a factor
    path: int  # operations between one end of the sequence and the other


def layer_costs(
    length: int, d_model: int, kernel: int = 4, neighborhood: int = 16
) -> dict[str, LayerCost]:
    """Predict the costs of each kind of layer (paper, section 4 and Table 1).

    Args:
        length, d_model: n and d, of the sequence and its vectors.
        kernel: k, positions that a convolution sees: the last k.
        neighborhood: r, positions that restricted self-attention sees: the last r.

    Raises:
        ValueError: if a size is below 1, or kernel or neighborhood below 2.
    """
    check_numbers(int, 1, length=length, d_model=d_model)
    check_numbers(int, 2, kernel=kernel, neighborhood=neighborhood)
    n, d, k, r = length, d_model, kernel, neighborhood
    layers = 0
    while k**layers < n:  # dilated by 1, k, k^2 ..., convolutions see k, k^2, k^3 ... positions
        layers += 1
    hops = [-(-(n - 1) // (size - 1)) for size in (k, r)]  # rounded up
    return {
        "self-attention": LayerCost(2 * n * n * d, 4 * n * d * d, n * n, 1, 1),
        "recurrent": LayerCost(2 * n * d * d, 0, 0, n, n - 1),
        "convolution": LayerCost(k * n * d * d, 0, 0, 1, hops[0]),
        "dilated convolution": LayerCost(k * n * d * d, 0, 0, 1, layers),
        "restricted self-attention": LayerCost(2 * n * r * d, 4 * n * d * d, n * r, 1, hops[1]),
    }


def longest_chain(output: Tensor) -> int:
    """Count the operations that had to wait for each other to make a tensor.

    They are those that autograd recorded: along the longest way from `output` back to a leaf.

    Raises:
        ValueError: if nothing was recorded.
    """
    if output.grad_fn is None:
        raise ValueError("nothing was recorded: does any input or parameter require a gradient?")
    chain: dict[object, int] = {}  # for each operation: the longest chain that ends in it
    waiting = [output.grad_fn]
    while waiting:
        operation = waiting[-1]
        before = [node for node, _ in operation.next_functions if node is not None]
        unknown = [node for node in before if node not in chain]
        waiting += unknown
        if not unknown:
            chain[waiting.pop()] = 1 + max((chain[node] for node in before), default=-1)
    return chain[output.grad_fn]


def arrival(layer: Callable[[Tensor, int], Tensor], length: int, d_model: int) -> list[int]:
    """Count the layers until a change of position 0 is felt at each position, -1 if never.

    Position 0 of a silent sequence is changed, and both go through layer after layer.

    Args:
        layer: takes (1, length, d_model) and the number of layers before, gives the same shape. In
            float64, and best without biases: small differences drown in large numbers.
        length: of the sequence; as many layers are tried.
        d_model: width of its vectors.
    """
    silent = torch.zeros(1, length, d_model, dtype=torch.float64)
    spoken = silent.clone()
    spoken[:, 0] = torch.randn(d_model, dtype=torch.float64)
    arrived = [0] + [-1] * (length - 1)
    for index in range(length):
        silent, spoken = layer(silent, index), layer(spoken, index)
        for position in (silent != spoken).any(dim=-1)[0].nonzero().flatten().tolist():
            if arrived[position] < 0:
                arrived[position] = index + 1
        if min(arrived) >= 0:
            break
    return arrived


def saved_shapes(model: nn.Module, *inputs: Tensor) -> list[tuple[int, ...]]:
    """List the shapes of all tensors that autograd keeps of a call, until backward needs them.

    Each tensor once, and no parameter: these are there anyway.
    """
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, tuple[int, ...]] = {}

    def keep(x: Tensor) -> Tensor:
        place = x.untyped_storage().data_ptr()  # a view of a tensor takes no memory of its own
        if place not in known:
            found.setdefault(place, tuple(x.shape))
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        output = model(*inputs)
    del output  # kept until here, so that no place was used twice
    return list(found.values())
