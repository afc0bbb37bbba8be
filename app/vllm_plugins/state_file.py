"""Word that vLLM's engine leaves for its API server, which is another process."""

from __future__ import annotations

import logging
import os
from pathlib import Path

logger = logging.getLogger("vllm.farthing")  # below vLLM's own, so that its handlers show it


def tell(variable: str, text: str) -> None:
    """Write the file that this environment variable names, if it does. Never raises OSError."""
    path = os.environ.get(variable)
    if not path:
        return
    part = Path(f"{path}.part")
    try:
        part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.write_text(text, "utf-8")
        part.rename(path)  # nobody reads half of it
    except OSError:
        logger.exception("farthing: nobody is told what can be asked for: %s", path)
