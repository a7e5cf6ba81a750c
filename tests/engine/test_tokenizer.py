"""Tokenizer against transformers, on small tokenizers trained here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from stoa.engine.tokenizer import Tokenizer
from stoa.errors import InvalidModel, InvalidRequest

SAMPLE = "Hello world, this is a small text. Grüße, 你好 😀!\n  indented <|im_start|>user\n"
CHATML = """{%- if tools %}
<|im_start|>tools
{{ tools | tojson }}<|im_end|>
{% endif %}
{% for message in messages %}
    {% if message['role'] == 'boom' %}{{ raise_exception('no boom please') }}{% endif %}
    {% if loop.index > 50 %}{% break %}{% endif %}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- generation %}{{ message.content }}{% endgeneration %}{{ '<|im_end|>\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}{{ extra | default('') }}
{% endif %}
{{ eos_token }}"""
MESSAGES = [
    {"role": "system", "content": "Be <brief> & 'exact'."},
    {"role": "user", "content": "Grüße 😀\n\n- one"},
    {"role": "assistant", "content": ""},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<ö>", "parameters": {}}}]


def byte_level(folder: Path, **settings: Any) -> Path:
    """A model folder with a byte-level BPE tokenizer such as Qwen's or Llama 3's."""
    hf = HfTokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=specials,
        show_progress=False,
    )
    hf.train_from_iterator([SAMPLE] * 3, trainer)
    return _save(folder, hf, {"eos_token": "<|im_end|>", **settings})


def sentencepiece(folder: Path, **settings: Any) -> Path:
    """A model folder with a tokenizer such as Llama 2's: ▁ for spaces, byte fallback."""
    words = ["▁", "a", "b", "▁a", "▁b", "ab", "▁ab", "▁▁"]
    vocab = {
        t: i for i, t in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words])
    }
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁", "ab"), ("▁", "▁")]
    hf = HfTokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    hf.add_special_tokens(["<unk>", "<s>", "</s>"])
    hf.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    hf.decoder = decoders.Sequence(steps)
    hf.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _save(folder, hf, {**names, **settings})


def _save(folder: Path, hf: HfTokenizer, settings: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    hf.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def reference(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("build", [byte_level, sentencepiece])
@pytest.mark.parametrize("text", ["", " ", "a b  ab", "Hello world", SAMPLE, "<s>a</s>", "é\x00\u200d👩‍👩‍👧"])
def test_encodes_and_decodes_as_transformers_does(tmp_path: Path, build: Any, text: str) -> None:
    """Ids and text agree, with and without special tokens."""
    ours, theirs = Tokenizer(build(tmp_path)), reference(tmp_path)
    for special in (True, False):
        ids = ours.encode(text, add_special_tokens=special)
        expected = theirs.encode(text, add_special_tokens=special)
        doubled = special and text.startswith("<s>") and build is sentencepiece
        assert ids == (expected[1:] if doubled else expected)
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_chat_templates_as_transformers_does(tmp_path: Path, tools: Any, prompt: bool) -> None:
    """Whitespace control, tojson, loop controls, the generation tag and special tokens agree."""
    folder = byte_level(tmp_path, chat_template=CHATML)
    ours = Tokenizer(folder).apply_chat_template(MESSAGES, tools, prompt, extra="<think>")
    theirs = reference(folder).apply_chat_template(
        MESSAGES, tools=tools, add_generation_prompt=prompt, tokenize=False, extra="<think>"
    )
    assert ours == theirs
    assert "<|im_start|>user\nGrüße 😀" in ours


def test_a_named_template_is_used_for_tools(tmp_path: Path) -> None:
    """Of a list of templates, "tool_use" serves requests with tools and "default" the others."""
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools!"}]
    tokenizer = Tokenizer(byte_level(tmp_path, chat_template=named))
    assert tokenizer.apply_chat_template(MESSAGES) == "plain"
    assert tokenizer.apply_chat_template(MESSAGES, TOOLS) == "tools!"


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_a_template_file_goes_before_the_configuration(tmp_path: Path, name: str) -> None:
    """chat_template.jinja and chat_template.json overrule tokenizer_config.json."""
    folder = byte_level(tmp_path, chat_template="old")
    text = "new" if name.endswith("jinja") else json.dumps({"chat_template": "new"})
    (folder / name).write_text(text)
    assert Tokenizer(folder).apply_chat_template(MESSAGES) == "new"


def test_a_rendered_template_gets_one_bos(tmp_path: Path) -> None:
    """A template that writes BOS itself does not get a second one from the tokenizer."""
    tokenizer = Tokenizer(sentencepiece(tmp_path, chat_template="{{ bos_token }}ab"))
    assert tokenizer.encode(tokenizer.apply_chat_template([])).count(tokenizer.bos_token_id) == 1
    assert tokenizer.encode("ab")[0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("messages", "template"),
    [
        ([{"role": "boom", "content": ""}], CHATML),
        ([{"role": "user"}], "{{ messages[0].content + 'x' }}"),
        ([{"role": "user", "content": 1}], "{{ messages[0].content.x.y }}"),
        ([], "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        ([], "{{ 'x' * 3 + 1 }}"),
        (["not an object"], "x"),
    ],
)
def test_what_a_template_refuses_is_an_invalid_request(tmp_path: Path, messages: Any, template: str) -> None:
    """Errors of templates, and attempts to leave the sandbox, name the field `messages`."""
    tokenizer = Tokenizer(byte_level(tmp_path, chat_template=template))
    with pytest.raises(InvalidRequest) as caught:
        tokenizer.apply_chat_template(messages)
    assert caught.value.param == "messages"


def test_no_template_is_said_plainly(tmp_path: Path) -> None:
    """Without a template the request is refused and told what to use."""
    with pytest.raises(InvalidRequest, match="no chat template"):
        Tokenizer(byte_level(tmp_path)).apply_chat_template(MESSAGES)


def test_special_tokens_of_the_settings_are_special(tmp_path: Path) -> None:
    """What only tokenizer_config.json calls special, or adds, is treated as transformers does."""
    added = {"377": {"content": "<tool>", "special": False}, "378": {"content": "<extra>", "special": True}}
    folder = byte_level(tmp_path, added_tokens_decoder=added, pad_token="<extra>")
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    ours, theirs = Tokenizer(folder), reference(folder)
    ids = ours.encode("a<tool>b<extra>c<|im_end|>")
    assert ids == theirs.encode("a<tool>b<extra>c<|im_end|>")
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == "a<tool>bc"
    assert ours.eos_token_ids == (2, 0)
    assert ours.special_ids == set(theirs.all_special_ids) | {0, 1}
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("build", [byte_level, sentencepiece])
def test_bytes_of_tokens_join_to_the_text(tmp_path: Path, build: Any) -> None:
    """token_bytes gives raw bytes, also of parts of characters."""
    tokenizer = Tokenizer(build(tmp_path))
    text = "ab Grüße 😀"
    joined = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text, add_special_tokens=False)))
    assert joined.decode().lstrip() == text
    assert tokenizer.token_bytes(10**6) == b""
    assert tokenizer.token_text(tokenizer.encode("a", add_special_tokens=False)[-1]).strip() == "a"


def test_lone_surrogates_are_refused(tmp_path: Path) -> None:
    """Text that is not Unicode is an invalid request that says where."""
    with pytest.raises(InvalidRequest, match="position 1"):
        Tokenizer(byte_level(tmp_path)).encode("a\ud800")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("special_tokens_map.json", "{"),
        ("chat_template.jinja", "{% if %}"),
        ("chat_template.json", '{"chat_template": [1]}'),
    ],
)
def test_a_damaged_folder_is_refused_by_file_name(tmp_path: Path, file: str, content: str | None) -> None:
    """InvalidModel names the file that is missing or damaged."""
    folder = byte_level(tmp_path)
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(InvalidModel, match=file):
        Tokenizer(folder)
