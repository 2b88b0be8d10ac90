"""The growing cache, which is also the old tuple."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from shardload.errors import UnsupportedError
from shardload.transformers_shim.cache_utils import Cache, DynamicCache, SinkCache


def filled(layers=2, length=3):
    cache = DynamicCache()
    for layer in range(layers):
        states = torch.arange(2.0 * length).view(2, 1, length, 1) + 100 * layer
        cache.update(states, -states, layer)
    return cache


def test_it_grows_along_the_length():
    cache = filled()
    keys, values = cache.update(torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), 1)
    assert keys.shape == values.shape == (2, 1, 4, 1)
    assert (cache.get_seq_length(), cache.get_seq_length(1), cache.seen_tokens) == (3, 4, 3)
    assert (cache.get_max_length(), cache.get_max_cache_shape()) == (None, None)
    assert cache.get_usable_length(5) == 3
    assert cache.get_mask_sizes(torch.arange(2)) == (5, 0)
    assert not DynamicCache()
    assert DynamicCache().get_seq_length() == 0


def test_it_is_the_old_tuple():
    cache = filled()
    assert len(cache) == 2
    assert cache[0][0].shape[2] == 3
    assert [key.shape[2] for key, _ in cache] == [3, 3]
    with pytest.raises(KeyError, match="layer 2"):
        cache[2]
    legacy = cache.to_legacy_cache()
    assert type(legacy) is tuple
    again = DynamicCache.from_legacy_cache(legacy)
    assert all(
        torch.equal(a, b) for x, y in zip(cache, again, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert again.seen_tokens == 3
    assert len(DynamicCache.from_legacy_cache(None)) == 0


def test_new_code_reads_layers_and_passes_what_is_not_needed():
    assert [layer.keys.shape for layer in filled().layers] == [(2, 1, 3, 1)] * 2
    assert len(DynamicCache(config=None)) == len(DynamicCache(2)) == 0


def test_layers_may_be_skipped():
    cache = DynamicCache()
    cache.update(torch.ones(1, 1, 2, 1), torch.ones(1, 1, 2, 1), 2)
    assert (cache.get_seq_length(0), cache.get_seq_length(2)) == (0, 2)
    cache.update(torch.ones(1, 1, 2, 1), torch.ones(1, 1, 2, 1), 0)
    assert cache.get_seq_length() == 2


def test_it_is_reordered_cropped_repeated_and_selected():
    cache = filled()
    cache.reorder_cache(torch.tensor([1, 0]))
    assert cache[0][0][0, 0, 0, 0] == 3
    cache.crop(-1)
    assert (cache.get_seq_length(), cache.seen_tokens) == (2, 2)
    cache.crop(9)
    assert cache.get_seq_length() == 2
    cache.batch_repeat_interleave(2)
    assert cache[1][1].shape[0] == 4
    cache.batch_select_indices(torch.tensor([0, 3]))
    assert cache[1][1].shape[0] == 2


def test_it_can_be_copied_and_pickled():
    for again in (copy.deepcopy(filled()), pickle.loads(pickle.dumps(filled()))):
        assert again.get_seq_length() == 3
        assert torch.equal(again[1][0], filled()[1][0])


def test_other_caches_are_names():
    assert not isinstance(filled(), SinkCache)
    assert isinstance(filled(), Cache)
    with pytest.raises(UnsupportedError, match="SinkCache"):
        SinkCache()


def test_a_cache_of_a_repos_own_says_what_it_holds():
    class Bounded(Cache):
        def get_max_length(self):
            return 4

        def get_seq_length(self, layer_idx=0):
            return 3

    assert Bounded().get_usable_length(1) == 3
    assert Bounded().get_usable_length(2) == 2
    with pytest.raises(NotImplementedError, match="Bounded"):
        Bounded().update(None, None, 0)
