"""`zoo data`: prepare, inspect, tokenizer."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.common import new_app
from zoo.terminal import unguarded

app = new_app(
    help="""Look after the data of a recipe: prepare tokens, look at batches, train a tokenizer.

    \b
    Examples:
      zoo data prepare recipes/kodalite_1b.yaml
      zoo data inspect recipes/tiny_lm.yaml --rows 2
    """
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, YAML, of texts or chats.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="SECTION.FIELD=VALUE", help="Values that replace the recipe's."),
]


@app.command()
def prepare(
    recipe: RecipePath,
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option(help="Processes that tokenise. 0: one a core.")] = 0,
) -> None:
    """Tokenise the data of a recipe, up to what its steps need, into data.prepared_dir; run again, it goes on.

    zoo-train does the same by itself when it starts.

    \b
    Examples:
      zoo data prepare recipes/tiny_lm.yaml
      zoo data prepare recipes/kodalite_1b.yaml data.prepared_dir=/data/tokens --workers 16
    """
    loaded = _load(recipe, [*(overrides or ()), *([f"data.workers={workers}"] if workers else [])])

    from zoo.data.text import TextData
    from zoo.data.tokenizer import resolve_tokenizer

    loaded, tokenizer = resolve_tokenizer(loaded, _saved_tokenizer(loaded), say=_say)
    data = TextData.load(loaded, tokenizer, loaded.model.make_config(), say=_say)
    print(data)
    for name, directory in data.directories():
        print(f"{name}: {directory}")


@app.command()
def inspect(
    recipe: RecipePath,
    overrides: Overrides = None,
    step: Annotated[int, typer.Option(help="Which batch, from 0.")] = 0,
    rows: Annotated[int, typer.Option(help="Rows of it to print.")] = 4,
    batches: Annotated[int, typer.Option(help="Batches that lengths, shares and times are measured over.")] = 20,
    heldout: Annotated[bool, typer.Option("--heldout", help="The held-out rows instead.")] = False,
) -> None:
    """Show real batches of a recipe: decoded rows, each document in a colour of its own, targets without loss dimmed.

    Without colours a document begins with a bar and what bears no loss stands in [[brackets]].

    \b
    Examples:
      zoo data inspect recipes/tiny_lm.yaml
      zoo data inspect recipes/bwetaf_97m.yaml --step 1000 --rows 2
    """
    from zoo.errors import UserError

    if step < 0 or rows < 0 or batches < 1:
        raise UserError("--step and --rows must be at least 0, --batches at least 1")
    loaded = _load(recipe, overrides or ())
    if (step + batches) * loaded.data.batch_size >= 2**62:  # beyond, positions in the order are no int64 any more
        raise UserError(f"--step is {step}; it must be below {2**62 // loaded.data.batch_size - batches}")

    from zoo.data.inspect import Report, show_row
    from zoo.data.text import TextData
    from zoo.data.tokenizer import resolve_tokenizer

    loaded, tokenizer = resolve_tokenizer(loaded, _saved_tokenizer(loaded), say=_say)
    data = TextData.load(loaded, tokenizer, loaded.model.make_config(), say=_say)
    size = loaded.data.batch_size
    inspected = data.heldout_batches(size) if heldout else data.batches(size, start_example=step * size)
    report, first = Report.measure(inspected, batches)
    if first is None:
        raise UserError("--heldout: the recipe holds nothing out (eval.num_pairs)")
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for number in range(min(rows, len(first["tokens"]))):
        print(f"-- row {number}")
        print(show_row(first, number, tokenizer, colour=colour), file=unguarded(sys.stdout))  # its colours are zoo's
    print(f"\n{data}\n{report}")


@app.command()
def tokenizer(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write it.")] = Path("tokenizer"),
) -> None:
    """Train the tokenizer of a recipe on its texts and write it; name it in tokenizer.path to use it again.

    \b
    Example:
      zoo data tokenizer recipes/bwetaf_97m.yaml --out bwetaf_tokenizer
    """
    from zoo.errors import UserError

    loaded = _load(recipe, overrides or ())
    if not loaded.tokenizer.train:
        raise UserError("tokenizer.train: the recipe's tokenizer is not trained (tokenizer.path or tokenizer.name)")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out: {out} exists and is not an empty directory; choose another")

    from zoo.data.tokenizer import make_tokenizer

    trained = make_tokenizer(loaded, say=_say)
    try:
        trained.save(out)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written ({error.strerror}); choose another") from None
    print(f"{out}: {trained.vocab_size:,} entries, SHA-256 {trained.fingerprint}")


def _load(path: Path, overrides):
    from zoo.errors import UserError
    from zoo.recipe import load_recipe

    loaded = load_recipe(path, list(overrides))
    if loaded.data.holds_pairs:
        raise UserError(f"{path}: its data are crónicas (data.kind), which are made in memory when training starts")
    return loaded


def _saved_tokenizer(recipe):
    """Returns the tokenizer of the recipe's run where it has started: the run goes on with that tokenizer's shards."""
    from zoo import tokenizers

    saved = recipe.run_dir / "tokenizer"
    return tokenizers.load(saved) if saved.is_dir() else None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
