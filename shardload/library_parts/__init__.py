"""Parts: the installed transformers' own model files, run with shardload's stand-in as *their* transformers.

Published code wraps Qwen, Llama, Bert or Siglip classes. Here these are the installed library's own files, read from
its `models` folder and run in a package of their own, `shardload.library_parts.v<release>`, so that a repo's code and
the parts share one `PreTrainedModel`, one base of configs and one generation. The library itself is not imported.
"""

from __future__ import annotations

from shardload.library_parts.importer import World, hand_in


def _world() -> World:
    from shardload.library_parts.dressing import dress
    from shardload.library_parts.front import module_for_part, older_name

    return World(module_for_part, older_name, dress)


hand_in(_world)  # unpickling a model imports its classes' modules before anything else
