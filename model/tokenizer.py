"""A checkpoint's tokenizer: tokenizer.json by the `tokenizers` library, as transformers reads it.

Importing transformers takes 6 s of a job's time, and for a file that says all there is to know it
adds nothing. Where something is not in the file (an older format, tokens or clean-up that
tokenizer_config.json adds) the tokenizer is transformers'.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FileTokenizer

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
CLASSES = ("PreTrainedTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast")
"""transformers' classes that do what their tokenizer.json says and nothing else."""
CHANGES = ("clean_up_tokenization_spaces", "add_prefix_space", "split_special_tokens")
"""Options of tokenizer_config.json by which transformers does otherwise than the file."""
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


class Tokenizer:
    """What the stages need of a tokenizer, under transformers' names."""

    def __init__(self, tokenizer: FileTokenizer, special: dict[str, str | None]) -> None:
        """A tokenizer.

        Args:
            tokenizer: of the file, without truncation and padding.
            special: the tokens of `SPECIAL`.
        """
        self._tokenizer = tokenizer
        self.bos_token_id, self.eos_token_id, self.unk_token_id, self.pad_token_id = (
            None if special[name] is None else tokenizer.token_to_id(str(special[name]))
            for name in SPECIAL
        )

    def __len__(self) -> int:
        """Tokens, added ones too."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """`{"input_ids": tokens}`."""
        return {"input_ids": self.encode(text, add_special_tokens)}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text; with those that the file's post-processor adds, unless told."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, tokens: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens."""
        ids = [tokens] if isinstance(tokens, int) else list(tokens)
        text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text


def read_tokenizer(directory: Path) -> Any:
    """The tokenizer of a checkpoint; a `Tokenizer`, or one of transformers' that has more to it."""
    found = _from_file(directory)
    if found is not None:
        return found
    from transformers import AutoTokenizer  # seconds to import: only where needed

    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


def _from_file(directory: Path) -> Tokenizer | None:
    """None if tokenizer.json alone does not say what transformers would do."""
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        tokenizer = FileTokenizer.from_file(str(directory / FILE))
        special = {name: _content(config.get(name)) for name in SPECIAL}
        extra = [_content(x) for x in config.get("additional_special_tokens") or []]
        added = {int(i): token for i, token in config.get("added_tokens_decoder", {}).items()}
    except Exception:  # tokenizers raises plain ones; transformers says what is wrong
        return None
    in_file = tokenizer.get_added_tokens_decoder()
    marked = {token.content for token in in_file.values() if token.special}
    kind = config.get("tokenizer_class")
    plain = (
        kind in CLASSES
        # Of one that is not named, Qwen2's classes have a default.
        and (kind == CLASSES[0] or all(name in config for name in SPECIAL))
        and not any(config.get(option) for option in CHANGES)
        and all(token is None or token in marked for token in (*special.values(), *extra))
        and all(
            index in in_file and all(getattr(in_file[index], k) == token[k] for k in token)
            for index, token in added.items()
        )
    )
    if not plain:
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Tokenizer(tokenizer, special)


def _content(token: Any) -> str | None:
    """A token as tokenizer_config.json has it: its text, or a mapping with `content`."""
    found = token["content"] if isinstance(token, dict) else token
    return None if found is None else str(found)
