"""Whole sets of tensors that fit one path, or one set that fits several, and the names that say which is meant."""

from __future__ import annotations

import pytest

from shardload.diagnosis.pairing.key_family import families_of
from shardload.diagnosis.pairing.rival_sets import rival_sets
from tests.diagnosis.headers import case_of

NETS = {
    "a list of layers": {"0.weight": (8, 4), "0.bias": (8,), "1.weight": (2, 8), "1.bias": (2,)},
    "named layers": {"layers.0.q.weight": (8, 8), "layers.1.q.weight": (8, 8), "norm.weight": (8,)},
}


def below(*paths, net):
    return {f"{path}.{key}": shape for path in paths for key, shape in NETS[net].items()}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("two", "one"),
    [(("online", "target"), "net"), (("actor", "critic"), "policy"), (("net_a", "net_b"), "core.model")],
)
def test_of_two_sets_for_one_path_and_of_two_paths_for_one_set_none_is_taken(net, order, two, one):
    both, single = below(*two[::order], net=net), below(one, net=net)
    for stored, wanted, adds in ((both, single, False), (single, both, True)):
        case = case_of(stored, wanted)
        assert {(rival.segments, rival.adds) for rival in case.solution.rivals} == {(x, adds) for x in two}
        assert case.solution.key_map.rules == ()
        for rival in case.solution.rivals:  # what is shown for each fills the whole place
            made = rival.key_map.map_headers(dict(case.stored)).tensors
            assert {key for key in made if key in wanted} >= set(below(one, net=net) if not adds else [])
            assert len({key for key in made if key in wanted}) == len(NETS[net])


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (("online", "target"), ("online_net",)),  # a word that only one of them has
        (("image_tower", "video_tower"), ("model.video", "model.image")),  # a place for each
        (("online", "optimizer.exp_avg"), ("net",)),  # numbers about weights are no weights
        (("online", "target"), ("online", "target")),
        (("encoder", "net"), ("decoder",)),  # a name that says the opposite
    ],
)
def test_where_names_say_which_is_meant_there_are_no_rivals(net, stored, wanted):
    assert rival_sets(families_of(below(*stored, net=net)), families_of(below(*wanted, net=net))) == []


def test_a_set_that_lacks_something_or_is_a_small_part_is_no_rival():
    two, one = below("online", "target", net="named layers"), below("net", net="named layers")
    cut = {key: shape for key, shape in two.items() if key != "target.norm.weight"}
    assert rival_sets(families_of(cut), families_of(one)) == []
    more = {f"trunk.{n}.{name}.weight": (3, 3) for n in range(4) for name in "abc"}
    assert rival_sets(families_of({**two, **more}), families_of({**one, **more})) != []
    lacking = {f"other.{key}": shape for key, shape in more.items()}
    assert rival_sets(families_of(two), families_of({**one, **lacking})) == []
