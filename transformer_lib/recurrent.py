"""Recurrent cells, and a recurrent translator with and without attention.

Written from chapters 1, 3 of the book: edit the chapter, then `make sync`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.door import check_numbers
from transformer_lib.embeddings import TokenEmbedding
from transformer_lib.similarity import AdditiveSimilarity, weighted_lookup
from transformer_lib.tokenizer import BOS_ID, EOS_ID

__all__ = [
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "RecurrentConfig",
    "RecurrentState",
    "RecurrentTranslator",
]


class _RecurrentCell(nn.Module):
    """The two maps that every cell begins with, named, shaped and drawn as torch's.

    Inputs are (batch, input_size), states (batch, hidden_size).

    Raises:
        ValueError: if a size is below 1, or there is not one state for each input.
    """

    parts = 1  # how many parts, each of the state's size, the maps make

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        check_numbers(int, 1, input_size=input_size, hidden_size=hidden_size)
        self.input_size, self.hidden_size = input_size, hidden_size
        bound, rows = hidden_size**-0.5, self.parts * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size).uniform_(-bound, bound))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size).uniform_(-bound, bound))
        self.bias_ih = nn.Parameter(torch.empty(rows).uniform_(-bound, bound))
        self.bias_hh = nn.Parameter(torch.empty(rows).uniform_(-bound, bound))

    def _maps(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What the input says and what the state says, (batch, parts * hidden_size) each."""
        if len(x) != len(hidden):  # a single state would be broadcast
            raise ValueError(f"{len(x)} inputs need as many states, got {len(hidden)}")
        from_hidden = F.linear(hidden, self.weight_hh, self.bias_hh)
        return F.linear(x, self.weight_ih, self.bias_ih), from_hidden


class RNNCell(_RecurrentCell):
    """One step of the plain recurrent network (Elman, 1990): equation 1.1."""

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """(batch, input_size) and the state (batch, hidden_size) -> the state after."""
        from_input, from_hidden = self._maps(x, hidden)  # (batch, hidden_size) each
        return torch.tanh(from_input + from_hidden)


class LSTMCell(_RecurrentCell):
    """One step of the long short-term memory with a forget gate: equations 1.3 to 1.5.

    After Hochreiter and Schmidhuber (1997), with the forget gate of Gers et al. (2000).
    """

    parts = 4

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(batch, input_size), state and memory (batch, hidden_size) each -> the two after."""
        hidden, memory = state
        from_input, from_hidden = self._maps(x, hidden)  # (batch, 4 * hidden_size) each
        write, keep, new, show = (from_input + from_hidden).chunk(4, dim=-1)
        memory = keep.sigmoid() * memory + write.sigmoid() * new.tanh()  # (batch, hidden_size)
        return show.sigmoid() * memory.tanh(), memory


class GRUCell(_RecurrentCell):
    """One step of the gated recurrent unit (Cho et al., 2014): equations 1.6 to 1.8.

    As in torch, the reset gate acts after the product with the state, and the update gate says how
    much of the old state stays.
    """

    parts = 3

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """(batch, input_size) and the state (batch, hidden_size) -> the state after."""
        from_input, from_hidden = self._maps(x, hidden)  # (batch, 3 * hidden_size) each
        reset_x, update_x, new_x = from_input.chunk(3, dim=-1)  # (batch, hidden_size) each
        reset_h, update_h, new_h = from_hidden.chunk(3, dim=-1)
        reset, update = (reset_x + reset_h).sigmoid(), (update_x + update_h).sigmoid()
        new = torch.tanh(new_x + reset * new_h)  # (batch, hidden_size)
        return (1 - update) * new + update * hidden


@dataclass(frozen=True)
class RecurrentConfig:
    """Sizes of a RecurrentTranslator.

    Args:
        vocab_size: number of tokens, for both languages together.
        d_model: width of embeddings, states and memory; even, since the encoder reads both ways.
        attention: whether the decoder looks back at the source at each step (Bahdanau et al.,
            2015), or has one summary of it (Cho et al., 2014).
        pad_id: the id that fills up short rows.

    Raises:
        ValueError: if a value is out of range.
    """

    vocab_size: int
    d_model: int = 256
    attention: bool = True
    pad_id: int = 0

    def __post_init__(self) -> None:
        check_numbers(int, 1, vocab_size=self.vocab_size, d_model=self.d_model)
        check_numbers(bool, attention=self.attention)
        check_numbers(int, 0, self.vocab_size - 1, pad_id=self.pad_id)
        if self.d_model % 2:
            raise ValueError(f"half of d_model reads each way: it must be even, got {self.d_model}")


class RecurrentState(NamedTuple):
    """What a RecurrentTranslator's decoder knows between two steps."""

    hidden: Tensor  # the decoder's state, (batch, d_model)
    memory: Tensor  # what the encoder made of each source token, (batch, source, d_model)
    summary: Tensor  # the encoder's two last states, (batch, d_model)
    context: Tensor  # what the last step took from the source, (batch, d_model); first the summary
    keys: Tensor | None  # the memory, projected for the similarity; None without attention
    real: Tensor  # which source tokens are no padding, (batch, 1, source)
    weights: Tensor | None = None  # where the last step looked, (batch, source), if it did


class _Reader(nn.Module):
    """The parts of a RecurrentTranslator, and its encoder."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.embedding = TokenEmbedding(config.vocab_size, d)
        self.encoder = nn.GRU(d, d // 2, batch_first=True, bidirectional=True)
        self.first_state = nn.Linear(d, d)
        self.cell = GRUCell(2 * d, d)
        self.similarity = AdditiveSimilarity(d, d, d) if config.attention else None
        self.readout = nn.Linear(3 * d, d)

    def encode(self, source: Tensor) -> Tensor:
        """Read the source, ids (batch, source), into the memory (batch, source, d_model).

        At each token: what the GRU that comes from the left knows there, and what the one from the
        right knows. Zeros at padding.
        """
        real = source != self.config.pad_id  # (batch, source)
        if not real[:, 0].all() or (real[:, 1:] & ~real[:, :-1]).any():
            raise ValueError(f"rows of the source must be tokens, then padding, got {source}")
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(source), real.sum(dim=1).cpu(), batch_first=True, enforce_sorted=False
        )
        memory, _ = nn.utils.rnn.pad_packed_sequence(
            self.encoder(packed)[0], batch_first=True, total_length=source.size(1)
        )
        return memory  # (batch, source, d_model)


class _Stepper(_Reader):
    """The decoder of a RecurrentTranslator, one step at a time."""

    def begin(self, memory: Tensor, source: Tensor) -> RecurrentState:
        """The decoder's state before its first step, from what encode made of the source."""
        if memory.shape[:2] != source.shape:
            raise ValueError(f"memory {tuple(memory.shape)}, but source {tuple(source.shape)}")
        real = source != self.config.pad_id  # (batch, source)
        last = real.sum(dim=1) - 1  # (batch,): where each sentence ends
        rows = torch.arange(len(source), device=source.device)
        half = self.config.d_model // 2
        from_left, from_right = memory[rows, last, :half], memory[:, 0, half:]
        summary = torch.cat([from_left, from_right], dim=-1)  # (batch, d_model)
        hidden = torch.tanh(self.first_state(summary))  # (batch, d_model)
        keys = None if self.similarity is None else self.similarity.project_keys(memory)
        return RecurrentState(hidden, memory, summary, summary, keys, real[:, None])

    def step(self, embedded: Tensor, state: RecurrentState) -> RecurrentState:
        """Read one more target token, embedded, (batch, d_model)."""
        context, weights = state.summary, None  # (batch, d_model)
        if self.similarity is not None and state.keys is not None:
            query = state.hidden[:, None]  # (batch, 1, d_model): one query
            scores = self.similarity.score(query, state.keys)  # (batch, 1, source)
            found, weight_rows = weighted_lookup(scores, state.memory, state.real)
            context, weights = found[:, 0], weight_rows[:, 0]  # (batch, d_model), (batch, source)
        hidden = self.cell(torch.cat([embedded, context], dim=-1), state.hidden)  # (batch, d_model)
        return state._replace(hidden=hidden, context=context, weights=weights)

    def read(self, embedded: Tensor, state: RecurrentState) -> list[RecurrentState]:
        """The states after each of the target tokens, embedded, (batch, target, d_model)."""
        states = [state]
        for word in embedded.unbind(dim=1):  # (batch, d_model)
            states.append(self.step(word, states[-1]))
        return states[1:]

    def tell(self, embedded: Tensor, hidden: Tensor, context: Tensor) -> Tensor:
        """Make the vectors that say what follows: three times (..., d_model) -> (..., d_model)."""
        return torch.tanh(self.readout(torch.cat([hidden, context, embedded], dim=-1)))


class _Writer(_Stepper):
    """What a RecurrentTranslator writes by itself."""

    def project(self, hidden: Tensor) -> Tensor:
        """Map vectors (..., d_model) to logits (..., vocab_size) with the embedding matrix."""
        return self.embedding.project(hidden)

    @torch.no_grad()
    def greedy(
        self, source: Tensor, max_new_tokens: int, bos_id: int = BOS_ID, eos_id: int = EOS_ID
    ) -> list[list[int]]:
        """Write the likeliest next token, again and again, until <eos>.

        Ids (batch, source), padded on the right -> a list of ids a row, without <bos> and <eos>.
        """
        check_numbers(int, 1, max_new_tokens=max_new_tokens)
        state = self.begin(self.encode(source), source)
        columns = [source.new_full((len(source), 1), bos_id)]  # (batch, 1) each
        ended = torch.zeros_like(columns[0], dtype=torch.bool)  # (batch, 1)
        while len(columns) <= max_new_tokens and not ended.all():
            word = self.embedding(columns[-1])[:, 0]  # (batch, d_model)
            state = self.step(word, state)
            told = self.tell(word, state.hidden, state.context)  # (batch, d_model)
            columns.append(self.project(told).argmax(dim=-1, keepdim=True))
            ended = ended | (columns[-1] == eos_id)
        rows = torch.cat(columns[1:], dim=1).tolist()
        return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]


class RecurrentTranslator(_Writer):
    """A recurrent encoder-decoder, with or without additive attention.

    The encoder is a GRU that reads both ways, the decoder a GRUCell (Bahdanau et al., 2015;
    without attention, that of Cho et al., 2014). One matrix is embedding and map to logits.

    Args:
        config: the sizes.

    Raises:
        ValueError: in its methods, if a row of the source is not tokens and then padding, memory
            and source do not belong together, or it is to align without attention.
    """

    def decode(self, target: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        """Say what follows each target token, as a vector.

        Ids (batch, target), <bos> first, and memory and ids of the source -> (batch, target, d_model).
        """
        embedded = self.embedding(target)  # (batch, target, d_model)
        states = self.read(embedded, self.begin(memory, source))
        hidden = torch.stack([state.hidden for state in states], dim=1)  # (batch, target, d_model)
        context = torch.stack([state.context for state in states], dim=1)
        return self.tell(embedded, hidden, context)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        loss: Callable[[nn.Module, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Ids (batch, source) and (batch, target), <bos> first -> logits (batch, target, vocab_size).

        Or what `loss` makes of this model and the vectors (batch, target, d_model).
        """
        hidden = self.decode(target, self.encode(source), source)  # (batch, target, d_model)
        return self.project(hidden) if loss is None else loss(self, hidden)

    @torch.no_grad()
    def align(self, source: Tensor, target: Tensor) -> Tensor:
        """Where the decoder looks before it writes each target token: weights (batch, target, source).

        From ids (batch, source) and (batch, target), <bos> first.
        """
        states = self.read(self.embedding(target), self.begin(self.encode(source), source))
        rows = [state.weights for state in states if state.weights is not None]
        if not rows:
            raise ValueError(f"there is nothing to align: {self.config} has no attention")
        return torch.stack(rows, dim=1)  # (batch, target, source)
