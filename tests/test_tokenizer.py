"""Tokenizers: exact text both ways, what may end a completion, and what is refused."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_vocabulary import huggingface, sentencepiece  # noqa: F401

from grpojax.chat import Chat
from grpojax.tokenizer import ByteTokenizer, decode_groups, load_tokenizer, stop_ids

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(TEXT)
def test_bytes_come_back_exactly(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(TEXT)
def test_byte_level_bpe_gives_any_text_back(huggingface, text):
    assert huggingface.decode(huggingface.encode(text)) == text


@pytest.mark.parametrize("text", ["12 § 3", "▁"])
def test_an_unknown_character_is_refused_by_name(sentencepiece, text):
    with pytest.raises(ValueError, match=f"no token for \\['{text.strip('123 ')}'\\]"):
        sentencepiece.encode(text)


def test_special_and_meaningless_ids_show_in_the_text(huggingface, sentencepiece):
    a, end = huggingface.encode("a")[0], huggingface.encode("<|im_end|>")
    assert end == [2]
    assert huggingface.decode([a, 2, a, 9999, a]) == "a<|im_end|>a\ufffda"
    assert sentencepiece.decode([0, *sentencepiece.encode(" 1"), 1, 2, 64, -1]) == (
        "<pad> 1</s>" + "\ufffd" * 3
    )
    assert ByteTokenizer().decode([257, 65, 256, 66, 258]) == "<pad>A<eos>B\ufffd"
    assert ByteTokenizer().decode("é".encode()[:1]) == "\ufffd"


def test_a_saved_tokenizer_is_read_back(tmp_path, huggingface, sentencepiece):
    text = "12 + 3 =\n<think>a"
    for name, tokenizer in (("h", huggingface), ("s", sentencepiece), ("b", ByteTokenizer())):
        (tmp_path / name).mkdir()
        tokenizer.save(tmp_path / name)
        (file,) = (tmp_path / name).glob("tokenizer.*")
        for source in (tmp_path / name, file):
            loaded = load_tokenizer(str(source))
            assert type(loaded) is type(tokenizer)
            for field in ("vocab_size", "eos_ids", "pad_id"):
                assert getattr(loaded, field) == getattr(tokenizer, field)
            ids = tokenizer.encode(text)
            assert loaded.encode(text) == ids and loaded.decode(ids) == text
    assert isinstance(load_tokenizer("bytes"), ByteTokenizer)


@pytest.mark.parametrize(
    ("settings", "config", "eos_ids", "pad_id"),
    [
        ({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, {}, (2,), 0),
        ({"eos_token": "<|im_end|>"}, {"eos_token_id": 1}, (2, 1), 2),
        ({"eos_token": {"content": "<|im_start|>"}}, {"pad_token_id": 2}, (1,), 2),
        ({}, {"eos_token_id": [2, 0, 2]}, (2, 0), 2),
    ],
)
def test_eos_and_padding_are_what_the_folder_says(
    tmp_path, huggingface, settings, config, eos_ids, pad_id
):
    huggingface.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.eos_ids, tokenizer.pad_id) == (eos_ids, pad_id)
    assert stop_ids(tokenizer, ()) == eos_ids


def test_the_chat_template_and_special_tokens_are_kept(tmp_path, huggingface):
    huggingface.save(tmp_path)
    settings = {"eos_token": "<|im_end|>", "bos_token": {"content": "<|im_start|>"}}
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ 1 }}"}]
    for template in ("{{ 1 }}", named):
        settings["chat_template"] = template
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        loaded = load_tokenizer(str(tmp_path))
        special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
        assert loaded.chat == Chat("{{ 1 }}", special)
    (tmp_path / "chat_template.jinja").write_text("{{ 2 }}")  # goes before the other
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.chat.template == "{{ 2 }}"
    (tmp_path / "copy").mkdir()
    loaded.save(tmp_path / "copy")
    assert load_tokenizer(str(tmp_path / "copy")).chat.template == "{{ 2 }}"
    assert load_tokenizer(str(tmp_path / "copy")).chat.special.items() >= special.items()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no tokenizer at .*; give bytes"),
        ({"tokenizer.json": "{"}, "cannot read the tokenizer .*tokenizer.json"),
        ({"tokenizer.model": "no model"}, "tokenizer.model: not a SentencePiece model"),
        ({"tokenizer_config.json": "{}"}, "nothing names EOS"),
        ({"tokenizer_config.json": '{"eos_token": "x!"}'}, "'x!' .* is not a token"),
        ({"tokenizer_config.json": "{}", "config.json": '{"eos_token_id": 5000}'}, "id 5000"),
        ({"tokenizer_config.json": "{"}, "cannot read the tokenizer"),
    ],
)
def test_a_missing_or_unreadable_tokenizer_is_refused_in_one_line(
    tmp_path, huggingface, files, message
):
    if any(name.endswith("config.json") for name in files):
        huggingface.save(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


def test_stop_ids_are_eos_and_one_token_for_each_text(huggingface, sentencepiece):
    (newline,), (two,) = huggingface.encode("\n"), huggingface.encode("\n\n")
    assert stop_ids(huggingface, ()) == (2,)
    assert stop_ids(huggingface, ("\n", "\n\n", "<|im_end|>")) == (2, newline, two)
    assert stop_ids(ByteTokenizer(), ("\n",)) == (256, 10)
    assert len(stop_ids(sentencepiece, ("\n", "</answer>"))) == 3
    for text in ("12", "", "é"):
        with pytest.raises(ValueError, match=f"stop text '{text}' must be exactly one token"):
            stop_ids(huggingface, (text,))


def test_only_the_token_that_ended_a_completion_is_left_out():
    tokens = np.array([[[65, 10, 66, 10], [65, 66, 67, 10], [256, 1, 2, 3], [65, 256, 66, 67]]])
    mask = np.arange(4) < np.array([4, 3, 1, 4])[:, None]
    texts = decode_groups(ByteTokenizer(), tokens, mask[None], stops=(256, 10))
    assert texts == [["A\nB", "ABC", "", "A<eos>BC"]]


def test_a_completion_without_tokens_is_empty_text():
    tokens, mask = np.zeros((2, 1, 3), np.int32), np.zeros((2, 1, 3), bool)
    assert decode_groups(ByteTokenizer(), tokens, mask, (0,)) == [[""], [""]]


@given(st.lists(st.tuples(TEXT, st.booleans()), min_size=6, max_size=6), st.integers(0, 5))
def test_groups_decode_to_the_texts_that_were_encoded(rows, garbage):
    tokenizer = ByteTokenizer()
    ids = [tokenizer.encode(text) + [256] * ended for text, ended in rows]
    length = max(map(len, ids)) + garbage
    tokens, mask = np.full((6, length), 65), np.zeros((6, length), bool)
    for row, kept, values in zip(tokens, mask, ids):
        row[: len(values)], kept[: len(values)] = values, True
    before = tokens.copy()  # decoding writes nothing
    tokens, mask = tokens.reshape(2, 3, length), mask.reshape(2, 3, length)
    texts = decode_groups(tokenizer, tokens, mask, (256,))
    assert [*texts[0], *texts[1]] == [text for text, _ in rows]
    np.testing.assert_array_equal(tokens.reshape(6, length), before)
