from __future__ import annotations

import json
import random
import subprocess
import sys
import threading

import pytest

from shardload.checkpoint.sources import find_source
from shardload.checkpoint.sources.hub import SMALL
from shardload.checkpoint.sources.hub_repo import Listed
from shardload.checkpoint.sources.ranges import BLOCK
from shardload.errors import AccessError, CorruptError, NotFoundError, ShardloadError, UnsafeError
from shardload.where import Where
from tests.hub_server import forget_connections

CONFIG = b'{"model_type": "chatglm"}'
BIG = random.Random(0).randbytes(3_000_000)
HUGE = random.Random(1).randbytes(20_000_000)
FILES = {
    "config.json": CONFIG,
    "model.safetensors": BIG,
    "pytorch_model.bin": BIG[::-1],
    "vae/config.json": b"{}",
    ".gitattributes": b"*",
}


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def commit(hub):
    return hub.commit("org/model", FILES)


def whole(file):
    return file.read_at(0, file.size)


def cached_files(cache):
    return {p.name for p in cache.rglob("snapshots/*/*") if p.is_file()}


# ---- resolving


@pytest.mark.parametrize("where", ["org/model", "org/model@main", "org/model@{commit}"])
def test_every_way_of_naming_a_revision_is_pinned_to_its_commit(hub, commit, where):
    source, file = find_source(where.format(commit=commit))
    assert file is None
    assert (source.revision, source.label, source.is_local) == (commit, f"org/model@{commit}", False)
    assert source.names() == ["config.json", "model.safetensors", "pytorch_model.bin", "vae/config.json"]
    assert len(hub.requests) == 1
    assert hub.fetched() == set()


def test_the_revision_keyword_and_a_branch_with_a_slash(hub, commit):
    pull = hub.commit("org/model", {"config.json": b"{}"}, branch="refs/pr/1")
    assert find_source(Where("org/model", revision="refs/pr/1"))[0].revision == pull
    assert find_source("org/model@refs/pr/1")[0].revision == pull
    assert find_source(Where("org/model@main", revision="main"))[0].revision == commit


def test_a_repo_of_one_part(hub):
    commit = hub.commit("gpt2", {"config.json": CONFIG})
    assert whole(find_source("gpt2")[0].open("config.json")) == CONFIG
    assert find_source("gpt2")[0].label == f"gpt2@{commit}"


def test_a_source_stays_at_its_commit_when_the_branch_moves(hub, commit):
    source, _ = find_source("org/model")
    newer = hub.commit("org/model", {"config.json": b"new"})
    assert whole(source.open("config.json")) == CONFIG
    assert whole(find_source("org/model")[0].open("config.json")) == b"new"
    assert whole(find_source(Where("org/model", revision=commit))[0].open("config.json")) == CONFIG
    assert find_source("org/model")[0].revision == newer


def test_a_subfolder(hub, commit):
    source, _ = find_source(Where("org/model", subfolder="vae"))
    assert source.names() == ["config.json"]
    file = source.open("config.json")
    assert (file.name, whole(file)) == ("config.json", b"{}")
    assert source.open("config.json").name == "config.json"  # now from the cache
    with pytest.raises(NotFoundError) as caught:
        find_source(Where("org/model", subfolder="vea"))
    assert "'vae'" in caught.value.cure


def test_the_token_reaches_the_hub_and_not_the_cdn(hub):
    hub.commit("org/private", FILES, token="hf_right")
    source, _ = find_source(Where("org/private", token="hf_right"))
    file = source.open("model.safetensors")
    assert file.read_at(0, 8) == BIG[:8]
    assert file.read_at(2_000_000, 8) == BIG[2_000_000:2_000_008]
    assert source.open("model.safetensors").local_path().read_bytes() == BIG
    assert {request.token for request in hub.requests if request.host == "hub"} == {"hf_right"}
    assert {request.token for request in hub.requests if request.host == "cdn"} == {""}


# ---- only what is asked for


def test_only_the_files_that_are_asked_for_are_fetched(hub, commit, cache):
    source, _ = find_source("org/model")
    source.open("model.safetensors")
    assert hub.fetched() == set()
    whole(source.open("config.json"))
    assert hub.fetched() == {"config.json"}
    assert cached_files(cache) == {"config.json"}
    path = source.open("pytorch_model.bin").local_path()
    assert path.read_bytes() == BIG[::-1]
    assert hub.fetched() == {"config.json", "pytorch_model.bin"}
    assert hub.sent("pytorch_model.bin") == len(BIG)


def test_a_small_file_is_downloaded_once(hub, commit):
    source, _ = find_source("org/model")
    file = source.open("config.json")
    assert (file.read_at(0, 5), file.read_at(5, 5), file.local_path().read_bytes()) == (
        CONFIG[:5],
        CONFIG[5:10],
        CONFIG,
    )
    assert (
        whole(source.open("config.json")) == whole(find_source("org/model")[0].open("config.json")) == CONFIG
    )
    assert hub.sent("config.json") == len(CONFIG)


def test_what_is_in_the_cache_is_read_from_the_disk(hub, commit):
    find_source("org/model")[0].open("model.safetensors").local_path()
    hub.log.clear()
    file = find_source("org/model")[0].open("model.safetensors")
    assert whole(file) == BIG
    assert hub.fetched() == set()
    assert len(hub.requests) == 1


def test_a_file_is_read_from_the_disk_once_it_has_been_downloaded(hub, commit):
    file = find_source("org/model")[0].open("model.safetensors")
    file.read_at(0, 8)
    file.local_path()
    hub.log.clear()
    assert whole(file) == BIG
    assert hub.log == []
    file.close()
    assert whole(file) == BIG


def test_small_downloads_draw_no_progress_bar(hub, commit, capfd):
    whole(find_source("org/model")[0].open("config.json"))
    assert capfd.readouterr() == ("", "")


# ---- parts of files


def test_a_header_costs_few_bytes_of_a_large_file(hub):
    hub.commit("org/huge", {"model.safetensors": HUGE})
    file = find_source("org/huge")[0].open("model.safetensors")
    assert file.read_at(0, 8) == HUGE[:8]
    assert file.read_at(8, 90_000) == HUGE[8:90_008]
    assert file.read_at(len(HUGE) - 22, 22) == HUGE[-22:]
    assert hub.sent("model.safetensors") <= 200_000
    assert len([r for r in hub.requests if r.host == "cdn"]) <= 3


def test_small_reads_share_a_request_and_runs_of_them_read_ahead(hub):
    hub.commit("org/huge", {"model.bin": HUGE})
    file = find_source("org/huge")[0].open("model.bin")
    got = b"".join(file.read_at(offset, 1000) for offset in range(0, 2_000_000, 1000))
    assert got == HUGE[:2_000_000]
    assert len([r for r in hub.requests if r.host == "cdn"]) <= 8


def test_the_address_that_the_hub_redirects_to_is_kept(hub, commit):
    file = find_source("org/model")[0].open("model.safetensors")
    for block in (0, 20, 40):
        file.read_at(block * BLOCK, 10)
    assert [r.host for r in hub.requests if r.file] == ["hub", "cdn", "cdn", "cdn"]


def test_an_expired_address_is_asked_for_again(hub, commit):
    file = find_source("org/model")[0].open("model.safetensors")
    file.read_at(0, 10)
    file._ranges._direct = hub.cdn + "/org--model/0000/gone"
    assert file.read_at(20 * BLOCK, 10) == BIG[20 * BLOCK :][:10]


def test_any_part_of_a_file_is_the_same_as_of_its_bytes(hub, commit):
    file = find_source("org/model")[0].open("model.safetensors")
    chance = random.Random(3)
    for _ in range(60):
        offset, length = chance.randrange(len(BIG) + 10), chance.choice([0, 1, 7, BLOCK, 3 * BLOCK, 200_000])
        assert file.read_at(offset, length) == BIG[offset : offset + length]
    assert file.read_at(0, 10**9) == BIG
    assert file.size == len(BIG)
    with pytest.raises(ValueError):
        file.read_at(-1, 1)


def test_threads_may_share_a_file(hub, commit):
    file = find_source("org/model")[0].open("model.safetensors")
    wrong = []

    def read(seed):
        chance = random.Random(seed)
        for _ in range(30):
            offset = chance.randrange(len(BIG))
            if file.read_at(offset, 5000) != BIG[offset : offset + 5000]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert wrong == []


@pytest.mark.parametrize("cut", [0, 1000, 40_000])
def test_a_range_that_is_cut_is_asked_for_again_from_where_it_stopped(hub, commit, cut):
    hub.fault("org/model", "model.safetensors", cut=cut, times=1)
    file = find_source("org/model")[0].open("model.safetensors")
    assert file.read_at(0, 100_000) == BIG[:100_000]
    assert hub.sent("model.safetensors") <= 2 * BLOCK


def test_a_range_that_is_always_cut_at_once_is_given_up(hub, commit):
    hub.fault("org/model", "model.safetensors", cut=0)
    with pytest.raises(NotFoundError, match="could not be reached"):
        find_source("org/model")[0].open("model.safetensors").read_at(0, 8)
    hub.heal()


def test_a_server_that_stalls_is_given_up(hub, commit, monkeypatch, cache):
    hub.use(monkeypatch, cache=cache, timeout=0.1)
    hub.fault("org/model", "model.safetensors", stall=0)
    with pytest.raises(NotFoundError, match="could not be reached"):
        find_source("org/model")[0].open("model.safetensors").read_at(0, 8)


def test_a_server_that_ignores_ranges(hub):
    hub.commit("org/huge", {"model.bin": HUGE})
    hub.fault("org/huge", "model.bin", ignore_range=True)
    file = find_source("org/huge")[0].open("model.bin")
    assert file.read_at(0, 8) == HUGE[:8]  # the reader stops after the start of the whole file
    assert file.read_at(0, 5_000_000) == HUGE[:5_000_000]
    with pytest.raises(CorruptError, match="ignores range requests") as caught:
        file.read_at(10_000_000, 8)
    assert "org/huge@" in caught.value.where
    assert "model.bin" in caught.value.where
    assert hub.sent("model.bin") < 2 * len(HUGE)  # three reads, each of which ends early
    assert file.local_path().read_bytes() == HUGE  # the cure of the error works


def test_a_server_that_sends_another_part(hub, commit):
    hub.fault("org/model", "model.safetensors", shift=100)
    with pytest.raises(CorruptError, match="bytes 100-"):
        find_source("org/model")[0].open("model.safetensors").read_at(0, 8)


def test_a_server_that_lies_about_the_length_of_a_part(hub, commit):
    hub.fault("org/model", "model.safetensors", longer=50, times=1)
    assert find_source("org/model")[0].open("model.safetensors").read_at(0, 8) == BIG[:8]
    hub.fault("org/model", "model.safetensors", longer=-50, times=1)
    assert find_source("org/model")[0].open("model.safetensors").read_at(0, BLOCK) == BIG[:BLOCK]


def test_a_listing_that_is_not_the_files_own_length(hub, commit):
    source, _ = find_source("org/model")
    for size, error in [(len(BIG) - 5, "has 3000000 bytes"), (len(BIG) + BLOCK, "shorter|has 3000000 bytes")]:
        source._listing["model.safetensors"] = Listed(size)
        with pytest.raises(CorruptError, match=error):
            source.open("model.safetensors").read_at(size - 8, 8)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, NotFoundError),
        (500, NotFoundError),
        (503, NotFoundError),
        (403, AccessError),
        (410, NotFoundError),
    ],
)
def test_a_part_that_the_server_refuses(hub, commit, status, error):
    hub.fault("org/model", "model.safetensors", status=status)
    with pytest.raises(error) as caught:
        find_source("org/model")[0].open("model.safetensors").read_at(0, 8)
    assert "model.safetensors" in str(caught.value)
    assert commit in caught.value.where
    tries = len([r for r in hub.requests if r.file])
    assert tries == (4 if status in {429, 500, 503} else 1)


def test_a_busy_server_is_asked_again(hub, commit):
    hub.fault("org/model", "model.safetensors", status=503, times=2)
    assert find_source("org/model")[0].open("model.safetensors").read_at(0, 8) == BIG[:8]


# ---- downloads that go wrong


@pytest.mark.parametrize("cut", [0, 1_000_000])
def test_a_cut_download_is_resumed(hub, commit, cut):
    hub.fault("org/model", "model.safetensors", cut=cut, times=1)
    assert find_source("org/model")[0].open("model.safetensors").local_path().read_bytes() == BIG


def test_a_download_that_is_always_cut_is_said_and_leaves_the_cache_clean(hub, commit, cache):
    hub.fault("org/model", "model.safetensors", cut=1000)
    source, _ = find_source("org/model")
    with pytest.raises(NotFoundError, match="could not be reached") as caught:
        source.open("model.safetensors").local_path()
    assert caught.value.where == f"org/model@{commit}/model.safetensors"
    assert cached_files(cache) == set()
    hub.heal()
    assert source.open("model.safetensors").local_path().read_bytes() == BIG


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_download_of_another_length_is_said_and_leaves_the_cache_clean(hub, commit, cache, file):
    hub.fault("org/model", file, size=len(FILES[file]) + 9)
    source, _ = find_source("org/model")
    with pytest.raises(CorruptError, match="another size") as caught:
        source.open(file).local_path()
    assert file in str(caught.value)
    assert cached_files(cache) == set()
    hub.heal()
    assert source.open(file).local_path().read_bytes() == FILES[file]


def test_a_cached_copy_that_was_damaged_is_said(hub, commit):
    path = find_source("org/model")[0].open("model.safetensors").local_path()
    path.resolve().write_bytes(BIG[:100])
    with pytest.raises(CorruptError, match="100 bytes") as caught:
        find_source("org/model")[0].open("model.safetensors")
    assert str(path) in str(caught.value)
    path.resolve().unlink()
    path.unlink()
    assert find_source("org/model")[0].open("model.safetensors").local_path().read_bytes() == BIG


@pytest.mark.parametrize(
    ("status", "error"),
    [(429, NotFoundError), (500, NotFoundError), (403, AccessError), (404, NotFoundError)],
)
def test_a_download_that_the_server_refuses(hub, commit, status, error):
    hub.fault("org/model", "config.json", status=status)
    with pytest.raises(error) as caught:
        find_source("org/model")[0].open("config.json").read_at(0, 1)
    assert type(caught.value) is error
    assert caught.value.where == f"org/model@{commit}/config.json"
    assert caught.value.cure


# ---- files that do not exist, or that this caller may not read


def test_a_missing_file_names_the_nearest_and_asks_nothing(hub, commit):
    source, _ = find_source("org/model")
    with pytest.raises(NotFoundError) as caught:
        source.open("model.safetensor")
    assert "'model.safetensors'" in caught.value.cure
    assert commit in caught.value.where
    assert len(hub.requests) == 1


def test_a_listed_file_that_the_server_lacks(hub, commit):
    hub.fault("org/model", "config.json", status=404, code="EntryNotFound")
    with pytest.raises(NotFoundError, match=r"'config\.json' of 'org/model' is not there"):
        whole(find_source("org/model")[0].open("config.json"))


def test_a_hostile_name_is_refused_before_anything_is_asked(hub, commit):
    source, _ = find_source("org/model")
    for name in ["../model/config.json", "/etc/passwd", "a\\b", "", "vae/../config.json"]:
        with pytest.raises(UnsafeError):
            source.open(name)
    assert len(hub.requests) == 1


def test_a_hostile_name_in_the_listing_is_left_out_and_said(hub):
    hub.commit("org/model", {"config.json": CONFIG, "../../evil.py": b"x", "a\\..\\b": b"x"})
    source, _ = find_source("org/model")
    assert source.names() == ["config.json"]
    assert [warning for warning in source.warnings if "evil.py" in warning]
    with pytest.raises(UnsafeError):
        source.open("../../evil.py")


@pytest.mark.parametrize("token", [None, "hf_right"])
def test_a_missing_repo(hub, token):
    hub.commit("org/private", FILES, token="hf_right")
    with pytest.raises(NotFoundError, match="no repo 'org/nothing'") as caught:
        find_source(Where("org/nothing", token=token))
    assert type(caught.value) is NotFoundError
    assert "token=" in caught.value.cure


def test_a_private_repo_looks_missing_without_a_token(hub):
    hub.commit("org/private", FILES, token="hf_right")
    with pytest.raises(NotFoundError, match="may see"):
        find_source("org/private")


def test_a_missing_revision(hub, commit):
    with pytest.raises(NotFoundError, match="no revision 'dev'"):
        find_source(Where("org/model", revision="dev"))


def test_a_bad_token(hub, commit):
    with pytest.raises(AccessError, match="refused the token") as caught:
        find_source(Where("org/model", token="hf_wrong"))
    assert "hf_wrong" not in str(caught.value)


@pytest.mark.parametrize("token", [None, "hf_other"])
def test_a_gated_repo_lists_its_files_and_says_how_to_read_them(hub, token):
    hub.commit("org/other", FILES, token="hf_other")
    hub.commit("org/gated", FILES, token="hf_right", gated=True)
    source, _ = find_source(Where("org/gated", token=token))
    for read in [
        lambda: whole(source.open("config.json")),
        lambda: source.open("model.safetensors").read_at(0, 8),
    ]:
        with pytest.raises(AccessError, match="gated") as caught:
            read()
        assert f"{hub.url}/org/gated" in caught.value.cure
        assert "token=" in caught.value.cure
    assert whole(find_source(Where("org/gated", token="hf_right"))[0].open("config.json")) == CONFIG


def test_what_is_no_hub_at_all(hub, commit, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url + "/portal")
    with pytest.raises(NotFoundError):
        find_source("org/model")


def test_an_answer_that_is_not_the_hubs(hub, commit):
    for page in (b"<html>please log in</html>", b"[]", b"{}", b'{"id": "org/model"}'):
        hub.fault("org/model", page=page)
        with pytest.raises((NotFoundError, CorruptError)) as caught:
            find_source("org/model")
        assert "reached" not in caught.value.what


def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_network(hub, commit, cache):
    cache.write_bytes(b"a file in the place of the folder")
    with pytest.raises(ShardloadError, match="written into the cache") as caught:
        find_source("org/model")[0].open("config.json").local_path()
    assert "cache_dir=" in caught.value.cure


# ---- without a network


def test_offline_from_the_cache(hub, commit, cache):
    source, _ = find_source("org/model")
    whole(source.open("config.json"))
    hub.log.clear()
    for where in ("org/model", f"org/model@{commit}"):
        offline, _ = find_source(Where(where, local_files_only=True))
        assert offline.label == f"org/model@{commit}"
        assert offline.names() == ["config.json"]
        assert whole(offline.open("config.json")) == CONFIG
    assert offline.warnings == []
    assert hub.log == []


def test_offline_names_the_missing_file(hub, commit):
    whole(find_source("org/model")[0].open("config.json"))
    source, _ = find_source(Where("org/model", local_files_only=True))
    with pytest.raises(NotFoundError, match=r"'model\.safetensors' is not in the cache") as caught:
        source.open("model.safetensors")
    assert commit in caught.value.where
    assert "network" in caught.value.cure


@pytest.mark.parametrize("where", ["org/model", "org/model@dev", "org/model@" + "0" * 40, "org/nothing"])
def test_offline_with_nothing_in_the_cache(hub, commit, where):
    find_source("org/model")  # listing a repo caches nothing
    with pytest.raises(NotFoundError, match="not in the cache") as caught:
        find_source(Where(where, local_files_only=True))
    assert "local_files_only" in str(caught.value)


def test_the_offline_variable(hub, commit, cache, monkeypatch):
    whole(find_source("org/model")[0].open("config.json"))
    hub.log.clear()
    hub.use(monkeypatch, cache=cache, HF_HUB_OFFLINE="1")
    assert whole(find_source("org/model")[0].open("config.json")) == CONFIG
    with pytest.raises(NotFoundError, match="HF_HUB_OFFLINE"):
        find_source("org/other")
    assert hub.log == []


def test_a_ref_that_is_no_commit_is_not_followed(cache, hub, commit):
    whole(find_source("org/model")[0].open("config.json"))
    for content in ["../../..", "", "main", commit.upper()]:
        (cache / "models--org--model" / "refs" / "main").write_text(content)
        with pytest.raises(NotFoundError):
            find_source(Where("org/model", local_files_only=True))


def test_the_cache_stands_in_when_the_network_is_down(hub, commit):
    whole(find_source("org/model")[0].open("config.json"))
    hub.stop()
    forget_connections()
    source, _ = find_source("org/model")
    assert source.revision == commit
    assert whole(source.open("config.json")) == CONFIG
    [warning] = source.warnings
    assert commit in warning
    assert "could not be reached" in warning
    with pytest.raises(NotFoundError, match="could not be reached"):
        find_source("org/other")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_the_cache_stands_in_when_the_hub_is_down(hub, commit, status):
    whole(find_source("org/model")[0].open("config.json"))
    hub.fault("org/model", status=status)
    source, _ = find_source("org/model")
    assert str(status) in source.warnings[0]
    with pytest.raises(NotFoundError, match=str(status)):
        find_source(Where("org/model", revision="dev"))


def test_a_hub_that_does_not_answer_is_not_waited_for(hub, commit, cache, monkeypatch):
    hub.use(monkeypatch, cache=cache, timeout=0.1)
    hub.fault("org/model", stall=0)
    with pytest.raises(NotFoundError, match="could not be reached"):
        find_source("org/model")


@pytest.mark.parametrize(
    ("status", "code"), [(401, "RepoNotFound"), (403, "GatedRepo"), (404, "RevisionNotFound"), (403, "")]
)
def test_the_cache_does_not_stand_in_for_a_refusal(hub, commit, status, code):
    whole(find_source("org/model")[0].open("config.json"))
    hub.fault("org/model", status=status, code=code)
    with pytest.raises(NotFoundError):
        find_source("org/model")


def test_another_cache_folder(hub, commit, tmp_path, cache):
    whole(find_source(Where("org/model", cache_dir=tmp_path / "mine"))[0].open("config.json"))
    assert not cache.exists()
    assert find_source(Where("org/model", cache_dir=tmp_path / "mine", local_files_only=True))[0].names() == [
        "config.json"
    ]


def test_the_snapshot_in_the_cache_is_a_folder_like_any_other(hub, commit):
    source, _ = find_source("org/model")
    whole(source.open("config.json"))
    path = source.open("model.safetensors").local_path()
    folder, _ = find_source(path.parent)
    assert list(folder.names()) == ["config.json", "model.safetensors"]
    assert whole(folder.open("model.safetensors")) == BIG
    single, name = find_source(path)
    assert (single.label, name) == (str(path.parent), "model.safetensors")


# ---- another process, as users run it


def test_the_environment_of_a_process_decides_which_hub_is_asked(hub, commit, cache):
    code = """
import json, sys
from shardload.checkpoint.sources import find_source
source, _ = find_source("org/model")
file = source.open("model.safetensors")
print(json.dumps([source.label, file.read_at(0, 8).hex(), source.open("config.json").read_at(0, 100).decode()]))
"""
    run = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(run, env=hub.env(cache), check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [f"org/model@{commit}", BIG[:8].hex(), CONFIG.decode()]
    assert done.stderr == ""
    assert hub.sent("model.safetensors") <= BLOCK
    assert len(CONFIG) < SMALL < len(BIG)
