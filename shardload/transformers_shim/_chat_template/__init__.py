"""Rendering of a repo's chat template, a program by the repo's author that may do nothing but make text.

It runs in jinja2's immutable sandbox, without a loader, in a small process of its own that is limited in time and
memory and has nothing but the conversation. The process starts at the first template and is then kept.
"""

from __future__ import annotations

from shardload.transformers_shim._chat_template.rendering import SECONDS, render_chat_template

__all__ = ["SECONDS", "render_chat_template"]
