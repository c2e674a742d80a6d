"""Small pictures in clutter, and attention that pools their patches; chapter 4's exercises."""

import math
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgb
from torch import Tensor, nn

from transformer_lib.book.checks.chapter_04 import (
    check_attention_pooling,
    check_contributions,
    check_heat_map,
    check_many_queries,
)
from transformer_lib.book.plots import plot_heat_map
from transformer_lib.book.style import PALETTE
from transformer_lib.book.toys import make_canvases, mass_in_box
from transformer_lib.vision import FASHION_CLASSES, AttentionPooling, load_fashion


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- load_fashion


@pytest.mark.parametrize(("split", "number"), [("train", 6000), ("test", 1000)])
def test_the_shipped_pictures_are_loaded(split: str, number: int) -> None:
    images, labels = load_fashion(split)
    assert images.shape == (number, 28, 28)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    assert labels.dtype == torch.int64
    assert labels.bincount().tolist() == [number // 10] * len(FASHION_CLASSES)


def test_labels_belong_to_their_pictures() -> None:
    images, labels = load_fashion("train")
    tall = {name: images[labels == k].mean(dim=0) for k, name in enumerate(FASHION_CLASSES)}
    # Trousers leave the left and right thirds black; sneakers the top third.
    assert tall["trousers"][:, :7].mean() < 0.05 < tall["pullover"][:, :7].mean()
    assert tall["sneaker"][:8].mean() < 0.05 < tall["ankle boot"][:8].mean()


def test_another_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'validation'; there are train, test"):
        load_fashion("validation")


# --- make_canvases


NUMBERED = (torch.arange(1, 6) / 10)[:, None, None].expand(5, 6, 6)  # picture k is all (k + 1) / 10


def test_the_object_is_whole_in_its_box_and_its_class_is_the_label() -> None:
    made = make_canvases(NUMBERED, torch.arange(5), 200, 20, seeded(), piece=3)
    assert made.images.shape == (200, 20, 20)
    assert made.boxes.shape == (200, 4)
    for image, label, (top, left, bottom, right) in zip(
        made.images, made.labels, made.boxes.tolist(), strict=True
    ):
        assert (bottom - top, right - left) == (6, 6)
        assert torch.equal(image[top:bottom, left:right], NUMBERED[label])
    assert made.boxes.amin(dim=0).tolist() == [0, 0, 6, 6], "the first corner is reached"
    assert made.boxes.amax(dim=0).tolist() == [14, 14, 20, 20], "the last corner is reached"
    assert set(made.labels.tolist()) == set(range(5))


def test_fragments_are_pieces_of_the_pictures_that_were_asked_for() -> None:
    stripes = torch.arange(36.0).reshape(1, 6, 6) + 1  # every pixel tells where it is from
    made = make_canvases(
        torch.zeros(1, 6, 6), torch.zeros(1), 50, 24, seeded(), clutter=0.05, piece=3,
        pieces_of=stripes,
    )  # fmt: skip
    blocks = stripes[0].unfold(0, 3, 1).unfold(1, 3, 1).reshape(-1, 9)  # all 16 pieces
    found = made.images.unfold(1, 3, 1).unfold(2, 3, 1).reshape(50, -1, 9)
    whole = (found[:, :, None] == blocks).all(dim=-1).any(dim=1)  # (canvases, pieces)
    assert whole.any(dim=0).all(), "every piece is cut somewhere"
    assert (made.images > 0).flatten(1).sum(dim=1).max() <= 27, "three pieces at most"


@pytest.mark.parametrize(("clutter", "piece", "number"), [(0.0, 3, 0), (1.0, 4, 25), (0.75, 5, 12)])
def test_clutter_is_the_area_of_the_fragments(clutter: float, piece: int, number: int) -> None:
    once = make_canvases(
        torch.zeros(1, 2, 2), torch.zeros(1), 300, 20, seeded(), clutter=clutter, piece=piece,
        pieces_of=torch.ones(1, 9, 9),
    )  # fmt: skip
    area = once.images.mean().item()
    missed = (1 - (piece / 20) ** 2) ** number  # were the fragments anywhere with equal chance
    assert abs(area - (1 - missed)) < 0.05, f"{number} fragments should cover {1 - missed}: {area}"


def test_the_generator_alone_decides() -> None:
    labels = torch.arange(5)
    one = make_canvases(NUMBERED, labels, 3, 20, seeded(1), piece=3)
    torch.manual_seed(7)
    same = make_canvases(NUMBERED, labels, 3, 20, seeded(1), piece=3)
    other = make_canvases(NUMBERED, labels, 3, 20, seeded(2), piece=3)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.images, other.images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.rand(5, 6, 7)}, r"images must be .*\(5, 6, 7\)"),
        ({"images": torch.rand(0, 6, 6)}, r"images must be .*\(0, 6, 6\)"),
        ({"pieces_of": torch.rand(6, 6)}, r"pieces_of must be .*\(6, 6\)"),
        ({"labels": torch.arange(4)}, r"5 images need as many labels, got \(4,\)"),
        ({"count": 0}, r"on 0 canvases"),
        ({"size": 5}, r"side 6 on 3 canvases of side 5"),
        ({"piece": 7}, r"side 7 from pictures of side 6"),
        ({"piece": 0}, r"side 0 from"),
        ({"clutter": -1.0}, r"clutter -1\.0"),
        ({"size": 6, "piece": 8, "pieces_of": torch.rand(1, 9, 9)}, r"side 8 .* of side 6"),
    ],
)
def test_canvases_that_cannot_be_made_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"images": NUMBERED, "labels": torch.arange(5), "count": 3, "size": 20, "piece": 3}
    with pytest.raises(ValueError, match=message):
        make_canvases(**(arguments | changes), generator=seeded())


# --- AttentionPooling


def pooling(d_model: int = 8) -> AttentionPooling:
    module = AttentionPooling(d_model)
    nn.init.normal_(module.query)
    return module


def test_a_fresh_module_averages_and_can_learn_from_there() -> None:
    module, patches = AttentionPooling(8), torch.randn(3, 7, 8)
    pooled, weights = module(patches)
    torch.testing.assert_close(weights, torch.full((3, 7), 1 / 7))
    torch.testing.assert_close(pooled, module.value(patches).mean(dim=1))
    pooled.square().sum().backward()
    assert module.query.grad is not None
    assert module.query.grad.abs().max() > 1e-4, "a query of zeros should get a gradient"


@pytest.mark.parametrize("shape", [(7, 8), (3, 7, 8), (2, 3, 7, 8), (3, 1, 8)])
def test_it_is_attention_with_one_query(shape: tuple[int, ...]) -> None:
    module, patches = pooling(), torch.randn(shape, generator=seeded())
    pooled, weights = module(patches)
    assert pooled.shape == (*shape[:-2], 8)
    assert weights.shape == shape[:-1]
    query = module.query.expand(*shape[:-2], 1, 8)
    expected = F.scaled_dot_product_attention(query, patches, module.value(patches), scale=1.0)
    torch.testing.assert_close(pooled, expected[..., 0, :])
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(shape[:-2]))


def test_it_does_not_mind_order_nor_neighbors_in_the_batch() -> None:
    module, patches = pooling(), torch.randn(4, 9, 8, generator=seeded())
    pooled, weights = module(patches)
    order = torch.randperm(9, generator=seeded())
    shuffled, moved = module(patches[:, order])
    torch.testing.assert_close(shuffled, pooled)
    torch.testing.assert_close(moved, weights[:, order])
    for number in range(4):
        alone, _ = module(patches[number : number + 1])
        torch.testing.assert_close(alone[0], pooled[number])


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="d_model must be int from 1 to inf, got 0"):
        AttentionPooling(0)
    with pytest.raises(RuntimeError, match="size mismatch|cannot be multiplied"):
        pooling()(torch.zeros(3, 7, 9))


# --- mass_in_box


def test_mass_counts_the_part_of_a_patch_that_is_inside() -> None:
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).expand(4, 4)  # 2 x 2 patches of 4 x 4 pixels
    boxes = torch.tensor([[0, 0, 8, 8], [0, 4, 4, 8], [4, 0, 8, 4], [2, 3, 6, 5]])
    inside = mass_in_box(weights, boxes, 8)
    # The last box has 2 x 1 of the 16 pixels of each patch.
    torch.testing.assert_close(inside, torch.tensor([1.0, 0.2, 0.3, 1 / 8]))


def test_mass_is_the_sum_of_the_pixels() -> None:
    weights = torch.rand(50, 25, generator=seeded()).softmax(dim=1)
    corners = torch.randint(0, 10, (50, 2), generator=seeded(1))
    boxes = torch.cat([corners, corners + torch.tensor([7, 4])], dim=1)  # taller than wide
    pixels = weights.reshape(50, 5, 5).repeat_interleave(4, 1).repeat_interleave(4, 2) / 16
    expected = [
        image[t:b, x:y].sum() for image, (t, x, b, y) in zip(pixels, boxes.tolist(), strict=True)
    ]
    torch.testing.assert_close(mass_in_box(weights, boxes, 20), torch.stack(expected))


@pytest.mark.parametrize(
    ("weights", "boxes", "size", "message"),
    [
        ((2, 9), (3, 4), 12, r"\(2, 9\) and \(3, 4\)"),
        ((9,), (9, 4), 12, r"\(9,\) and \(9, 4\)"),
        ((2, 8), (2, 4), 12, r"8 patches make no square grid"),
        ((2, 9), (2, 4), 13, r"9 patches .* side 13"),
        ((2, 0), (2, 4), 12, r"0 patches"),
    ],
)
def test_mass_of_what_does_not_fit_is_refused(
    weights: tuple[int, ...], boxes: tuple[int, ...], size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mass_in_box(torch.zeros(weights), torch.zeros(boxes), size)


# --- plot_heat_map


def test_a_heat_map_lies_over_the_picture_and_the_box() -> None:
    with plt.rc_context():
        weights = torch.zeros(2, 3)
        weights[0, 2] = 0.5  # top right
        box = torch.tensor([1, 8, 4, 12])
        ax = plot_heat_map(torch.rand(8, 12), weights, box, title="bag")
        picture, heat = ax.get_images()
        assert tuple(picture.get_extent()) == tuple(heat.get_extent()) == (0, 12, 8, 0)
        over = torch.tensor(heat.get_array())
        assert over.shape == (2, 3, 4)
        assert over[0, 2, 3] > 0.7, "the largest weight is all but opaque"
        assert over[..., 3].sum() == over[0, 2, 3], "no weight, no color"
        assert over[0, 2, :3].tolist() == pytest.approx(to_rgb(PALETTE["attention"]))
        [frame] = ax.patches
        assert frame.get_bbox().bounds == (8, 1, 4, 3), "x is the column, y the row"
        assert ax.get_title() == "bag"
        bare = plot_heat_map(torch.rand(8, 12))
        assert (len(bare.get_images()), len(bare.patches)) == (1, 0)
        plt.close("all")


@pytest.mark.parametrize(
    ("image", "weights", "message"),
    [
        ((1, 8, 8), None, r"got \(1, 8, 8\)"),
        ((8, 8), (16,), r"weights of shape \(16,\)"),
        ((8, 9), (4, 4), r"\(4, 4\) do not divide an image of shape \(8, 9\)"),
    ],
)
def test_a_heat_map_that_does_not_fit_is_refused(
    image: tuple[int, ...], weights: tuple[int, ...] | None, message: str
) -> None:
    before = plt.get_fignums()
    with pytest.raises(ValueError, match=message):
        plot_heat_map(torch.zeros(image), None if weights is None else torch.ones(weights))
    assert plt.get_fignums() == before, "no empty figure is left behind"


# --- the checks of the exercises


def weigh(scores: Tensor, patches: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    weights = scores.softmax(dim=dim)
    return (weights[..., None] * patches).sum(dim=-2), weights


def pooled_by_exp(patches: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    exponentials = (patches @ query).exp()
    weights = exponentials / exponentials.sum(dim=-1, keepdim=True)
    return (weights[..., None] * patches).sum(dim=-2), weights


def spread(layout: Tensor, patch: int) -> Tensor:
    return layout.repeat_interleave(patch, 0).repeat_interleave(patch, 1)


def many(patches: Tensor, queries: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    weights = (queries @ patches.transpose(-2, -1)).softmax(dim=dim)
    return weights @ patches, weights


def shared_softmax(patches: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    scores = queries @ patches.transpose(-2, -1)
    weights = scores.flatten(1).softmax(dim=-1).view_as(scores)
    return weights @ patches, weights


def pooled_by_einsum(patches: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.einsum("bpd,d->bp", patches, query).softmax(dim=1)
    return torch.einsum("bp,bpd->bd", weights, patches), weights


def many_one_by_one(patches: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    pairs = [weigh(patches @ query, patches) for query in queries]
    return torch.stack([p for p, _ in pairs], dim=1), torch.stack([w for _, w in pairs], dim=1)


def map_by_kron(weights: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    return torch.kron(weights.reshape(rows, columns), torch.full((patch, patch), 1 / patch**2))


def contributions_by_einsum(weights: Tensor, values: Tensor, classes: nn.Linear) -> Tensor:
    return torch.einsum("bp,bpd,cd->bpc", weights, values, classes.weight)


def contributions_by_difference(weights: Tensor, values: Tensor, classes: nn.Linear) -> Tensor:
    weighted = weights[..., None] * values
    return classes(weighted) - classes(torch.zeros_like(weighted))


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    check_attention_pooling: [lambda h, q: weigh(h @ q, h), pooled_by_einsum],
    check_heat_map: [lambda w, r, c, p: spread(w.reshape(r, c) / p**2, p), map_by_kron],
    check_many_queries: [lambda h, q: many(h, q, dim=-1), many_one_by_one],
    check_contributions: [contributions_by_einsum, contributions_by_difference],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    check_attention_pooling: [
        (lambda h, q: weigh(h @ q, h)[0], "return two tensors"),
        (lambda h, q: weigh(h @ q, h, dim=0), "a fifth"),
        (lambda h, q: weigh(-(h @ q), h), "a sign is wrong"),
        (lambda h, q: weigh(h @ q / math.sqrt(h.size(-1)), h), "divided by sqrt"),
        (lambda h, q: weigh(h.norm(dim=-1) * q.norm(), h), "the scores q"),
        (lambda h, q: (h.mean(dim=1), (h @ q).softmax(dim=-1)), "pooled vectors are not"),
        (lambda h, q: (h @ q, (h @ q).softmax(dim=-1)), "pooled vector of one picture"),
        (pooled_by_exp, "overflow"),
    ],
    check_heat_map: [
        (lambda w, r, c, p: spread(w.reshape(c, r).T / p**2, p), "rows and columns are swapped"),
        (lambda w, r, c, p: spread(w.reshape(c, r) / p**2, p), r"should have shape \(2, 3\)"),
        (lambda w, r, c, p: spread(w.flip(0).reshape(r, c) / p**2, p), "one row after another"),
        (lambda w, r, c, p: (w.reshape(r, c) / p**2).repeat(p, p), "repeat_interleave, not"),
        (lambda w, r, c, p: spread(w.reshape(r, c), p), "adds up to 4"),
        (lambda w, r, c, p: spread(w.reshape(r, c) / p, p), "how many pixels"),
        (lambda w, r, c, p: spread(w.div_(p**2).reshape(r, c), p), "number 1 in place"),
    ],
    check_many_queries: [
        (lambda h, q: many(h, q, dim=-1)[0], "return two tensors"),
        (lambda h, q: many(h, q, dim=-2), "is the softmax over the patches"),
        (shared_softmax, "share one softmax"),
        (lambda h, q: many(h, q.mean(dim=0, keepdim=True), dim=-1), "pooled vectors of 2 pictures"),
        (
            lambda h, q: tuple(part.flip(1) for part in many(h, q, dim=-1)),
            "moves the first two|all together are not",
        ),
    ],
    check_contributions: [
        (lambda w, v, c: w[:, :, None] * c(v), "bias is counted"),
        (lambda w, v, c: v @ c.weight.T, "adds nothing"),
        (lambda w, v, c: w[:, :, None] * (v @ c.weight.T) * 2, "class weights"),
        (lambda w, v, c: (w[:, :, None] * (v @ c.weight.T)).sum(dim=1), "the contributions"),
        (lambda w, v, c: w.square()[:, :, None] * (v @ c.weight.T), "must add up"),
    ],
}
