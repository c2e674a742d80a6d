"""The Transformer of 'Attention Is All You Need', built piece by piece.

Every line comes out of a chapter of the book; this file is written by tools/export_modules.py.
"""

from transformer_lib.attention import (
    MultiHeadAttention,
    causal_mask,
    padding_mask,
    scaled_dot_product_attention,
)
from transformer_lib.data import (
    Batch,
    Example,
    Pair,
    encode_pairs,
    load_pairs,
    make_batch,
    read_pairs,
    token_batches,
)
from transformer_lib.decoding import greedy_decode
from transformer_lib.embeddings import (
    LearnedPositionalEncoding,
    SinusoidalPositionalEncoding,
    TokenEmbedding,
    sinusoidal_positions,
)
from transformer_lib.layers import (
    DecoderLayer,
    Dropout,
    EncoderLayer,
    FeedForward,
    LayerNorm,
    ResidualConnection,
)
from transformer_lib.tokenizer import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS, train_tokenizer
from transformer_lib.training import (
    Progress,
    average_weights,
    endless_batches,
    evaluate_loss,
    learning_rate,
    load_checkpoint,
    make_optimizer,
    read_tensors,
    save_checkpoint,
    train,
    translation_loss,
    write_tensors,
)
from transformer_lib.transformer import (
    Decoder,
    Encoder,
    Transformer,
    TransformerConfig,
    count_parameters,
    from_torch,
    to_torch,
)

__all__ = [
    "BOS_ID",
    "EOS_ID",
    "PAD_ID",
    "SPECIAL_TOKENS",
    "Batch",
    "Decoder",
    "DecoderLayer",
    "Dropout",
    "Encoder",
    "EncoderLayer",
    "Example",
    "FeedForward",
    "LayerNorm",
    "LearnedPositionalEncoding",
    "MultiHeadAttention",
    "Pair",
    "Progress",
    "ResidualConnection",
    "SinusoidalPositionalEncoding",
    "TokenEmbedding",
    "Transformer",
    "TransformerConfig",
    "average_weights",
    "causal_mask",
    "count_parameters",
    "encode_pairs",
    "endless_batches",
    "evaluate_loss",
    "from_torch",
    "greedy_decode",
    "learning_rate",
    "load_checkpoint",
    "load_pairs",
    "make_batch",
    "make_optimizer",
    "padding_mask",
    "read_pairs",
    "read_tensors",
    "save_checkpoint",
    "scaled_dot_product_attention",
    "sinusoidal_positions",
    "to_torch",
    "token_batches",
    "train",
    "train_tokenizer",
    "translation_loss",
    "write_tensors",
]
