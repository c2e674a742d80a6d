"""A model leaves the library as a program of torch's, and as one of ONNX where that is installed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from transformer_lib.attention import RotaryAttention, padding_mask
from transformer_lib.embeddings import NoPositions
from transformer_lib.transformer import Transformer

Make = Callable[..., Transformer]
SIZES = [(2, 9, 7), (3, 20, 5), (2, 4, 30)]  # rows, source, target; the first is the example's


class FullPass(nn.Module):
    """Source and target ids to logits, as chapter 26 exports it."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        model = self.model
        memory, real = model.encode(source), padding_mask(source, model.config.pad_id)
        logits: Tensor = model.project(model.decoder(model.embed(target), memory, None, real))
        return logits


def drawn(rows: int, source: int, target: int) -> tuple[Tensor, Tensor]:
    """Ids, the first source padded."""
    ids = torch.randint(3, 11, (rows, source)), torch.randint(3, 11, (rows, target))
    ids[0][0, source // 2 :] = 0
    return ids


def exported(model: Transformer) -> ExportedProgram:
    rows, *lengths = (Dim(name, min=2, max=32) for name in ("rows", "source", "target"))
    sizes = tuple({0: rows, 1: length} for length in lengths)
    return export(FullPass(model), drawn(*SIZES[0]), dynamic_shapes=sizes)


def model_of(tiny: Make, rotary: bool) -> Transformer:
    model = tiny(vocab_size=11, d_model=16, num_heads=2, dropout=0.0).eval()
    if rotary:
        model.position = NoPositions()
        for layer in (*model.encoder.layers, *model.decoder.layers):
            layer.self_attention = RotaryAttention(16, 2)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("rotary", [False, True])
@torch.no_grad()
def test_an_exported_program_says_what_the_model_says(tiny: Make, rotary: bool) -> None:
    model = model_of(tiny, rotary)
    program = exported(model).module()
    for size in SIZES:
        ids = drawn(*size)
        torch.testing.assert_close(program(*ids), model(*ids), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rotary", [False, True])
@torch.no_grad()
def test_onnx_says_what_the_model_says(tiny: Make, rotary: bool) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = model_of(tiny, rotary)
    found = torch.onnx.export(exported(model), verbose=False)
    assert found is not None
    session = runtime.InferenceSession(found.model_proto.SerializeToString())
    for size in SIZES:
        source, target = drawn(*size)
        (said,) = session.run(None, {"source": source.numpy(), "target": target.numpy()})
        expected = model(source, target)
        torch.testing.assert_close(torch.from_numpy(said), expected, rtol=1e-4, atol=1e-5)
