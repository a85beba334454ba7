"""The crónica tokenizer: its 16 special tokens, its training, and how a match and a crónica become one row.

Layout and vocabulary after https://github.com/DanielRegaladoUMiami/cronica-jax (Apache-2.0):

    <bos><stats> block </stats><style:X><cronica> text </cronica><eos>
    `------------ prompt, no loss ------------'`----- loss ------'
"""

from collections.abc import Iterable, Sequence

from zoo.errors import UserError
from zoo.tokenizers.base import Tokenizer
from zoo.tokenizers.bpe import learn
from zoo.tokenizers.hf import HFTokenizer
from zoo.util import nearest

# label -> (region, flavour); the order is that of the ids.
STYLES: dict[str, tuple[str, str]] = {
    "rioplatense_apasionado": ("Argentina", 'emotive, "gol" lengthened'),
    "rioplatense_tecnico": ("Argentina", "analytical"),
    "rioplatense_literario": ("Uruguay", "evocative prose"),
    "mexicano_irreverente": ("Mexico", "sarcastic"),
    "mexicano_clasico": ("Mexico", "formal"),
    "centroamericano_espn": ("El Salvador and ESPN Latin America", "polished"),
    "espanol_radiofonico": ("Spain", "radio broadcast"),
    "comentario_tecnico": ("no region", "tactical analysis"),
}

SPECIAL_TOKENS: tuple[str, ...] = (
    "<pad>",
    "<bos>",
    "<eos>",
    "<unk>",
    "<stats>",
    "</stats>",
    "<cronica>",
    "</cronica>",
    *(f"<style:{label}>" for label in STYLES),
)

VOCAB_SIZE = 8000


def train(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> HFTokenizer:
    """Learns a byte-level BPE of exactly `vocab_size` entries, the special tokens (ids 0 to 15) included.

    NFC, no prefix space, pairs seen at least twice. The same texts give the same tokenizer, in any order.
    `training_text` makes the text of a record. Raises UserError when `texts` are too few for it.
    """
    from tokenizers import normalizers

    content = learn(texts, vocab_size, special_tokens=SPECIAL_TOKENS, normalizer=normalizers.NFC(), unk_token="<unk>")
    return HFTokenizer(content)


def training_text(record: dict) -> str:
    """Returns the text from which the tokenizer learns of one record: its block and its crónica."""
    return f"{record['stats_block'].strip()}\n{record['cronica'].strip()}"


def check_style(style: str) -> None:
    """Raises UserError, listing the 8 styles with their regions, unless `style` is one of them."""
    if style in STYLES:
        return
    close = nearest(str(style), STYLES)
    meant = f" (did you mean {close}?)" if close else ""
    listed = "\n".join(f"  {label:<{max(map(len, STYLES))}}  {r}: {f}" for label, (r, f) in STYLES.items())
    raise UserError(f"unknown style {style!r}{meant}; the styles are:\n{listed}")


def style_id(tokenizer: Tokenizer, style: str) -> int:
    """Returns the id of the token `<style:X>`. Raises UserError for an unknown style or a tokenizer without it."""
    check_style(style)
    return special_id(tokenizer, f"<style:{style}>")


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """Returns the id of one of SPECIAL_TOKENS. Raises UserError if `tokenizer` has no such token."""
    try:
        return tokenizer.special_tokens[token]
    except KeyError:
        raise UserError(f"tokenizer: no special token {token}, so it is not one for crónicas") from None


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Raises UserError unless `tokenizer` has all 16 special tokens."""
    for token in SPECIAL_TOKENS:
        special_id(tokenizer, token)


def encode_prompt(tokenizer: Tokenizer, stats_block: str, style: str) -> list[int]:
    """Returns the ids of `<bos><stats> block </stats><style:X><cronica>`, ready to be continued.

    White space around the block is dropped, here and in `encode_pair`, so that both give the same ids.
    Raises UserError for an unknown style.
    """
    return _prompt(tokenizer, tokenizer.encode(stats_block.strip()), style)


def encode_pair(tokenizer: Tokenizer, stats_block: str, style: str, cronica: str) -> tuple[list[int], int]:
    """Returns a training row and the index of its first token that bears loss, the crónica's first.

    From there on everything does: text, `</cronica>` and `<eos>`. Raises UserError for an unknown style.
    """
    return encode_pairs(tokenizer, [stats_block], [style], [cronica])[0]


def encode_pairs(
    tokenizer: Tokenizer, stats_blocks: Sequence[str], styles: Sequence[str], cronicas: Sequence[str]
) -> list[tuple[list[int], int]]:
    """Encodes many pairs at once, several times quicker than `encode_pair` one by one."""
    # A match usually comes in several styles: its block is encoded once.
    blocks = list(dict.fromkeys(block.strip() for block in stats_blocks))
    encoded = tokenizer.encode_batch([*blocks, *(cronica.strip() for cronica in cronicas)])
    block_ids = dict(zip(blocks, encoded[: len(blocks)], strict=True))
    closing = [special_id(tokenizer, "</cronica>"), special_id(tokenizer, "<eos>")]
    rows = []
    for block, style, text in zip(stats_blocks, styles, encoded[len(blocks) :], strict=True):
        prompt = _prompt(tokenizer, block_ids[block.strip()], style)
        rows.append((prompt + text + closing, len(prompt)))
    return rows


def _prompt(tokenizer: Tokenizer, block_ids: list[int], style: str) -> list[int]:
    style_token = style_id(tokenizer, style)
    bos, stats, end_stats, cronica = (
        special_id(tokenizer, token) for token in ("<bos>", "<stats>", "</stats>", "<cronica>")
    )
    return [bos, stats, *block_ids, end_stats, style_token, cronica]
