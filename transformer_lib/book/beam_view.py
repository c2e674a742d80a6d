"""Beam search as a tree that the reader steps through."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from transformer_lib.book.views import View, _names, _visible, plain_table
from transformer_lib.decoding import IncrementalDecoder
from transformer_lib.door import check_numbers
from transformer_lib.tokenizer import BOS_ID, EOS_ID, encode_texts
from transformer_lib.transformer import evaluating
from transformer_lib.translator import Translator


@dataclass(frozen=True)
class Candidate:
    """A continuation that one step of a beam search looks at, of the 2 * beam_size likeliest.

    parent: its place among the candidates of the step before, 0 in the first step.
    tokens: its ids, without <bos>; the last is <eos> if it is finished.
    log_probability: of all its tokens.
    fate: "kept", "finished" or "dropped".
    """

    parent: int
    tokens: list[int]
    log_probability: float
    fate: str


def record_beam_search(
    model: Any, source: Tensor, max_new_tokens: int, beam_size: int
) -> list[list[Candidate]]:
    """The candidates of each step of a beam search, best first.

    It goes on to the limit, for the length penalty decides only where a search may stop and which of
    the finished wins: neither who is kept nor who is dropped.

    Args:
        model: an encoder-decoder model.
        source: ids of one sentence, (1, source).
        max_new_tokens: the number of steps.
        beam_size: how many are kept.

    Raises:
        ValueError: if a number is below 1, the limit is beyond the model's positions, or there is
            not one source.
    """
    check_numbers(int, 1, model.config.max_length, max_new_tokens=max_new_tokens)
    check_numbers(int, 1, beam_size=beam_size)
    if source.dim() != 2 or len(source) != 1:
        raise ValueError(f"source should be one sentence, (1, source), got {tuple(source.shape)}")
    steps: list[list[Candidate]] = []
    with evaluating(model), torch.inference_mode():
        decoder = IncrementalDecoder(model, source)
        texts, places = [[BOS_ID]], [0]  # of the rows, and where they stand in the step before
        total = torch.zeros(1, device=source.device)  # (rows,)
        for _ in range(max_new_tokens):
            last = torch.tensor([text[-1] for text in texts], device=source.device)  # (rows,)
            log_p = decoder.step(last).log_softmax(dim=-1) + total[:, None]  # (rows, vocab_size)
            best, flat = log_p.flatten().topk(min(2 * beam_size, log_p.numel()))  # (candidates,)
            rows, tokens = (flat // log_p.size(1)).tolist(), (flat % log_p.size(1)).tolist()
            going_on = [i for i, token in enumerate(tokens) if token != EOS_ID][:beam_size]
            step = []
            for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
                fate = "finished" if token == EOS_ID else "kept" if i in going_on else "dropped"
                written = [*texts[row][1:], token]
                step.append(Candidate(places[row], written, best[i].item(), fate))
            steps.append(step)
            decoder.keep(torch.tensor([rows[i] for i in going_on], device=source.device))
            texts = [[BOS_ID, *step[i].tokens] for i in going_on]
            places, total = going_on, best[going_on]
    return steps


def beam_view(
    translator: Translator,
    text: str,
    beam_sizes: Sequence[int] = (1, 2, 4, 8),
    *,
    beam_size: int = 4,
    length_penalty: float = 0.6,
    max_new_tokens: int = 14,
) -> View:
    """Step through the beam search of a translator: who goes on, who ends, who falls out and why.

    Args:
        translator: whose model is asked.
        text: what to translate.
        beam_sizes: the widths to choose from.
        beam_size: the one shown first.
        length_penalty: alpha of equation 16.2 at the start, from 0 to 2.
        max_new_tokens: the most tokens of a translation, <eos> counted.

    Raises:
        ValueError: if beam_size is not one of beam_sizes, a number is out of range, or the text is
            too long for the model.
    """
    if beam_size not in beam_sizes:
        raise ValueError(f"beam_size {beam_size} is not one of {list(beam_sizes)}")
    check_numbers(float, 0, 2, length_penalty=length_penalty)
    [ids] = encode_texts(translator.tokenizer, [text.strip()])
    device = next(translator.model.parameters()).device
    source = torch.tensor([[*ids, EOS_ID]], device=device)
    record = {
        size: record_beam_search(translator.model, source, max_new_tokens, size)
        for size in sorted({1, *beam_sizes})
    }
    # A beam of one follows greedy decoding until that ends.
    path = [step[0] for step in record[1]]
    end = next((i for i, best in enumerate(path) if best.fate == "finished"), len(path) - 1)
    greedy = path[end]
    trees: list[dict[str, Any]] = [
        {"size": size, "steps": _shown(record[size], translator.tokenizer, greedy.tokens)}
        for size in beam_sizes
    ]
    start = list(beam_sizes).index(beam_size)
    return View(
        "beam",
        {
            "source": text.strip(),
            "start": start,
            "alpha": length_penalty,
            "limit": max_new_tokens,
            "greedy": {
                "text": _text(translator.tokenizer, greedy.tokens),
                "p": round(greedy.log_probability, 4),
                "length": len(greedy.tokens),
            },
            "trees": trees,
        },
        _tables(trees[start]["steps"], beam_size, length_penalty, max_new_tokens),
        f"beams of {list(beam_sizes)}, {max_new_tokens} steps",
        f"“{text.strip()}”",
    )


def _text(tokenizer: Tokenizer, tokens: list[int]) -> str:
    written: str = tokenizer.decode([token for token in tokens if token != EOS_ID])
    return written.strip()


def _shown(
    steps: list[list[Candidate]], tokenizer: Tokenizer, greedy: list[int]
) -> list[list[dict[str, Any]]]:
    """The candidates as the script needs them: with names and texts, and which are greedy's."""
    return [
        [
            {
                "parent": candidate.parent,
                "name": "<eos>"
                if candidate.tokens[-1] == EOS_ID
                else _visible(_names(tokenizer, candidate.tokens)[-1:])[0],
                "text": _text(tokenizer, candidate.tokens),
                "p": round(candidate.log_probability, 4),
                "fate": candidate.fate,
                "greedy": candidate.tokens == greedy[: len(candidate.tokens)],
            }
            for candidate in step
        ]
        for step in steps
    ]


def _tables(
    steps: list[list[dict[str, Any]]], beam_size: int, length_penalty: float, limit: int
) -> str:
    """What stays without scripts: the finished translations, and the fates of each step."""
    rows, finished = [], []
    for number, step in enumerate(steps, 1):
        cells = [
            "; ".join(f"{c['text'] or '<eos>'} {c['p']:.2f}" for c in step if c["fate"] == fate)
            for fate in ("kept", "finished", "dropped")
        ]
        rows.append([f"{number}", *cells])
        for c in step:
            if c["fate"] == "finished":
                score = c["p"] / ((5 + number) / 6) ** length_penalty
                finished.append((score, [c["text"], f"{c['p']:.2f}", f"{number}", f"{score:.2f}"]))
    finished.sort(key=lambda found: -found[0])
    end = int(finished[0][1][2]) if finished else len(rows)  # where the best one ends
    title = (
        f"beam of {beam_size}, length penalty {length_penalty:g}: finished translations, best first"
    )
    return plain_table(
        title, ["translation", "log p", "tokens", "score"], [row for _, row in finished]
    ) + plain_table(
        "the steps up to there, with log-probabilities",
        ["step", "goes on", "ends", "drops out"],
        rows[:end],
    )
