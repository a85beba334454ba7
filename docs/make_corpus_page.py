"""Writes docs/corpus.md: 16 crónicas of the built-in corpus, two a style. Run it after a change of the texts."""

from pathlib import Path

from zoo.tasks.cronica.corpus import generate
from zoo.tasks.cronica.tokens import STYLES

HEAD = """# The built-in corpus: 16 crónicas to read

`zoo/tasks/cronica/corpus.py` invents matches and tells each in one of eight styles; no network is needed, and the same
seed always gives the same records. The grammar is in `zoo/tasks/cronica/text.py`, the sentences in
`zoo/tasks/cronica/styles/`, the names in `zoo/tasks/cronica/names.py`. People, clubs and matches are invented.

What `tests/test_corpus.py` holds it to: 100 to 260 words; both clubs, the score, every scorer and his minute told,
and stadium, attendance and referee where given; no number that the block does not give; with names masked, no
sequence of 12 words in more than 5% of a style's texts; a bag-of-words classifier without the styles' marker words
tells the eight apart in at least 90% of the cases. The split `unseen` holds clubs and surnames that never occur in
training.

The texts below are the first 16 records of the split `heldout`. `python docs/make_corpus_page.py` writes this page.
"""


def page() -> str:
    """Returns the page as Markdown."""
    parts = [HEAD]
    for record in sorted(generate(16, split="heldout"), key=lambda record: list(STYLES).index(record["style_label"])):
        region, flavour = STYLES[record["style_label"]]
        parts.append(f"\n## {record['style_label']} ({region}: {flavour})\n")
        parts.append(f"```\n{record['stats_block']}\n```\n\n{record['cronica']}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "corpus.md").write_text(page(), encoding="utf-8")
