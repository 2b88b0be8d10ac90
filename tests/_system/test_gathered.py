"""What each rank says is the same list on all ranks, whether NumPy is there or not."""

from __future__ import annotations

import sys

from tests.distributed.spawn import leave, run_ranks, say


def test_every_rank_hears_every_rank():
    ranks = run_ranks("tests._system.test_gathered", 3)
    expected = [{"rank": rank, "words": ["é"] * rank, "bounds": [[0, rank]]} for rank in range(3)]
    assert [rank.lines for rank in ranks] == [
        [{"all": expected, "some": part}] for part in heard_by_each(expected)
    ]


def heard_by_each(expected):
    """Return what ranks 0 and 1, which are a group of their own, say there, and what rank 2 says alone."""
    return [expected[:2], expected[:2], None]


def main():
    from torch import distributed

    from shardload._system.gathered import gathered

    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    own = {"rank": rank, "words": ["é"] * rank, "bounds": ((0, rank),)}
    two = distributed.new_group([0, 1])
    say(all=gathered(own), some=gathered(own, two) if rank < 2 else None)
    leave()


if __name__ == "__main__":
    sys.exit(main())
