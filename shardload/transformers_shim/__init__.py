"""A small `transformers` with the semantics of its 4.2x-4.40 releases, for the code of published repos.

`transformers.a.b` of that code is `shardload.transformers_shim.a.b`. It is bound to the modules of the repo
alone and never stands in `sys.modules` under the name `transformers`.

Names are offered wherever code asks for them: releases moved them between modules. `_module.py` has the rules for
the names that are lacking. The room imports nothing of shardload but the errors: `front.py` is what the loader may
use of it, `host.py` what it needs from the loader.
"""

from __future__ import annotations

# Code compares minor numbers of it to choose between old and new behaviour; ours is the old one.
__version__ = "4.40.2"
