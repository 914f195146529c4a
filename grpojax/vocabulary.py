"""Vocabulary: tokenizers made from text, or from the tables that GGUF files hold."""

import io
from collections.abc import Iterable, Sequence

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Split

from grpojax.checks import require
from grpojax.tokenizer import SPACE, HuggingFaceTokenizer, SentencePieceTokenizer

TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # whole tokens in `train_sentencepiece`
WORDS = (  # what Llama 3 and Qwen2 split text into, but for numbers
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {"llama-bpe": WORDS % r"\p{N}{1,3}", "qwen2": WORDS % r"\p{N}"}  # by name in GGUF files


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    """Trains a byte-pair model in memory: the same `texts` in the same order give the same model.

    Digits are split, spaces and newlines are kept exactly, `TAGS` and the newline are whole tokens.
    `vocab_size` is the most tokens it may have: text with nothing left to merge gives fewer.

    Raises:
      ValueError: there is no text, or it holds a character that SentencePiece keeps for itself
        (U+0000, U+2581, U+2585), or `vocab_size` is below the number of its characters.
    """
    texts = list(texts)
    characters = set("".join(texts))
    # The trainer trims and splits text at control characters, so they are made tokens by decree.
    symbols = ["\n", *TAGS, *sorted(c for c in characters if c < " " and c != "\n")]
    letters = sorted(characters - {" "} - set(symbols))
    fewest = 3 + len(symbols) + len(letters) + (" " in characters)  # 3: padding, EOS, unknown
    if not letters:
        raise ValueError("a SentencePiece model needs text to be trained on, got none")
    if reserved := characters & {"\0", SPACE, "\N{LOWER FIVE EIGHTHS BLOCK}"}:
        raise ValueError(f"SentencePiece cannot hold {sorted(reserved)}; leave them out")
    if vocab_size < fewest:
        raise ValueError(f"vocab_size must be at least {fewest} for this text, got {vocab_size}")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=symbols,
        character_coverage=1.0,
        max_sentence_length=max(10, *(len(text.encode()) for text in texts)),  # longer is left out
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue())


def byte_level_bpe(
    tokens: Sequence[str],
    merges: Sequence[str],
    special: Iterable[str],
    *,
    split: str,
    eos_id: int,
    pad_id: int,
) -> HuggingFaceTokenizer:
    """Builds a byte-level BPE tokenizer from the tables of a GGUF file.

    `merges` are pairs of tokens with a space between, best first; `special` are those of `tokens`
    that are matched whole; `split` is the file's name for how text is split first. Raises
    ValueError if the tables do not fit each other, or `split` is not known.
    """
    table = {token: id for id, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    for pair in pairs:
        if len(pair) != 2 or not table.keys() >= {*pair, "".join(pair)}:
            raise ValueError(f"merge {pair} must be two tokens that make a third")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(table, pairs))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(splitters(split))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    if split == "qwen2":
        tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in special]
    )
    return HuggingFaceTokenizer(tokenizer, (eos_id,), pad_id)


def splitters(name: str) -> list[PreTokenizer]:
    """How the text is split before bytes are merged, by the name that GGUF files give it."""
    if name == "smollm":
        return [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    known = ("smollm", *SPLITS)
    require(name in known, f"tokenizer.ggml.pre must be one of {', '.join(known)}, got {name}")
    pattern = tokenizers.Regex(SPLITS[name])
    return [Split(pattern, "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]


def sentencepiece_from_tables(
    tokens: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[int],
    *,
    add_space: bool,
    ends: dict[str, int],
) -> SentencePieceTokenizer:
    """Builds a SentencePiece model of the byte-pair kind from the tables of a GGUF file.

    `kinds` are SentencePiece's types of pieces; `ends` are ids by name: `bos_id`, `eos_id`,
    `unk_id`, `pad_id`, those that there are; `add_space` puts one before every text.
    """
    model = sentencepiece_model_pb2.ModelProto()
    for piece, score, kind in zip(tokens, scores, kinds, strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    spec = model.trainer_spec
    spec.model_type = spec.ModelType.BPE
    spec.vocab_size = len(tokens)
    spec.byte_fallback = model.SentencePiece.Type.BYTE in kinds
    for name in ("bos", "eos", "unk", "pad"):
        id = ends.get(f"{name}_id", -1)
        setattr(spec, f"{name}_id", id)
        if id >= 0:  # the library looks it up by its text, whatever the id says
            setattr(spec, f"{name}_piece", tokens[id])
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = add_space
    model.normalizer_spec.remove_extra_whitespaces = False
    return SentencePieceTokenizer(model.SerializeToString())


def check_vocabulary(tokens: int, rows: int) -> None:
    """Raises ValueError if a tokenizer has more tokens than a model has rows for."""
    require(
        tokens <= rows,
        f"the model's vocab_size={rows} must hold the tokenizer's {tokens} tokens; raise it to "
        "that",
    )
