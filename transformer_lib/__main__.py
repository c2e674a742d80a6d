"""`python -m transformer_lib`: train, translate, evaluate."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from transformer_lib.decoding import Translator
from transformer_lib.evaluation import bleu, chrf
from transformer_lib.pairs import Batch, encode_pairs, load_pairs, read_pairs, token_batches
from transformer_lib.tokenizer import train_tokenizer
from transformer_lib.training import Progress, endless_batches, train
from transformer_lib.transformer import Transformer, TransformerConfig, count_parameters


def build_parser() -> argparse.ArgumentParser:
    """Describe the commands train, translate and evaluate, and their options."""
    as_listed = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m transformer_lib", description="Train a translator, use it, and score it."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    about = "train on pairs of sentences; stopped by Ctrl-C or a crash, it goes on with --resume"
    train_parser = commands.add_parser(
        "train", help=about, description=about, formatter_class=as_listed
    )
    pairs = "a file with a pair a line, source and target divided by a tab, .gz or not"
    add = train_parser.add_argument
    add("--output", required=True, metavar="FOLDER", help="where the translator goes")
    add("--pairs", metavar="FILE", help=f"{pairs}; without it, the German-English pairs shipped")
    add("--validation", metavar="FILE", help="held-out pairs, in the same form")
    add("--resume", action="store_true", help="go on with the training in FOLDER")
    add("--vocab-size", type=int, default=4000, metavar="N", help="tokens of the vocabulary")
    add("--d-model", type=int, default=256, metavar="N", help="width of the model")
    add("--num-heads", type=int, default=4, metavar="N", help="heads of each attention")
    add("--d-ff", type=int, default=512, metavar="N", help="width inside the feed-forward network")
    add("--encoder-layers", type=int, default=3, metavar="N", help="layers of the encoder")
    add("--decoder-layers", type=int, default=3, metavar="N", help="layers of the decoder")
    add("--dropout", type=float, default=0.1, metavar="P", help="probability of dropping an entry")
    add("--steps", type=int, default=10_000, metavar="N", help="steps to train for")
    add("--warmup-steps", type=int, default=1000, metavar="N", help="steps until the rate peaks")
    add("--cool-down-steps", type=int, default=5000, metavar="N", help="last steps, rate to zero")
    add("--label-smoothing", type=float, default=0.1, metavar="P", help="share spread over all")
    add("--max-tokens", type=int, default=1024, metavar="N", help="tokens a batch has on a side")
    add("--accumulate", type=int, default=1, metavar="N", help="batches that make a step")
    add("--bfloat16", action="store_true", help="faster where the processor is good at it")
    add("--report-every", type=int, default=250, metavar="N", help="steps between two reports")
    add("--save-every", type=int, default=250, metavar="N", help="steps between two checkpoints")
    add("--seed", type=int, default=1, metavar="N", help="of weights, dropout and batches")

    about = "translate standard input, a sentence a line, to standard output"
    translate_parser = commands.add_parser(
        "translate", help=about, description=about, formatter_class=as_listed
    )
    about = "translate a file of pairs and print BLEU and chrF against its targets"
    evaluate_parser = commands.add_parser(
        "evaluate", help=about, description=about, formatter_class=as_listed
    )
    evaluate_parser.add_argument("--pairs", metavar="FILE", help=f"{pairs}; else the shipped test")
    evaluate_parser.add_argument("--json", action="store_true", help="print one JSON object")
    for command in (translate_parser, evaluate_parser):
        add = command.add_argument
        add("--model", default="de-en", metavar="NAME", help="de-en, or a folder of train's")
        add("--beam-size", type=int, default=4, metavar="N", help="1 is greedy decoding")
        add("--length-penalty", type=float, default=0.6, metavar="A", help="alpha of beam search")
        add("--batch-size", type=int, default=32, metavar="N", help="sentences at a time")
    return parser


def _train_command(options: argparse.Namespace) -> int:
    folder = Path(options.output)
    checkpoint = folder / "checkpoint.safetensors"
    if checkpoint.exists() and not options.resume:
        raise ValueError(f"{folder} holds a training already; --resume goes on with it")
    if options.resume and not checkpoint.exists():
        raise ValueError(f"there is nothing to resume: no file {checkpoint}")
    pairs = read_pairs(options.pairs) if options.pairs else load_pairs("train")
    if options.validation:
        held_out = read_pairs(options.validation)
    else:
        held_out = [] if options.pairs else load_pairs("validation")
    tokenizer = train_tokenizer([text for pair in pairs for text in pair[:2]], options.vocab_size)
    torch.manual_seed(options.seed)
    model = Transformer(
        TransformerConfig(
            tokenizer.get_vocab_size(),
            d_model=options.d_model,
            num_heads=options.num_heads,
            d_ff=options.d_ff,
            num_encoder_layers=options.encoder_layers,
            num_decoder_layers=options.decoder_layers,
            dropout=options.dropout,
            norm_first=True,
        )
    )
    examples = encode_pairs(pairs, tokenizer)
    validation = []
    if held_out:
        validation = token_batches(encode_pairs(held_out, tokenizer), options.max_tokens, seed=0)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{len(pairs):,} pairs, {count_parameters(model):,} parameters", file=sys.stderr)

    def show(progress: Progress) -> None:
        losses = f"train {progress.train_loss:.3f}  validation {progress.validation_loss:.3f}"
        tqdm.write(f"step {progress.step:6d}  {losses}", file=sys.stderr)

    count = options.steps * options.accumulate
    with tqdm(total=count, unit=" batches", file=sys.stderr) as bar:

        def counted() -> Iterator[Batch]:
            for batch in islice(endless_batches(examples, options.max_tokens, options.seed), count):
                yield batch
                bar.update()

        history = train(
            model,
            counted(),
            steps=options.steps,
            warmup_steps=options.warmup_steps,
            cool_down_steps=options.cool_down_steps,
            label_smoothing=options.label_smoothing,
            accumulate=options.accumulate,
            bfloat16=options.bfloat16,
            validation=validation,
            report_every=options.report_every,
            on_report=show,
            checkpoint=checkpoint,
            save_every=options.save_every,
        )
    notes = {"options": vars(options), "history": [asdict(progress) for progress in history]}
    Translator(model, tokenizer, notes).save(folder)
    print(f"the translator is in {folder}", file=sys.stderr)
    return 0


def _translate_command(options: argparse.Namespace) -> int:
    translator = Translator.from_pretrained(options.model)
    positions = translator.model.config.max_length
    at_once = 1 if sys.stdin.isatty() else options.batch_size  # a person waits for the answer
    failed, number = 0, 0
    while lines := list(islice(sys.stdin.buffer, at_once)):
        texts = []
        for line in lines:
            number += 1
            try:
                text = line.decode("utf-8").strip()
                length = len(translator.tokenizer.encode(text).ids) + 1
                if length > positions:
                    raise ValueError(f"{length} tokens, the model has {positions} positions")
            except ValueError as error:  # a UnicodeDecodeError is one, too
                failed += 1
                print(f"line {number} is left empty: {error}", file=sys.stderr)
                text = ""
            texts.append(text)
        translations = translator.translate(
            texts, options.beam_size, options.length_penalty, options.batch_size
        )
        for translation in translations:
            print(" ".join(translation.splitlines()), flush=True)  # a line in, a line out
    return 1 if failed else 0


def _evaluate_command(options: argparse.Namespace) -> int:
    translator = Translator.from_pretrained(options.model)
    pairs = read_pairs(options.pairs) if options.pairs else load_pairs("test")
    start = time.perf_counter()
    hypotheses = translator.translate(
        [pair.source for pair in pairs],
        options.beam_size,
        options.length_penalty,
        options.batch_size,
    )
    seconds = time.perf_counter() - start
    references = [pair.target for pair in pairs]
    score = bleu(hypotheses, references)
    report = {
        "bleu": round(score.score, 2),
        "chrf": round(chrf(hypotheses, references), 2),
        "sentences": len(pairs),
        "signature": score.signature,
        "seconds": round(seconds, 1),
    }
    if options.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:10s} {value}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m transformer_lib`.

    Args:
        arguments: the words of the command line; None takes the process's own.

    Returns:
        The exit status: 0; 1 if a line could not be translated; 2 for anything else that is wrong,
        with a message on standard error; 130 after Ctrl-C.
    """
    options = build_parser().parse_args(arguments)
    commands = {
        "train": _train_command,
        "translate": _translate_command,
        "evaluate": _evaluate_command,
    }
    try:
        return commands[options.command](options)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = (
            " The last checkpoint is safe: --resume goes on." if options.command == "train" else ""
        )
        print(f"interrupted.{hint}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
