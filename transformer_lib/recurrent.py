"""Recurrent cells, and a recurrent translator with and without attention.

Written from chapters 1, 3 of the book: edit the chapter, then `make sync`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.embeddings import TokenEmbedding
from transformer_lib.similarity import AdditiveSimilarity, weighted_lookup

__all__ = [
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "RecurrentConfig",
    "RecurrentState",
    "RecurrentTranslator",
]


class _RecurrentCell(nn.Module):
    """The two maps every cell begins with, named and drawn as torch names and draws them."""

    def __init__(self, input_size: int, hidden_size: int, parts: int) -> None:
        super().__init__()
        if input_size < 1 or hidden_size < 1:
            raise ValueError(
                f"input_size and hidden_size must be at least 1, got {input_size} and {hidden_size}"
            )
        self.input_size, self.hidden_size = input_size, hidden_size
        bound = hidden_size**-0.5
        rows = parts * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size).uniform_(-bound, bound))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size).uniform_(-bound, bound))
        self.bias_ih = nn.Parameter(torch.empty(rows).uniform_(-bound, bound))
        self.bias_hh = nn.Parameter(torch.empty(rows).uniform_(-bound, bound))

    def _maps(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What the input says and what the state says, (batch, parts * hidden_size) each."""
        if x.dim() != 2 or x.size(-1) != self.input_size:
            raise ValueError(
                f"the input must be (batch, input_size {self.input_size}), got {tuple(x.shape)}"
            )
        if hidden.shape != (x.size(0), self.hidden_size):
            raise ValueError(
                f"for an input of shape {tuple(x.shape)} the state must be "
                f"({x.size(0)}, hidden_size {self.hidden_size}), got {tuple(hidden.shape)}"
            )
        return F.linear(x, self.weight_ih, self.bias_ih), F.linear(
            hidden, self.weight_hh, self.bias_hh
        )


class RNNCell(_RecurrentCell):
    """One step of the plain recurrent network (Elman, 1990): equation 1.1.

    Its parameters have the names and shapes of `torch.nn.RNNCell`.

    Args:
        input_size: width of an input.
        hidden_size: width of the state.

    Raises:
        ValueError: if a width is below 1.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, parts=1)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Take one step.

        Args:
            x: the input, shape (batch, input_size).
            hidden: the state before, shape (batch, hidden_size).

        Returns:
            The state after, shape (batch, hidden_size).

        Raises:
            ValueError: if a shape does not fit.
        """
        from_input, from_hidden = self._maps(x, hidden)  # (batch, hidden_size) each
        return torch.tanh(from_input + from_hidden)


class LSTMCell(_RecurrentCell):
    """One step of the long short-term memory with a forget gate: equations 1.3 to 1.5.

    After Hochreiter and Schmidhuber (1997), with the forget gate of Gers et al. (2000).
    Its parameters have the names and shapes of `torch.nn.LSTMCell`.

    Args:
        input_size: width of an input.
        hidden_size: width of the state and of the memory.

    Raises:
        ValueError: if a width is below 1.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, parts=4)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            x: the input, shape (batch, input_size).
            state: hidden state and memory before, shape (batch, hidden_size) each.

        Returns:
            Hidden state and memory after, shape (batch, hidden_size) each.

        Raises:
            ValueError: if a shape does not fit.
        """
        hidden, memory = state
        if memory.shape != hidden.shape:
            raise ValueError(
                "hidden state and memory must have one shape, "
                f"got {tuple(hidden.shape)} and {tuple(memory.shape)}"
            )
        from_input, from_hidden = self._maps(x, hidden)  # (batch, 4 * hidden_size) each
        write, keep, new, show = (from_input + from_hidden).chunk(4, dim=-1)
        memory = keep.sigmoid() * memory + write.sigmoid() * new.tanh()  # (batch, hidden_size)
        return show.sigmoid() * memory.tanh(), memory


class GRUCell(_RecurrentCell):
    """One step of the gated recurrent unit (Cho et al., 2014): equations 1.6 to 1.8.

    Its parameters have the names and shapes of `torch.nn.GRUCell`. As there, the reset gate acts
    after the product with the state, and the update gate says how much of the old state stays.

    Args:
        input_size: width of an input.
        hidden_size: width of the state.

    Raises:
        ValueError: if a width is below 1.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, parts=3)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Take one step.

        Args:
            x: the input, shape (batch, input_size).
            hidden: the state before, shape (batch, hidden_size).

        Returns:
            The state after, shape (batch, hidden_size).

        Raises:
            ValueError: if a shape does not fit.
        """
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
        ValueError: if a size is out of range.
    """

    vocab_size: int
    d_model: int = 256
    attention: bool = True
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.d_model < 2 or self.d_model % 2:
            raise ValueError(f"half of d_model reads each way: it must be even, got {self.d_model}")
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(
                f"pad_id {self.pad_id} is not in a vocabulary of {self.vocab_size} entries"
            )


class RecurrentState(NamedTuple):
    """What a RecurrentTranslator's decoder knows between two steps.

    hidden: the decoder's state, (batch, d_model).
    memory: what the encoder made of each source token, (batch, source, d_model).
    summary: the encoder's two last states, (batch, d_model).
    context: what the last step has taken from the source, (batch, d_model); at first the summary.
    keys: the memory, projected for the similarity, (batch, source, d_model); None without attention.
    real: which source tokens are no padding, (batch, 1, source).
    weights: where the last step has looked, (batch, source); None at first and without attention.
    """

    hidden: Tensor
    memory: Tensor
    summary: Tensor
    context: Tensor
    keys: Tensor | None
    real: Tensor
    weights: Tensor | None = None


class RecurrentTranslator(nn.Module):
    """A recurrent encoder-decoder, with or without additive attention.

    The encoder is a GRU that reads both ways, the decoder a GRUCell (Bahdanau et al., 2015;
    without attention, that of Cho et al., 2014). One matrix is embedding and map to logits. It has the
    methods that `train` and `evaluate_loss` ask of a model: encode, decode, project.

    Args:
        config: the sizes.
    """

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
        """Read the source both ways.

        Args:
            source: ids, padded on the right, shape (batch, source).

        Returns:
            The memory, shape (batch, source, d_model): at each token what the GRU that comes from
            the left knows there, and what the one from the right knows. Zeros at padding.

        Raises:
            ValueError: if a row is nothing but padding or not padded on the right, or source is not
                fit to be embedded.
        """
        embedded = self.embedding(source)  # (batch, source, d_model)
        real = source != self.config.pad_id  # (batch, source)
        lengths = real.sum(dim=1)  # (batch,)
        if lengths.min() < 1:
            raise ValueError(f"row {int(lengths.argmin())} of the source is nothing but padding")
        if (real[:, 1:] & ~real[:, :-1]).any():
            raise ValueError(f"source must be padded on the right, got {source.tolist()}")
        packed = nn.utils.rnn.pack_padded_sequence(
            embedded, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = self.encoder(packed)
        memory, _ = nn.utils.rnn.pad_packed_sequence(
            states, batch_first=True, total_length=source.size(1)
        )
        return memory  # (batch, source, d_model)

    def begin(self, memory: Tensor, source: Tensor) -> RecurrentState:
        """Make the decoder's state before its first step.

        Args:
            memory: what encode made of the source, shape (batch, source, d_model).
            source: the ids, shape (batch, source).

        Returns:
            The state.

        Raises:
            ValueError: if memory and source do not belong together.
        """
        if memory.shape != (*source.shape, self.config.d_model):
            raise ValueError(
                f"memory {tuple(memory.shape)} and source {tuple(source.shape)} do not belong "
                f"together: they should be (batch, source, {self.config.d_model}) and (batch, source)"
            )
        real = source != self.config.pad_id  # (batch, source)
        last = real.sum(dim=1) - 1  # (batch,): where each sentence ends
        rows = torch.arange(source.size(0), device=source.device)
        half = self.config.d_model // 2
        from_left, from_right = memory[rows, last, :half], memory[:, 0, half:]
        summary = torch.cat([from_left, from_right], dim=-1)  # (batch, d_model)
        hidden = torch.tanh(self.first_state(summary))  # (batch, d_model)
        keys = None if self.similarity is None else self.similarity.project_keys(memory)
        return RecurrentState(hidden, memory, summary, summary, keys, real[:, None])

    def step(self, embedded: Tensor, state: RecurrentState) -> RecurrentState:
        """Read one more target token.

        Args:
            embedded: the token, embedded, shape (batch, d_model).
            state: from begin, or from the step before.

        Returns:
            The state after.

        Raises:
            ValueError: if embedded and state do not fit together.
        """
        if embedded.shape != state.hidden.shape:
            raise ValueError(
                f"embedded must be (batch, d_model) as the state is, got {tuple(embedded.shape)} "
                f"for a state of {state.hidden.size(0)} rows and width {state.hidden.size(1)}"
            )
        context, weights = state.summary, None  # (batch, d_model)
        if self.similarity is not None and state.keys is not None:
            query = state.hidden[:, None]  # (batch, 1, d_model): one query
            scores = self.similarity.score(query, state.keys)  # (batch, 1, source)
            found, weight_rows = weighted_lookup(scores, state.memory, state.real)
            context, weights = found[:, 0], weight_rows[:, 0]  # (batch, d_model), (batch, source)
        hidden = self.cell(torch.cat([embedded, context], dim=-1), state.hidden)  # (batch, d_model)
        return state._replace(hidden=hidden, context=context, weights=weights)

    def tell(self, embedded: Tensor, hidden: Tensor, context: Tensor) -> Tensor:
        """Make the vectors that say what follows, from shapes (..., d_model) to (..., d_model)."""
        return torch.tanh(self.readout(torch.cat([hidden, context, embedded], dim=-1)))

    def decode(self, target: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        """Say what follows each target token, as a vector.

        Args:
            target: the ids so far, <bos> first, shape (batch, target).
            memory: what encode made of the source, shape (batch, source, d_model).
            source: the ids of the source, shape (batch, source).

        Returns:
            Shape (batch, target, d_model).

        Raises:
            ValueError: if the three do not fit together, or ids are not in the vocabulary.
        """
        embedded = self.embedding(target)  # (batch, target, d_model)
        state = self.begin(memory, source)
        states = []
        for word in embedded.unbind(dim=1):  # (batch, d_model)
            state = self.step(word, state)
            states.append(state)
        hidden = torch.stack([state.hidden for state in states], dim=1)  # (batch, target, d_model)
        context = torch.stack([state.context for state in states], dim=1)
        return self.tell(embedded, hidden, context)

    def project(self, hidden: Tensor) -> Tensor:
        """Map vectors (..., d_model) to logits (..., vocab_size) with the embedding matrix."""
        return self.embedding.project(hidden)

    @torch.no_grad()
    def align(self, source: Tensor, target: Tensor) -> Tensor:
        """Tell where the decoder looks in the source before it writes each target token.

        Args:
            source: ids, shape (batch, source).
            target: ids, <bos> first, shape (batch, target).

        Returns:
            The attention weights, shape (batch, target, source).

        Raises:
            ValueError: if the model has no attention, or the ids do not fit.
        """
        state = self.begin(self.encode(source), source)
        rows = []
        for word in self.embedding(target).unbind(dim=1):  # (batch, d_model)
            state = self.step(word, state)
            if state.weights is None:
                raise ValueError(f"there is nothing to align: {self.config} has no attention")
            rows.append(state.weights)
        return torch.stack(rows, dim=1)  # (batch, target, source)

    @torch.no_grad()
    def greedy(
        self, source: Tensor, max_new_tokens: int, bos_id: int = 1, eos_id: int = 2
    ) -> list[list[int]]:
        """Write the likeliest next token, again and again, until <eos>.

        Args:
            source: ids, padded on the right, shape (batch, source).
            max_new_tokens: how many tokens a row may get at most.
            bos_id: the id that begins a target.
            eos_id: the id that ends one.

        Returns:
            One list of ids for each row, without <bos> and <eos>.

        Raises:
            ValueError: if max_new_tokens is below 1, or source is not fit to be encoded.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        state = self.begin(self.encode(source), source)
        tokens = source.new_full((source.size(0),), bos_id)  # (batch,)
        rows: list[list[int]] = [[] for _ in range(source.size(0))]
        open_rows = list(range(source.size(0)))
        for _ in range(max_new_tokens):
            word = self.embedding(tokens[:, None])[:, 0]  # (batch, d_model)
            state = self.step(word, state)
            told = self.tell(word, state.hidden, state.context)  # (batch, d_model)
            tokens = self.project(told).argmax(dim=-1)  # (batch,)
            written = tokens.tolist()
            open_rows = [row for row in open_rows if written[row] != eos_id]
            for row in open_rows:
                rows[row].append(written[row])
            if not open_rows:
                break
        return rows
