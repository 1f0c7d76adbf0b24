"""Other libraries' progress bars and advice belong to their own users: here stderr is the console's."""

from __future__ import annotations

import warnings

import diffusers
import transformers


def hush() -> None:
    """Leave only errors of diffusers and transformers on stderr."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*torch_dtype.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*already found a `peft_config`.*")
