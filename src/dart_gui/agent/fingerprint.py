"""Whether two agents turn the same episode into the same token ids."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dart_gui.agent.prompts import SYSTEM_PROMPT, user_prompt
from dart_gui.config import AgentConfig

# What tokenises, what lays out the chat, what sizes the images, what is drawn into them.
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "dart_agent.json",
)


def renderer_fingerprint(model_dir: Path, config: AgentConfig) -> str:
    """16 hex digits that differ where prompts or their token ids may differ."""
    digest = hashlib.sha256()
    for name in _FILES:
        path = model_dir / name
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{name}:{len(content)}:".encode() + content)
    digest.update(config.model_dump_json().encode())
    digest.update((SYSTEM_PROMPT + user_prompt("?", config.language)).encode())
    return digest.hexdigest()[:16]
