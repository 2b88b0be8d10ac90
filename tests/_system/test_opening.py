"""What a rank that does not come tells the others; test_agreement.py and tests/distributed have ranks as processes."""

import json

from shardload import CorruptError
from shardload._system import opening


def test_an_error_of_ours_is_told_with_all_that_it_says():
    error = CorruptError("a shard is short", where="b.safetensors", cure="fetch it again", code="E-SHORT")
    said = json.loads(opening.said_of(error, 3))
    assert said == {**error.to_dict(), "known": True, "rank": 3}
    assert (said["kind"], said["cure"]) == ("CorruptError", "fetch it again")


def test_another_error_is_told_by_its_class_and_its_text():
    said = json.loads(opening.said_of(TypeError("fill() missing 1 argument"), 0))
    assert said == {"kind": "TypeError", "what": "fill() missing 1 argument", "known": False, "rank": 0}


def test_this_process_has_begun_no_agreement():
    assert opening.agreements() == 0
