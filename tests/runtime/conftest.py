from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from q2export.runtime.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FOLDER = Path(__file__).resolve().parents[3] / "shared" / "qwen2-tokenizer"


@pytest.fixture(scope="session")
def qwen2_folder() -> Path:
    """The real Qwen2 instruct tokenizer and generation configuration, where this machine has them."""
    if not (_FOLDER / "tokenizer.json").is_file():
        pytest.skip(
            "needs the real Qwen2 tokenizer in the folder shared/qwen2-tokenizer beside the repository"
        )
    return _FOLDER


@pytest.fixture(scope="session")
def qwen2_tokenizer(qwen2_folder: Path) -> Tokenizer:
    """The same files, loaded by the runtime."""
    tokenizer = load_tokenizer(qwen2_folder)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="session")
def qwen2_reference(qwen2_folder: Path) -> PreTrainedTokenizerBase:
    """transformers' own tokenizer of the same files: the oracle."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
        qwen2_folder, local_files_only=True
    )
    return tokenizer
