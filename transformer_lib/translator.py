"""A trained model with its tokenizer: text in, text out.

Written from chapter 15 of the book: edit the chapter, then `make sync`.
"""

from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from transformer_lib.checkpoint import read_tensors, unwrap, write_tensors
from transformer_lib.decoding import beam_search, greedy_decode
from transformer_lib.door import check_numbers, check_same, describe_model
from transformer_lib.pairs import Example, make_batch
from transformer_lib.tokenizer import EOS_ID, PAD_ID, encode_texts, parse_tokenizer
from transformer_lib.transformer import Transformer, TransformerConfig

__all__ = ["Translator"]


class Translator:
    """A trained model with its tokenizer: text in, text out.

    `training`, how the model came to be, is anything that JSON can hold.

    Raises:
        ValueError: if the model's vocabulary or padding is not the tokenizer's.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer, training: dict[str, Any] | None = None
    ) -> None:
        model = unwrap(model)  # a compiled model names its weights in another way
        check_same(
            "the model, with this tokenizer,",
            {"vocab_size": model.config.vocab_size, "pad_id": model.config.pad_id},
            {"vocab_size": tokenizer.get_vocab_size(), "pad_id": PAD_ID},
        )
        self.model, self.tokenizer, self.training = model, tokenizer, training or {}
        self.tokenizer.encode_special_tokens = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set what copies of a tokenizer lose."""
        self.__dict__ |= state
        self.tokenizer.encode_special_tokens = True

    def translate(
        self,
        texts: Sequence[str],
        beam_size: int = 4,
        length_penalty: float = 0.6,
        batch_size: int = 32,
    ) -> list[str]:
        """Translate sentences, at most batch_size at once (paper, section 6.1: beam 4, penalty 0.6).

        A text without words has an empty translation. None has more than 50 tokens more than its
        text (paper), or more than the model has positions. A beam_size of 1 is greedy decoding.

        Raises:
            ValueError: for one string in place of many, a number below 1, or a text too long.
        """
        check_numbers(int, 1, beam_size=beam_size, batch_size=batch_size)
        check_numbers(float, 0, 10, length_penalty=length_penalty)
        positions = self.model.config.max_length
        texts = texts if isinstance(texts, str) else [text.strip() for text in texts]
        rows = encode_texts(self.tokenizer, texts)
        lengths = {i: len(row) + 1 for i, row in enumerate(rows) if row}  # with <eos>
        for i, length in lengths.items():
            if length > positions:
                raise ValueError(
                    f"text {i} has {length} tokens, the model has {positions} positions"
                )
        translations = [""] * len(rows)
        waiting = sorted(lengths, key=lengths.__getitem__)  # like lengths together
        while waiting:
            size = len(waiting[:batch_size])
            # A long sentence among short ones would make them all as long as itself.
            while size > 1 and size * lengths[waiting[size - 1]] > 32 * batch_size:
                size -= 1
            chosen, waiting = waiting[:size], waiting[size:]
            written = self._decode([rows[i] for i in chosen], beam_size, length_penalty)
            for i, tokens in zip(chosen, written, strict=True):
                translations[i] = self.tokenizer.decode(tokens)
        return translations

    def _decode(self, rows: list[list[int]], beam_size: int, alpha: float) -> list[list[int]]:
        """Token ids of the translations of token ids, as one batch."""
        batch = make_batch([Example([*row, EOS_ID], []) for row in rows])
        source = batch.source.to(next(self.model.parameters()).device)  # (batch, source)
        most = [min(len(row) + 51, self.model.config.max_length) for row in rows]
        if beam_size == 1:
            return greedy_decode(self.model, source, most)
        found = beam_search(self.model, source, most, beam_size, alpha)
        return [hypotheses[0].tokens for hypotheses in found]

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights, tokenizer and training notes into one file of a folder: whole, or not at all.

        With weights as torch.float16 the file is half as large.

        Raises:
            OSError: if the folder cannot be written to.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_tensors(
            Path(folder) / "weights.safetensors",
            {name: x.to(dtype) for name, x in self.model.state_dict().items()},
            config=asdict(self.model.config),
            model=describe_model(self.model),
            tokenizer=self.tokenizer.to_str(),
            training=self.training,
        )

    @classmethod
    def from_pretrained(
        cls, name: str | Path = "de-en", model: Transformer | None = None
    ) -> "Translator":
        """Load a translator: of a folder that `save` has written, or "de-en", which is shipped.

        Its weights are float32, its model is in eval mode. If parts of the model had been replaced,
        give as `model` one with the same parts, for the weights to be loaded into.

        Raises:
            ValueError: if there is no such translator, its file is damaged, or its model is not
                what the config says, nor the model given.
        """
        file = Path(name) / "weights.safetensors"
        if not file.is_file():
            shipped = Path(str(resources.files("transformer_lib"))) / "pretrained" / name
            if not (shipped / file.name).is_file():
                raise ValueError(f"{name} is no translator: there is no file {file}")
            file = shipped / file.name
        weights, notes = read_tensors(file)
        if not {"config", "model", "tokenizer", "training"} <= notes.keys():
            raise ValueError(f"{file} holds no translator, but {sorted(notes)}")
        model = Transformer(TransformerConfig(**notes["config"])) if model is None else model
        check_same(f"{file}, of a model with other parts,", notes["model"], describe_model(model))
        model.load_state_dict({name: x.float() for name, x in weights.items()})
        tokenizer = parse_tokenizer(notes["tokenizer"], str(file))
        return cls(model.eval(), tokenizer, notes["training"])
