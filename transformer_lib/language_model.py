"""Language models of next and of missing words, their text, and their surprise.

Written from chapters 22, 23 of the book: edit the chapter, then `make sync`.
"""

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from transformer_lib.attention import KeyValueCache, padding_mask
from transformer_lib.checkpoint import read_tensors
from transformer_lib.door import check_numbers, check_tokens
from transformer_lib.embeddings import (
    LearnedPositionalEncoding,
    SinusoidalPositionalEncoding,
    TokenEmbedding,
)
from transformer_lib.layers import Dropout, EncoderLayer, LayerNorm
from transformer_lib.tokenizer import BOS_ID, EOS_ID, PAD_ID, encode_texts, parse_tokenizer
from transformer_lib.transformer import Stack, evaluating

__all__ = [
    "Continuation",
    "LanguageModel",
    "LanguageModelConfig",
    "MaskedLanguageModel",
    "encode_stream",
    "fill_in",
    "load_austen",
    "load_language_model",
    "surprise",
    "text_windows",
]


def load_austen(split: str) -> list[str]:
    """Jane Austen's novels, a paragraph a line: "train", five of them, or "test", Persuasion.

    ValueError for any other split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"there is no split {split!r}; there are train, test")
    file = resources.files("transformer_lib") / "corpora" / f"austen.{split}.txt.gz"
    return gzip.decompress(file.read_bytes()).decode().split("\n\n")


@dataclass(frozen=True)
class LanguageModelConfig:
    """The numbers that make a language model; the defaults are those of the smallest GPT-2.

    Args:
        vocab_size, d_model, num_heads, d_ff, dropout: as in TransformerConfig.
        num_layers: layers of its one stack.
        max_length: longest text that it reads at once, in tokens.
        pad_id: the id that fills up short rows; -1 if the vocabulary has none.

    ValueError if a value is out of range. (The layers refuse what does not fit together.)
    """

    vocab_size: int
    d_model: int = 768
    num_heads: int = 12
    d_ff: int = 3072
    num_layers: int = 12
    dropout: float = 0.1
    max_length: int = 1024
    pad_id: int = PAD_ID

    def __post_init__(self) -> None:
        check_numbers(int, 1, 2**31, vocab_size=self.vocab_size, num_layers=self.num_layers)
        check_numbers(int, -1, self.vocab_size - 1, pad_id=self.pad_id)


def _begin_small(model: nn.Module, num_layers: int) -> None:
    """Draw weights as GPT-2's began; what is added to the residual sum is smaller in deep stacks."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            is_added = name.endswith(("output_projection.weight", "outer.weight"))
            nn.init.normal_(parameter, std=0.02 / (2 * num_layers) ** 0.5 if is_added else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


class LanguageModel(nn.Module):
    """Token ids in, logits for the next token out: a decoder that has no source.

    Its layers are EncoderLayers behind a causal mask, pre-norm, with learned positions and one
    matrix for embedding and output (Radford et al., 2019). Every part may be replaced, as in a
    Transformer. ValueError for what is no batch of ids of the vocabulary, or is too long.
    """

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = c = config
        self.embedding = TokenEmbedding(c.vocab_size, c.d_model)
        self.position = LearnedPositionalEncoding(c.d_model, c.max_length)
        self.dropout = Dropout(c.dropout)
        sizes = (c.d_model, c.num_heads, c.d_ff, c.dropout, True)  # True: pre-norm
        layers = [EncoderLayer(*sizes) for _ in range(c.num_layers)]
        self.stack = Stack(layers, LayerNorm(c.d_model))
        self.output: nn.Module | None = None
        _begin_small(self, c.num_layers)

    def read(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Say what follows each token, as a vector: (batch, length) -> (batch, length, d_model).

        With a cache the tokens are those that follow what it has read.
        """
        check_tokens("tokens", tokens)
        offset = 0 if cache is None else cache.length
        x = self.dropout(self.position(self.embedding(tokens), offset))  # (batch, length, d_model)
        hidden: Tensor = self.stack(x, None, is_causal=True, cache=cache)
        if cache is not None:
            cache.length += tokens.size(1)
        return hidden

    def project(self, hidden: Tensor) -> Tensor:
        """Map vectors (..., d_model) to logits (..., vocab_size)."""
        logits: Tensor = (self.embedding.project if self.output is None else self.output)(hidden)
        return logits

    def forward(self, tokens: Tensor, loss: Callable[..., Tensor] | None = None) -> Tensor:
        """Logits of what follows each token: (batch, length) -> (batch, length, vocab_size).

        A `loss` is used as in Transformer: it gets this model and the vectors.
        """
        hidden = self.read(tokens)  # (batch, length, d_model)
        return self.project(hidden) if loss is None else loss(self, hidden)

    def incremental_decoder(self, prompt: Tensor) -> "Continuation":
        """What `sample`, `greedy_decode` and `beam_search` step through: the prompt is the source."""
        return Continuation(self, prompt)


class Continuation:
    """A language model that goes on writing, token by token, and computes nothing twice.

    The prompt, ids (rows, length), is read at once, at the first step: it takes the place of the
    <bos> that decoding begins with. All prompts are equally long: padding at an end is refused
    (ValueError).
    """

    def __init__(self, model: Any, prompt: Tensor) -> None:
        if (prompt[:, -1] == model.config.pad_id).any():
            raise ValueError("a prompt ends with padding: prompts of one call must be equally long")
        self.model, self.cache = model, KeyValueCache()
        self.unread: Tensor | None = prompt

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token in each row: ids (rows,) -> logits of the next (rows, vocab_size)."""
        unread = tokens[:, None] if self.unread is None else self.unread  # (rows, new)
        self.unread = None
        logits: Tensor = self.model.project(self.model.read(unread, self.cache)[:, -1])
        return logits

    def keep(self, rows: Tensor) -> None:
        """Let row i continue what row rows[i] has written: some rows end, others double."""
        self.cache.select(rows)

    reorder = keep


def encode_stream(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """All texts as one row of ids, (tokens,), with <eos> behind each: there the next one begins."""
    return torch.tensor([i for row in encode_texts(tokenizer, texts) for i in [*row, EOS_ID]])


def text_windows(tokens: Tensor, length: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Batches of windows of a text, (batch, length + 1), for as long as anybody asks.

    An epoch is all windows of the text, side by side, shuffled; each begins to cut elsewhere. A
    window's last token is the next one's first: it is wanted here, and read there.

    ValueError if the text, ids (tokens,), is too short for one window wherever it is cut.
    """
    check_numbers(int, 1, len(tokens) // 2, length=length)
    check_numbers(int, 1, batch_size=batch_size)
    generator = torch.Generator().manual_seed(seed)

    def epochs() -> Iterator[Tensor]:
        while True:
            first = int(torch.randint(length, (), generator=generator))
            starts = torch.arange(first, len(tokens) - length, length)  # (windows,)
            order = torch.randperm(len(starts), generator=generator)
            for chosen in starts[order].split(batch_size):
                yield tokens[chosen[:, None] + torch.arange(length + 1)]  # (batch, length + 1)

    return epochs()


@torch.no_grad()
def surprise(model: Any, tokens: Tensor, length: int | None = None, batch_size: int = 16) -> Tensor:
    """How many nats each token but the first costs a model: ids (tokens,) -> (tokens - 1,).

    The text is read in windows of `length` tokens, max_length if None, that overlap by half: every
    token, but those of the first window, is guessed from at least length / 2 before it.
    """
    length = min(length or model.config.max_length, len(tokens) - 1)
    last = len(tokens) - 1 - length
    starts = torch.tensor([*range(0, last, max(length // 2, 1)), last])  # (windows,)
    nats = torch.zeros(len(tokens) - 1)
    done = 0
    with evaluating(model):
        for some in starts.split(batch_size):
            windows = tokens[some[:, None] + torch.arange(length + 1)]  # (batch, length + 1)
            logits = model(windows[:, :-1]).float().transpose(1, 2)  # (batch, vocab_size, length)
            found = F.cross_entropy(logits, windows[:, 1:], reduction="none")  # (batch, length)
            for start, row in zip(some.tolist(), found.cpu(), strict=True):
                nats[done : start + length] = row[done - start :]
                done = start + length
    return nats


def load_language_model(name: str | Path = "austen") -> tuple[LanguageModel, Tokenizer]:
    """A trained model, in eval mode, with its tokenizer: of a file, or one that is shipped.

    Those are "austen", and "austen-masked", a MaskedLanguageModel.

    Raises:
        ValueError: if the file is damaged.
    """
    file = Path(name)
    if not file.is_file():
        package = Path(str(resources.files("transformer_lib")))
        file = package / "pretrained" / name / "weights.safetensors"
    weights, notes = read_tensors(file)
    kind = MaskedLanguageModel if notes.get("is_masked") else LanguageModel
    model = kind(LanguageModelConfig(**notes["config"]))
    model.load_state_dict({name: x.float() for name, x in weights.items()})
    return model.eval(), parse_tokenizer(notes["tokenizer"], str(file))


class MaskedLanguageModel(LanguageModel):
    """Token ids in, logits for what stands at each place out: an encoder, which sees both sides.

    As BERT (Devlin et al., 2018), but pre-norm, with ReLU and sinusoidal positions. The last id of
    its vocabulary is [MASK]; <bos> serves as [CLS], <eos> as [SEP], where the second segment begins.
    """

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__(config)
        self.embedding = TokenEmbedding(config.vocab_size, config.d_model)
        self.position = SinusoidalPositionalEncoding(config.d_model, config.max_length)
        self.segment = nn.Embedding(2, config.d_model)
        nn.init.normal_(self.segment.weight, std=0.02)
        for parameter in self.stack.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    @property
    def mask_id(self) -> int:
        """The id of [MASK]."""
        return self.config.vocab_size - 1

    def embed(self, tokens: Tensor) -> Tensor:
        """Word, segment and place, added up: (batch, length) -> (batch, length, d_model)."""
        check_tokens("tokens", tokens)
        ends = (tokens == EOS_ID).long()  # (batch, length)
        segments = (ends.cumsum(dim=1) - ends).clamp(max=1)  # 0 up to the first [SEP], then 1
        x = self.embedding(tokens) + self.segment(segments)  # (batch, length, d_model)
        embedded: Tensor = self.dropout(self.position(x))
        return embedded

    def read(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(batch, length) -> (batch, length, d_model); ValueError with a cache, as all is read at once."""
        if cache is not None:
            raise ValueError("a masked language model reads a text whole: it cannot go on with one")
        hidden: Tensor = self.stack(self.embed(tokens), padding_mask(tokens, self.config.pad_id))
        return hidden


@torch.no_grad()
def fill_in(
    model: MaskedLanguageModel, tokenizer: Tokenizer, text: str, count: int = 5
) -> list[list[tuple[str, float]]]:
    """The likeliest tokens of each gap, "___", with their probabilities, the best first.

    A token brings the space before it, so a space before a gap belongs to the gap.
    """
    first, *others = encode_texts(tokenizer, text.replace(" ___", "___").split("___"))
    ids = [BOS_ID, *first, *(i for row in others for i in [model.mask_id, *row])]
    tokens = torch.tensor([ids])  # (1, length)
    probabilities = model(tokens)[tokens == model.mask_id].softmax(dim=-1)  # (gaps, vocab_size)
    best = probabilities.topk(count)
    return [
        [(tokenizer.decode([i]), p) for i, p in zip(ids, ps, strict=True)]
        for ids, ps in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
