"""Text to token ids and back, and chat templates, from a Hugging Face folder.

Reads `tokenizer.json` with `tokenizers`; special tokens and templates come from `tokenizer_config.json` and
its companions. Needs neither torch nor transformers, so a gateway process can use it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as HfTokenizer
from tokenizers.decoders import DecodeStream

from stoa.engine.model.config import read_json
from stoa.errors import InvalidModel, InvalidRequest

if TYPE_CHECKING:
    from stoa.engine.chat_template import ChatTemplates

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TOKEN_LISTS = ("additional_special_tokens", "extra_special_tokens")
_ADDED_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Tokenizer:
    """One model's tokenizer. Thread-safe once built; ids that the vocabulary lacks decode to nothing.

    `decoding` says how tokens become text, for whoever does it piecewise (`stoa.engine.text`):
    "bytes": token_bytes() joined, then UTF-8 with replacement (byte-level BPE);
    "pieces": piece() joined, runs of single bytes being UTF-8, then `strip_start` applied (SentencePiece);
    "other": only the library knows.
    """

    def __init__(self, folder: Path, *, chat: bool = True) -> None:
        """`chat`: with the model's chat templates. Raises InvalidModel naming the file that is missing or damaged."""
        folder = Path(folder)
        self._hf = _load(folder / "tokenizer.json")
        config = _read_settings(folder)
        _add_tokens(self._hf, config)
        self.special_tokens = _special_tokens(config)
        self._mark_special()
        self.bos_token_id = self._named_id("bos_token")
        self.eos_token_ids = self._eos_ids(folder)
        added = self._hf.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.vocab_size = 1 + max(self._hf.get_vocab(with_added_tokens=True).values(), default=-1)
        parts = _decoder_parts(self._hf)
        self.decoding, self.strip_start = _decoding(parts)
        self._replacements = _replacements(parts) if self.decoding == "pieces" else []
        self._chat: ChatTemplates | None = None
        if chat:
            from stoa.engine.chat_template import ChatTemplates  # takes longer than all the rest here

            self._chat = ChatTemplates(folder, config)
        self._pieces: dict[int, str | int] = {}
        self._bytes: dict[int, bytes] = {}

    # -- text

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`. Text that begins with the BOS token itself (a rendered chat template) gets no second
        one. Raises InvalidRequest if `text` is not valid Unicode."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            what = f"U+{ord(text[error.start]):04X} at position {error.start}"
            raise InvalidRequest(f"the text is not valid Unicode: lone surrogate {what}") from None
        # a batch of one: unlike `encode`, it lets other threads run meanwhile
        encoded = self._hf.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoded[0].ids
        if add_special_tokens and ids[:2] == [self.bos_token_id] * 2 and self._begins_with_bos(text):
            del ids[0]
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self._hf.decode(ids, skip_special_tokens=skip_special_tokens)

    def decode_stream(self, skip_special_tokens: bool) -> Callable[[int], str | None]:
        """The library's own incremental decoding, for `decoding == "other"`."""
        stream, hf = DecodeStream(skip_special_tokens=skip_special_tokens), self._hf
        return lambda token_id: stream.step(hf, token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes a token stands for, which may be a part of a character; b"" for an unknown id."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._make_bytes(token_id)
        return found

    def token_text(self, token_id: int) -> str:
        """The token alone as text; incomplete characters become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def piece(self, token_id: int) -> str | int:
        """For `decoding == "pieces"`: the token's text, or the byte (0-255) that it stands for."""
        found = self._pieces.get(token_id)
        if found is None:
            token = self._hf.id_to_token(token_id) or ""
            found = self._pieces[token_id] = _spm_piece(token, self._replacements)
        return found

    def to_json(self) -> str:
        """The tokenizer as one `tokenizer.json` text, added tokens included."""
        return self._hf.to_str()

    # -- chat

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt that the model's chat template makes of `messages` (plain JSON values), with its special
        tokens. Raises InvalidRequest if there is no template or the template refuses."""
        if self._chat is None:
            raise InvalidRequest("chat templates were not read", param="messages")
        arguments = {**self.special_tokens, **kwargs, "add_generation_prompt": add_generation_prompt}
        return self._chat.render(messages, tools, arguments)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._chat)

    # -- inside

    def _begins_with_bos(self, text: str) -> bool:
        bos = self.special_tokens.get("bos_token")
        return isinstance(bos, str) and text.startswith(bos)

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return self._hf.token_to_id(token) if isinstance(token, str) else None

    def _eos_ids(self, folder: Path) -> tuple[int, ...]:
        """The tokenizer's EOS and those of generation_config.json, without repetition."""
        ids = [self._named_id("eos_token")]
        path = folder / "generation_config.json"
        more = read_json(path).get("eos_token_id") if path.exists() else None
        ids += more if isinstance(more, list) else [more]
        return tuple(dict.fromkeys(i for i in ids if isinstance(i, int)))

    def _mark_special(self) -> None:
        """Tokens that the settings call special are special, whatever tokenizer.json says."""
        known = {t.content for t in self._hf.get_added_tokens_decoder().values() if t.special}
        for value in self.special_tokens.values():
            for token in value if isinstance(value, list) else [value]:
                if token not in known and self._hf.token_to_id(token) is not None:
                    self._hf.add_special_tokens([AddedToken(token, normalized=False)])

    def _make_bytes(self, token_id: int) -> bytes:
        token = self._hf.id_to_token(token_id)
        if token is None:
            return b""
        if self.decoding == "bytes":
            return _byte_level(token)
        if self.decoding == "pieces":
            piece = self.piece(token_id)
            return bytes([piece]) if isinstance(piece, int) else piece.encode("utf-8")
        return self._hf.decode([token_id], skip_special_tokens=False).encode("utf-8")


# -- files


def _load(path: Path) -> HfTokenizer:
    if not path.exists():
        raise InvalidModel(f"{path} does not exist; a model folder needs tokenizer.json")
    try:
        tokenizer: HfTokenizer = HfTokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise InvalidModel(f"{path} cannot be read as a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_settings(folder: Path) -> dict[str, Any]:
    """special_tokens_map.json under tokenizer_config.json; {} if there is neither."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            settings |= {k: v for k, v in read_json(folder / name).items() if v is not None}
    return settings


def _content(token: Any) -> str | None:
    """A special token is written as its text or as an object with `content`."""
    value = token.get("content") if isinstance(token, Mapping) else token
    return value if isinstance(value, str) else None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """Names as chat templates see them: bos_token …: str, additional_special_tokens: list of str."""
    found: dict[str, Any] = {}
    for name in _NAMED_TOKENS:
        token = _content(config.get(name))
        if token is not None:
            found[name] = token
    for name in _TOKEN_LISTS:
        value = config.get(name)
        if isinstance(value, Mapping):  # model-specific names, e.g. image_token
            found |= {k: t for k, v in value.items() if (t := _content(v)) is not None}
        elif isinstance(value, list):
            found[name] = [t for v in value if (t := _content(v)) is not None]
    return found


def _add_tokens(hf: HfTokenizer, config: Mapping[str, Any]) -> None:
    """Adds what `added_tokens_decoder` names and tokenizer.json lacks, in order of id."""
    listed = config.get("added_tokens_decoder")
    if not isinstance(listed, Mapping):
        return
    known = {t.content for t in hf.get_added_tokens_decoder().values()}
    try:
        for _, entry in sorted(listed.items(), key=lambda item: int(item[0])):
            if entry["content"] not in known:
                flags = {k: entry[k] for k in _ADDED_FLAGS if k in entry}
                hf.add_tokens([AddedToken(entry["content"], **flags)])
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidModel(f"tokenizer_config.json: added_tokens_decoder is malformed: {error!r}") from None


# -- decoding


def _decoder_parts(hf: HfTokenizer) -> list[dict[str, Any]]:
    """The decoder as a flat list of steps; [] if there is none."""
    if hf.decoder is None:
        return []
    state = json.loads(hf.decoder.__getstate__())
    parts: list[dict[str, Any]] = state["decoders"] if state["type"] == "Sequence" else [state]
    return parts


def _replacements(parts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(p["pattern"]["String"], p["content"]) for p in parts if p["type"] == "Replace"]


def _decoding(parts: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[str, int]]:
    """(how tokens become text, (character, how many of it at most to strip at the start))."""
    kinds = [p["type"] for p in parts]
    if kinds == ["ByteLevel"]:
        return "bytes", ("", 0)
    strip = ("", 0)
    if kinds[-2:] == ["Fuse", "Strip"] and parts[-1]["stop"] == 0:
        strip = (parts[-1]["content"], parts[-1]["start"])
        kinds.pop()
    if kinds[-1:] == ["Fuse"]:
        kinds.pop()
    patterns = [p["pattern"] for p in parts if p["type"] == "Replace"]
    replaced = ["Replace"] * len(patterns)
    if kinds and kinds == [*replaced, "ByteFallback"] and all("String" in p for p in patterns):
        return "pieces", strip
    return "other", ("", 0)


def _spm_piece(token: str, replacements: Sequence[tuple[str, str]]) -> str | int:
    for old, new in replacements:
        token = token.replace(old, new)
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return token
    return token


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's: printable Latin-1 stands for itself, the other bytes for code points from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    """A token outside the alphabet (an added token with a space in it) stands for its own UTF-8."""
    try:
        return bytes([_BYTE_OF[c] for c in token])
    except KeyError:
        return token.encode("utf-8")
