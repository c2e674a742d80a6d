"""Chapter 21: what each planted mistake does to the loss and to the output; three seeds.

    python -m experiments.21_failures        about 3 core-minutes; goes on where it stopped

The patients and the mistakes are the chapter's own: its cells tagged `experiment` are run first.
"""

from typing import Any

import torch

from experiments.resumable import Results
from tools.chapters import NOTEBOOKS, chapters

SEEDS, STEPS, EVERY = (0, 1, 2), 200, 5


def clinic() -> dict[str, Any]:
    """Everything that the chapter defines for its experiment."""
    (chapter,) = (c for c in chapters() if c.path == NOTEBOOKS / "21-failure-clinic.ipynb")
    names: dict[str, Any] = {}
    setup, imports = [cell for cell in chapter.code if "import " in cell.source][:2]
    for cell in [setup, *chapter.tagged("parameters"), imports, *chapter.tagged("experiment")]:
        exec(cell.source.replace("%pip", "pass  #"), names)
    return names


def main() -> None:
    results = Results(
        "failures", "python -m experiments.21_failures", seeds=SEEDS, steps=STEPS, every=EVERY
    )
    torch.set_num_threads(1)
    c = clinic()
    held_out = c["make_batches"](seed=-1, count=1, rows=50)[0]
    chance = c["unigram_entropy"](held_out)
    for name in ["healthy", *c["PARTS"], *c["AROUND"]]:
        for seed in SEEDS:
            run = f"{name}, seed {seed}"
            if run in results:
                continue
            torch.manual_seed(seed)
            model = c["PARTS"].get(name, c["patient"])()
            recipe = dict(c["AROUND"].get(name, {}))
            prepare = recipe.pop("prepare", lambda batch: batch)
            batches = [prepare(batch) for batch in c["make_batches"](seed, STEPS)]
            losses = torch.tensor(c["learn"](model, batches, **recipe))
            written = c["translate"](model, held_out)
            results[run] = {
                "losses": [round(x, 4) for x in losses.view(-1, EVERY).mean(dim=1).tolist()],
                "held_out": c["evaluate_loss"](model, [held_out]),
                "right": c["share_right"](model, held_out),
                "unigram": chance,
                "output": c["to_words"](written[0]),
            }
            print(run, results[run]["right"], written[0][:5], flush=True)


if __name__ == "__main__":
    main()
