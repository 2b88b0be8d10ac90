"""The process that renders chat templates: one JSON request a line on stdin, one JSON answer a line on stdout.

It starts with an empty path (`python -I -S`). A template that runs too long or takes too much memory ends this process
and no other. The kernel counts, so that a single endless operation in C is ended too.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import Any


def main() -> None:
    """Serve until stdin ends. The first line says where jinja2 is and what the limits are."""
    setup: dict[str, Any] = json.loads(sys.stdin.readline())
    sys.path += setup["path"]
    import jinja2.sandbox  # noqa: F401 - before memory is limited, and before the parent starts to wait

    sys.path.insert(0, setup["here"])
    import sandbox  # type: ignore[import-not-found]

    sandbox.render("{{ a | tojson }}", {"a": 1})
    # 0 keeps the parent's limits; a limit below what is in use already would end the process here.
    resource.setrlimit(resource.RLIMIT_AS, (setup["memory"], setup["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _write({"ready": True})
    for line in sys.stdin:
        # The default action of SIGPROF ends the process. It counts processor time, so a busy machine fails no template.
        signal.setitimer(signal.ITIMER_PROF, setup["seconds"])
        request = json.loads(line)
        result = json.dumps(sandbox.answer(request["template"], request["variables"]))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(result + "\n")
        sys.stdout.flush()


def _write(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
