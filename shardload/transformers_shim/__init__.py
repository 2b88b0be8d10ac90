"""A small `transformers` with the semantics of its 4.2x-4.40 releases, for the code of published repos.

`transformers.a.b` in that code is `shardload.transformers_shim.a.b`. Only the repo's modules see it under that name:
`sys.modules` has no `transformers` of ours.

A name can be imported from any module, as releases moved names between modules. `_module.py` has the rules for names
that the stand-in lacks. The package imports nothing of shardload but the errors: `front.py` is what the loader may use
of it, `host.py` what it needs from the loader.
"""

from __future__ import annotations

# Code compares minor numbers of it to choose between old and new behaviour; the stand-in has the old one.
__version__ = "4.40.2"
