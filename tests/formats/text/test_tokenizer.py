"""Tokenizers: every text comes back, ids are those of independent engines, and control tokens cannot be smuggled in."""

from __future__ import annotations

import json
import math
import threading
import time
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import LETTER_OF, PIECES, byte_level, sentencepiece
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from formats.text.tokenizer import Tokenizer, open_tokenizer
from microkernel.errors import DataLoss, Invalid, MicrokernelError, NotFound

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
BYTES = open_tokenizer(byte_level())
PIECEWISE = open_tokenizer(sentencepiece())


def ids_of(tokenizer: Tokenizer, text: str, *, parse_special: bool = False) -> list[int]:
    return tokenizer.encode(text, add_bos=False, parse_special=parse_special)


@given(text=TEXT)
@settings(deadline=None)
def test_any_text_decodes_to_itself(text):
    for tokenizer in (BYTES, PIECEWISE):
        ids = ids_of(tokenizer, text)
        assert not tokenizer.special_ids & set(ids)
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "tekken", "default"])
@given(text=TEXT)
@settings(max_examples=30, deadline=None)
def test_any_text_decodes_to_itself_however_it_is_cut(pre, text):
    tokenizer = open_tokenizer(byte_level(pre))
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


@given(text=TEXT)
@settings(max_examples=30, deadline=None)
def test_qwen2_reads_text_in_composed_form(text):
    tokenizer = open_tokenizer(byte_level("qwen2"))
    assert tokenizer.decode(ids_of(tokenizer, text)) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    ("pre", "text", "cut"),
    [
        ("gpt-2", "It's 1234 ok  x\n\ny", ["It", "'s", " 1234", " ok", " ", " x", "\n", "\n", "y"]),
        ("smollm", "It's 12  x", ["It", "'s", " ", "1", "2", " ", " x"]),
        ("llama-bpe", "It'S 1234 (a)\n\n b", ["It", "'S", " ", "123", "4", " (", "a", ")\n\n", " b"]),
        ("qwen2", "It'S 12 .a\n\n b", ["It", "'S", " ", "1", "2", " .", "a", "\n\n", " b"]),
        ("tekken", "HelloWorld 12", ["Hello", "World", " ", "1", "2"]),
    ],
)  # fmt: skip
def test_each_model_cuts_text_as_it_was_trained(pre, text, cut):
    library = open_tokenizer(byte_level(pre))._library
    pieces = library.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in pieces] == cut


def test_merges_are_applied_in_their_order():
    vocab = {text: token for token, text in enumerate(byte_level()["tokenizer.ggml.tokens"])}
    assert ids_of(BYTES, "hello hello") == [vocab["hello"], vocab["Ġhello"]]
    assert ids_of(BYTES, "hel") == [vocab["he"], vocab["l"]]


def pieces_by_definition(text: str) -> list[str]:
    """By SentencePiece's own words: join the neighbours whose union scores best, the leftmost of equals."""
    score = {piece: -place for place, piece in enumerate(PIECES)}
    parts = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        joined = [(score.get(left + right, -math.inf), -at) for at, (left, right) in enumerate(pairwise(parts))]
        best, at = max(joined, default=(-math.inf, 0))
        if best == -math.inf:
            return parts
        parts[-at : -at + 2] = [parts[-at] + parts[-at + 1]]


@given(text=st.text("abc é ", max_size=40))
@settings(max_examples=300, deadline=None)
def test_sentencepiece_joins_by_score(text):
    # "é" as such is no single-character piece in the order of merges, but a piece of its own
    tokens = sentencepiece()["tokenizer.ggml.tokens"]
    assert [tokens[token] for token in ids_of(PIECEWISE, text)] == pieces_by_definition(text)


def test_sentencepiece_spells_unknown_characters_in_bytes():
    tokens = sentencepiece()["tokenizer.ggml.tokens"]
    assert [tokens[token] for token in ids_of(PIECEWISE, "🦊")] == ["▁", "<0xF0>", "<0x9F>", "<0xA6>", "<0x8A>"]
    assert [PIECEWISE.token_bytes(token) for token in ids_of(PIECEWISE, "é🦊")[1:]] == [
        b"\xf0",
        b"\x9f",
        b"\xa6",
        b"\x8a",
    ]


def test_the_space_before_a_text_is_added_where_the_file_says_so():
    without = open_tokenizer({**sentencepiece(), "tokenizer.ggml.add_space_prefix": False})
    assert PIECEWISE.decode(ids_of(PIECEWISE, "ab")) == without.decode(ids_of(without, "ab")) == "ab"
    assert without.token_bytes(ids_of(without, "ab")[0]) == b"ab"
    assert PIECEWISE.decode(ids_of(PIECEWISE, "ab"), continues=True) == " ab"


@pytest.mark.parametrize("text", ["<|im_end|>", "a<|im_start|>system\nb", "<|endoftext|><|tool|>", "<|im_end|>" * 3])
def test_names_of_control_tokens_in_text_are_ordinary_text(text):
    ids = ids_of(BYTES, text)
    assert not BYTES.special_ids & set(ids)
    assert BYTES.decode(ids) == text
    assert BYTES.special_ids & set(ids_of(BYTES, text, parse_special=True))


@given(
    parts=st.lists(
        st.tuples(
            st.sampled_from(["<|im_end|>", "<|im_", "end|>", "<", " hello", "hel", "lo", "\n", "é"]), st.booleans()
        )
    )
)
@settings(deadline=None)
def test_parts_give_the_same_text_and_only_the_parsed_ones_give_control_tokens(parts):
    ids = BYTES.encode_parts(parts, add_bos=False)
    assert BYTES.decode(ids, skip_special=False) == "".join(text for text, _ in parts)
    parsed = "".join(text if parse else "\0" for text, parse in parts)
    assert ids.count(2) == parsed.count("<|im_end|>")


def test_text_is_merged_across_the_borders_of_parts():
    assert BYTES.encode_parts([("<|im_start|>hel", True), ("lo", False)], add_bos=False) == [1, *ids_of(BYTES, "hello")]


def test_the_first_token_is_put_before_a_text_once():
    assert BYTES.encode("a", add_bos=True, parse_special=False)[0] == 1
    assert BYTES.encode("<|im_start|>a", add_bos=True, parse_special=True).count(1) == 1
    assert BYTES.encode("", add_bos=False, parse_special=False) == []


def test_user_defined_tokens_are_found_in_all_text_and_are_shown():
    assert ids_of(BYTES, "a<think>b")[1] == 4
    assert BYTES.decode([4]) == "<think>"
    assert BYTES.decode([1, 4, 2]) == "<think>"
    assert BYTES.decode([1, 4, 2], skip_special=False) == "<|im_start|><think><|im_end|>"


def test_ids_that_no_token_has_are_left_out():
    assert BYTES.decode([10**9, *ids_of(BYTES, "a"), -1]) == "a"
    assert BYTES.token_bytes(10**9) == b""


def test_tokens_that_end_a_turn_are_known_by_name_and_by_field():
    assert BYTES.eos_ids == {0, 2}
    with_more = open_tokenizer({**byte_level(), "tokenizer.ggml.eot_token_id": 3})
    assert with_more.eos_ids == {0, 2, 3}
    assert (PIECEWISE.bos_id, PIECEWISE.eos_ids, PIECEWISE.add_bos) == (1, {2}, True)
    assert BYTES.add_bos is False


def test_a_lone_surrogate_is_refused():
    with pytest.raises(Invalid, match="lone surrogate at character 1"):
        ids_of(BYTES, "a\ud800")


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"ggml.model": "rwkv"}, Invalid, "'rwkv'"),
        ({"ggml.model": None}, Invalid, "None"),
        ({"ggml.model": 7}, DataLoss, "ggml.model is int"),
        ({"ggml.pre": "unheard-of"}, Invalid, "'unheard-of'"),
        ({"ggml.tokens": None}, DataLoss, "no list tokenizer.ggml.tokens"),
        ({"ggml.tokens": "abc"}, DataLoss, "no list tokenizer.ggml.tokens"),
        ({"ggml.tokens": ["a", 3]}, DataLoss, "tokens[1] is int"),
        ({"ggml.token_type": [1]}, DataLoss, "token_type has 1 entries"),
        ({"ggml.merges": ["ab"]}, DataLoss, "merges[0]"),
        ({"ggml.merges": ["zzz yyy"]}, DataLoss, "no working tokenizer"),
        ({"ggml.merges": None}, DataLoss, "merges"),
        ({"ggml.eos_token_id": 10**6}, DataLoss, "eos_token_id is 1000000"),
        ({"ggml.add_bos_token": "yes"}, DataLoss, "add_bos_token is str"),
        ({"chat_template": 5}, DataLoss, "chat_template is int"),
    ],
    ids=str,
)
def test_metadata_that_cannot_be_used_is_refused_in_one_line(change, kind, says):
    with pytest.raises(kind) as refused:
        open_tokenizer(byte_level() | {f"tokenizer.{name}": value for name, value in change.items()})
    assert says in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("scores", [None, [1.0], [math.nan] * 277, ["x"] * 277], ids=["none", "one", "nan", "text"])
def test_scores_that_cannot_be_used_are_refused(scores):
    with pytest.raises(DataLoss, match="scores"):
        open_tokenizer(sentencepiece() | {"tokenizer.ggml.scores": scores})


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 400) | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=4),
)


@given(
    base=st.sampled_from([byte_level(), sentencepiece()]),
    changes=st.dictionaries(
        st.sampled_from(
            [
                "model",
                "pre",
                "tokens",
                "token_type",
                "merges",
                "scores",
                "bos_token_id",
                "unknown_token_id",
                "add_space_prefix",
            ]
        ),
        JUNK,
        max_size=3,
    ),
)
@settings(max_examples=100, deadline=None)
def test_whatever_stands_in_the_metadata_only_our_errors_come_out(base, changes):
    try:
        tokenizer = open_tokenizer(base | {f"tokenizer.ggml.{name}": value for name, value in changes.items()})
    except MicrokernelError as error:
        assert "\n" not in error.message
    else:
        assert isinstance(tokenizer.decode(ids_of(tokenizer, "hello ab")), str)


def save_folder(folder: Path, library: Library, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def byte_library() -> Library:
    vocab = {letter: byte for byte, letter in LETTER_OF.items()}
    library = Library(models.BPE(vocab=vocab | {"he": 256}, merges=[("h", "e")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|bos|>", "<|eot_id|>", "<|end_of_text|>"])
    library.add_tokens([AddedToken("<think>", special=False)])
    return library


def test_a_hugging_face_folder_gives_tokens_template_and_ends(tmp_path):
    folder = save_folder(
        tmp_path,
        byte_library(),
        tokenizer_config__json={
            "bos_token": "<|bos|>",
            "eos_token": {"content": "<|end_of_text|>", "lstrip": False},
            "add_bos_token": True,
            "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}],
        },
        generation_config__json={"eos_token_id": [259, 7]},
    )
    tokenizer = open_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.add_bos) == (257, {258, 259, 7}, True)
    assert tokenizer.chat_template == "yes"
    assert tokenizer.template_tokens == {"bos_token": "<|bos|>", "eos_token": "<|end_of_text|>"}
    assert ids_of(tokenizer, "he<think>") == [256, 260]
    assert tokenizer.decode(ids_of(tokenizer, "🦊 <|eot_id|>")) == "🦊 <|eot_id|>"


def test_a_token_that_ends_a_turn_is_a_control_token_even_if_the_file_forgot_it(tmp_path):
    library = byte_library()
    library.add_tokens([AddedToken("<|im_end|>", special=False)])
    tokenizer = open_tokenizer(save_folder(tmp_path, library))
    assert tokenizer.special_tokens["<|im_end|>"] in tokenizer.eos_ids
    assert not tokenizer.special_ids & set(ids_of(tokenizer, "<|im_end|>"))


def test_the_template_file_goes_before_the_configuration(tmp_path):
    folder = save_folder(
        tmp_path, byte_library(), tokenizer_config__json={"chat_template": "old"}, chat_template__jinja="new"
    )
    assert open_tokenizer(folder).chat_template == "new"


def test_the_first_token_is_seen_in_the_post_processor(tmp_path):
    library = byte_library()
    library.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 257)])
    folder = save_folder(tmp_path, library, tokenizer_config__json={"bos_token": "<|bos|>"})
    assert open_tokenizer(folder).add_bos is True


def test_padding_and_truncation_in_the_file_are_not_used(tmp_path):
    library = byte_library()
    library.enable_truncation(3)
    library.enable_padding(length=10)
    tokenizer = open_tokenizer(save_folder(tmp_path, library))
    assert len(ids_of(tokenizer, "abcdef")) == 6


def metaspace_library() -> Library:
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6, "ab": 7, "▁ab": 8}
    vocab |= {f"<0x{byte:02X}>": 9 + byte for byte in range(256)}
    merges = [("▁", "a"), ("a", "b"), ("▁", "ab"), ("▁a", "b")]
    library = Library(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    return library


def test_a_space_is_put_before_the_first_word_only_with_parts_as_with_the_whole(tmp_path):
    library = metaspace_library()
    tokenizer = open_tokenizer(save_folder(tmp_path, library, tokenizer_config__json={"bos_token": "<s>"}))
    whole = library.encode("<s>ab</s>ab", add_special_tokens=False).ids
    assert ids_of(tokenizer, "<s>ab</s>ab", parse_special=True) == whole
    assert tokenizer.encode_parts([("<s>", True), ("ab", False), ("</s>ab", True)], add_bos=False) == whole
    assert tokenizer.decode(ids_of(tokenizer, "ab é b")) == "ab é b"


def test_space_around_a_control_token_is_taken_along_where_its_definition_says_so(tmp_path):
    library = byte_library()
    library.add_special_tokens([AddedToken("<|x|>", lstrip=True, rstrip=True, special=True)])
    tokenizer = open_tokenizer(save_folder(tmp_path, library))
    token = tokenizer.special_tokens["<|x|>"]
    assert ids_of(tokenizer, "he  <|x|> \n he", parse_special=True) == [256, token, 256]
    parts = [("he  <|x|> \n he", True), ("<|x|>", False)]
    assert tokenizer.encode_parts(parts, add_bos=False)[:3] == [256, token, 256]


def test_a_folder_without_a_tokenizer_says_what_to_do(tmp_path):
    with pytest.raises(NotFound, match="tokenizer.json does not exist") as refused:
        open_tokenizer(tmp_path)
    assert refused.value.remedy


@pytest.mark.parametrize("content", ["", "{", "{}", '{"version": "1.0", "model": {"type": "Nothing"}}', "[" * 100_000])
def test_a_damaged_tokenizer_file_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataLoss) as refused:
        open_tokenizer(tmp_path)
    assert "tokenizer.json" in refused.value.message
    assert "\n" not in refused.value.message


def changed(library: Library, **parts: Any) -> str:
    return json.dumps(json.loads(library.to_str()) | parts)


def replacing(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


@pytest.mark.parametrize(
    ("normalizer", "says"),
    [
        ({"type": "Sequence", "normalizers": [replacing("a", "aa")] * 10}, r"1024 times"),
        (replacing("a", "a" * 5), r"5 times"),
        ({"type": "Replace", "pattern": {"Regex": "a"}, "content": "aaa"}, r"6 times"),
        (replacing("", "a"), r"inf times"),
        (replacing("a", "a" * 2000), "at most 1024 characters"),
        ({"type": "Prepend", "prepend": "a" * 2000}, "at most 1024 characters"),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}] * 17}, "more than 16 steps"),
        ({"type": "Unheard"}, "'Unheard'"),
    ],
)
def test_a_definition_whose_steps_multiply_text_is_refused(tmp_path, normalizer, says):
    save_folder(tmp_path, byte_library())
    (tmp_path / "tokenizer.json").write_text(changed(byte_library(), normalizer=normalizer))
    with pytest.raises(Invalid, match=says) as refused:
        open_tokenizer(tmp_path)
    assert "tokenizer.json" in refused.value.message


def test_steps_that_multiply_are_found_before_words_are_cut_too(tmp_path):
    save_folder(tmp_path, byte_library())
    steps = {"type": "Sequence", "pretokenizers": [{"type": "Delay"}]}
    (tmp_path / "tokenizer.json").write_text(changed(byte_library(), pre_tokenizer=steps))
    with pytest.raises(Invalid, match="its pre_tokenizer has a step of type 'Delay'"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("metadata", [byte_level(), sentencepiece()], ids=["bytes", "pieces"])
def test_a_token_too_long_to_look_for_merges_in_is_refused(metadata):
    tokens = [*metadata["tokenizer.ggml.tokens"][:-1], "a" * 1025]
    with pytest.raises(Invalid, match=rf"tokens\[{len(tokens) - 1}\] has 1025 characters, allowed are 1024"):
        open_tokenizer({**metadata, "tokenizer.ggml.tokens": tokens})


@given(text=TEXT)
@settings(max_examples=50, deadline=None)
def test_no_token_stands_for_more_characters_than_the_longest(text):
    for tokenizer in (BYTES, PIECEWISE):
        assert len(text) <= len(ids_of(tokenizer, text)) * tokenizer.longest_token


def test_other_threads_run_while_a_long_text_is_encoded():
    began, ended = threading.Event(), threading.Event()

    def encode() -> None:
        began.set()
        ids_of(BYTES, "hello, world. " * 100_000)
        ended.set()

    worker = threading.Thread(target=encode)
    worker.start()
    began.wait()
    turns = 0
    while not ended.is_set():
        time.sleep(0.001)
        turns += 1
    worker.join()
    assert turns > 10  # with Python's lock held there are two or three


def test_a_definition_that_contradicts_itself_fails_in_one_line_when_it_is_used(tmp_path):
    definition = json.loads(byte_library().to_str())
    definition["model"] |= {"unk_token": "nowhere"}
    del definition["model"]["vocab"]["x"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(DataLoss, match="tokenizer failed"):
        ids_of(open_tokenizer(tmp_path), "x")


@pytest.mark.parametrize("content", ["[1]", "{", "\udcff"])
def test_a_damaged_configuration_is_named(tmp_path, content):
    save_folder(tmp_path, byte_library())
    (tmp_path / "tokenizer_config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataLoss, match="tokenizer_config.json"):
        open_tokenizer(tmp_path)


def test_a_kind_that_is_neither_byte_level_nor_sentencepiece_is_refused(tmp_path):
    library = Library(models.WordPiece(vocab={"[UNK]": 0}, unk_token="[UNK]"))
    library.decoder = decoders.WordPiece()
    with pytest.raises(Invalid, match="WordPiece"):
        open_tokenizer(save_folder(tmp_path, library))


# Made with llama.cpp (build 11549) from the default model's file: text, whether control tokens are parsed, ids.
KNOWN = [
    ("Hello, world!", False, [19556, 28, 905, 17]),
    ("The year 1984 had 366 days; ¼ ² Ⅷ ٣", False,
     [504, 713, 216, 33, 41, 40, 36, 761, 216, 35, 38, 38, 2009, 43, 216, 28151, 216, 19133, 216, 173, 223,
      117, 216, 164, 113]),
    ("  leading and   inner   spaces  ", False, [216, 2899, 284, 256, 6210, 256, 5600, 256]),
    ("tabs\tand\nnew\n\nlines\r\n  \n end", False,
     [100, 7366, 197, 397, 198, 2241, 198, 198, 5110, 2738, 32057, 1112]),
    ("naïve café Ångström ñ e\u0301", False,
     [3546, 46494, 37366, 5549, 223, 863, 1321, 45682, 5549, 126, 297, 151, 219]),
    ("日本語のテキスト", False,
     [23274, 115, 40993, 179, 120, 248, 26453, 11100, 224, 10391, 251, 10391, 134, 11100, 226]),
    ("def f(x):\n    return x**2  # it's I'm WE'LL don't", False,
     [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 216, 907, 357, 506, 339, 5248, 26587, 23, 16421,
      1326, 982]),
    ("<|im_start|>user\nhi<|im_end|>\n", False,
     [44, 108, 306, 79, 3738, 108, 46, 4093, 198, 6004, 44, 108, 306, 79, 486, 108, 46, 198]),
    ("<|im_start|>user\nhi<|im_end|>\n", True, [1, 4093, 198, 6004, 2, 198]),
    ("x <|im_end|> y", True, [104, 216, 2, 329]),
    ("x <|im_end|> y", False, [104, 2067, 108, 306, 79, 486, 108, 46, 329]),
    ("İstanbul ǅ ﬁ ß", False, [143, 125, 28683, 216, 146, 223, 40367, 5549, 249]),
    ("£€¥ § ¶ •", False, [37564, 14195, 141, 115, 20850, 3351, 131, 7825]),
    ("\u200b\u00a0\u3000 zero", False, [321, 229, 15442, 12109, 218, 6708]),
    ("'S 'Ll 'tis 's", False, [23, 67, 637, 60, 92, 637, 34818, 637, 99]),
    ("12345.678 ½", False, [33, 34, 35, 36, 37, 30, 38, 39, 40, 216, 16738]),
]  # fmt: skip


@pytest.fixture(scope="module")
def default_tokenizer(default_model: Path) -> Tokenizer:
    return open_tokenizer(metadata_of(default_model))


def metadata_of(path: Path) -> dict[str, Any]:
    import gguf

    fields = gguf.GGUFReader(str(path)).fields
    return {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.")}


@pytest.mark.model
@pytest.mark.parametrize(("text", "parse_special", "ids"), KNOWN)
def test_the_default_models_ids_are_those_of_an_independent_engine(default_tokenizer, text, parse_special, ids):
    assert ids_of(default_tokenizer, text, parse_special=parse_special) == ids


@pytest.mark.model
@given(text=TEXT)
@settings(deadline=None)
def test_the_default_model_gives_any_text_back_that_its_bytes_can_spell(default_tokenizer, text):
    # its vocabulary was trained without some bytes (0x04, 0xF1, …); characters that need them have no token at all
    known = {default_tokenizer.token_bytes(token) for token in range(600)}
    spelled = "".join(letter for letter in text if all(bytes([byte]) in known for byte in letter.encode()))
    assert default_tokenizer.decode(ids_of(default_tokenizer, spelled)) == spelled


@pytest.mark.model
def test_the_default_model_ends_a_turn_with_its_own_token(default_tokenizer):
    assert (default_tokenizer.vocab_size, default_tokenizer.bos_id, default_tokenizer.add_bos) == (49152, 1, False)
    assert default_tokenizer.eos_ids == {0, 2}
    assert default_tokenizer.chat_template


@pytest.mark.model
@pytest.mark.peer
def test_the_default_models_ids_are_those_of_transformers(default_model, default_tokenizer):
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoTokenizer.from_pretrained(str(default_model.parent), gguf_file=default_model.name)
    texts = Path(__file__).read_text(encoding="utf-8").split("\n\n\n")
    for text in texts:
        # it cuts as GPT-2 whatever the file says; this model cuts off digits, so the two agree on text without
        plain = "".join(letter for letter in text if not letter.isnumeric())
        assert ids_of(default_tokenizer, plain, parse_special=True) == peer.encode(plain, add_special_tokens=False)
