"""Read the error of a checkpoint that does not fit its model: nothing is loaded, and every fault is named."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import shardload
from shardload.cli.demo_repo import write_demo_repo


def main() -> None:
    """Copy the demo's repo, give it a config that it does not fit, and read the error."""
    with tempfile.TemporaryDirectory() as folder:
        repo = Path(folder) / "damaged"
        shutil.copytree(write_demo_repo(), repo)
        config = json.loads((repo / "config.json").read_text())
        config["ffn_hidden_size"] = 1536  # the checkpoint has 1024
        config["num_layers"] = 7  # the checkpoint has 6
        (repo / "config.json").write_text(json.dumps(config))

        try:
            shardload.from_pretrained(repo, trust_remote_code=True)
        except shardload.MismatchError as error:
            print(error)
            kinds = [fault.kind for fault in error.report.faults]
            print({kind: kinds.count(kind) for kind in kinds})


if __name__ == "__main__":
    main()
