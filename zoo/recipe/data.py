"""The `tokenizer` and `data` sections of a recipe.

`data.kind` says what the data are: `cronicas`, pairs of a match and its crónica (the built-in corpus, or files in
its format); `text`, documents; `chat`, conversations with the loss on the assistant's turns. Texts and
conversations come from one source, written straight into the section, or from several in `data.sources`.
"""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from zoo import registry
from zoo.recipe.fields import NonNegativeInt, PositiveFloat, PositiveInt, Section, Seed

FILES = (*registry.FILE_FORMATS, "text")
_BUILT_IN = dict.fromkeys(("cronicas", *registry.CORPORA))  # the former even where their task is taken out
SourceName = Literal[*_BUILT_IN, *FILES, "hub", "shards"]
ChatFormat = Literal["messages", "dolly", "oasst1"]

# The kinds of data that a source can hold; those that are not listed can hold every kind.
_KINDS = dict.fromkeys((*_BUILT_IN, "text"), ("text",)) | {"cronicas": ("cronicas",), "shards": ("text", "chat")}
_TRAINED = ("kind", "strip_accents", "eos_token", "special_tokens")  # what only a tokenizer trained on texts has
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

# What a recipe need not say when `data.path` names a published data set: its kind and fields of the source.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "allenai/c4": ("text", {"config": "en"}),
    "HuggingFaceFW/fineweb": ("text", {"config": "sample-10BT"}),
    "roneneldan/TinyStories": ("text", {}),
    "DKYoon/SlimPajama-6B": ("text", {}),
    "emozilla/pg19": ("text", {}),
    "Salesforce/wikitext": ("text", {"config": "wikitext-103-raw-v1"}),
    "databricks/databricks-dolly-15k": ("chat", {"format": "dolly"}),
    "OpenAssistant/oasst1": ("chat", {"format": "oasst1"}),
    "DanielRegaladoCardoso/cronicas-d2t": ("cronicas", {}),
}


class TokenizerSection(Section):
    """The tokenizer: trained on the run's texts (the default), loaded from `path`, or a published one by `name`.

    Attributes:
        path: a tokenizer's file.
        name: gpt2 and the other encodings of tiktoken, or a repository of the hub (owner/name) that holds a
            tokenizer.json or a tokenizer.model.
        kind: what is trained: a byte-level BPE, or `characters`, the distinct characters of the texts; the model's
            table is then as large as the alphabet unless the recipe sets model.vocab_size.
        vocab_size: entries of the BPE; absent, the model's.
        eos_token, special_tokens, strip_accents (NFD, then accents dropped): of a BPE trained on texts; crónica data
            have special tokens of their own.
    """

    path: str | None = None
    name: str | None = None
    train: bool
    kind: Literal["bpe", "characters"] = "bpe"
    vocab_size: PositiveInt | None = None
    strip_accents: bool = False
    eos_token: str = "<|endoftext|>"
    special_tokens: list[str] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _train_unless_another_is_given(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("train") is None:
            return {**data, "train": data.get("path") is None and data.get("name") is None}
        return data

    @model_validator(mode="after")
    def _only_one_way(self) -> "TokenizerSection":
        if self.path is not None and self.name is not None:
            raise ValueError("tokenizer.path and tokenizer.name exclude each other; leave one of them out")
        if self.path is not None and self.train:
            raise ValueError(
                "tokenizer.path and tokenizer.train exclude each other; to load the file set "
                "tokenizer.train: false, to train one leave tokenizer.path out"
            )
        if self.name is not None and self.train:
            raise ValueError(
                f"tokenizer.name {self.name} and tokenizer.train exclude each other; leave one of them out"
            )
        if self.path is None and self.name is None and not self.train:
            raise ValueError(
                "tokenizer.train is false and tokenizer.path is not given; name a tokenizer.json in "
                "tokenizer.path, or set tokenizer.train: true"
            )
        if not self.train and self.vocab_size is not None:
            raise ValueError(
                f"tokenizer.vocab_size is for a tokenizer that is trained; the file in "
                f"tokenizer.{'path' if self.path else 'name'} has its own size, so leave tokenizer.vocab_size out"
            )
        if not self.train and self.learns_texts:
            raise ValueError(f"tokenizer.{self.changed(_TRAINED)[0]} is for a tokenizer that is trained; leave it out")
        if self.kind == "characters":
            if self.vocab_size is not None:
                raise ValueError(
                    "tokenizer.vocab_size has no meaning for tokenizer.kind characters, whose size is the number "
                    "of distinct characters; leave it out"
                )
            for field in self.changed(_TRAINED[1:]):
                raise ValueError(f"tokenizer.{field} has no meaning for tokenizer.kind characters; leave it out")
        return self

    @property
    def learns_texts(self) -> bool:
        """Whether the section sets fields that only a tokenizer trained on plain texts has."""
        return bool(self.changed(_TRAINED))


class SourceFields(Section):
    """Where the documents of a run come from.

    `source`: `stories` (built in: small English stories), `jsonl` (plain or compressed), `parquet`, `text` (each
    file a document, or its parts between `separator`), `hub` (a data set of the Hugging Face hub, or a local one in
    the formats of its library; streamed unless `streaming` is false), `shards` (a directory that `zoo data prepare`
    wrote, local or gs://...). `path`: file, directory, pattern or repository. `config`, `split`, `revision`,
    `shuffle_buffer` (documents shuffled on the way, in a buffer of so many) are the hub's. `text_field`: the column
    that holds the text. `format`: how a record of chat data is laid out. `num_documents`: at most so many.
    """

    source: SourceName = "cronicas"
    path: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = True
    shuffle_buffer: NonNegativeInt = 0
    text_field: str = "text"
    separator: str | None = None
    format: ChatFormat | None = None
    num_documents: PositiveInt | None = None

    @model_validator(mode="before")
    @classmethod
    def _published(cls, data: Any) -> Any:
        """`source: owner/name` is a data set of the hub; of a published one, what it needs is filled in."""
        if not isinstance(data, dict):
            return data
        source = data.get("source")
        if isinstance(source, str) and data.get("path") is None and _REPOSITORY.fullmatch(source):
            data = {**data, "source": "hub", "path": source}
        if data.get("source") == "hub" and data.get("path") in PUBLISHED:
            given = {key: value for key, value in data.items() if value is not None}
            data = {**PUBLISHED[data["path"]][1], **given}
        return data

    def check_source(self, where: str, kind: str) -> None:
        """Raises ValueError, with fields named `where`.field, for fields that do not fit the source or the kind."""
        kinds = _KINDS.get(self.source, (kind,))
        if kind not in kinds and "text" not in kinds:
            raise ValueError(
                f"{where}.source {self.source} is a corpus of pairs and not of {kind}; take stories, jsonl, parquet, "
                f"text, hub or shards"
            )
        if kind not in kinds:
            raise ValueError(f"{where}.source {self.source} holds no conversations; take jsonl, parquet, hub or shards")
        self._check_path(where)
        if self.built_in and self.split not in ("train", "heldout"):
            raise ValueError(f"{where}.split must be 'train' or 'heldout' for source {self.source}, got {self.split!r}")
        if not self.built_in and self.source != "hub" and self.split != "train":
            raise ValueError(
                f"{where}.split has no meaning for source {self.source}; leave it out, or name another file in "
                f"{where}.path"
            )
        self._only("hub", where, "config", "revision", "streaming", "shuffle_buffer")
        self._only("text", where, "separator")
        if self.separator == "":
            raise ValueError(f"{where}.separator is empty; leave it out, and each file is one document")
        if self.source in _KINDS or kind == "chat":
            self._only("", where, "text_field")
        if kind != "chat" and self.format is not None:
            raise ValueError(f"{where}.format is the layout of conversations, for data.kind chat; leave it out")
        if self.shuffle_buffer and not self.streaming:
            raise ValueError(f"{where}.shuffle_buffer is for a streamed data set; leave it out, or streaming: true")

    def _check_path(self, where: str) -> None:
        if self.built_in:
            if self.path is not None:
                raise ValueError(
                    f"{where}.path has no meaning for source {self.source}, which is built in; leave it out"
                )
        elif self.path is None:
            what = {"hub": "the data set's name on the hub", "shards": "a directory of prepared shards"}
            raise ValueError(
                f"{where}.path is missing; {where}.source {self.source} wants "
                f"{what.get(self.source, f'the {self.source} file')} there"
            )

    def _only(self, source: str, where: str, *fields: str) -> None:
        for field in [] if self.source == source else self.changed(fields):
            meant = f"is for source {source}" if source else f"has no meaning for source {self.source} here"
            raise ValueError(f"{where}.{field} {meant}; leave it out")

    @property
    def built_in(self) -> bool:
        """Whether the source is a corpus that zoo makes itself, see `zoo.registry.CORPORA`."""
        return self.source in _BUILT_IN

    @property
    def is_file(self) -> bool:
        """Whether `path` is a local file, a directory or a pattern that must exist."""
        local_hub = self.source == "hub" and not _REPOSITORY.fullmatch(self.path or "")
        local_shards = self.source == "shards" and "://" not in (self.path or "")
        return self.source in FILES or local_hub or local_shards


class SourceSection(SourceFields):
    """One of several sources: its `weight` among the rows, or how many `epochs` of it the run shall see."""

    source: SourceName
    weight: PositiveFloat | None = None
    epochs: PositiveFloat | None = None


class DataSection(SourceFields):
    """Where the training examples come from and how rows of them are made.

    Of crónicas `num_pairs` are generated (source cronicas, default 16,000), or at most so many are read from a file
    or hub data set (default: all); `num_documents` is the like for texts and conversations. `batch_size`: global
    rows a step. `seq_len`: tokens a row. `seed`: of the built-in corpora and of the order of examples. `trim_to`:
    columns behind a batch's last target are dropped, its length rounded up to a multiple of this (0: rows keep
    seq_len).

    For texts and conversations: `validation` is the source of the held-out rows (absent: for stories their own
    split, else the first documents of each source). `packing`: `concat` joins the documents and cuts them into
    rows; `best_fit` keeps them whole, each row beginning with the beginning of one; `document` puts one into a row;
    `windows` takes random windows with replacement. `document_mask`: no attention, target or position crosses the
    border of a document. `chat_template`: the markers around turns, see `zoo.tokenizers.chat`. `max_tokens`: at most so
    many tokens are prepared (absent: what the run's steps need when it first starts). `prepared_dir`: where shards are
    kept. `workers`: processes that tokenise (0: one a core). `max_bad_records`: records that cannot be used, before
    preparing stops.
    """

    kind: Literal["cronicas", "text", "chat"]
    source: SourceName | None = "cronicas"
    sources: list[SourceSection] | None = None
    validation: SourceSection | None = None
    num_pairs: PositiveInt | None = None
    seed: Seed = 0
    seq_len: PositiveInt = 768
    batch_size: PositiveInt = 8
    shuffle: bool = True
    trim_to: NonNegativeInt = 0
    packing: Literal["concat", "best_fit", "document", "windows"] | None = None
    document_mask: bool = False
    chat_template: Literal["kodalite", "kodalite_eos"] | None = None
    max_tokens: PositiveInt | None = None
    prepared_dir: str = "prepared"
    workers: NonNegativeInt = 0
    max_bad_records: NonNegativeInt = 100

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        source, sources = data.get("source", "cronicas"), data.get("sources")
        if data.get("kind") is None:
            data = {**data, "kind": _kind(data)}
        if data["kind"] == "cronicas":
            if data.get("num_pairs") is None and source in _BUILT_IN:
                data = {**data, "num_pairs": 16_000}
        else:
            if data.get("source") is None:
                built_in = "stories" if data["kind"] == "text" else "hub"
                data = {**data, "source": None if sources is not None else built_in}
            if data.get("packing") is None:
                data = {**data, "packing": "document" if data["kind"] == "chat" else "concat"}
            if data["kind"] == "chat" and data.get("chat_template") is None:
                data = {**data, "chat_template": "kodalite"}
        return data

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> "DataSection":
        if self.holds_pairs:
            self._check_pairs()
        else:
            self._check_documents()
        return self

    def _check_pairs(self) -> None:
        if self.kind not in _KINDS.get(self.source, (self.kind,)):
            raise ValueError(f"data.source {self.source} holds no crónicas; set data.kind: text, or leave it out")
        if self.built_in:
            if self.path is not None:
                raise ValueError(
                    f"data.path has no meaning for data.source {self.source}, the built-in corpus; leave it out "
                    "or set data.source to jsonl, parquet or hub"
                )
            if self.split not in ("train", "heldout", "unseen"):
                raise ValueError(
                    f"data.split must be 'train', 'heldout' or 'unseen' for data.source {self.source}, got "
                    f"{self.split!r}"
                )
        else:
            self._check_path("data")
        if self.source in FILES and self.split != "train":
            raise ValueError(
                f"data.split has no meaning for data.source {self.source}; leave it out, or name another "
                f"file in data.path"
            )
        if self.source != "hub" and self.revision is not None:
            raise ValueError("data.revision is for data.source hub; leave it out")
        for field in self.changed(_TEXT_ONLY):
            raise ValueError(f"data.{field} is for texts, not for crónicas; set data.kind: text, or leave it out")

    def _check_documents(self) -> None:
        if self.num_pairs is not None:
            raise ValueError(f"data.num_pairs counts crónicas; for data.kind {self.kind} set data.num_documents")
        if (self.chat_template is not None) != (self.kind == "chat"):
            raise ValueError("data.chat_template is for data.kind chat; leave it out")
        if self.kind == "chat" and self.packing in ("concat", "windows"):
            raise ValueError(
                f"data.packing {self.packing} cuts conversations to pieces; take document or best_fit for chat data"
            )
        if self.trim_to and self.packing != "document":
            raise ValueError(f"data.trim_to is for data.packing document; rows of {self.packing} are full")
        if self.sources is not None:
            if not self.sources:
                raise ValueError("data.sources is empty; list at least one source")
            if self.source is not None or self.path is not None:
                raise ValueError("data.source and data.sources exclude each other; leave data.source and data.path out")
            shares = {(source.weight is None, source.epochs is None) for source in self.sources}
            if len(self.sources) > 1 and not (shares == {(False, True)} or shares == {(True, False)}):
                raise ValueError("data.sources: give every source a weight, or every source its epochs")
            for number, source in enumerate(self.sources):
                source.check_source(f"data.sources.{number}", self.kind)
        else:
            self.check_source("data", self.kind)
        if self.validation is not None:
            if self.validation.weight is not None or self.validation.epochs is not None:
                raise ValueError("data.validation is read once in order; leave its weight and epochs out")
            self.validation.check_source("data.validation", self.kind)

    @property
    def holds_pairs(self) -> bool:
        """Whether the examples are pairs of a match and its crónica, which are made in memory when training starts."""
        return self.kind == "cronicas"

    @property
    def file(self) -> str | None:
        """The local file or directory in `path`; None for built-in corpora, the hub and gs://."""
        if self.holds_pairs:
            return self.path if self.source in FILES else None
        return self.path if self.sources is None and self.is_file else None

    @property
    def document_sources(self) -> list[SourceSection]:
        """The sources of texts or conversations, whether the section has one or a list."""
        if self.sources is not None:
            return list(self.sources)
        return [SourceSection(**{field: getattr(self, field) for field in SourceFields.model_fields})]

    @property
    def prepared_path(self) -> Path:
        """The absolute path of `prepared_dir`; it is not created."""
        return Path(self.prepared_dir).expanduser().absolute()


_TEXT_ONLY = (
    *("sources", "validation", "config", "streaming", "shuffle_buffer", "text_field", "separator", "format"),
    *("num_documents", "packing", "document_mask", "chat_template", "max_tokens"),
)


def _kind(data: dict[str, Any]) -> str:
    """Returns the kind of data where the recipe does not say: what its first source is known to hold."""
    sources = data.get("sources")
    first = sources[0] if isinstance(sources, list) and sources and isinstance(sources[0], dict) else data
    source, path = first.get("source"), first.get("path")
    if isinstance(source, str):
        known = PUBLISHED.get(path if source == "hub" else source)
        if known:
            return known[0]
    if sources is not None:
        return "text"
    return _KINDS[source][0] if isinstance(source, str) and source in _KINDS else "cronicas"
