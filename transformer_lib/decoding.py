"""From a trained model to sentences.

Written from chapters 15, 16 of the book: edit the chapter, then `make sync`.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from transformer_lib.layers import DecoderLayer, ResidualConnection
from transformer_lib.pairs import Example, make_batch
from transformer_lib.tokenizer import EOS_ID, load_tokenizer, save_tokenizer
from transformer_lib.training import read_tensors, write_tensors
from transformer_lib.transformer import Transformer, TransformerConfig

__all__ = [
    "Hypothesis",
    "IncrementalDecoder",
    "Translator",
    "beam_search",
    "greedy_decode",
    "sample",
]


def greedy_decode(
    model: Transformer,
    source: Tensor,
    max_new_tokens: int | Sequence[int],
    bos_id: int = 1,
    eos_id: int = 2,
) -> list[list[int]]:
    """Write the likeliest next token, again and again, until <eos>.

    Args:
        model: put into eval mode for the call, and back into the mode it was in.
        source: ids, shape (batch, source), padded on the right.
        max_new_tokens: how many tokens a row may get at most, <eos> counted; one number, or one
            for each row.
        bos_id: the id that begins a target.
        eos_id: the id that ends one.

    Returns:
        One list of ids for each row, without <bos>, and without <eos> and what came after it.

    Raises:
        ValueError: if max_new_tokens is below 1 or beyond the model's positions, the source is
            empty or not of ids, or the model is no Transformer of this package.
    """
    return _write(model, source, max_new_tokens, lambda x: x.argmax(dim=-1), bos_id, eos_id)


class Translator:
    """A trained model with its tokenizer: text in, text out.

    Args:
        model: the model.
        tokenizer: the one that its token ids come from.
        training: how the model came to be; anything JSON can hold.

    Raises:
        ValueError: if the tokenizer has not as many tokens as the model's vocabulary.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, training: dict[str, Any] | None = None
    ) -> None:
        if (size := tokenizer.get_vocab_size()) != model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {size} tokens, the model's vocabulary {model.config.vocab_size}"
            )
        self.model, self.tokenizer, self.training = model, tokenizer, training or {}

    def translate(
        self,
        texts: Sequence[str],
        beam_size: int = 4,
        length_penalty: float = 0.6,
        batch_size: int = 32,
    ) -> list[str]:
        """Translate sentences (paper, section 6.1: beam 4, length penalty 0.6).

        Args:
            texts: one sentence each; one without words has an empty translation.
            beam_size: translations in the running at a time; 1 is greedy decoding.
            length_penalty: alpha of the beam search.
            batch_size: how many sentences at once.

        Returns:
            The translations, in the order of the texts. None has more than 50 tokens more than its
            text (paper), or more than the model has positions.

        Raises:
            ValueError: for one string in place of many, a number below 1, or a text with more
                tokens than the model has positions.
        """
        if isinstance(texts, str):
            raise ValueError(f"translate takes a list of texts, got the single text {texts[:40]!r}")
        if min(beam_size, batch_size) < 1:
            raise ValueError(
                f"beam_size and batch_size must be at least 1, got {beam_size} and {batch_size}"
            )
        positions = self.model.config.max_length
        encodings = self.tokenizer.encode_batch([text.strip() for text in texts])
        sources = [[*encoding.ids, EOS_ID] for encoding in encodings]
        for number, source in enumerate(sources):
            if len(source) > positions:
                raise ValueError(
                    f"text {number} has {len(source)} tokens, the model has {positions} positions"
                )
        lengths = {i: len(source) for i, source in enumerate(sources) if len(source) > 1}
        order = sorted(lengths, key=lengths.__getitem__)
        translations = [""] * len(sources)
        device = self.model.embedding.weight.device
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = make_batch([Example(sources[index], []) for index in chosen])
            source_ids = batch.source.to(device)  # (batch, source)
            most = [min(len(sources[index]) + 50, positions) for index in chosen]
            if beam_size == 1:
                rows = greedy_decode(self.model, source_ids, most)
            else:
                found = beam_search(self.model, source_ids, most, beam_size, length_penalty)
                rows = [hypotheses[0].tokens for hypotheses in found]
            for index, row in zip(chosen, rows, strict=True):
                translations[index] = self.tokenizer.decode(row)
        return translations

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights, tokenizer and training notes into a folder, made if it is not there.

        Args:
            folder: where to.
            dtype: of the weights in the file; torch.float16 halves its size.

        Raises:
            OSError: if the folder cannot be written to.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_tokenizer(self.tokenizer, folder / "tokenizer.json")
        (folder / "training.json").write_text(json.dumps(self.training, indent=1) + "\n", "utf-8")
        weights = {name: x.to(dtype) for name, x in self.model.state_dict().items()}
        notes = {"config": asdict(self.model.config), "vocabulary": _vocabulary(self.tokenizer)}
        write_tensors(folder / "weights.safetensors", weights, **notes)

    @classmethod
    def from_pretrained(cls, name: str | Path = "de-en") -> "Translator":
        """Load a translator.

        Args:
            name: "de-en", which comes with the package, or a folder that `save` has written.

        Returns:
            The translator, its model in eval mode with float32 weights.

        Raises:
            ValueError: if there is no such translator, a file of it is missing or damaged, or the
                tokenizer is not the one that the weights were trained with.
        """
        folder = Path(str(resources.files("transformer_lib"))) / "pretrained" / name
        if not folder.is_dir():
            folder = Path(name)
        for file in ("weights.safetensors", "tokenizer.json", "training.json"):
            if not (folder / file).is_file():
                raise ValueError(f"{name} is no translator: there is no file {folder / file}")
        weights, notes = read_tensors(folder / "weights.safetensors")
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        if "config" not in notes or notes.get("vocabulary") != _vocabulary(tokenizer):
            raise ValueError(f"{folder}: the weights were trained with another vocabulary")
        model = Transformer(TransformerConfig(**notes["config"]))
        model.load_state_dict({name: x.float() for name, x in weights.items()})
        training = json.loads((folder / "training.json").read_text("utf-8"))
        return cls(model.eval(), tokenizer, training)


def _vocabulary(tokenizer: Tokenizer) -> str:
    """Sum up in 32 bits which text has which id."""
    return f"{zlib.crc32(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()):08x}"


def _by_columns(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Make the function x -> x W + b of a torch weight (out, in), from a copy that is (in, out)."""
    columns = weight.T.contiguous()  # (in, out)
    if bias is None:
        return lambda x: x @ columns
    return lambda x: torch.addmm(bias, x, columns)


class _CachedLayer:
    """A decoder layer that reads one new position a row, and remembers keys and values."""

    def __init__(
        self,
        layer: DecoderLayer,
        memory: Tensor,
        allowed: Tensor | None,
        beam_size: int,
        positions: int,
    ) -> None:
        self.layer, self.allowed, self.beam_size = layer, allowed, beam_size
        own, cross, feed_forward = layer.self_attention, layer.cross_attention, layer.feed_forward
        three = (own.query_projection, own.key_projection, own.value_projection)
        weight = torch.cat(tuple(part.weight for part in three))  # three products in one
        has_bias = own.query_projection.bias is not None
        bias = torch.cat(tuple(part.bias for part in three)) if has_bias else None
        self.query_key_value = _by_columns(weight, bias)
        self.output = _by_columns(own.output_projection.weight, own.output_projection.bias)
        self.cross_query = _by_columns(cross.query_projection.weight, cross.query_projection.bias)
        self.cross_output = _by_columns(
            cross.output_projection.weight, cross.output_projection.bias
        )
        self.inner = _by_columns(feed_forward.inner.weight, feed_forward.inner.bias)
        self.outer = feed_forward.outer
        # two of (batch, heads, source, d_k): the memory is projected once, not at every step
        self.memory_key, self.memory_value = cross.project_key_value(memory, memory)
        rows = memory.size(0) * beam_size
        # (key and value, rows, heads, positions, d_k)
        self.cache = memory.new_zeros(2, rows, own.num_heads, positions, own.d_k)
        self.spare = torch.empty_like(self.cache)  # where reorder copies to

    def attend_to_self(self, x: Tensor, position: int) -> Tensor:
        """(rows, d_model) -> (rows, d_model), with the keys and values of all positions so far."""
        heads, d_k = self.cache.size(2), self.cache.size(4)
        projected = self.query_key_value(x).view(-1, 3, heads, d_k)  # (rows, 3, heads, d_k)
        query = projected[:, 0, :, None]  # (rows, heads, 1, d_k)
        self.cache[:, :, :, position] = projected[:, 1:].transpose(0, 1)
        key, value = self.cache[:, :, :, : position + 1]  # two of (rows, heads, position + 1, d_k)
        found = F.scaled_dot_product_attention(query, key, value)  # (rows, heads, 1, d_k)
        return self.output(found.flatten(1))

    def attend_to_memory(self, x: Tensor) -> Tensor:
        """(rows, d_model) -> (rows, d_model); the beams of a sentence are its queries."""
        batch, heads, _, d_k = self.memory_key.shape
        query = self.cross_query(x).view(batch, self.beam_size, heads, d_k).transpose(1, 2)
        found = F.scaled_dot_product_attention(
            query, self.memory_key, self.memory_value, self.allowed
        )  # (batch, heads, beam, d_k)
        return self.cross_output(found.transpose(1, 2).flatten(0, 1).flatten(1))

    def step(self, x: Tensor, position: int) -> Tensor:
        """(rows, d_model) -> (rows, d_model)."""
        layer = self.layer
        x = _residual(layer.residual_1, x, lambda x: self.attend_to_self(x, position))
        x = _residual(layer.residual_2, x, self.attend_to_memory)
        x = _residual(layer.residual_3, x, lambda x: self.outer(F.relu(self.inner(x))))
        return x


def _residual(
    connection: ResidualConnection, x: Tensor, sublayer: Callable[[Tensor], Tensor]
) -> Tensor:
    """What the connection computes in eval mode, without calling a module at every step."""
    norm = connection.norm
    if connection.norm_first:
        return x + sublayer(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    return F.layer_norm(x + sublayer(x), norm.weight.shape, norm.weight, norm.bias, norm.eps)


class IncrementalDecoder:
    """A Transformer that writes token by token, and computes nothing twice.

    Keys and values of written tokens are kept in a cache; those of the source are projected once.
    Made for one batch of sources, in eval mode and without gradients.

    Args:
        model: the model.
        source: ids, shape (batch, source), padded on the right.
        positions: how many tokens a row may get, <bos> counted.
        beam_size: rows for each sentence; rows b * beam_size and on belong to sentence b.

    Raises:
        ValueError: if the model is no Transformer of this package, a number is below 1, there are
            more positions than the model has, or the source is not fit to be embedded.
    """

    def __init__(
        self, model: Transformer, source: Tensor, positions: int, beam_size: int = 1
    ) -> None:
        if not isinstance(model, Transformer):
            raise ValueError(
                f"decoding with a cache needs a Transformer of this package, got {type(model).__name__}"
            )
        if min(positions, beam_size) < 1 or positions > model.config.max_length:
            raise ValueError(
                f"positions must be from 1 to max_length {model.config.max_length} and beam_size "
                f"at least 1, got {positions} and {beam_size}"
            )
        memory = model.encode(source)  # (batch, source, d_model)
        real = source != model.config.pad_id  # (batch, source)
        if not real.any(dim=1).all():
            raise ValueError("a source row holds nothing but padding")
        allowed = None if real.all() else real[:, None, None, :]  # (batch, 1, 1, source)
        self.model, self.position = model, 0
        layers: Iterable[Any] = model.decoder.layers
        self.layers = [
            _CachedLayer(layer, memory, allowed, beam_size, positions) for layer in layers
        ]
        self.project = _by_columns(model.embedding.weight, None)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token in each row.

        Args:
            tokens: ids, shape (rows,): <bos> at first, then what was chosen.

        Returns:
            Logits of what follows, shape (rows, vocab_size).
        """
        x = self.model.embed(tokens[:, None], offset=self.position)[:, 0]  # (rows, d_model)
        for layer in self.layers:
            x = layer.step(x, self.position)
        if self.model.decoder.norm is not None:
            x = self.model.decoder.norm(x)
        self.position += 1
        return self.project(x)

    def reorder(self, rows: Tensor) -> None:
        """Let row i continue what row rows[i] has written; rows has shape (rows,)."""
        for layer in self.layers:  # into the spare tensor, and then the two change places
            torch.index_select(layer.cache, 1, rows, out=layer.spare)
            layer.cache, layer.spare = layer.spare, layer.cache


def _limits(model: Transformer, source: Tensor, max_new_tokens: int | Sequence[int]) -> list[int]:
    """The most tokens that each row may get."""
    if source.dim() != 2:
        raise ValueError(f"source must have shape (batch, source), got {tuple(source.shape)}")
    limits = (
        [max_new_tokens] * len(source) if isinstance(max_new_tokens, int) else [*max_new_tokens]
    )
    if len(limits) != len(source):
        raise ValueError(f"there are {len(limits)} limits for {len(source)} rows")
    for limit in limits:
        if not 1 <= limit <= model.config.max_length:
            raise ValueError(
                "max_new_tokens must be at least 1 and at most max_length "
                f"{model.config.max_length}, got {limit}"
            )
    return limits


@contextmanager
def _evaluating(model: Transformer) -> Iterator[None]:
    """Eval mode and no gradients for a while."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _write(
    model: Transformer,
    source: Tensor,
    max_new_tokens: int | Sequence[int],
    choose: Callable[[Tensor], Tensor],
    bos_id: int,
    eos_id: int,
) -> list[list[int]]:
    """Write token after token: choose turns logits (rows, vocab_size) into tokens (rows,)."""
    limits = _limits(model, source, max_new_tokens)
    with _evaluating(model):
        decoder = IncrementalDecoder(model, source, max(limits))
        tokens = source.new_full((source.size(0),), bos_id)  # (rows,)
        finished = torch.zeros_like(tokens, dtype=torch.bool)  # (rows,)
        last = torch.tensor(limits, device=source.device)  # (rows,)
        written = []
        for length in range(1, max(limits) + 1):
            tokens = choose(decoder.step(tokens))
            written.append(tokens)
            finished |= (tokens == eos_id) | (last == length)
            if finished.all():
                break
    rows = [
        row[:limit] for row, limit in zip(torch.stack(written, 1).tolist(), limits, strict=True)
    ]
    return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]


class Hypothesis(NamedTuple):
    """A translation that beam search has found.

    tokens: its ids, without <bos> and <eos>.
    score: log_probability divided by the length penalty; higher is better.
    log_probability: of all its tokens, <eos> included if it got that far.
    """

    tokens: list[int]
    score: float
    log_probability: float


def beam_search(
    model: Transformer,
    source: Tensor,
    max_new_tokens: int | Sequence[int],
    beam_size: int = 4,
    length_penalty: float = 0.6,
    bos_id: int = 1,
    eos_id: int = 2,
) -> list[list[Hypothesis]]:
    """Keep the beam_size likeliest beginnings of a translation (paper, section 6.1).

    A finished translation of n tokens, <eos> counted, has the score log p / ((5 + n) / 6)^alpha
    (Wu et al., 2016, section 7). A sentence is done when nothing unfinished can beat its best
    finished one any more.

    Args:
        model: put into eval mode for the call, and back into the mode it was in.
        source: ids, shape (batch, source), padded on the right.
        max_new_tokens: how many tokens a row may get at most, <eos> counted; one number, or one
            for each row.
        beam_size: beginnings kept for each sentence; 4 in the paper.
        length_penalty: alpha, 0.6 in the paper; 0 prefers short translations.
        bos_id: the id that begins a target.
        eos_id: the id that ends one.

    Returns:
        For each row its hypotheses, best first: the finished ones, at most beam_size, or the
        unfinished ones if none was finished within max_new_tokens.

    Raises:
        ValueError: if beam_size is below 1, length_penalty below 0, or for what greedy_decode
            refuses.
    """
    if beam_size < 1 or length_penalty < 0:
        raise ValueError(
            "beam_size must be at least 1 and length_penalty at least 0, "
            f"got {beam_size} and {length_penalty}"
        )
    limits = _limits(model, source, max_new_tokens)
    batch, vocab_size = source.size(0), model.config.vocab_size
    # Two candidates a beam: if half of them end here, there are still enough to go on.
    each, kept = min(2 * beam_size, vocab_size), min(2 * beam_size, beam_size * vocab_size)
    penalty = [((5 + n) / 6) ** length_penalty for n in range(max(limits) + 1)]
    finished: list[list[Hypothesis]] = [[] for _ in range(batch)]
    results: list[list[Hypothesis]] = [[] for _ in range(batch)]
    with _evaluating(model):
        decoder = IncrementalDecoder(model, source, max(limits), beam_size)
        first_row = torch.arange(batch, device=source.device)[:, None] * beam_size  # (batch, 1)
        # At first all beams are the same: only one of each sentence counts.
        total = torch.full((batch, beam_size), -math.inf, device=source.device)  # (batch, beam)
        total[:, 0] = 0.0
        written = source.new_full((batch * beam_size, 1), bos_id)  # (rows, length)
        for length in range(1, max(limits) + 1):
            logits = decoder.step(written[:, -1])  # (rows, vocab_size)
            best, token = logits.topk(each)  # (rows, each) twice; then log-probabilities
            best = best - logits.logsumexp(dim=-1, keepdim=True) + total.view(-1, 1)
            total, place = best.view(batch, -1).topk(kept)  # (batch, kept) twice
            token = token.view(batch, -1).gather(1, place)  # (batch, kept)
            row = first_row + place // each  # (batch, kept): which row it continues
            ends = token == eos_id  # (batch, kept)
            for sentence, rank in ends.nonzero().tolist():
                log_probability = total[sentence, rank].item()
                if not results[sentence] and log_probability > -math.inf:
                    tokens = written[row[sentence, rank], 1:].tolist()
                    score = log_probability / penalty[length]
                    finished[sentence].append(Hypothesis(tokens, score, log_probability))
            going_on = ends.int().argsort(dim=1, stable=True)[:, :beam_size]  # (batch, beam)
            total = total.masked_fill(ends, -math.inf).gather(1, going_on)  # (batch, beam)
            rows = row.gather(1, going_on).flatten()  # (rows,)
            written = torch.cat([written[rows], token.gather(1, going_on).view(-1, 1)], dim=1)
            decoder.reorder(rows)
            for sentence, (limit, found) in enumerate(zip(limits, finished, strict=True)):
                if results[sentence]:
                    continue
                found.sort(key=lambda hypothesis: -hypothesis.score)
                # What is unfinished can only get less likely; nobody's penalty exceeds the limit's.
                reachable = total[sentence, 0].item() / penalty[limit]
                if found and (length == limit or found[0].score >= reachable):
                    results[sentence] = found[:beam_size]
                elif length == limit:
                    own = range(sentence * beam_size, (sentence + 1) * beam_size)
                    scored = zip(own, total[sentence].tolist(), strict=True)
                    results[sentence] = [
                        Hypothesis(written[row, 1:].tolist(), p / penalty[length], p)
                        for row, p in scored
                        if p > -math.inf
                    ]
            if all(results):
                break
    return results


def sample(
    model: Transformer,
    source: Tensor,
    max_new_tokens: int | Sequence[int],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    bos_id: int = 1,
    eos_id: int = 2,
) -> list[list[int]]:
    """Draw each next token from the model's probabilities.

    Args:
        model, source, max_new_tokens, bos_id, eos_id: as in greedy_decode.
        temperature: logits are divided by it; below 1 the likely becomes likelier.
        top_k: draw from the top_k likeliest tokens only (Fan et al., 2018).
        top_p: draw from the fewest tokens only that together have this probability
            (Holtzman et al., 2020).
        generator: where the random numbers come from; torch's own if None.

    Returns:
        As greedy_decode.

    Raises:
        ValueError: if temperature is not above 0, top_k below 1, top_p not above 0 and at most 1,
            or for what greedy_decode refuses.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")

    def choose(logits: Tensor) -> Tensor:
        ordered, token = (logits / temperature).sort(dim=-1, descending=True)  # (rows, vocab_size)
        if top_k is not None:
            ordered[:, top_k:] = -math.inf
        probability = ordered.softmax(dim=-1)  # (rows, vocab_size)
        if top_p is not None:
            before = probability.cumsum(dim=-1) - probability  # of all that are likelier
            probability = probability.masked_fill(before >= top_p, 0.0)
        drawn = torch.multinomial(probability, 1, generator=generator)  # (rows, 1)
        return token.gather(1, drawn)[:, 0]

    return _write(model, source, max_new_tokens, choose, bos_id, eos_id)
