from math import prod

from shardload.cli.demo_repo import SIZES


def test_6b_is_split_as_the_published_checkpoint():
    size = SIZES["6b"]
    assert [len(names) for names in size.shards] == [28, 31, 33, 34, 31, 33, 10]
    assert size.nbytes == 12_487_168_064
    layer = "transformer.encoder.layers."
    firsts = [names[0] for names in size.shards[1:]]
    assert firsts == [
        layer + "3.mlp.dense_h_to_4h.weight",
        layer + "8.self_attention.query_key_value.weight",
        layer + "12.mlp.dense_4h_to_h.weight",
        layer + "17.mlp.dense_h_to_4h.weight",
        layer + "22.self_attention.query_key_value.weight",
        layer + "26.mlp.dense_4h_to_h.weight",
    ]


def test_small_has_seven_shards_and_is_small():
    size = SIZES["small"]
    assert len(size.shards) == 7
    assert 30e6 < size.nbytes < 60e6


def test_shards_hold_every_tensor_once_and_keep_to_the_limit():
    for size in SIZES.values():
        names = [name for shard in size.shards for name in shard]
        assert names == list(size.shapes)
        for shard in size.shards:
            nbytes = sum(2 * prod(size.shapes[name]) for name in shard)
            assert nbytes <= size.shard_limit or len(shard) == 1
