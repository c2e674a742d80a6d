"""Chapter 14: the loss in pieces, cheap dropout, bfloat16 attention, averaging, and checkpoints."""

import errno
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transformer_lib.attention import scaled_dot_product_attention
from transformer_lib.layers import Dropout, ResidualConnection
from transformer_lib.pairs import make_batch
from transformer_lib.training import (
    _ChunkedCrossEntropy,
    average_weights,
    load_checkpoint,
    make_optimizer,
    read_tensors,
    save_checkpoint,
    translation_loss,
    write_tensors,
)
from transformer_lib.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(12, 16, 2, 32, 1, 1)
BATCH = make_batch([([3, 4, 5, 2], [6, 7]), ([3, 2], [8, 9, 10])])


# The loss in pieces ------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.sampled_from([1, 2, 511, 512, 513, 1100]),
    vocab_size=st.integers(2, 40),
    smoothing=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    seed=st.integers(0, 1000),
)
def test_the_loss_in_pieces_is_torchs(
    tokens: int, vocab_size: int, smoothing: float, seed: int
) -> None:
    torch.manual_seed(seed)
    hidden = torch.randn(tokens, 6, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(vocab_size, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, vocab_size, (tokens,))
    ours = _ChunkedCrossEntropy.apply(hidden, matrix, targets, smoothing)
    theirs = F.cross_entropy(hidden @ matrix.T, targets, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)
    ours_grads = torch.autograd.grad(2.5 * ours, (hidden, matrix))
    for grad, other in zip(
        ours_grads, torch.autograd.grad(2.5 * theirs, (hidden, matrix)), strict=True
    ):
        torch.testing.assert_close(grad, other)


def test_the_loss_in_pieces_leaves_its_input_alone() -> None:
    hidden, matrix = torch.randn(7, 4), torch.randn(9, 4)
    before = hidden.clone(), matrix.clone()
    _ChunkedCrossEntropy.apply(hidden, matrix, torch.randint(0, 9, (7,)), 0.1)
    assert torch.equal(hidden, before[0])
    assert torch.equal(matrix, before[1])


def test_large_scores_stay_finite() -> None:
    hidden = torch.full((3, 4), 1e4, requires_grad=True)
    matrix = torch.randn(9, 4, requires_grad=True)
    loss = _ChunkedCrossEntropy.apply(hidden, matrix, torch.tensor([1, 2, 3]), 0.1)
    loss.backward()
    assert loss.isfinite()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_bfloat16_loss_is_near_and_its_gradients_are_float32() -> None:
    torch.manual_seed(0)
    model = Transformer(CONFIG).eval()
    exact = translation_loss(model, BATCH)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = translation_loss(model, BATCH)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)
    rounded.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


@pytest.mark.parametrize("smoothing", [-0.1, 1.1])
def test_label_smoothing_is_a_share(smoothing: float) -> None:
    with pytest.raises(ValueError, match=f"label_smoothing .*{smoothing}"):
        translation_loss(Transformer(CONFIG), BATCH, smoothing)


# Dropout -----------------------------------------------------------------------------------------


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
    torch.manual_seed(0)
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


# Attention in bfloat16 ---------------------------------------------------------------------------


@pytest.mark.parametrize("length", [5, 128, 129])
@pytest.mark.parametrize("is_causal", [False, True])
def test_bfloat16_attention_is_near_float32(length: int, is_causal: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, length, 8)
    mask = torch.rand(2, 1, 1, length) > 0.3
    mask[0] = False  # nothing to attend to
    exact, _ = scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal)
    rounded, weights = scaled_dot_product_attention(
        query.bfloat16(), key.bfloat16(), value.bfloat16(), mask, is_causal=is_causal
    )
    assert weights is None
    assert rounded.dtype == torch.bfloat16
    assert not rounded[0].any()
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


# Averaging ---------------------------------------------------------------------------------------


def test_average_weights_is_the_mean() -> None:
    states = [{"w": torch.full((2, 3), float(i)), "n": torch.tensor(i)} for i in (1, 2, 6)]
    mean = average_weights(states)
    assert torch.equal(mean["w"], torch.full((2, 3), 3.0))
    assert mean["n"].dtype == torch.int64
    assert torch.equal(states[0]["w"], torch.ones(2, 3))


def test_average_weights_refuses() -> None:
    with pytest.raises(ValueError, match="no states"):
        average_weights([])
    with pytest.raises(ValueError, match=r"'w', \(2,\)"):
        average_weights([{"w": torch.ones(2)}, {"w": torch.ones(3)}])


# Checkpoints -------------------------------------------------------------------------------------


def trained(steps: int = 2) -> tuple[Transformer, torch.optim.Adam]:
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    optimizer = make_optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for _ in range(steps):
        optimizer.zero_grad()
        translation_loss(model, BATCH).backward()
        optimizer.step()
    return model, optimizer


def test_a_checkpoint_brings_back_everything(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    model, optimizer = trained()
    save_checkpoint(path, model, optimizer, step=2, text="ü")
    expected_draw = torch.rand(3)
    other = Transformer(CONFIG)
    other_optimizer = make_optimizer(other)
    notes = load_checkpoint(path, other, other_optimizer)
    assert notes == {"step": 2, "text": "ü"}
    assert torch.equal(torch.rand(3), expected_draw)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    ours_state, theirs_state = (
        optimizer.state_dict()["state"],
        other_optimizer.state_dict()["state"],
    )
    assert ours_state.keys() == theirs_state.keys()
    for index, entry in ours_state.items():
        for name, value in entry.items():
            assert torch.equal(value, theirs_state[index][name]), (index, name)


def test_every_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    model, optimizer = trained()
    save_checkpoint(path, model, optimizer, step=2)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    before = [parameter.clone() for parameter in model.parameters()]
    for place in (header, (header + len(whole)) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            load_checkpoint(path, model, optimizer)
    for length in (0, 7, header - 3, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="no whole safetensors file"):
            load_checkpoint(path, model, optimizer)
    for ours, theirs in zip(model.parameters(), before, strict=True):
        assert torch.equal(ours, theirs), "a refused checkpoint must change nothing"


def test_a_checkpoint_of_another_model_or_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    model, optimizer = trained()
    save_checkpoint(path, model, optimizer)
    wider = Transformer(TransformerConfig(12, 32, 2, 32, 1, 1))
    with pytest.raises(ValueError, match=r"another model.*\(32,\)"):
        load_checkpoint(path, wider, make_optimizer(wider))
    write_tensors(path, model.state_dict())
    with pytest.raises(ValueError, match="another model"):
        load_checkpoint(path, model, optimizer)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_tensors(tmp_path / "none")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    write_tensors(path, {"x": torch.ones(2)}, step=1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, {"x": torch.zeros(2)}, step=2)
    tensors, notes = read_tensors(path)
    assert notes == {"step": 1}
    assert torch.equal(tensors["x"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


def test_write_tensors_keeps_dtypes_and_scalars(tmp_path: Path) -> None:
    tensors = {
        "half": torch.ones(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "view": torch.arange(6.0).view(2, 3).T,
        "empty": torch.zeros(0, 4),
        "parameter": nn.Parameter(torch.ones(1)),
    }
    write_tensors(tmp_path / "x", tensors)
    for name, x in read_tensors(tmp_path / "x")[0].items():
        assert x.dtype == tensors[name].dtype
        assert torch.equal(x, tensors[name])
