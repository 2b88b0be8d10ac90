"""Checkpoints in a store, over a real client: what is fetched, what is refused, and that nothing else is told."""

from __future__ import annotations

import json
import socket
import traceback
from pathlib import Path

import pytest
import torch

import shardload
from shardload.checkpoint.sources.store import StoreReader, Version
from shardload.checkpoint.sources.store_errors import from_store
from shardload.errors import AccessError, CorruptError, NotFoundError, UnsupportedError, UsageError
from tests.store_server import StoreServer

pytest.importorskip("obstore")

WHERE = "s3://bucket/models/net"
FILE = "models/net/model-00002-of-00002.safetensors"


def net(_config=None):
    return torch.nn.Sequential(torch.nn.Linear(700, 700), torch.nn.Linear(700, 900), torch.nn.Linear(900, 3))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Return a model and the files of its checkpoint, in two shards of 2 MB."""
    torch.manual_seed(0)
    model, folder = net(), tmp_path_factory.mktemp("net")
    shardload.save(model, folder, max_shard_size="2.6MB")
    (folder / "config.json").write_text(json.dumps({"architectures": ["Net"]}))
    return model, {
        f"models/net/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()
    }


@pytest.fixture
def server(stored):
    with StoreServer(dict(stored[1])) as server:
        yield server


def load(server, where=WHERE, **more):
    options = more.pop("storage_options", server.options())
    return shardload.from_pretrained(where, model_class=net, storage_options=options, progress=False, **more)


def same(model, other):
    return all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["s3", "web", "index", "file"])
def test_a_model_comes_out_of_a_store_bit_for_bit(server, stored, kind):
    where, options = WHERE, server.options()
    if kind != "s3":
        where, options = f"{server.url}/models/net/", None
    if kind == "index":
        where += "model.safetensors.index.json"
    if kind == "file":
        server.files = {"models/net/one.safetensors": one_file(stored[0])}
        where += "one.safetensors"
    model = load(server, where, storage_options=options)
    assert same(model, stored[0])
    report = shardload.report_of(model)
    assert report.stated.mapped == 0
    assert report.stated.anonymous >= report.nbytes


def one_file(model):
    import safetensors.torch

    return safetensors.torch.save(model.state_dict())


def test_headers_cost_headers_and_weights_are_fetched_once(server, stored):
    checkpoint = shardload.open_checkpoint(WHERE, storage_options=server.options())
    assert server.sent(FILE) <= 2 * 64 * 1024
    assert checkpoint.config == {"architectures": ["Net"]}
    assert (checkpoint.label, checkpoint.source.revision, checkpoint.source.is_local) == (WHERE, None, False)
    before = server.sent(FILE)
    shell = shardload.build_shell(net)
    shardload.fill(shell, checkpoint, progress=False)
    assert same(shell.model, stored[0])
    assert server.sent(FILE) - before <= len(server.files[FILE])
    assert len(server.gets(FILE)) <= 4


def test_tensors_regions_and_a_plan_are_read_of_a_store(server, stored):
    checkpoint = shardload.open_checkpoint(WHERE, storage_options=server.options())
    weight = stored[0][1].weight
    assert torch.equal(checkpoint.read("1.weight"), weight)
    assert torch.equal(checkpoint.read("1.weight", (slice(5, 400, 2),)), weight[5:400:2])
    assert {
        name: torch.equal(t, stored[0].state_dict()[name]) for name, t in checkpoint.items()
    } == dict.fromkeys(stored[0].state_dict(), True)
    plan = shardload.plan_load(checkpoint)
    assert (plan.download, plan.read, plan.held.file) == (0, checkpoint.nbytes, 0)
    assert shardload.diff(checkpoint, WHERE, storage_options=server.options(), values=True).same


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "times": 2},
        {"status": 429, "times": 2},
        {"cut": 1_000_000, "times": 2},
        {"cut": 0, "times": 1},
    ],
    ids=["503", "429", "cut", "cut at once"],
)
def test_what_passes_is_tried_again(server, stored, fault):
    checkpoint = shardload.open_checkpoint(WHERE, storage_options=server.options())
    server.fault(FILE, **fault)
    shell = shardload.build_shell(net)
    shardload.fill(shell, checkpoint, progress=False)
    assert same(shell.model, stored[0])
    assert server.faults[FILE].times == 0
    if "cut" in fault:
        assert (
            server.sent(FILE) <= len(server.files[FILE]) + 2 * 64 * 1024 + 300_000
        )  # what was cut is not fetched again


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ({"status": 503}, NotFoundError, "HTTP 503"),
        ({"status": 403}, AccessError, "these credentials"),
        ({"cut": 0}, NotFoundError, "could not be read"),
        ({"etag": "another"}, CorruptError, "changed since its header was read"),
        ({"etag": "another", "ignores_match": True}, CorruptError, "changed since its header was read"),
        ({"ignore_range": True}, CorruptError, "ignores range requests"),
        ({"shift": 64}, CorruptError, None),
    ],
    ids=["503", "403", "cut", "etag", "etag ignored", "range ignored", "another range"],
)
def test_what_does_not_pass_is_a_typed_error_and_the_model_is_as_before(server, fault, error, words):
    checkpoint = shardload.open_checkpoint(WHERE, storage_options=server.options())
    model = net()
    before = [parameter.clone() for parameter in model.parameters()]
    server.fault(FILE, **fault)
    with pytest.raises(error, match=words) as caught:
        shardload.fill(model, checkpoint, progress=False)
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))
    assert FILE.rpartition("/")[2] in f"{caught.value.what} {caught.value.where}"
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_a_web_server_that_knows_no_ranges_is_told_so(server):
    server.fault(FILE, ignore_range=True)
    with pytest.raises(CorruptError, match="ignores range requests"):
        shardload.open_checkpoint(f"{server.url}/models/net/", storage_options=server.patience())


def test_a_server_that_is_not_there_refuses_connections_and_takes_no_time(server):
    with socket.socket() as taken:  # bound, and nothing listens
        taken.bind(("127.0.0.1", 0))
        where = f"http://127.0.0.1:{taken.getsockname()[1]}/net/"
        with pytest.raises(NotFoundError, match="it refuses connections"):
            shardload.open_checkpoint(where, storage_options=server.patience())


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        ("InvalidCertificate(Other(CaUsedAsEndEntity))", "its certificate is not trusted"),
        ('ConnectError("dns error", …)', "its name is not known"),
        ("reqwest::Error { kind: Request, source: TimedOut }", "it took too long"),
        ("IncompleteMessage", "the connection failed"),
    ],
)
def test_the_reason_is_that_of_the_failure_not_of_the_retries(inner, words):
    text = f"in 4.2s, after 10 retries, max_retries: 10, retry_timeout: 180s - HTTP error: {inner}"
    assert words in from_store(RuntimeError(text), "https://host/net", "config.json").what


@pytest.mark.parametrize("kind", ["s3", "s3 session", "web", "web header"])
def test_credentials_go_to_no_other_host(server, stored, kind):
    server.fault(FILE, redirect=True)
    where, options = WHERE, server.options()
    if kind == "s3 session":
        options["session_token"] = "TOKENSECRET"
    if kind.startswith("web"):
        where = f"{server.url}/models/net/"
        name = "x-api-key" if kind == "web header" else "authorization"
        options = {**server.patience(), "default_headers": {name: "HEADERSECRET"}}
    if kind in {"s3 session", "web header"}:
        with pytest.raises(AccessError, match="redirects to another host") as caught:
            load(server, where, storage_options=options)
        assert "SECRET" not in "".join(traceback.format_exception(caught.value))
        assert not [request for request in server.log if request.host == "localhost"]
        return
    assert same(load(server, where, storage_options=options), stored[0])
    told = [request for request in server.log if request.host == "localhost"]
    assert told
    assert "SECRET" not in repr(told)


def test_a_store_and_its_options_are_refused_by_name(server):
    bad = [
        (f"{WHERE}/none", server.options(), NotFoundError),
        ("s3://other/x", server.options(), NotFoundError),
        (WHERE, {**server.options(), "endpoint": "http://127.0.0.1:1"}, NotFoundError),
        (WHERE, {**server.options(), "no_such_setting": "SECRET"}, UsageError),
        (f"{server.url}/models/none/", None, NotFoundError),
    ]
    for where, options, error in bad:
        with pytest.raises(error) as caught:
            shardload.open_checkpoint(where, storage_options=options)
        assert "SECRET" not in "".join(traceback.format_exception(caught.value))
    for keywords in ({"revision": "main"}, {"local_files_only": True}):
        with pytest.raises((UsageError, NotFoundError)):
            shardload.open_checkpoint(WHERE, storage_options=server.options(), **keywords)
    assert "SECRET" not in repr(shardload.open_checkpoint(WHERE, storage_options=server.options()))


def test_small_files_have_a_path_and_weights_have_none(server):
    source = shardload.open_checkpoint(WHERE, storage_options=server.options()).source
    path = source.open("config.json").local_path()
    assert json.loads(path.read_text()) == {"architectures": ["Net"]}
    assert source.open("config.json").local_path() == path
    with pytest.raises(UnsupportedError, match="not on this disk"):
        source.open(FILE.rpartition("/")[2]).local_path()


def test_nothing_is_written_by_a_load(server, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    written = []
    monkeypatch.setattr(Path, "write_bytes", lambda path, _: written.append(path))
    load(server)
    assert (written, list(tmp_path.iterdir())) == ([], [])


def test_a_reader_takes_the_version_of_its_first_answer(server):
    import obstore

    store = obstore.store.from_url(
        WHERE,
        **{k: v for k, v in server.options().items() if k != "allow_http"},
        client_options={"allow_http": True},
    )
    content = server.files[FILE]
    reader = StoreReader(store, WHERE, FILE.rpartition("/")[2], Version(len(content)))
    assert reader.read_at(10, 20) == content[10:30]
    server.files[FILE] = content[:-1] + b"!"
    memory = bytearray(100)
    with pytest.raises(CorruptError, match="changed"):
        reader.read_into(len(content) - 100, memoryview(memory))


@pytest.mark.parametrize("web", [False, True], ids=["s3", "web"])
def test_a_server_without_etags_names_a_version_by_its_date(server, stored, web):
    server.has_etags = False
    where, options = (f"{server.url}/models/net/", server.patience()) if web else (WHERE, server.options())
    checkpoint = shardload.open_checkpoint(where, storage_options=options)
    shell = shardload.build_shell(net)
    shardload.fill(shell, checkpoint, progress=False)
    assert same(shell.model, stored[0])
    server.date = "Thu, 22 Oct 2026 07:28:00 GMT"  # of another file, as long as the first one
    with pytest.raises(CorruptError, match="changed since its header was read"):
        shardload.fill(net(), checkpoint, progress=False)


@pytest.mark.parametrize("name", ["models/net//x", "models/net/../x", "models/net/a\tb"])
def test_a_name_that_obstore_cannot_read_is_told_and_no_failure_of_the_network(server, name):
    server.files[name] = b"1"
    with pytest.raises(UnsupportedError, match="can't read names with") as caught:
        shardload.open_checkpoint(WHERE, storage_options=server.options())
    assert repr(name) in caught.value.what
    server.files[name.replace("net", "other")] = server.files.pop(name)  # the cure
    assert shardload.open_checkpoint(WHERE, storage_options=server.options()).tensors


def test_commands_take_an_address_and_its_options(server, capsys):
    from shardload.cli import run

    given = [
        f"--storage-option={name}={server.options()[name]}" for name in ("endpoint", "region", "allow_http")
    ]
    given += ["--storage-option=access_key_id=a", "--storage-option=secret_access_key=b"]
    assert run(["inspect", WHERE, "--json", *given]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["tensors"] == 6
    assert run(["plan", WHERE, *given]) == 0
    assert "nothing" in capsys.readouterr().out
