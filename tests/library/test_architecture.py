"""ARCHITECTURE.md and CHANGELOG.md say what the library is like: dependencies, swaps, moved names."""

import ast
import importlib
import re
import tomllib

import pytest

import transformer_lib
from tools.chapters import ROOT

PACKAGE = ROOT / "transformer_lib"
TOWER = ["door", "similarity", "embeddings", "attention", "layers", "transformer"]
TOWER += ["decoding", "translator"]
TASKS = {"tokenizer", "pairs", "decoding", "translator", "evaluation", "recurrent", "vision"}
TASKS |= {"costs", "language_model"}


def imports(module: str) -> set[str]:
    """The modules of the package that one of them imports, also inside a function."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = [node.module or ""]
            if node.module == "transformer_lib":
                names = [f"transformer_lib.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("transformer_lib.")}
    return found


GRAPH = {path.stem: imports(path.stem) for path in PACKAGE.glob("*.py") if path.stem != "__init__"}


def all_below(module: str) -> set[str]:
    found, waiting = set(), [module]
    while waiting:
        new = GRAPH[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_the_reader_of_imports_sees_them() -> None:
    assert GRAPH["layers"] >= {"attention"}
    assert GRAPH["__main__"] >= {"training", "translator", "pairs"}
    assert all_below("translator") >= {"door", "similarity", "attention", "layers", "transformer"}


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_dependencies_run_one_way(module: str) -> None:
    assert GRAPH[module] <= GRAPH.keys() - {"__main__"}, "the library imports from itself only"
    assert module not in all_below(module), "a circle of imports"
    if module in TOWER:
        above = set(TOWER[TOWER.index(module) + 1 :])
        assert all_below(module) & above == set(), f"{module} imports what is built on it"


@pytest.mark.parametrize("module", ["training", "checkpoint"])
def test_training_knows_no_task(module: str) -> None:
    assert all_below(module) & TASKS == set()


@pytest.mark.parametrize("module", sorted(GRAPH.keys() - {"__main__", "training", "parallel"}))
def test_inference_does_not_import_training(module: str) -> None:
    assert "training" not in all_below(module)


def test_the_drawing_names_every_module() -> None:
    drawing = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawing = drawing.partition("## What imports what")[2].partition("## The contract")[0]
    assert [module for module in GRAPH if not re.search(rf"\b{module}\b", drawing)] == []


def test_the_swap_in_the_text_works() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "assert_close" in code
    exec(compile(code, "ARCHITECTURE.md", "exec"), {})


# Names that version 0.1.0 gave -------------------------------------------------------------------

NAMES = """BOS_ID EOS_ID FASHION_CLASSES PAD_ID SPECIAL_TOKENS AdditiveSimilarity AttentionPooling Batch
BilinearSimilarity BleuScore Canvases Decoder DecoderLayer Dropout Encoder EncoderLayer Example
FeedForward GRUCell Hypothesis IncrementalDecoder LSTMCell LayerNorm LearnedPositionalEncoding
MultiHeadAttention Pair Progress RNNCell RecurrentConfig RecurrentState RecurrentTranslator
ResidualConnection SinusoidalPositionalEncoding TokenEmbedding Transformer TransformerConfig
Translator average_weights beam_search bleu bootstrap_interval causal_mask chrf count_parameters
dot_similarity encode_pairs endless_batches evaluate_loss from_torch greedy_decode learning_rate
load_checkpoint load_fashion load_pairs load_tokenizer make_batch make_canvases make_optimizer
mass_in_box padding_mask read_pairs read_tensors sample save_checkpoint save_tokenizer
scaled_dot_product_attention scaled_dot_similarity sinusoidal_positions to_torch token_batches
tokenize_13a train train_tokenizer training_flops translation_loss weighted_lookup
write_tensors"""
OLD = NAMES.split()
CHANGES = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", OLD)
def test_an_old_name_is_still_there_or_said_to_have_moved(name: str) -> None:
    assert hasattr(transformer_lib, name) or re.search(rf"\b{name}\b", CHANGES)


def test_what_moved_is_where_the_changelog_says() -> None:
    rows = re.findall(r"^\| (.*`.*) \| `(transformer_lib[\w.]*)`", CHANGES, re.MULTILINE)
    assert len(rows) >= 10
    for was, place in rows:
        if place.endswith(("style", "chapter_00")) or "visualize`: `use" in was:
            continue
        module = importlib.import_module(place)
        for name in re.findall(r"`(\w+)`", was):
            assert hasattr(module, name), f"{place} has no {name}"


def test_the_names_that_the_changelog_calls_new_are_there() -> None:
    listed = CHANGES.partition("### New names")[2].partition("##")[0]
    assert set(re.findall(r"`(\w+)`", listed)) <= set(transformer_lib.__all__) - set(OLD)


def test_the_changelog_begins_with_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    first = re.search(r"^## (\S+)", CHANGES, re.MULTILINE)
    assert first is not None
    assert first[1] == project["version"]
