"""Chapter 25: the fast versions of loss, dropout and attention, and the exercises."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from transformer_lib import decoding
from transformer_lib.attention import attention_weights, scaled_dot_product_attention
from transformer_lib.book.checks import chapter_25
from transformer_lib.decoding import beam_search, by_columns, greedy_decode, sample
from transformer_lib.layers import Dropout, ResidualConnection
from transformer_lib.pairs import Batch, make_batch
from transformer_lib.training import cross_entropy_sum, translation_loss
from transformer_lib.transformer import Transformer, TransformerConfig

EOS = 2
CONFIG = TransformerConfig(
    11, d_model=16, num_heads=2, d_ff=24, num_encoder_layers=1, num_decoder_layers=1
)


@pytest.fixture
def model() -> Transformer:
    return Transformer(CONFIG).eval()


def batch_of(*lengths: int) -> Batch:
    rows = [torch.randint(3, 11, (length,)).tolist() for length in lengths]
    return make_batch([([*row, EOS], row[::-1]) for row in rows])


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor | None]:
    inputs = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(loss, inputs, allow_unused=True))


# --- the loss in pieces


def test_no_more_than_512_logits_are_made_at_once(model: Transformer) -> None:
    rows: list[int] = []
    project = model.project

    def listening(hidden: Tensor) -> Tensor:
        rows.append(len(hidden))
        return project(hidden)

    model.project = listening  # type: ignore[method-assign]
    cross_entropy_sum(model, torch.randn(1100, 16), torch.randint(0, 11, (1100,)))
    assert rows == [512, 512, 76]


class SumOfTwo(nn.Module):
    """An output map of two matrices: autograd hands both the same gradient tensor."""

    def __init__(self, d_model: int, vocab_size: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Parameter(torch.randn(vocab_size, d_model)) for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.one + self.two)


OUTPUTS: dict[str, Callable[[], nn.Module | None]] = {
    "shared": lambda: None,
    "own, with bias": lambda: nn.Linear(16, 11),
    "two layers": lambda: nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 11)),
    "sum of two": lambda: SumOfTwo(16, 11),
}


def both_losses(model: Transformer, hidden: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """In pieces, and by plain autograd."""
    targets = torch.randint(0, 11, (len(hidden),))
    logits = model.project(hidden)
    exact = torch.promote_types(logits.dtype, torch.float32)
    plain = F.cross_entropy(logits.to(exact), targets, reduction="sum", label_smoothing=smoothing)
    return cross_entropy_sum(model, hidden, targets, smoothing), plain


@pytest.mark.parametrize("frozen", ["nothing", "output map", "all"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("output", OUTPUTS)
def test_the_gradient_in_pieces_is_plain_autograds(
    model: Transformer, output: str, smoothing: float, frozen: str
) -> None:
    model.output = OUTPUTS[output]()
    model.double()
    if frozen == "all":
        model.requires_grad_(False)
    elif frozen == "output map":
        (model.embedding if model.output is None else model.output).requires_grad_(False)
    for count in (1, 512, 513, 1100):
        hidden = torch.randn(count, 16, dtype=torch.float64, requires_grad=True)
        before = hidden.detach().clone()
        ours, theirs = both_losses(model, hidden, smoothing)
        torch.testing.assert_close(ours, theirs)
        inputs = [hidden, *(p for p in model.parameters() if p.requires_grad)]
        found = torch.autograd.grad(2.5 * ours, inputs, allow_unused=True)
        expected = torch.autograd.grad(2.5 * theirs, inputs, allow_unused=True)
        for gradient, other in zip(found, expected, strict=True):
            assert (gradient is None) == (other is None)
            if gradient is not None:
                torch.testing.assert_close(gradient, other)
        assert torch.equal(hidden, before), "the loss must leave its input alone"


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_gradient_in_pieces_under_autocast(
    model: Transformer, output: str, smoothing: float
) -> None:
    model.output = OUTPUTS[output]()
    hidden = torch.randn(1100, 16, requires_grad=True)
    inputs = [
        hidden,
        *([model.embedding.weight] if model.output is None else model.output.parameters()),
    ]
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = both_losses(model, hidden, smoothing)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    found, expected = torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs)
    for gradient, other in zip(found, expected, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - other).norm() <= 0.02 * other.norm()


@pytest.mark.parametrize("output", OUTPUTS)
def test_without_gradients_the_loss_computes_none(model: Transformer, output: str) -> None:
    model.output = OUTPUTS[output]()
    hidden, targets = torch.randn(1100, 16), torch.randint(0, 11, (1100,))
    with FlopCounterMode(display=False) as there_and_back:
        trained = cross_entropy_sum(model, hidden, targets)
    with FlopCounterMode(display=False) as there, torch.no_grad():
        evaluated = cross_entropy_sum(model, hidden, targets)
    assert trained.requires_grad
    assert not evaluated.requires_grad
    assert torch.equal(trained, evaluated)
    assert there_and_back.get_total_flops() == 3 * there.get_total_flops()


def test_a_step_in_bfloat16_is_near_and_its_gradients_are_float32(model: Transformer) -> None:
    batch = batch_of(3, 5)
    exact, _ = translation_loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = translation_loss(model, batch)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)
    for gradient in gradients(rounded, model):
        assert gradient is not None
        assert gradient.dtype == torch.float32


@pytest.mark.parametrize("count", [2, 600])  # in the first piece, and in the second
@pytest.mark.parametrize("wrong", [-100, -1, 11])
def test_an_id_that_has_no_logit_is_named(model: Transformer, wrong: int, count: int) -> None:
    targets = torch.tensor([3] * (count - 1) + [wrong])
    with pytest.raises(ValueError, match=rf"{wrong}\b.* logits of 11"):
        cross_entropy_sum(model, torch.randn(count, 16), targets)


def test_a_forbidden_token_costs_nothing_without_smoothing(model: Transformer) -> None:
    model.output = nn.Linear(16, 11)
    with torch.no_grad():
        model.output.bias[4] = -torch.inf
    hidden = torch.randn(3, 16, requires_grad=True)
    loss = cross_entropy_sum(model, hidden, torch.tensor([1, 2, 3]))
    loss.backward()
    assert loss.isfinite()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_large_scores_stay_finite(model: Transformer) -> None:
    hidden = torch.full((3, 16), 1e4, requires_grad=True)
    loss = cross_entropy_sum(model, hidden, torch.tensor([1, 2, 3]), 0.1)
    loss.backward()
    assert loss.isfinite()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


# --- dropout


@settings(max_examples=20, deadline=None)
@given(p=st.floats(0.001, 0.999), seed=st.integers(0, 1000))
def test_dropout_drops_the_share_and_keeps_the_mean(p: float, seed: int) -> None:
    torch.manual_seed(seed)
    dropped = Dropout(p)(torch.ones(400, 500))
    zeros = (dropped == 0).float().mean().item()
    assert abs(zeros - p) < 6 * (p * (1 - p) / 200_000) ** 0.5 + 1 / 65_536
    kept = dropped[dropped != 0]
    if kept.numel():
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=0.02, atol=0)


def test_dropout_is_independent_from_entry_to_entry() -> None:
    zeros = (Dropout(0.5)(torch.ones(1001, 999)) == 0).float().flatten()
    for distance in (1, 2, 3, 4, 5, 999):
        both = (zeros[distance:] * zeros[:-distance]).mean().item()
        assert abs(both - 0.25) < 0.003, f"neighbors {distance} apart go together: {both}"


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4,), (5, 7)])
def test_dropout_takes_every_shape(shape: tuple[int, ...]) -> None:
    assert Dropout(0.5)(torch.ones(shape)).shape == shape


def test_dropout_obeys_the_seed_the_mode_and_the_extremes() -> None:
    ones = torch.ones(100, 100)
    torch.manual_seed(3)
    first = Dropout(0.3)(ones)
    torch.manual_seed(3)
    assert torch.equal(first, Dropout(0.3)(ones))
    assert not torch.equal(first, Dropout(0.3)(ones))
    assert torch.equal(Dropout(0.3).eval()(ones), ones)
    assert torch.equal(Dropout(0.0)(ones), ones)
    assert torch.equal(Dropout(1.0)(ones), torch.zeros(100, 100))


def test_the_residual_connection_drops_cheaply() -> None:
    assert type(ResidualConnection(8).dropout) is Dropout


# --- attention in bfloat16


@pytest.mark.parametrize("length", [5, 128, 129])
@pytest.mark.parametrize("is_causal", [False, True])
def test_bfloat16_attention_is_near_float32(length: int, is_causal: bool) -> None:
    heads = torch.randn(3, 2, 2, length, 8)
    mask = torch.rand(2, 1, 1, length) > 0.3
    mask[0] = False  # nothing to attend to
    exact = scaled_dot_product_attention(*heads, mask, is_causal=is_causal)
    rounded = scaled_dot_product_attention(*heads.bfloat16(), mask, is_causal=is_causal)
    assert rounded.dtype == torch.bfloat16
    assert not rounded[0].any()
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("dtype", "length", "fused"),
    [(torch.bfloat16, 128, False), (torch.bfloat16, 129, True), (torch.float32, 5, True)],
)
def test_only_short_bfloat16_goes_without_the_fused_kernel(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, length: int, fused: bool
) -> None:
    calls: list[int] = []
    kernel = F.scaled_dot_product_attention

    def listening(*arguments: Any, **more: Any) -> Tensor:
        calls.append(1)
        return kernel(*arguments, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", listening)
    query, key, value = torch.randn(3, 1, 2, length, 8, dtype=dtype)
    output = scaled_dot_product_attention(query, key, value, is_causal=True)
    assert bool(calls) is fused
    expected = attention_weights(query.float(), key.float(), is_causal=True) @ value.float()
    torch.testing.assert_close(output.float(), expected, atol=0.05, rtol=0.05)


def test_dropout_counts_its_draws_exactly() -> None:
    """Of 65,536 draws the last one keeps an entry: about 15 of a million, each as large as it must be."""
    dropout = Dropout(65_535 / 65_536).train()
    kept = dropout(torch.ones(1_000_000))
    assert set(kept.unique().tolist()) == {0.0, 65_536.0}
    assert 1 <= int((kept > 0).sum()) <= 50


def test_a_target_outside_the_vocabulary_is_named(tiny: Callable[..., Transformer]) -> None:
    model, ids = tiny(vocab_size=23), torch.tensor([[5, 6, 2]])
    with pytest.raises(ValueError, match="target ids 2 to 40, but logits of 23"):
        translation_loss(model, Batch(ids, ids, torch.tensor([[6, 40, 2]])))


# --- the order of weights while a model writes

SOURCE = torch.tensor([[3, 4, 5, 6, EOS], [7, 8, EOS, 0, 0], [5, EOS, 0, 0, 0]])


def writer(vocab_size: int = 11) -> Transformer:
    """A small random model whose probabilities are not all alike."""
    config = TransformerConfig(vocab_size, 16, 2, 32, 1, 2, max_length=40)
    model = Transformer(config).eval()
    with torch.no_grad():
        model.embedding.weight *= 2
    return model


@pytest.mark.parametrize("shared", [False, True])
def test_by_columns_changes_the_order_in_memory_and_back(shared: bool) -> None:
    model = writer()
    if shared:  # one module in two places, and one matrix in two modules
        model.decoder.layers[1].feed_forward = model.decoder.layers[0].feed_forward
        model.output = nn.Linear(16, 11, bias=False)
        model.output.weight = model.embedding.weight
    before = {name: (x.data_ptr(), x.stride()) for name, x in model.state_dict().items()}
    numbers = {name: x.clone() for name, x in model.state_dict().items()}
    expected = greedy_decode(model, SOURCE, 6)

    def look_and_leave() -> None:
        assert model.decoder.layers[0].feed_forward.inner.weight.stride() == (1, 32)
        if shared:
            assert model.output.weight is model.embedding.weight
        for name, x in model.state_dict().items():
            assert torch.equal(x, numbers[name]), name
        with by_columns(model):  # as a model inside a model would
            assert greedy_decode(model, SOURCE, 6) == expected
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), by_columns(model):
        look_and_leave()
    after = {name: (x.data_ptr(), x.stride()) for name, x in model.state_dict().items()}
    assert after == before


def test_writing_joins_the_maps_of_self_attention_and_only_where_they_are_plain() -> None:
    model = writer()
    attention = model.decoder.layers[0].self_attention
    x = torch.randn(2, 3, 16)
    expected = attention(x, x, x, is_causal=True)
    with torch.inference_mode(), by_columns(model):
        assert attention.joined is not None
        assert model.encoder.layers[0].self_attention.joined is None, "it reads all at once"
        calls = []
        attention.query_projection.forward = lambda x: calls.append(x)
        torch.testing.assert_close(attention(x, x, x, is_causal=True), expected)
        assert not calls, "one product in place of three"
        del attention.query_projection.forward
        other = torch.randn(2, 5, 16)
        k, v = attention.key_projection(other), attention.value_projection(other)
        k, v = attention.split_heads(k), attention.split_heads(v)
        q = attention.split_heads(attention.query_projection(x))
        heads = attention.attend(q, k, v, None, False).transpose(1, 2).flatten(-2)
        found = attention(x, other, other)
        torch.testing.assert_close(found, attention.output_projection(heads))
    assert attention.joined is None


class Doubling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", ["subclass", "hook", "no bias"])
def test_a_map_that_does_more_is_not_joined(kind: str) -> None:
    model = writer()
    for layer in model.decoder.layers:
        attention: Any = layer.self_attention
        if kind == "subclass":
            attention.key_projection = Doubling(16, 16)
        elif kind == "hook":
            attention.value_projection.register_forward_hook(lambda _, __, out: 3 * out)
        else:
            attention.query_projection.bias = None
    with torch.inference_mode():
        text: list[int] = []
        for _ in range(6):  # the whole decoder anew for each token
            logits = model(SOURCE[:1], torch.tensor([[1, *text]]))[0, -1]
            text.append(int(logits.argmax()))
    assert greedy_decode(model, SOURCE[:1], 6, eos_id=-1) == [text]
    with by_columns(model):
        assert all(layer.self_attention.joined is None for layer in model.decoder.layers)


def test_decoding_leaves_the_weights_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = writer(23)
    before = [(x.data_ptr(), x.stride()) for x in model.parameters()]

    def interrupt(logits: Tensor) -> Tensor:
        assert model.embedding.weight.stride() == (1, 23), "inside, column after column"
        raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "_sound", interrupt)
    for way in (greedy_decode, beam_search, sample):
        with pytest.raises(KeyboardInterrupt):
            way(model, SOURCE, 3)
        assert [(x.data_ptr(), x.stride()) for x in model.parameters()] == before


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


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    chapter_25.check_recompute: [right_recompute, right_by_grad, right_recursive],
    chapter_25.check_eight_bits: [right_eight_bits, right_row_by_row],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    chapter_25.check_recompute: [
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
    chapter_25.check_eight_bits: [
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
        (lambda w: (right_eight_bits(w)[0], 1 / right_eight_bits(w)[1]), "largest / 127"),
        (lambda w: (right_eight_bits(w)[0], 127 * right_eight_bits(w)[1]), "largest number itself"),
        (lambda weight: right_eight_bits(weight)[0], "two tensors"),
        (lambda weight: None, "returned None"),
    ],
}
