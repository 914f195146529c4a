"""Tokenizer: text to token ids and back, as bytes, a SentencePiece model or a Hugging Face file.

Encoding adds nothing and decoding hides nothing: special tokens, and U+FFFD for what stands for no
text, show wherever the policy wrote them.
"""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import sentencepiece
import tokenizers
from jaxtyping import Bool, Int

from grpojax.chat import Chat
from grpojax.storage import Place, place

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space in its pieces
BYTE_PIECES = [bytes([byte]) for byte in range(256)] + [b"<eos>", b"<pad>"]


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. `pad_id` may be an EOS too: masks say what is padding, never ids."""

    vocab_size: int  # ids are 0 ... vocab_size - 1
    eos_ids: tuple[int, ...]  # tokens that end a text; the first is the one to write
    pad_id: int
    chat: Chat

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing added. Raises ValueError on text that the tokens cannot hold."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included; U+FFFD for broken UTF-8 and ids without text."""

    def save(self, folder: str | Place) -> None:
        """Writes into the existing `folder` what `load_tokenizer(folder)` reads back."""


class ByteTokenizer:
    """One id per byte of UTF-8, then EOS (256) and padding (257)."""

    vocab_size, eos_ids, pad_id = 258, (256,), 257

    def __init__(self) -> None:
        self.chat = Chat()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return join_pieces(BYTE_PIECES, ids)

    def save(self, folder: str | Place) -> None:
        (place(folder) / "tokenizer.bytes").write_text("UTF-8 bytes; EOS is 256, padding 257\n")
        save_settings(place(folder), self, {})


class SentencePieceTokenizer:
    """A SentencePiece model (`tokenizer.model`).

    Ids are decoded piece by piece, so that a completion keeps its leading space; a model trained to
    put one before every text therefore shows it.
    """

    def __init__(self, model: bytes):
        """Raises ValueError unless `model` is a serialized SentencePiece model with an EOS."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"not a SentencePiece model ({str(error).splitlines()[0]})") from None
        self.vocab_size, self.chat = self._processor.get_piece_size(), Chat()
        eos_id, pad_id = self._processor.eos_id(), self._processor.pad_id()
        if eos_id < 0:
            raise ValueError("the SentencePiece model has no EOS; train it with one")
        self.eos_ids, self.pad_id = (eos_id,), eos_id if pad_id < 0 else pad_id
        self._pieces = [self._piece(id) for id in range(self.vocab_size)]

    def encode(self, text: str) -> list[int]:
        # The library reads special tokens as letters; what a chat template names is whole.
        special = [token for token in self.chat.special.values() if token]
        pattern = "|".join(map(re.escape, special))
        parts = re.split(f"({pattern})", text) if special else [text]
        whole = self._processor.piece_to_id
        return [
            id
            for part in parts
            for id in ([whole(part)] if part in special else self._encode_plain(part))
        ]

    def _encode_plain(self, text: str) -> list[int]:
        ids = self._processor.encode(text)
        unk_id = self._processor.unk_id()
        if SPACE in text or unk_id in ids:
            unknown = {c for c in text if c == SPACE or unk_id in self._processor.encode(c)}
            raise ValueError(f"no token for {sorted(unknown)}; leave them out, or train with them")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return join_pieces(self._pieces, ids)

    def save(self, folder: str | Place) -> None:
        (place(folder) / "tokenizer.model").write_bytes(self._processor.serialized_model_proto())
        save_settings(place(folder), self, {})

    def _piece(self, id: int) -> bytes:
        piece = self._processor.id_to_piece(id)
        if self._processor.is_byte(id):
            return bytes([int(piece[1:-1], 16)])
        return (UNKNOWN if self._processor.is_unknown(id) else piece.replace(SPACE, " ")).encode()


class HuggingFaceTokenizer:
    """A Hugging Face `tokenizer.json`, with the EOS and padding that are named beside it."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, eos_ids: tuple[int, ...], pad_id: int):
        """Raises ValueError unless `eos_ids` and `pad_id` are tokens of `tokenizer`."""
        for name, id in (*(("EOS", id) for id in eos_ids), ("padding", pad_id)):
            if tokenizer.id_to_token(id) is None:
                raise ValueError(f"the {name} id {id} is not a token of the tokenizer")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self.eos_ids, self.pad_id = tokenizer, eos_ids, pad_id
        self.chat = Chat()
        self._known = set(tokenizer.get_vocab(with_added_tokens=True).values())
        self.vocab_size = max(self._known) + 1

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        # The library drops ids it does not know without a word, so they are set apart first.
        texts = []
        for known, run in itertools.groupby(ids, key=self._known.__contains__):
            run = list(run)
            text = self._tokenizer.decode(run, skip_special_tokens=False) if known else None
            texts.append(UNKNOWN * len(run) if text is None else text)
        return "".join(texts)

    def save(self, folder: str | Place) -> None:
        text = self._tokenizer.to_str(pretty=True)
        (place(folder) / "tokenizer.json").write_text(text, encoding="utf-8")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self._tokenizer.id_to_token(self.eos_ids[0]),
            "pad_token": self._tokenizer.id_to_token(self.pad_id),
        }
        save_settings(place(folder), self, settings)


def load_tokenizer(source: str) -> Tokenizer:
    """The tokenizer that `source` names: "bytes", a file, or a folder that holds one.

    Files are `tokenizer.json` (first choice in a folder), `tokenizer.model` and `tokenizer.bytes`.
    EOS and padding of a `tokenizer.json` are `eos_token` and `pad_token` of `tokenizer_config.json`
    beside it, else `eos_token_id` and `pad_token_id` of `config.json`; unnamed padding is EOS.

    Raises:
      ValueError: there is no such file, it cannot be read, or nothing says which token is EOS.
    """
    if source == "bytes":
        return ByteTokenizer()
    path = place(source).expanduser()
    if path.is_dir():
        names = ("tokenizer.json", "tokenizer.model", "tokenizer.bytes")
        path = next((path / name for name in names if (path / name).is_file()), path)
    if not path.is_file() or path.suffix not in (".json", ".model", ".bytes"):
        files = "tokenizer.json or tokenizer.model"
        raise ValueError(f"no tokenizer at {source}; give bytes, a {files}, or a folder with one")
    try:
        if path.suffix == ".json":
            tokenizer = read_huggingface(path)
        elif path.suffix == ".model":
            tokenizer = SentencePieceTokenizer(path.read_bytes())
        else:
            tokenizer = ByteTokenizer()
        tokenizer.chat = read_chat(path.parent)
        return tokenizer
    except (ValueError, OSError) as error:
        raise ValueError(f"cannot read the tokenizer {path}: {error}; replace the file") from None


def stop_ids(tokenizer: Tokenizer, stop: tuple[str, ...]) -> tuple[int, ...]:
    """Ids that end a completion: EOS, then one for each text of `stop`.

    No other token ends it: where the vocabulary has a longer one ("\\n\\n" beside "\\n"), a
    completion that chooses the longer goes on. Raises ValueError unless each text is one token.
    """
    ids = list(tokenizer.eos_ids)
    for text in stop:
        tokens = tokenizer.encode(text)
        if len(tokens) != 1:
            count = f"exactly one token, got {len(tokens)}"
            raise ValueError(f"stop text {text!r} must be {count}; choose another or none")
        ids += tokens
    return tuple(dict.fromkeys(ids))


def decode_groups(
    tokenizer: Tokenizer,
    tokens: Int[np.ndarray, "B G T"],
    mask: Bool[np.ndarray, "B G T"],
    stops: tuple[int, ...],
) -> list[list[str]]:
    """Text of every completion, without the stop token that ended it; one list for each prompt."""

    def text(row: Int[np.ndarray, "T"], kept: Bool[np.ndarray, "T"]) -> str:
        ids = row[kept].tolist()
        return tokenizer.decode(ids[:-1] if ids and ids[-1] in stops else ids)

    return [[text(*row) for row in zip(*group)] for group in zip(tokens, mask)]


def join_pieces(pieces: Sequence[bytes], ids: Iterable[int]) -> str:
    """Text of the pieces' joined bytes: a character may span several pieces."""
    known = (pieces[id] if 0 <= id < len(pieces) else UNKNOWN.encode() for id in ids)
    return b"".join(known).decode("utf-8", "replace")


def read_huggingface(path: Place) -> HuggingFaceTokenizer:
    text = path.read_text(encoding="utf-8")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(error) from None
    eos_ids, pad_ids = (special_ids(tokenizer, path.parent, name) for name in ("eos", "pad"))
    if not eos_ids:
        raise ValueError("nothing names EOS: give eos_token in a tokenizer_config.json beside it")
    return HuggingFaceTokenizer(tokenizer, eos_ids, (pad_ids or eos_ids)[0])


def special_ids(tokenizer: tokenizers.Tokenizer, folder: Place, name: str) -> tuple[int, ...]:
    """Ids of the tokens `name` ("eos" or "pad") as the JSON files in `folder` give them.

    The one that tokenizer_config.json names comes first, then those of the other two files.
    """
    ids = []
    token = text_of(read_json(folder / "tokenizer_config.json").get(f"{name}_token"))
    if token is not None:
        ids.append(tokenizer.token_to_id(token))
        if ids[0] is None:
            raise ValueError(f"{name}_token {token!r} of tokenizer_config.json is not a token")
    for file in ("generation_config.json", "config.json"):
        found = read_json(folder / file).get(f"{name}_token_id")
        ids += found if isinstance(found, list) else [] if found is None else [found]
    return tuple(dict.fromkeys(ids))


def read_chat(folder: Place) -> Chat:
    """The chat template in `folder`, from its own file or from tokenizer_config.json."""
    config = read_json(folder / "tokenizer_config.json")
    file = folder / "chat_template.jinja"
    template = file.read_text() if file.is_file() else config.get("chat_template") or ""
    if isinstance(template, list):  # several, by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default", "")
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = {name: text_of(config[name]) for name in names if config.get(name)}
    return Chat(template, special)


def save_settings(folder: Place, tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    """Writes what stands beside a tokenizer's file: special tokens, EOS ids, the chat template."""
    if settings := tokenizer.chat.special | settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    if len(tokenizer.eos_ids) > 1:
        ends = {"eos_token_id": list(tokenizer.eos_ids)}
        (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
    if tokenizer.chat.template:
        (folder / "chat_template.jinja").write_text(tokenizer.chat.template)


def text_of(token: str | dict[str, Any] | None) -> str | None:
    """The text of a special token, which newer files state with how it is matched."""
    return token["content"] if isinstance(token, dict) else token


def read_json(path: Place) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
