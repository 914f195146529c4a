"""Vocabularies: trained on text, or built from tables, they give text back and refuse what they
cannot hold."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from grpojax.chat import Chat, render_chat
from grpojax.vocabulary import (
    TAGS,
    byte_level_bpe,
    sentencepiece_from_tables,
    train_sentencepiece,
)

TEXTS = [
    f"{a} + {b} =  <think>\n{a % 10}\tcarry</think><answer>{a + b}</answer>\n"
    for a in range(10, 60)
    for b in range(10, 99, 9)
]
WORD = st.text(st.characters(exclude_characters="\0▁▅", exclude_categories=["Cs"]), min_size=1)


def byte_alphabet() -> list[str]:
    """GPT-2's letters for the 256 bytes, so that any text has tokens."""
    return sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="module")
def huggingface():
    """Special tokens 0 to 2, then the bytes, then merges, one of them of digits."""
    merges = ["Ċ Ċ", "1 2", "Ġ =", "a b"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_alphabet()]
    tokens += [merge.replace(" ", "") for merge in merges]
    return byte_level_bpe(tokens, merges, tokens[:3], split="smollm", eos_id=2, pad_id=2)


@pytest.fixture(scope="module")
def sentencepiece():
    return train_sentencepiece(TEXTS, 64)


def test_sentencepiece_gives_its_training_text_back(sentencepiece):
    for text in TEXTS:
        assert sentencepiece.decode(sentencepiece.encode(text)) == text
    spaced = "  12  +\n\n 3 =\t "
    assert sentencepiece.decode(sentencepiece.encode(spaced)) == spaced


@settings(max_examples=40)
@given(st.lists(WORD, min_size=1, max_size=4))
def test_sentencepiece_holds_whatever_text_it_was_trained_on(words):
    texts = ["letters", *words]
    tokenizer = train_sentencepiece(texts, 500)
    for text in [*texts, "".join(words)[::-1]]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_split_however_often_they_stand_together(huggingface):
    for tokenizer in (huggingface, train_sentencepiece(["a1212"] * 50, 100)):
        assert [tokenizer.decode([id]) for id in tokenizer.encode("1212")] == ["1", "2", "1", "2"]


def test_tags_and_the_newline_are_whole_tokens(sentencepiece):
    text = "".join(["\n", *TAGS])
    assert [sentencepiece.decode([id]) for id in sentencepiece.encode(text)] == ["\n", *TAGS]


def test_training_is_deterministic_and_silent(tmp_path, capfd):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        train_sentencepiece(TEXTS, 64).save(tmp_path / name)
    first, second = (tmp_path / name / "tokenizer.model" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_the_vocabulary_is_as_large_as_asked_or_smaller():
    # Padding, EOS, unknown, newline and four tags; a and b; then ab is all there is to merge.
    assert train_sentencepiece(["ab ab"], 11 + 2).vocab_size == 13
    assert train_sentencepiece(["abab\nab"], 500).vocab_size < 20
    with pytest.raises(ValueError, match="vocab_size must be at least 11 for this text, got 10"):
        train_sentencepiece(["ab ab"], 10)


@pytest.mark.parametrize("text", ["", "\n", "a ▁", "a ▅", "a \0"])
def test_text_that_sentencepiece_cannot_hold_is_refused(text):
    with pytest.raises(ValueError, match=r"got none|cannot hold"):
        train_sentencepiece([text], 100)


@pytest.mark.parametrize("merge", ["a b", "a c", "ab"])
def test_a_merge_that_makes_no_token_is_refused(merge):
    with pytest.raises(ValueError, match="two tokens that make a third"):
        byte_level_bpe(["a", "b", "ac"], [merge], [], split="smollm", eos_id=0, pad_id=0)


@pytest.mark.parametrize(
    ("split", "text", "parts"),
    [
        ("smollm", "it's 123\n\n x", ["it", "'s", " ", "1", "2", "3", "\n\n", " x"]),
        ("qwen2", "it's 123\n\n x", ["it", "'s", " ", "1", "2", "3", "\n\n", " x"]),
        ("llama-bpe", "it's 1234\n\n x", ["it", "'s", " ", "123", "4", "\n\n", " x"]),
    ],
)
def test_text_is_split_as_the_family_splits_it(split, text, parts):
    """Everything within a part is merged, nothing across parts."""
    letters = byte_alphabet()
    inner = [part.replace(" ", "Ġ").replace("\n", "Ċ") for part in parts]
    merges, tokens = [], list(letters)
    for part in inner:
        for end in range(2, len(part) + 1):
            merges.append(f"{part[: end - 1]} {part[end - 1]}")
            tokens.append(part[:end])
    merges.append("Ġ 1")  # would join what the split keeps apart
    tokens = list(dict.fromkeys([*tokens, "Ġ1"]))
    tokenizer = byte_level_bpe(tokens, merges, [], split=split, eos_id=0, pad_id=0)
    assert [tokenizer.decode([id]) for id in tokenizer.encode(text)] == parts


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(ValueError, match="must be one of smollm, llama-bpe, qwen2, got gpt-2"):
        byte_level_bpe(["a"], [], [], split="gpt-2", eos_id=0, pad_id=0)


@pytest.mark.parametrize("add_space", [False, True])
def test_a_sentencepiece_model_is_built_from_its_tables(add_space):
    normal, unknown, control, byte = 1, 2, 3, 6
    rows = [("<unk>", 0.0, unknown), ("<s>", 0.0, control), ("</s>", 0.0, control)]
    rows += [(f"<0x{i:02X}>", 0.0, byte) for i in range(256)]
    rows += [("▁", -4.0, normal), ("a", -5.0, normal), ("b", -6.0, normal)]
    rows += [("ab", -1.0, normal), ("▁a", -2.0, normal)]
    tokenizer = sentencepiece_from_tables(
        *zip(*rows), add_space=add_space, ends={"bos_id": 1, "eos_id": 2, "unk_id": 0}
    )
    assert (tokenizer.eos_ids[0], tokenizer.pad_id, tokenizer.vocab_size) == (2, 2, len(rows))
    pieces = [tokenizer.decode([id]) for id in tokenizer.encode("ab a")]
    assert pieces == ([" "] if add_space else []) + ["ab", " a"]
    assert tokenizer.decode(tokenizer.encode("é")) == " " * add_space + "é"  # by its bytes


def test_special_tokens_of_any_name_end_a_text_and_are_whole_in_a_chat():
    rows = [("<unk>", 0.0, 2), ("<bos>", 0.0, 3), ("<eos>", 0.0, 3)]
    rows += [(letter, -5.0, 1) for letter in "abeos<>"]
    ends = {"bos_id": 1, "eos_id": 2, "unk_id": 0}
    tokenizer = sentencepiece_from_tables(*zip(*rows), add_space=False, ends=ends)
    assert (tokenizer.eos_ids, tokenizer.decode([2])) == ((2,), "<eos>")
    a, b = tokenizer.encode("ab")
    assert len(tokenizer.encode("<bos>ab")) == 7
    tokenizer.chat = Chat("{{ bos_token }}{{ messages[0].content }}", {"bos_token": "<bos>"})
    (text,) = render_chat(tokenizer.chat, [[{"role": "user", "content": "ab"}]])
    assert tokenizer.encode(text) == [1, a, b]
