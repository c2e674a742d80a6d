"""The package and its peers at one size, each behind the same few functions.

All have d_model 256, 4 heads, d_ff 1024, 3 + 3 layers, a vocabulary of 8,000 shared by both sides and the output, and
dropout 0.1 where the peer has it. Each is used as its own documentation would have it.
"""

import random
import tempfile
from collections.abc import Callable
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ctranslate2
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MarianConfig, MarianMTModel
from x_transformers import XTransformer

from transformer_lib.decoding import beam_search, greedy_decode
from transformer_lib.embeddings import sinusoidal_positions
from transformer_lib.pairs import Batch, Example, make_batch
from transformer_lib.training import translation_loss
from transformer_lib.transformer import Transformer, TransformerConfig

VOCAB, D_MODEL, HEADS, D_FF, LAYERS, DROPOUT = 8000, 256, 4, 1024, 3, 0.1
PAD, BOS, EOS = 0, 1, 2
NEVER = -1  # an id that no token has: nothing ends
WORDS = [
    "<blank>",
    "<s>",
    "</s>",
    *(str(i) for i in range(3, VOCAB)),
]  # ids as CTranslate2 wants them


def random_batch(rows: int, shortest: int, longest: int, seed: int = 0) -> Batch:
    """Random tokens, lengths drawn evenly, <bos> and <eos> counted."""
    draw = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(3, VOCAB) for _ in range(count)]

    lengths = [
        (draw.randint(shortest, longest), draw.randint(shortest, longest)) for _ in range(rows)
    ]
    return make_batch([Example([*tokens(m - 1), EOS], tokens(n - 1)) for m, n in lengths])


def smoothed_loss(logits: Tensor, batch: Batch) -> Tensor:
    """What one writes with torch: all positions, padding ignored afterwards."""
    return F.cross_entropy(
        logits.flatten(0, 1), batch.target_out.flatten(), ignore_index=PAD, label_smoothing=0.1
    )


class TorchPeer(nn.Module):
    """torch.nn.Transformer with a tied embedding and sinusoidal positions."""

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, D_MODEL)
        nn.init.normal_(self.embedding.weight, std=D_MODEL**-0.5)
        self.core = nn.Transformer(D_MODEL, HEADS, LAYERS, LAYERS, D_FF, DROPOUT, batch_first=True)
        self.register_buffer("positions", sinusoidal_positions(1024, D_MODEL), persistent=False)

    def embed(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) * D_MODEL**0.5 + self.positions[: tokens.size(1)]
        return F.dropout(x, DROPOUT, self.training)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        future = torch.ones(target.size(1), target.size(1), dtype=torch.bool).triu(1)
        padding = source == PAD
        hidden = self.core(
            self.embed(source),
            self.embed(target),
            tgt_mask=future,
            tgt_is_causal=True,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return F.linear(hidden, self.embedding.weight)


def ours() -> Transformer:
    """The package's model, the paper's way (norms after)."""
    return Transformer(TransformerConfig(VOCAB, D_MODEL, HEADS, D_FF, LAYERS, LAYERS, DROPOUT))


def marian(attention: str) -> MarianMTModel:
    """Hugging Face's MarianMTModel with random weights."""
    config = MarianConfig(
        vocab_size=VOCAB,
        d_model=D_MODEL,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=D_FF,
        decoder_ffn_dim=D_FF,
        activation_function="relu",
        dropout=DROPOUT,
        scale_embedding=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        decoder_start_token_id=BOS,
        forced_eos_token_id=None,
        max_position_embeddings=1024,
        attn_implementation=attention,
    )
    return MarianMTModel(config)


def x_transformer(flash: bool) -> XTransformer:
    """x-transformers' encoder-decoder."""
    sides: dict[str, Any] = {}
    for side in ("enc", "dec"):
        sides |= {
            f"{side}_num_tokens": VOCAB,
            f"{side}_depth": LAYERS,
            f"{side}_heads": HEADS,
            f"{side}_attn_dim_head": D_MODEL // HEADS,
            f"{side}_max_seq_len": 512,
            f"{side}_attn_flash": flash,
            f"{side}_attn_dropout": DROPOUT,
            f"{side}_ff_dropout": DROPOUT,
            f"{side}_emb_dropout": DROPOUT,
        }
    model = XTransformer(dim=D_MODEL, tie_token_emb=True, **sides)
    decoder = model.decoder.net
    decoder.to_logits.weight = decoder.token_emb.emb.weight  # tied, as the others
    return model


def training_peers() -> dict[str, tuple[nn.Module, Callable[[nn.Module, Batch], Tensor]]]:
    """Name -> model and the loss of a batch."""

    def marian_loss(model: Any, batch: Batch) -> Tensor:
        logits = model(
            input_ids=batch.source,
            attention_mask=batch.source != PAD,
            decoder_input_ids=batch.target_in,
            use_cache=False,
        ).logits
        return smoothed_loss(logits, batch)

    def x_loss(model: Any, batch: Batch) -> Tensor:
        mask = batch.source != PAD
        memory = model.encoder(batch.source, mask=mask, return_embeddings=True)
        logits = model.decoder.net(batch.target_in, context=memory, context_mask=mask)
        return smoothed_loss(logits, batch)

    def our_loss(model: Any, batch: Batch) -> Tensor:
        total, tokens = translation_loss(model, batch, 0.1)
        return total / tokens

    return {
        "torch.nn.Transformer": (
            TorchPeer(),
            lambda model, batch: smoothed_loss(model(batch.source, batch.target_in), batch),
        ),
        "Marian, eager": (marian("eager"), marian_loss),
        "Marian, sdpa": (marian("sdpa"), marian_loss),
        "x-transformers": (x_transformer(False), x_loss),
        "x-transformers, flash": (x_transformer(True), x_loss),
        "transformer_lib": (ours(), our_loss),
    }


def to_ctranslate2(model: Transformer) -> ctranslate2.Translator:
    """Our weights in CTranslate2's format; its tokens are the ids, written as text."""
    from ctranslate2.specs import TransformerSpec, common_spec

    spec = TransformerSpec.from_config(
        (LAYERS, LAYERS), HEADS, pre_norm=False, activation=common_spec.Activation.RELU
    )

    def linear(target: Any, *modules: Any) -> None:
        target.weight = torch.cat([m.weight for m in modules]).detach().numpy()
        target.bias = torch.cat([m.bias for m in modules]).detach().numpy()

    def norm(target: Any, module: Any) -> None:
        target.gamma, target.beta = module.weight.detach().numpy(), module.bias.detach().numpy()

    def self_attention(target: Any, layer: Any) -> None:
        own = layer.self_attention
        linear(target.linear[0], own.query_projection, own.key_projection, own.value_projection)
        linear(target.linear[1], own.output_projection)
        norm(target.layer_norm, layer.residual_1.norm)

    def feed_forward(target: Any, layer: Any, residual: Any) -> None:
        linear(target.linear_0, layer.feed_forward.inner)
        linear(target.linear_1, layer.feed_forward.outer)
        norm(target.layer_norm, residual.norm)

    embedding = model.embedding.weight.detach().numpy()
    positions = sinusoidal_positions(512, D_MODEL).numpy()
    for side in (spec.encoder, spec.decoder):
        embeddings = side.embeddings[0] if isinstance(side.embeddings, list) else side.embeddings
        embeddings.weight = embedding
        embeddings.multiply_by_sqrt_depth = True
        side.scale_embeddings = True
        side.position_encodings.encodings = positions
    for target, layer in zip(spec.encoder.layer, model.encoder.layers, strict=True):
        self_attention(target.self_attention, layer)
        feed_forward(target.ffn, layer, layer.residual_2)
    for target, layer in zip(spec.decoder.layer, model.decoder.layers, strict=True):
        cross: Any = layer.cross_attention
        self_attention(target.self_attention, layer)
        linear(target.attention.linear[0], cross.query_projection)
        linear(target.attention.linear[1], cross.key_projection, cross.value_projection)
        linear(target.attention.linear[2], cross.output_projection)
        norm(target.attention.layer_norm, layer.residual_2.norm)
        feed_forward(target.ffn, layer, layer.residual_3)
    spec.decoder.projection.weight = embedding
    spec.register_source_vocabulary(WORDS)
    spec.register_target_vocabulary(WORDS)
    spec.config.add_source_bos = spec.config.add_source_eos = False
    spec.validate()
    spec.optimize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        path.mkdir()
        spec.save(str(path))
        return ctranslate2.Translator(
            str(path), compute_type="float32", intra_threads=torch.get_num_threads()
        )


def answer(pipe: Any, threads: int, rows: list[list[str]], options: dict[str, Any]) -> None:
    """Translate whenever the other end asks for it."""
    torch.set_num_threads(threads)
    translator = to_ctranslate2(ours().eval())
    while pipe.recv():
        translator.translate_batch(rows, **options)
        pipe.send(True)


def in_a_process_of_its_own(rows: list[list[str]], **options: Any) -> Callable[[], Any]:
    """A function that has CTranslate2 translate, elsewhere.

    It brings threads of its own, beside torch's. Once it had run in this process, all others became slower, up to
    twice.
    """
    here, there = get_context("spawn").Pipe()
    arguments = (there, torch.get_num_threads(), rows, options)
    get_context("spawn").Process(target=answer, args=arguments, daemon=True).start()

    def ask() -> None:
        here.send(True)
        here.recv()

    return ask


def decoding_peers(beam_size: int, batch: Batch, count: int) -> dict[str, Callable[[], Any]]:
    """Name -> a function that writes `count` tokens for every row, never ending before."""
    model = ours().eval()
    source = batch.source
    mask = source != PAD
    peers: dict[str, Callable[[], Any]] = {}
    for attention in ("sdpa", "eager"):
        other = marian(attention).eval()

        def generate(other: Any = other) -> Any:
            with torch.inference_mode():
                return other.generate(
                    input_ids=source,
                    attention_mask=mask,
                    max_new_tokens=count,
                    min_new_tokens=count,
                    num_beams=beam_size,
                    do_sample=False,
                    length_penalty=0.6,
                )

        peers[f"Marian, {attention}"] = generate
    peers["CTranslate2"] = in_a_process_of_its_own(
        [[WORDS[i] for i in row if i != PAD] for row in source.tolist()],
        beam_size=beam_size,
        max_decoding_length=count,
        min_decoding_length=count,
        length_penalty=0.6,
        max_batch_size=len(source),
    )
    speed = import_module("experiments.25_speed")  # chapter 25: what 8 bits cost in BLEU
    eight_bits = speed.int8_model(model)

    def write(writer: Any) -> Any:
        if beam_size == 1:
            return greedy_decode(writer, source, count, eos_id=NEVER)
        return beam_search(writer, source, count, beam_size, eos_id=NEVER)

    def write_in_8_bits() -> Any:
        with speed.ordered(speed.by_rows):  # its matrices have an order of their own
            return write(eight_bits)

    peers["transformer_lib"] = lambda: write(model)
    peers["transformer_lib, int8"] = write_in_8_bits
    return peers
