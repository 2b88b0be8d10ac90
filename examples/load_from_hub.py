"""Look at a checkpoint before loading it, from the Hub or a folder.

python examples/load_from_hub.py THUDM/chatglm2-6b COMMIT
"""

from __future__ import annotations

import argparse

import shardload
from shardload.cli.demo_repo import write_demo_repo


def main() -> None:
    """Read the headers (of a Hub repo nothing else is fetched), then load."""
    parser = argparse.ArgumentParser()
    parser.add_argument("where", nargs="?", help="org/name or a folder; the demo's repo by default")
    parser.add_argument(
        "revision", nargs="?", help="full commit of a Hub repo: its code runs at nothing else"
    )
    parser.add_argument("--offline", action="store_true", help="use only what is in the Hub's cache")
    arguments = parser.parse_args()
    where = arguments.where or write_demo_repo()
    hub = {"revision": arguments.revision, "local_files_only": arguments.offline}

    checkpoint = shardload.open_checkpoint(where, **hub)
    print(f"{checkpoint.label}: {len(checkpoint.tensors)} tensors, {checkpoint.nbytes / 1e6:,.1f} MB")

    # Now the shards are downloaded and mapped: weights are read from the Hub's cache when they are first used.
    model = shardload.from_pretrained(where, trust_remote_code=True, **hub)
    print(shardload.report_of(model))


if __name__ == "__main__":
    main()
