"""The package in which the code of repos lives, each content in a namespace of its own: `h<hash>.<module>`.

Importing from it (which unpickling a model does) works for code that this process has trusted; for any other
it raises UntrustedCodeError and runs nothing.
"""

from __future__ import annotations

from shardload.remote_code.namespaces import install_finder

install_finder()
