"""Nothing of a repo runs without the caller's word."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from shardload.checkpoint.sources.names import is_commit
from shardload.errors import UnsafeError, UntrustedCodeError
from shardload.remote_code import code_files, load_config, resolve_class
from shardload.remote_code.trust import require_trust
from shardload.where import CodeTrust, Where

from .repos import AUTO_MAP, COMMIT, CONFIG, MODEL, HubLike, build, tiny, write

OTHER = "89abcdef0123456789abcdef0123456789abcdef"


def traced(tmp_path):
    """Return the text of code that leaves a mark when it runs, and the mark's path."""
    mark = tmp_path / "it-ran"
    return f"open({str(mark)!r}, 'w').close()\n", mark


def test_without_trust_nothing_runs_and_the_files_are_listed(tmp_path):
    prefix, mark = traced(tmp_path)
    source, config = tiny(tmp_path / "repo", model=prefix + MODEL, config=prefix + CONFIG)
    for call in (lambda: load_config(source, config), lambda: resolve_class(source, config)):
        with pytest.raises(UntrustedCodeError) as caught:
            call()
        for file in code_files(source, config):
            assert f"{file.name} (sha256 {file.sha256[:12]}" in caught.value.where
        assert "trust_remote_code=True" in caught.value.cure
        assert str(tmp_path / "repo") in caught.value.what
    assert not mark.exists()
    build(source, config)
    assert mark.exists()


@pytest.mark.parametrize("word", [False, None, 0, 1, "False", "true", [True]])
def test_only_true_itself_is_trust(tmp_path, word):
    source, config = tiny(tmp_path)
    with pytest.raises(UntrustedCodeError):
        load_config(source, config, CodeTrust(word))


def test_a_local_folder_needs_no_commit(tmp_path):
    build(*tiny(tmp_path))


def test_hub_code_needs_the_commit_and_the_error_prints_it(tmp_path):
    _, config = tiny(tmp_path)
    source = HubLike(tmp_path)
    for given in (None, "main", COMMIT[:12], COMMIT.upper(), OTHER):
        with pytest.raises(UntrustedCodeError) as caught:
            load_config(source, config, CodeTrust(True, given))
        assert f"revision='{COMMIT}'" in caught.value.cure
        assert "trust_remote_code" not in caught.value.cure
    assert load_config(source, config, CodeTrust(True, COMMIT)).config.hidden_size == 4


def test_a_place_that_names_a_branch_gets_the_commit_in_its_stead(tmp_path):
    _, config = tiny(tmp_path)
    with pytest.raises(UntrustedCodeError) as caught:
        load_config(HubLike(tmp_path), config, CodeTrust(True, "main", hub=Where("org/name@main")))
    assert f"@{COMMIT} as the place" in caught.value.cure
    assert "revision=" not in caught.value.cure


@pytest.mark.parametrize("text", [f"{COMMIT}0", f"0{COMMIT}", f"{COMMIT}\n", COMMIT[:39], "g" * 40, "", None])
def test_a_commit_is_forty_hex_digits(text):
    assert is_commit(COMMIT)
    assert not is_commit(text)


def test_hub_code_without_any_word_says_both_at_once(tmp_path):
    _, config = tiny(tmp_path)
    with pytest.raises(UntrustedCodeError) as caught:
        load_config(HubLike(tmp_path), config)
    assert f"trust_remote_code=True and revision='{COMMIT}'" in caught.value.cure


def test_a_commit_alone_is_not_trust(tmp_path):
    _, config = tiny(tmp_path)
    with pytest.raises(UntrustedCodeError, match="you have not allowed"):
        load_config(HubLike(tmp_path), config, CodeTrust(revision=COMMIT))


def test_nothing_in_a_config_can_widen_trust(tmp_path):
    prefix, mark = traced(tmp_path)
    source, _ = tiny(tmp_path / "repo", model=prefix + MODEL, config=prefix + CONFIG)
    config = {
        "trust_remote_code": True,
        "revision": COMMIT,
        "code_revision": COMMIT,
        "auto_map": AUTO_MAP,
        "text_config": {"trust_remote_code": True, "auto_map": AUTO_MAP},
    }
    with pytest.raises(UntrustedCodeError):
        load_config(source, config)
    with pytest.raises(UntrustedCodeError):
        load_config(HubLike(tmp_path / "repo"), config, CodeTrust(True))
    assert not mark.exists()


def test_a_nested_config_runs_no_code_of_its_own(tmp_path):
    prefix, mark = traced(tmp_path)
    source, _ = write(tmp_path / "repo", {"nested.py": prefix})
    nested = {"auto_map": {"AutoConfig": "nested.C", "AutoModel": "nested.M"}}
    loaded = load_config(source, {"text_config": nested}, CodeTrust(True))
    assert loaded.config.text_config == nested
    assert not mark.exists()


def test_the_callers_own_class_needs_no_trust_and_runs_nothing(tmp_path):
    prefix, mark = traced(tmp_path)
    source, config = tiny(tmp_path / "repo", model=prefix + MODEL, config=prefix + CONFIG)
    loaded = load_config(source, {**config, "width": 3}, model_class=dict)
    assert loaded.config.width == 3
    assert "not run" in loaded.origin
    assert resolve_class(source, config, model_class=dict).make({"a": 1}) == {"a": 1}
    assert not mark.exists()


def other_repo(tmp_path, monkeypatch):
    """A config whose model class is in another repo, which the Hub has at the commit OTHER."""
    tiny(tmp_path / "other")
    opened = []

    def find_source(where):
        opened.append((where.name, where.revision))
        return HubLike(tmp_path / "other", repo="org/other", revision=OTHER), None

    monkeypatch.setattr("shardload.checkpoint.sources.find_source", find_source)
    auto_map = {name: f"org/other--{value}" for name, value in AUTO_MAP.items()}
    source, config = write(tmp_path / "repo", {}, {"auto_map": auto_map})
    return source, config, opened


def test_code_of_another_repo_is_not_even_opened_without_trust(tmp_path, monkeypatch):
    source, config, opened = other_repo(tmp_path, monkeypatch)
    with pytest.raises(UntrustedCodeError, match=r"org/other--configuration_tiny\.TinyConfig") as caught:
        load_config(source, config)
    assert "code_revision=" in caught.value.cure
    assert opened == []


def test_code_of_another_repo_needs_its_own_commit(tmp_path, monkeypatch):
    source, config, _ = other_repo(tmp_path, monkeypatch)
    for given in (None, "main", COMMIT):
        with pytest.raises(UntrustedCodeError) as caught:
            load_config(source, config, CodeTrust(True, OTHER, given))
        assert f"code_revision='{OTHER}'" in caught.value.cure


def test_code_of_another_repo_runs_at_its_commit(tmp_path, monkeypatch):
    source, config, opened = other_repo(tmp_path, monkeypatch)
    model = build(source, config, code_revision=OTHER)
    assert type(model).__name__ == "TinyModel"
    assert set(opened) == {("org/other", OTHER)}


def test_a_local_folder_cannot_pose_as_the_other_repo(tmp_path, monkeypatch):
    tiny(tmp_path / "org" / "other")
    source, config = write(
        tmp_path / "repo", {}, {"auto_map": {"AutoModel": "org/other--modeling_tiny.TinyModel"}}
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafeError, match="hides it"):
        resolve_class(source, config, CodeTrust(True))


def test_auto_map_cannot_name_a_path(tmp_path):
    source, _ = write(tmp_path, {})
    config = json.loads('{"auto_map": {"AutoModel": "../../etc/passwd.M"}}')
    with pytest.raises(UnsafeError):
        resolve_class(source, config, CodeTrust(True))


CODE = SimpleNamespace(files=[SimpleNamespace(name="modeling.py", sha256="0" * 64)])


@pytest.mark.parametrize(
    ("is_local", "trust", "runs"),
    [
        (True, CodeTrust(True), True),
        (True, CodeTrust(False), False),
        (False, CodeTrust(True), False),
        (False, CodeTrust(True, revision="main"), False),
        (False, CodeTrust(True, revision=COMMIT), True),
        (False, CodeTrust(True, revision="f" * 40), False),
        (False, CodeTrust(False, revision=COMMIT), False),
        (True, CodeTrust(1), False),
    ],
)
def test_the_gate_opens_by_the_caller_s_word_alone(tmp_path, monkeypatch, is_local, trust, runs):
    monkeypatch.chdir(tmp_path)  # no lock file lies here
    source = SimpleNamespace(is_local=is_local, revision=None if is_local else COMMIT, label="org/name")
    if is_local:
        source.folder = tmp_path
    if runs:
        require_trust(source, CODE, trust)
        return
    with pytest.raises(UntrustedCodeError, match="code") as caught:
        require_trust(source, CODE, trust)
    assert "modeling.py" in caught.value.where


def test_code_of_a_store_runs_by_a_lock_file_alone(tmp_path):
    source, config = HubLike(tmp_path, "s3://bucket/net", None), tiny(tmp_path)[1]
    for given in (None, COMMIT):
        with pytest.raises(UntrustedCodeError, match="a store has no commit to name") as caught:
            load_config(source, config, CodeTrust(True, given))
        assert "trust_remote_code='locked'" in caught.value.cure
        assert "shardload trust" in caught.value.cure
