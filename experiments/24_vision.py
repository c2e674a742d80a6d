"""What chapter 24 shows of runs that take minutes: `python experiments/24_vision.py`, half an hour on one core.

A vision transformer and a convolutional network with as many parameters, on the pictures of clothes. Three seeds
each; a run sees equally many pictures a step, the convolutional one for as many steps as take equal CPU time: the
ratio is measured once, stored, and fixed from then on.

- the rate of each, on pictures held out from training; then 250, 1,000 and 6,000 pictures;
- both on pictures whose pixels are shuffled; the transformer for four times as many steps;
- the class token or the average, and larger patches;
- position vectors: as they are learned, from patches in a fixed disorder, and from shuffled pixels;
- chapter 4's canvases, read as pixels and as the features of its convolutions: the attention's rollout, and what
  deleting its brightest patches costs.
"""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from resumable import Results

from transformer_lib.book.toys import make_canvases, mass_in_box
from transformer_lib.inspection import record_attention
from transformer_lib.training import TrainingSettings, train
from transformer_lib.transformer import count_parameters
from transformer_lib.vision import (
    VisionTransformer,
    attention_rollout,
    cut_patches,
    load_fashion,
)

SETTINGS: dict[str, Any] = {
    "seeds": [1, 2, 3],
    "steps": 500,
    "longer": 4,
    "pictures_a_step": 32,
    "sizes": [250, 1000, 6000],
    "rates": [1e-3, 3e-3, 1e-2],
    "patch_size": 4,
    "patch_sizes": [7, 14],
    "transformer": {"d_model": 48, "num_heads": 4, "d_ff": 96, "num_layers": 3},
    "channels": [36, 60, 72],
    "canvas": {"size": 40, "steps": 500, "test": 1000, "seed": 1004, "deleted": 5, "shown": 6},
}
KINDS = ("transformer", "convolutional")
Transform = Callable[[Tensor], Tensor]


def convolutional(channels: list[int]) -> nn.Module:
    """Three convolutions of 3 x 3 pixels, half the size after each of the first two."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 28))]
    for before, after in zip([1, *channels], channels, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if after != channels[-1] else []
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10)]
    # the order in memory that convolutions like best
    model: nn.Module = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def new_model(kind: str, seed: int, **changed: Any) -> Any:
    """A fresh transformer or convolutional network."""
    torch.manual_seed(seed)
    if kind == "convolutional":
        return convolutional(SETTINGS["channels"])
    sizes = {"image_size": 28, "patch_size": SETTINGS["patch_size"], "num_classes": 10}
    build = Hybrid if kind == "hybrid" else VisionTransformer
    return build(**(sizes | SETTINGS["transformer"] | changed))


def some_of_each(images: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """So many pictures, drawn by chance, equally many of each class."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    chosen = torch.cat([order[labels[order] == c][: count // 10] for c in range(10)])
    return images[chosen], labels[chosen]


def batches(images: Tensor, labels: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(labels), generator=generator).split(
            SETTINGS["pictures_a_step"]
        ):
            yield images[chosen], labels[chosen]


def classification_loss(
    model: nn.Module, batch: tuple[Tensor, Tensor], label_smoothing: float
) -> tuple[Tensor, int]:
    """Cross-entropy of the right classes in nats, and of how many pictures it is the sum."""
    images, labels = batch
    return F.cross_entropy(model(images), labels, reduction="sum"), len(labels)


def fit(model: nn.Module, stream: Iterator[Any], steps: int, rate: float) -> float:
    """Train by the book's loop; a few steps up, then a line down. Loss of the last steps."""
    reports = train(
        model,
        stream,
        classification_loss,
        settings=TrainingSettings(steps, label_smoothing=0.0),
        optimizer=torch.optim.AdamW(model.parameters(), fused=True),
        rate=lambda step: rate * min(1.0, step / 50) * (1 - step / (steps + 1)),
    )
    return reports[-1].train_loss


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share that is named rightly."""
    said = torch.cat([model(some).argmax(dim=-1) for some in images.split(250)])
    return (said == labels).float().mean().item()


def seconds_a_step(kind: str) -> float:
    """CPU seconds of one step of training, without the choice of pictures."""
    model = new_model(kind, 0)
    images, labels = torch.rand(SETTINGS["pictures_a_step"], 28, 28), torch.arange(32) % 10
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    begin = time.process_time()
    for _ in range(20):
        optimizer.zero_grad()
        classification_loss(model, (images, labels), 0.0)[0].backward()
        optimizer.step()
    return (time.process_time() - begin) / 20


def prepare(results: Results) -> None:
    """Parameters, the ratio of times, and the rate of each network, from held-out pictures."""
    if "time" not in results:
        rounds = [[seconds_a_step(kind) for kind in KINDS] for _ in range(5)]
        ratio = sorted(a / b for a, b in rounds)[2]
        results["time"] = {"transformer to convolutional": ratio, "seconds a step": rounds}
    results["parameters"] = {kind: count_parameters(new_model(kind, 0)) for kind in KINDS}
    images, labels = load_fashion("train")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held, rest = order[:1000], order[1000:]
    for kind in KINDS:
        for rate in SETTINGS["rates"]:
            if (run := f"{kind}, rate {rate}") in results:
                continue
            model = new_model(kind, 0)
            fit(model, batches(images[rest], labels[rest], 0), steps(results, kind), rate)
            results[run] = {"held out": accuracy(model, images[held], labels[held])}
            print(run, results[run], flush=True)


def steps(results: Results, kind: str) -> int:
    """As many as take the time of the transformer's."""
    ratio: float = results["time"]["transformer to convolutional"] if kind == "convolutional" else 1
    return round(int(SETTINGS["steps"]) * ratio)


def best_rate(results: Results, kind: str) -> float:
    """That with which most of the held-out pictures were named rightly."""
    rates: list[float] = SETTINGS["rates"]
    found = {rate: results[f"{kind}, rate {rate}"]["held out"] for rate in rates}
    return max(found, key=found.__getitem__)


def pictures(
    results: Results,
    what: str,
    kind: str,
    count: int,
    transform: Callable[[int], Transform] = lambda seed: lambda x: x,
    times: int = 1,
    **changed: Any,
) -> None:
    """Train and test one kind of network, with each seed."""
    for seed in SETTINGS["seeds"]:
        if (run := f"{what}, {kind}, {count} pictures, seed {seed}") in results:
            continue
        change = transform(seed)
        train_set = some_of_each(*load_fashion("train"), count, seed)
        images, labels = change(train_set[0]), train_set[1]
        test_images, test_labels = load_fashion("test")
        model = new_model(kind, seed, **changed)
        stream = batches(images, labels, seed)
        loss = fit(model, stream, times * steps(results, kind), best_rate(results, kind))
        found: dict[str, Any] = {
            "test": accuracy(model, change(test_images), test_labels),
            "train": accuracy(model, images[:1000], labels[:1000]),
            "loss": loss,
        }
        if what in ("plain", "patches in disorder", "shuffled pixels") and count == 6000:
            found |= {"similarity": similarity(model)} if kind == "transformer" else {}
        results[run] = found
        shown = {key: value for key, value in found.items() if key != "similarity"}
        print(run, shown, f"{time.process_time():.0f} CPU s", flush=True)


def similarity(model: VisionTransformer) -> list[str]:
    """Hundredths of the cosine between the position vectors of any two patches, a row a line."""
    unit = F.normalize(model.position.table.detach()[1:], dim=-1)  # (patches, d_model)
    rows: list[list[int]] = (100 * unit @ unit.T).round().int().tolist()
    return [" ".join(map(str, row)) for row in rows]


def shuffle_pixels(seed: int) -> Transform:
    """One order for all pictures, drawn by chance."""
    order = torch.randperm(784, generator=torch.Generator().manual_seed(seed))
    return lambda images: images.flatten(1)[:, order].unflatten(1, (28, 28))


def shuffle_patches(seed: int) -> Transform:
    """One order of the patches for all pictures: place i shows what belongs to place order[i]."""
    side = 28 // SETTINGS["patch_size"]
    order = torch.randperm(side**2, generator=torch.Generator().manual_seed(seed))

    def transform(images: Tensor) -> Tensor:
        patches = cut_patches(images, SETTINGS["patch_size"])[:, order].transpose(1, 2)
        return F.fold(patches, 28, SETTINGS["patch_size"], stride=SETTINGS["patch_size"])[:, 0]

    return transform


class Hybrid(VisionTransformer):
    """A vision transformer whose words are chapter 4's features of patches, made by convolutions."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        patch, width = self.patch_size, sizes["d_model"]
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, patch, stride=patch), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        )
        self.embedding = nn.Identity()  # type: ignore[assignment]
        self.patch_size = 1  # each place of the features is a word

    def forward(self, images: Tensor) -> Tensor:
        """The same, of what the convolutions see."""
        return super().forward(self.features(images[:, None]))


def canvases(results: Results, words: str, seed: int) -> None:
    """Train on chapter 4's canvases; where the rollout looks, and what deleting that costs."""
    if (run := f"canvases, {words}, seed {seed}") in results:
        return
    told = SETTINGS["canvas"]
    size, patch = told["size"], SETTINGS["patch_size"]
    side = size // patch
    small = {}
    for split in ("train", "test"):
        images, labels = load_fashion(split)
        small[split] = F.avg_pool2d(images, 2), labels
    generator = torch.Generator().manual_seed(seed)
    made = partial(make_canvases, size=size, generator=generator)

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            canvas = made(*small["train"], SETTINGS["pictures_a_step"])
            yield canvas.images, canvas.labels

    fixed = torch.Generator().manual_seed(told["seed"])
    test = make_canvases(*small["test"], told["test"], size, fixed)
    model = new_model("hybrid" if words == "features" else "transformer", seed, image_size=size)
    found: dict[str, Any] = {}
    for when in ("untrained", "trained"):
        if when == "trained":
            fit(model, stream(), told["steps"], best_rate(results, "transformer"))
        model.eval()
        with torch.no_grad(), record_attention(model) as weights:
            model(test.images)
        rollout = attention_rollout(weights.values())[:, 0, 1:]  # (count, patches)
        last = list(weights.values())[-1].mean(dim=1)[:, 0, 1:]
        for name, map_ in (("rollout", rollout), ("last layer", last)):
            share = map_ / map_.sum(dim=-1, keepdim=True)
            found[f"{name} in the box, {when}"] = mass_in_box(share, test.boxes, size).mean().item()
    found["test"] = accuracy(model, test.images, test.labels)
    generator = torch.Generator().manual_seed(seed)
    for name, score in (
        ("brightest", rollout),
        ("random", torch.rand(rollout.shape, generator=generator)),
    ):
        gone = score.topk(told["deleted"], dim=1).indices  # (count, deleted)
        keep = torch.ones_like(score).scatter(1, gone, 0.0).unflatten(1, (1, side, side))
        without = test.images * F.interpolate(keep, scale_factor=patch)[:, 0]
        found[f"without the {name}"] = accuracy(model, without, test.labels)
    shown = (1000 * rollout[: told["shown"]]).round().int().tolist()
    found["rollout in thousandths"] = [" ".join(map(str, row)) for row in shown]
    results[run] = found
    print(run, {k: v for k, v in found.items() if k != "rollout in thousandths"}, flush=True)


def main() -> None:
    """Everything, in the order in which it is most needed."""
    torch.set_num_threads(1)
    results = Results("vision", "python experiments/24_vision.py", **SETTINGS)
    prepare(results)
    for count in reversed(SETTINGS["sizes"]):
        for kind in KINDS:
            pictures(results, "plain", kind, count)
    for kind in KINDS:
        pictures(results, "shuffled pixels", kind, 6000, shuffle_pixels)
    pictures(results, "longer", "transformer", 6000, times=SETTINGS["longer"])
    pictures(results, "average", "transformer", 6000, class_token=False)
    pictures(results, "patches in disorder", "transformer", 6000, shuffle_patches)
    for patch in SETTINGS["patch_sizes"]:
        pictures(results, f"patches of {patch}", "transformer", 6000, patch_size=patch)
    for seed in SETTINGS["seeds"]:
        canvases(results, "features", seed)
    canvases(results, "pixels", SETTINGS["seeds"][0])


if __name__ == "__main__":
    main()
