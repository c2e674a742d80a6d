"""Several processes train one model: shares, gradients, shards, an interruption, and the command line."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transformer_lib import __main__ as command_line
from transformer_lib import parallel
from transformer_lib.book.ranks import torchrun
from transformer_lib.language_model import LanguageModel, LanguageModelConfig
from transformer_lib.pairs import Example, load_pairs, token_batches
from transformer_lib.training import evaluate_loss, next_token_loss, translation_loss
from transformer_lib.transformer import Transformer

several = pytest.mark.skipif(sys.platform == "win32", reason="torchrun needs gloo and signals")


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int) -> None:
    monkeypatch.setattr(parallel, "place", lambda: (rank, ranks))


EXAMPLES = [
    Example([5 + i % 17, *range(5, 5 + i % 7), 2], [6 + i % 11] * (i % 5 + 1)) for i in range(50)
]


# --- shares, as if there were several processes


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_an_epoch_is_read_once_and_its_losses_add_up(
    ranks: int, tiny: Callable[..., Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a batch has fewer rows than there are ranks."""
    model, read = tiny(), Counter[tuple[int, ...]]()

    def watched(model: nn.Module, batch: Any, smoothing: float) -> tuple[Tensor, int]:
        total, tokens = translation_loss(model, batch, smoothing)
        kept.append((batch, tokens))
        return total, tokens

    for batch in token_batches(EXAMPLES, 40, seed=1):
        expected, count = translation_loss(model, batch)
        found, counted = 0.0, 0
        for rank in range(ranks):
            as_rank(monkeypatch, rank, ranks)
            kept: list[Any] = []
            total, tokens = parallel.share(watched)(model, batch, 0.0)
            found, counted = found + total.item(), counted + tokens
            (rows, _), has_rows = kept[0], rank < len(batch.source)
            assert (tokens > 0) == has_rows
            if has_rows:
                for source, target in zip(rows.source, rows.target_out, strict=True):
                    read[(*source[source != 0].tolist(), *target[target != 0].tolist())] += 1
            else:
                assert all(not g.any() for g in torch.autograd.grad(total, model.parameters()))
        assert counted == count
        assert found == pytest.approx(expected.item(), rel=1e-5)
    assert read == Counter((*source, *target, 2) for source, target in EXAMPLES)


def test_all_kinds_of_batches_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def loss(model: nn.Module, batch: Any, smoothing: float) -> tuple[Tensor, int]:
        seen.append(batch)
        return torch.zeros((), requires_grad=True), 1

    as_rank(monkeypatch, 1, 3)
    rows, labels = torch.arange(14).view(7, 2), torch.arange(7)
    for batch in (rows, (rows, labels), {"rows": rows, "labels": labels, "name": "x"}):
        parallel.share(loss)(nn.Linear(1, 1), batch, 0.0)
    plain, pair, named = seen
    assert plain[:, 0].tolist() == [2, 8]
    assert [x.tolist() for x in pair] == [[[2, 3], [8, 9]], [1, 4]]
    assert named["labels"].tolist() == [1, 4]
    assert named["name"] == "x"


def test_ranks_drop_other_units_and_stay_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model = LanguageModel(
        LanguageModelConfig(20, 16, 2, 32, num_layers=1, dropout=0.5, max_length=8)
    )
    row = torch.randint(3, 20, (1, 9))
    batch, losses, states = row.expand(2, 9), [], []
    for rank in (0, 1):
        torch.manual_seed(5)
        as_rank(monkeypatch, rank, 2)
        losses.append(parallel.share(next_token_loss)(model, batch, 0.0)[0].item())
        states.append(torch.get_rng_state())
    assert losses[0] != losses[1], "the same row: only the dropped units can differ"
    assert torch.equal(*states), "what they draw next is the same"


def test_alone_nothing_changes(tiny: Callable[..., Transformer]) -> None:
    model = tiny()
    with parallel.joined() as device:
        assert device == torch.device("cpu")
        assert parallel.place() == (0, 1)
        assert parallel.data_parallel(model) is model
    batches = token_batches(EXAMPLES, 60, seed=1)
    assert evaluate_loss(model, batches, parallel.share()) == evaluate_loss(model, batches)


def test_gloo_has_time_before_its_group_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without, a process hung or aborted at its end: seldom, so that only the order is held here."""
    done: list[str] = []
    monkeypatch.setattr(parallel.dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda backend: done.append(backend))
    monkeypatch.setattr(parallel.dist, "destroy_process_group", lambda: done.append("let go"))
    monkeypatch.setattr(parallel.time, "sleep", lambda seconds: done.append("time"))
    with pytest.raises(KeyError), parallel.joined():
        raise KeyError
    assert done == ["gloo", "time", "let go"]


# --- in several processes


def toy(seed: int, dropout: float = 0.0) -> Any:
    """A model, batches of pairs, and a way of training in which rounding stays small."""
    import torch

    from transformer_lib.pairs import Example, endless_batches
    from transformer_lib.transformer import Transformer, TransformerConfig

    torch.manual_seed(seed)
    sizes = TransformerConfig(24, 16, 2, 32, 1, 1, dropout=dropout, norm_first=True)
    model = Transformer(sizes)
    pairs = [
        Example([5 + i % 17, *range(5, 5 + i % 7), 2], [6 + i % 11] * (i % 5 + 1))
        for i in range(21)
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    how = {"optimizer": optimizer, "rate": lambda step: 0.05}
    return model, endless_batches(pairs, 40, 3), how


def recipe(steps: int) -> Any:
    from transformer_lib.training import TrainingSettings

    return TrainingSettings(steps, report_every=1, save_every=3, max_norm=2.0)


def gradients(device: str) -> Any:
    """How far four shared gradients are from the whole one, in its lengths; the evaluated losses."""
    import torch
    from torch.distributed.fsdp import FSDPModule

    from transformer_lib.pairs import make_batch
    from transformer_lib.parallel import (
        data_parallel,
        fully_sharded,
        joined,
        place,
        share,
    )
    from transformer_lib.training import backward, evaluate_loss, make_optimizer, translation_loss

    def by_own_tokens(model, batch, smoothing):
        total, tokens = translation_loss(model, batch, smoothing)
        return total / tokens, 1

    with joined(device) as own:
        model, batches, _ = toy(place()[0])  # other weights in each
        model.to(own)
        copies = data_parallel(model)
        batch = next(batches).to(own)
        one_row = make_batch([([5, 6, 2], [7, 8])]).to(own)
        answer = {"ranks": place()[1], "device": str(own)}

        def away(wrapped, batch, loss):
            total, tokens = translation_loss(model, batch)
            whole = torch.autograd.grad(total / tokens, list(model.parameters()))
            wrapped.zero_grad()
            backward(wrapped, [batch], loss, 0.0, False)
            found = [p.grad for p in wrapped.parameters()]
            found = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in found]
            apart = torch.cat([(a - b).flatten() for a, b in zip(found, whole, strict=True)])
            return (apart.norm() / torch.cat([g.flatten() for g in whole]).norm()).item()

        answer["shared"] = away(copies, batch, share())
        answer["fewer rows than ranks"] = away(copies, one_row, share())
        answer["own tokens"] = away(copies, batch, share(by_own_tokens))
        answer["evaluated"] = evaluate_loss(copies, [batch, one_row], share())
        answer["alone"] = evaluate_loss(model, [batch, one_row])
        sharded, _, _ = toy(0)
        fully_sharded(sharded.to(own))
        answer["sharded"] = away(sharded, batch, share())
        parts = sharded.named_modules()
        answer["gathered apart"] = [name for name, part in parts if isinstance(part, FSDPModule)]
        optimizer = make_optimizer(sharded)
        optimizer.step()
        states = [x for entries in optimizer.state.values() for x in entries.values()]
        held = [*sharded.parameters(), *(p.grad for p in sharded.parameters()), *states]
        answer["bytes"] = sum(getattr(x, "_local_tensor", x).nbytes for x in held)
        answer["weights"] = sum(p.numel() for p in model.parameters())
    return answer


def expect_one_gradient(answers: list[Any]) -> None:
    for found in answers:
        for name in ("shared", "fewer rows than ranks", "sharded"):
            assert found[name] < 1e-5, f"{name}: {found}"
        assert found["evaluated"] == pytest.approx(found["alone"], rel=1e-5)
        assert found["gathered apart"] == ["", "encoder.layers.0", "decoder.layers.0"]
        formula = 16 * found["weights"] / found["ranks"]
        assert 1 <= found["bytes"] / formula < 1.1


@several
def test_two_processes_have_the_gradient_of_one() -> None:
    answers = torchrun(gradients, 2, uses=[toy], device="cpu")
    assert [found["ranks"] for found in answers] == [2, 2]
    expect_one_gradient(answers)
    assert all(found["own tokens"] > 1e-3 for found in answers), "the control"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")
def test_graphics_cards_have_the_gradient_of_one() -> None:
    """Over nccl; also a single card goes this way, with itself."""
    answers = torchrun(gradients, torch.cuda.device_count(), uses=[toy], device="cuda")
    assert [found["device"] for found in answers] == [f"cuda:{i}" for i in range(len(answers))]
    expect_one_gradient(answers)


def lives(folder: str, life: int) -> Any:
    """Rank 1 dies in its first life; in the second: what was resumed, and the same never interrupted."""
    import os
    import signal

    import torch

    from transformer_lib.parallel import data_parallel, joined, place, share
    from transformer_lib.training import train

    def die(progress):
        if life == 0 and place()[0] == 1 and progress.step == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    def together(steps, checkpoint, dropout=0.0):
        """Train in all processes: the weights, and how many steps were reported."""
        model, batches, how = toy(4, dropout=dropout)
        how |= {"checkpoint": checkpoint, "settings": recipe(steps), "on_report": die}
        taken = train(data_parallel(model), batches, share(), **how)
        return torch.cat([p.detach().flatten() for p in model.parameters()]), len(taken)

    with joined():
        (killed, steps), (whole, _) = (
            together(12, path, dropout=0.2) for path in (f"{folder}/killed", None)
        )
        taken_over, _ = together(12, f"{folder}/one")  # one process began it
        together(6, f"{folder}/two")  # ... and this is for one process to end
    return {
        "same": torch.equal(killed, whole),
        "steps": steps,
        "taken over": taken_over.tolist(),
    }


def numbers(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@several
def test_a_killed_worker_loses_nothing_and_the_number_of_processes_may_change(
    tmp_path: Path,
) -> None:
    from transformer_lib.checkpoint import read_tensors
    from transformer_lib.training import train

    def alone(steps: int, name: str | None) -> nn.Module:
        model, batches, how = toy(4)
        path = None if name is None else tmp_path / name
        train(model, batches, parallel.share(), settings=recipe(steps), checkpoint=path, **how)
        return model

    alone(6, "one")
    what: Any = {"uses": [toy, recipe], "folder": str(tmp_path)}
    assert torchrun(lives, 2, **what, life=0, may_fail=True)[1] is None, "it was killed"
    assert read_tensors(tmp_path / "killed")[1]["notes"]["step"] == 6
    answers = torchrun(lives, 2, **what, life=1)
    for found in answers:
        assert found["same"], "killed and resumed, or not: the same bits, dropout included"
        assert found["steps"] == 12
    whole = numbers(alone(12, None))
    taken_over = torch.tensor(answers[0]["taken over"])
    torch.testing.assert_close(taken_over, whole, atol=1e-5, rtol=0)  # by one, then by two
    assert read_tensors(tmp_path / "two")[1]["notes"]["step"] == 6
    torch.testing.assert_close(numbers(alone(12, "two")), whole, atol=1e-5, rtol=0)  # the reverse
    before, _, _ = toy(4)
    assert (whole - numbers(before)).abs().max() > 0.01, "something has been learned at all"


@several
def test_the_training_command_runs_unchanged_under_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes write one folder, as one process would; then one goes on with it."""
    monkeypatch.chdir(tmp_path)
    pairs = sorted(load_pairs("validation"), key=lambda pair: len(pair.source + pair.target))[:40]
    text = "".join(f"{pair.source}\t{pair.target}\n" for pair in pairs)
    Path("pairs.tsv").write_text(text, encoding="utf-8")
    words = (
        "train --pairs pairs.tsv --validation pairs.tsv --vocab-size 300 --d-model 16 --num-heads 2"
    )
    words += (
        " --d-ff 32 --num-encoder-layers 1 --num-decoder-layers 1 --warmup-steps 100 --dropout 0"
    )
    words += " --max-tokens 256 --max-length 64 --bleu-sentences 4 --report-every 2 --save-every 2"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    if sys.platform != "linux":
        del environment["GLOO_SOCKET_IFNAME"]
    here = ["--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    command = [sys.executable, "-m", "torch.distributed.run", *here, "-m", "transformer_lib"]
    command += [*words.split(), "--steps", "4", "--output", "two"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step      4") == 1, "one of them speaks"
    assert {path.name for path in Path("two").iterdir()} == {
        "checkpoint.safetensors",
        "log.jsonl",
        "weights.safetensors",
    }
    assert command_line.main([*words.split(), "--steps", "6", "--output", "two", "--resume"]) == 0
    assert command_line.main([*words.split(), "--steps", "6", "--output", "one"]) == 0
    logs = [
        [json.loads(line) for line in Path(name, "log.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    ]
    assert [line["step"] for line in logs[0]] == [2, 4, 6]
    for two, one in zip(*logs, strict=True):
        assert two["tokens"] == one["tokens"]
        for name in ("train_loss", "validation_loss"):
            assert two[name] == pytest.approx(one[name], abs=1e-3)


def failing() -> None:
    raise ValueError("on purpose")


@several
def test_a_process_that_dies_is_not_passed_over() -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        torchrun(failing, 1)
    assert torchrun(failing, 1, may_fail=True) == [None]
