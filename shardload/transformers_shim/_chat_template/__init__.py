"""Rendering a repo's chat template, which is a program of its author's, so that it can do nothing but make text.

It runs in jinja2's immutable sandbox, without a loader, in a small process of its own that is limited in time and
memory and knows nothing but the conversation. The process is started when it is first needed and then kept.
"""

from __future__ import annotations

from shardload.transformers_shim._chat_template.rendering import SECONDS, render_chat_template

__all__ = ["SECONDS", "render_chat_template"]
