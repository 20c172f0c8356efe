"""The one place that may import transformers: models that bring no tokenizer.json get one made from what they have.

Imported only for such a model. transformers takes seconds and hundreds of megabytes, and is an optional dependency.
"""

from __future__ import annotations

from tokenizers import Tokenizer as Backend

from ipc.errors import ConfigError


def load(path: str) -> Backend:
    """The fast form of the tokenizer in directory `path`. No code of the model's directory is run.

    Raises ConfigError when transformers is not installed or cannot convert this tokenizer.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ConfigError(
            f"{path} has no tokenizer.json; install quire with the extra 'transformers' to convert its tokenizer, "
            "or name another with --tokenizer"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False, use_fast=True)
    except Exception as error:
        why = " ".join(str(error).split())  # of several lines
        raise ConfigError(f"{path} has no tokenizer.json, and transformers cannot load another tokenizer from it: {why}") from None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Backend):
        raise ConfigError(f"{path} has no tokenizer.json, and its tokenizer has no fast form")
    return backend
