"""The vision transformer against torch and Hugging Face, and the checks of chapter 24's exercises."""

import json
import math
from collections.abc import Callable
from importlib import resources
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.book.checks.chapter_24 import (
    check_convolution,
    check_join,
    check_larger_table,
    check_read_some,
)
from transformer_lib.inspection import record_attention
from transformer_lib.layers import LayerNorm
from transformer_lib.training import TrainingSettings, evaluate_loss, train
from transformer_lib.vision import (
    VisionTransformer,
    attention_rollout,
    cut_patches,
)


def small(**changed: Any) -> VisionTransformer:
    sizes = {"image_size": 8, "patch_size": 2, "num_classes": 3, "d_model": 16, "num_heads": 2}
    return VisionTransformer(**(sizes | {"d_ff": 32, "num_layers": 2} | changed))


# Patches


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", [1, 2, 3, 6])
def test_patches_are_those_of_unfold(channels: int, patch: int) -> None:
    images = torch.rand(2, channels, 6, 12)
    reference = F.unfold(images, patch, stride=patch).transpose(1, 2)
    assert torch.equal(cut_patches(images, patch), reference)
    if channels == 1:
        assert torch.equal(cut_patches(images[:, 0], patch), reference)


@pytest.mark.parametrize("shape", [(1, 6, 7), (1, 7, 6), (1, 1, 6, 7)])
def test_sides_that_the_patch_does_not_divide_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="don't multiply"):
        cut_patches(torch.rand(shape), 3)


# The model


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_hugging_faces_vision_transformer(seed: int, channels: int) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_act="relu",
        layer_norm_eps=1e-5,
        image_size=8,
        patch_size=2,
        num_channels=channels,
        qkv_bias=True,
        num_labels=3,
    )
    theirs = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    ours = small(channels=channels).eval()
    given = theirs.state_dict()
    for name, parameter in ours.state_dict().items():
        parameter.copy_(given[theirs_of(name, list(given))].reshape(parameter.shape))
    images = torch.rand(4, channels, 8, 8)
    with torch.no_grad():
        expected = theirs(images).logits
    assert expected.std(dim=0).max() > 0.1, "logits that are all alike would prove nothing"
    torch.testing.assert_close(ours(images), expected, atol=1e-4, rtol=1e-4)


def theirs_of(name: str, names: list[str]) -> str:
    """Hugging Face's name of one of our weights."""
    parts = {
        "embedding.": "vit.embeddings.patch_embeddings.projection.",
        "class_token": "vit.embeddings.cls_token",
        "position.table": "vit.embeddings.position_embeddings",
        "stack.norm.": "vit.layernorm.",
        "classes.": "classifier.",
        "self_attention.query_projection.": ("attention.attention.query.", "attention.q_proj."),
        "self_attention.key_projection.": ("attention.attention.key.", "attention.k_proj."),
        "self_attention.value_projection.": ("attention.attention.value.", "attention.v_proj."),
        "self_attention.output_projection.": ("attention.output.dense.", "attention.o_proj."),
        "feed_forward.inner.": ("intermediate.dense.", "mlp.fc1."),
        "feed_forward.outer.": ("output.dense.", "mlp.fc2."),
        "residual_1.norm.": "layernorm_before.",
        "residual_2.norm.": "layernorm_after.",
    }
    ours = next(part for part in parts if part in name)
    ends = [parts[ours]] if isinstance(parts[ours], str) else list(parts[ours])
    layer = f".{name.split('.')[2]}." if name.startswith("stack.layers") else ""
    tail = name.split(ours)[1]
    found = [n for n in names for end in ends if n.endswith(end + tail) and layer in n]
    found = [n for n in found if not (ours.startswith("feed") and ".attention." in n)]
    assert len(found) == 1, f"{name}: {found} of {names}"
    return found[0]


@pytest.mark.parametrize("class_token", [True, False])
def test_a_batch_gives_what_each_picture_gives_alone(class_token: bool) -> None:
    model = small(class_token=class_token).eval()
    images = torch.rand(5, 8, 8)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, atol=1e-5, rtol=1e-5)
    assert model.position.table.shape == (16 + class_token, 16)


def test_parts_may_be_swapped() -> None:
    model = small().eval()
    images = torch.rand(2, 8, 8)
    whole = model(images)
    model.position = nn.Identity()  # type: ignore[assignment]
    patches = cut_patches(images, 2)[:, torch.randperm(16)].transpose(1, 2)
    mixed = F.fold(patches, 8, 2, stride=2)[:, 0]
    torch.testing.assert_close(model(images), model(mixed), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole, model(images), atol=1e-5)
    model.classes = nn.Linear(16, 7)
    model.stack.norm = LayerNorm(16)
    assert model(images).shape == (2, 7)


def classification_loss(
    model: nn.Module, batch: tuple[Tensor, Tensor], label_smoothing: float
) -> tuple[Tensor, int]:
    images, labels = batch
    return F.cross_entropy(model(images), labels, reduction="sum"), len(labels)


def test_the_one_loop_trains_it() -> None:
    torch.manual_seed(0)
    images = torch.rand(40, 8, 8)
    labels = torch.arange(40) % 3
    model = small(dropout=0.0)
    before = evaluate_loss(model, [(images, labels)], classification_loss)
    train(
        model,
        ((images, labels) for _ in range(150)),
        classification_loss,
        settings=TrainingSettings(150, label_smoothing=0.0),
        optimizer=torch.optim.Adam(model.parameters()),
        rate=lambda step: 3e-3,
    )
    after = evaluate_loss(model, [(images, labels)], classification_loss)
    assert after < 0.2 < 0.9 < before, f"{before} -> {after}"


# The rollout


def test_the_rollout_is_the_sum_over_all_paths() -> None:
    weights = [torch.rand(1, 2, 3, 3).softmax(dim=-1) for _ in range(2)]
    first, second = ((w.mean(dim=1)[0] + torch.eye(3)) / 2 for w in weights)
    found = attention_rollout(weights)
    for top in range(3):
        for bottom in range(3):
            paths = sum(second[top, middle] * first[middle, bottom] for middle in range(3))
            assert found[0, top, bottom].item() == pytest.approx(float(paths), abs=1e-6)
    one = attention_rollout(iter(weights[:1]))
    torch.testing.assert_close(one[0], first)


def test_the_rollout_takes_what_record_attention_gives() -> None:
    model = small().eval()
    with record_attention(model) as weights:
        model(torch.rand(3, 8, 8))
    rollout = attention_rollout(weights.values())
    assert rollout.shape == (3, 17, 17)
    torch.testing.assert_close(rollout.sum(dim=-1), torch.ones(3, 17))


# The stored runs


def test_the_stored_runs_are_there() -> None:
    file = resources.files("transformer_lib") / "book" / "results" / "vision.json"
    stored = json.loads(file.read_text())
    assert stored["command"] == "python experiments/24_vision.py"
    assert stored["settings"]["seeds"] == [1, 2, 3]
    for seed in (1, 2, 3):
        for kind in ("transformer", "convolutional"):
            for size in stored["settings"]["sizes"]:
                assert f"plain, {kind}, {size} pictures, seed {seed}" in stored["runs"]
        assert f"canvases, features, seed {seed}" in stored["runs"]


# The exercises


def join(patches: Tensor, patch_size: int) -> Tensor:
    rows = math.isqrt(patches.size(1))
    cut = patches.view(-1, rows, rows, patch_size, patch_size)
    return cut.permute(0, 1, 3, 2, 4).reshape(-1, rows * patch_size, rows * patch_size)


def join_by_fold(patches: Tensor, patch_size: int) -> Tensor:
    side = math.isqrt(patches.size(1)) * patch_size
    return F.fold(patches.transpose(1, 2), side, patch_size, stride=patch_size)[:, 0]


def join_in_a_loop(patches: Tensor, patch_size: int) -> Tensor:
    rows = math.isqrt(patches.size(1))
    out = torch.empty(len(patches), rows * patch_size, rows * patch_size)
    for place in range(rows * rows):
        top, left = place // rows * patch_size, place % rows * patch_size
        square = patches[:, place].view(-1, patch_size, patch_size)
        out[:, top : top + patch_size, left : left + patch_size] = square
    return out


def join_by_view(patches: Tensor, patch_size: int) -> Tensor:
    side = math.isqrt(patches.size(1)) * patch_size
    return patches.reshape(-1, side, side)


def join_by_columns(patches: Tensor, patch_size: int) -> Tensor:
    rows = math.isqrt(patches.size(1))
    turned = patches.unflatten(1, (rows, rows)).transpose(1, 2).flatten(1, 2)
    return join(turned, patch_size)


def join_turned_patches(patches: Tensor, patch_size: int) -> Tensor:
    turned = patches.unflatten(2, (patch_size, patch_size)).transpose(2, 3).flatten(2)
    return join(turned, patch_size)


def convolution(linear: nn.Linear, channels: int) -> nn.Conv2d:
    patch = round((linear.in_features / channels) ** 0.5)
    found = nn.Conv2d(channels, linear.out_features, patch, stride=patch)
    found.weight = nn.Parameter(linear.weight.detach().unflatten(1, (channels, patch, patch)))
    found.bias = nn.Parameter(linear.bias.detach().clone())
    return found


def convolution_by_state(linear: nn.Linear, channels: int) -> nn.Conv2d:
    patch = math.isqrt(linear.weight.size(1) // channels)
    found = nn.Conv2d(channels, linear.weight.size(0), (patch, patch), (patch, patch))
    weight = linear.weight.reshape(-1, channels, patch, patch)
    found.load_state_dict({"weight": weight, "bias": linear.bias})
    return found


def convolution_wrong(
    linear: nn.Linear,
    channels: int,
    *,
    stride: bool = True,
    bias: bool = True,
    turned: bool = False,
    channels_last: bool = False,
    one_channel: bool = False,
) -> nn.Conv2d:
    channels = 1 if one_channel else channels
    patch = math.isqrt(linear.in_features // channels)
    found = nn.Conv2d(channels, linear.out_features, patch, patch if stride else 1, bias=bias)
    weight = linear.weight.detach()[:, : channels * patch**2].view(-1, channels, patch, patch)
    weight = weight.transpose(2, 3) if turned else weight
    if channels_last:
        weight = linear.weight.detach().view(-1, patch, patch, channels).permute(0, 3, 1, 2)
    found.weight = nn.Parameter(weight.contiguous())
    if bias:
        found.bias = nn.Parameter(linear.bias.detach().clone())
    return found


def fresh_bias(linear: nn.Linear, channels: int) -> nn.Conv2d:
    found = convolution(linear, channels)
    found.bias = nn.Parameter(torch.zeros_like(linear.bias))
    return found


def larger(
    table: Tensor,
    side: int,
    *,
    mode: str = "bilinear",
    corners: bool | None = False,
    swap: bool = False,
) -> Tensor:
    n = math.isqrt(len(table) - 1)
    grid = table[1:].view(n, n, -1).permute(2, 0, 1)[None]
    grid = grid.transpose(2, 3) if swap else grid
    found = F.interpolate(grid, size=(side, side), mode=mode, align_corners=corners)
    return torch.cat([table[:1], found[0].permute(1, 2, 0).reshape(side * side, -1)])


def larger_by_corners(table: Tensor, side: int) -> Tensor:
    return larger(table, side, corners=True)


def larger_as_a_list(table: Tensor, side: int) -> Tensor:
    found = F.interpolate(table[1:].T[None], size=side * side, mode="linear")[0].T
    return torch.cat([table[:1], found])


def larger_with_the_token(table: Tensor, side: int) -> Tensor:
    found = F.interpolate(table.T[None], size=1 + side * side, mode="linear")[0].T
    return torch.cat([table[:1], found[1:]])


def larger_without_the_token(table: Tensor, side: int) -> Tensor:
    return larger(table, side)[1:]


def larger_and_zero(table: Tensor, side: int) -> Tensor:
    found = larger(table, side)
    return torch.cat([torch.zeros_like(found[:1]), found[1:]])


def read_some(
    model: VisionTransformer,
    images: Tensor,
    kept: Tensor,
    *,
    rows: Callable[[Tensor], Tensor] = lambda kept: 1 + kept,
    position_of_token: bool = True,
    read: int = 0,
) -> Tensor:
    x = model.embedding(cut_patches(images, model.patch_size)[:, kept])
    x = x + model.position.table[rows(kept)]
    token = model.class_token
    token = token + model.position.table[0] if position_of_token else token  # type: ignore[operator]
    x = torch.cat([token.expand(len(x), 1, -1), x], dim=1)  # type: ignore[union-attr]
    return model.classes(model.stack(x)[:, read])


def read_after_positions(model: VisionTransformer, images: Tensor, kept: Tensor) -> Tensor:
    x = model.embedding(cut_patches(images, model.patch_size))
    x = torch.cat([model.class_token.expand(len(x), 1, -1), x], dim=1)  # type: ignore[union-attr]
    x = model.position(x)
    chosen = torch.cat([torch.zeros(1, dtype=torch.long), kept + 1])
    return model.classes(model.stack(x[:, chosen])[:, 0])


def paint(model: VisionTransformer, images: Tensor, kept: Tensor) -> Tensor:
    patches = cut_patches(images, model.patch_size)
    mask = torch.zeros(patches.size(1), 1)
    mask[kept] = 1
    return model(join(patches * mask, model.patch_size))


def with_(function: Callable[..., Any], **chosen: Any) -> Callable[..., Any]:
    return lambda *arguments: function(*arguments, **chosen)


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    check_join: [join, join_by_fold, join_in_a_loop],
    check_convolution: [convolution, convolution_by_state],
    check_larger_table: [larger, larger_by_corners],
    check_read_some: [read_some, read_after_positions],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    check_join: [
        (join_by_view, "renames"),
        (join_by_columns, "column after column"),
        (join_turned_patches, "each patch is mirrored"),
        (lambda p, s: join(p, s).transpose(1, 2), "rows and columns"),
        (lambda p, s: join(p, 2), "fixed"),
        (lambda p, s: join(p, s)[0], "shape"),
    ],
    check_convolution: [
        (with_(convolution_wrong, stride=False), "stride"),
        (with_(convolution_wrong, turned=True), "row after row"),
        (with_(convolution_wrong, channels_last=True), "channel after channel"),
        (with_(convolution_wrong, one_channel=True), "kernel"),
        (with_(convolution_wrong, bias=False), "bias"),
        (fresh_bias, "bias"),
        (lambda linear, channels: linear, "Conv2d"),
    ],
    check_larger_table: [
        (larger_as_a_list, "two dimensions"),
        (larger_with_the_token, "leaked"),
        (larger_without_the_token, "shape"),
        (larger_and_zero, "class token"),
        (with_(larger, swap=True), "swapped"),
        (with_(larger, mode="nearest", corners=None), "repeated"),
    ],
    check_read_some: [
        (paint, "black"),
        (with_(read_some, rows=lambda k: 1 + torch.arange(len(k))), "order"),
        (with_(read_some, rows=lambda k: k), "class token"),
        (with_(read_some, position_of_token=False), "class token"),
        (with_(read_some, read=-1), "the one that is read"),
        (lambda model, images, kept: model(images)[:1], "shape"),
        (with_(read_some, rows=lambda k: 1 + torch.argsort(torch.argsort(k))), "1, 2, 3"),
    ],
}
