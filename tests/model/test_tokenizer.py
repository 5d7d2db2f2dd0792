"""A tokenizer read from its file gives what transformers' gives, or is transformers'."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, Qwen2TokenizerFast

from model.tokenizer import Tokenizer, read_tokenizer

TINY = Path("model/checkpoints/tiny-qwen3-moe")
TEXTS = (
    "the farmers near the boat sing .",
    "a word that nobody taught it <|endoftext|> again",
    "  spaces,\ttabs\nand ünïcode: 東京 🚀 don't",
    "",
)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer of Qwen2's kind, as Qwen3's checkpoints have."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([Path("README.md").read_text(encoding="utf-8")], trainer)
    folder = tmp_path_factory.mktemp("qwen2")
    Qwen2TokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        bos_token=None,
        additional_special_tokens=["<|im_start|>"],
    ).save_pretrained(folder)
    return folder


def same(ours: Any, theirs: Any) -> None:
    for name in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs)
    for text in TEXTS:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special)
            assert ids == ours(text, add_special_tokens=special)["input_ids"]
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
                ids, skip_special_tokens=skip
            )
    end = ours.eos_token_id
    assert ours.decode(end) == theirs.decode(end) == ours.decode([end]) != ""
    assert ours.decode([end, end], skip_special_tokens=True) == ""


def test_the_tiny_models_is_read_from_its_file() -> None:
    ours = read_tokenizer(TINY)
    assert isinstance(ours, Tokenizer)
    same(ours, AutoTokenizer.from_pretrained(TINY))


def test_one_of_qwens_kind_is_read_from_its_file(byte_level: Path) -> None:
    ours = read_tokenizer(byte_level)
    assert isinstance(ours, Tokenizer)
    same(ours, AutoTokenizer.from_pretrained(byte_level))


def test_truncation_and_padding_in_the_file_are_not_applied(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY, tmp_path / "cut"))
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.save(str(folder / "tokenizer.json"))
    assert len(read_tokenizer(folder).encode(TEXTS[0])) == 7


@pytest.mark.parametrize(
    "change",
    [
        {"clean_up_tokenization_spaces": True},
        {"add_prefix_space": True},
        {"tokenizer_class": "LlamaTokenizerFast"},
        {"eos_token": "<|new|>"},
        {"eos_token": "boat"},  # in the vocabulary, but no special token
    ],
)
def test_what_the_file_does_not_say_is_left_to_transformers(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(TINY, tmp_path / "more"))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    ours = read_tokenizer(folder)
    assert not isinstance(ours, Tokenizer)
    assert ours.encode(TEXTS[0]) == AutoTokenizer.from_pretrained(folder).encode(TEXTS[0])


def test_a_checkpoint_without_one_is_an_error(tmp_path: Path) -> None:
    with pytest.raises((OSError, ValueError)):
        read_tokenizer(tmp_path)
