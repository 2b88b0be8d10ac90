"""How a model answers: which way is chosen, what each remembers, and what a stop leaves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from shardload.cli.answering import (
    MAX_NEW_TOKENS,
    OwnChat,
    OwnMessages,
    OwnStream,
    Raw,
    Stop,
    Template,
    _Streamer,
    choose_answering,
)
from shardload.errors import UsageError


class Letters:
    """A tokenizer of bytes."""

    eos_token_id = 0
    chat_template = None

    def __call__(self, text, return_tensors):
        return {"input_ids": torch.tensor([list(text.encode())])}

    def apply_chat_template(self, messages, **_options):
        text = "".join(f"{message['role'][0]}:{message['content']};" for message in messages)
        return self(text, "pt")

    def decode(self, ids, skip_special_tokens):
        return bytes(ids).decode("utf-8", "replace")


class Echo:
    """Generates a fixed answer, a byte a step, until it is stopped."""

    def __init__(self, answer="né", config=None):
        self.bytes = answer.encode()
        self.generation_config = config
        self.calls = []

    def parameters(self):
        return iter([torch.ones(1)])

    def generate(self, ids, streamer, stopping_criteria, **keywords):
        self.calls.append((bytes(ids[0].tolist()).decode(), keywords))
        streamer.put(ids)
        for byte in self.bytes:
            streamer.put(torch.tensor([byte]))
            if all(criterion(ids, None) for criterion in stopping_criteria):
                break
        streamer.end()


def test_the_way_is_chosen_by_what_model_and_tokenizer_have():
    bare, templated = Letters(), Letters()
    templated.chat_template = "x"
    streams = SimpleNamespace(stream_chat=lambda *_a, **_k: None)
    messages = SimpleNamespace(chat=lambda tokenizer, messages, stream=False: None)
    whole = SimpleNamespace(chat=lambda tokenizer, query, history: None)
    chosen = [
        choose_answering(model, tokenizer, {}, raw=raw)
        for model, tokenizer, raw in [
            (streams, templated, True), (streams, templated, False), (whole, templated, False),
            (messages, bare, False), (whole, bare, False),
        ]
    ]  # fmt: skip
    assert [type(way) for way in chosen] == [Raw, OwnStream, Template, OwnMessages, OwnChat]
    with pytest.raises(UsageError, match="no stream_chat") as caught:
        choose_answering(Echo(), bare, {})
    assert "--raw" in caught.value.cure


def answered(way, *queries, stop=None):
    """Return what was shown for each query; `stop` asks for a stop once that was shown."""
    shown = []
    for query in queries:
        seen, wanted = [], Stop()

        def show(text, seen=seen, wanted=wanted):
            seen.append(text)
            wanted.wanted = wanted.wanted or text == stop

        way.answer(query, show, wanted)
        shown.append(seen)
    return shown


def test_the_template_s_answer_grows_by_whole_characters_and_is_remembered():
    model = Echo()
    way = Template(model, Letters(), {"top_k": 3}, system="be")
    assert answered(way, "hi", "ho") == [["n", "n", "né"]] * 2
    assert [asked for asked, _ in model.calls] == ["s:be;u:hi;", "s:be;u:hi;a:né;u:ho;"]
    keywords = model.calls[0][1]
    assert (keywords["top_k"], keywords["max_new_tokens"], keywords["eos_token_id"]) == (3, MAX_NEW_TOKENS, 0)
    way.reset()
    answered(way, "ha")
    assert model.calls[-1][0] == "s:be;u:ha;"


def test_a_stop_keeps_what_was_said_until_then():
    way = Template(Echo("abcd"), Letters(), {})
    assert answered(way, "hi", stop="ab") == [["a", "ab"]]
    assert way.history[-1] == {"role": "assistant", "content": "ab"}


def test_limits_of_the_repo_and_of_the_caller_come_first():
    model = Echo(config=SimpleNamespace(max_new_tokens=7, eos_token_id=2))
    answered(Raw(model, Letters(), {}), "hi")
    answered(Raw(model, Letters(), {"max_new_tokens": 3}), "hi")
    assert [keywords["max_new_tokens"] for _, keywords in model.calls] == [7, 3]
    assert "eos_token_id" not in model.calls[0][1]
    assert [asked for asked, _ in model.calls] == ["hi", "hi"]  # no history


def test_the_repo_s_stream_is_read_to_its_end_after_a_stop():
    read = []

    def stream_chat(tokenizer, query, history, top_k=0):
        for text in ("a", "ab", "abc"):
            read.append(text)
            yield text, [*history, (query, text)]

    way = OwnStream(SimpleNamespace(stream_chat=stream_chat), Letters(), {"top_k": 1})
    assert answered(way, "q", stop="ab") == [["a", "ab"]]
    assert read == ["a", "ab", "abc"]
    assert way.history == [("q", "ab")]


def test_the_repo_s_chat_of_messages_has_the_system_prompt_among_them():
    seen = []

    def chat(tokenizer, messages, stream=False):
        seen.append([message["role"] for message in messages])
        yield from ("x", "xy")

    way = OwnMessages(SimpleNamespace(chat=chat), Letters(), {}, system="be")
    assert answered(way, "q", "r") == [["x", "xy"]] * 2
    assert seen == [["system", "user"], ["system", "user", "assistant", "user"]]


def test_the_repo_s_whole_answer_is_shown_at_once_and_its_history_kept():
    def chat(tokenizer, query, history):
        return query[::-1], [*history, (query, query[::-1])]

    way = OwnChat(SimpleNamespace(chat=chat), Letters(), {})
    assert answered(way, "ab", "cd") == [["ba"], ["dc"]]
    assert way.history == [("ab", "ba"), ("cd", "dc")]


@pytest.mark.parametrize(
    ("settings", "system", "message"),
    [({"top_k": 1}, None, "takes no top_k"), ({}, "be", "takes no system prompt")],
)
def test_what_the_repo_s_method_does_not_take_is_refused(settings, system, message):
    def stream_chat(tokenizer, query, history):
        yield "x"

    way = OwnStream(SimpleNamespace(stream_chat=stream_chat), Letters(), settings, system)
    with pytest.raises(UsageError, match=f"stream_chat {message}"):
        answered(way, "q")


def test_settings_go_into_a_config_where_the_method_takes_one():
    seen = []

    def stream_chat(tokenizer, query, history, generation_config, system="", stopping_criteria=None):
        seen.append((generation_config.top_k, system, stopping_criteria is not None))
        yield "x"

    config = SimpleNamespace(top_k=1)
    model = SimpleNamespace(stream_chat=stream_chat, generation_config=config)
    answered(OwnStream(model, Letters(), {"top_k": 9}, "be"), "q")
    assert seen == [(9, "be", True)]
    assert config.top_k == 1  # the model's own stays


def test_the_first_tokens_of_each_run_are_the_prompt():
    shown = []
    streamer = _Streamer(Letters(), shown.append)
    for _ in range(2):
        streamer.put(torch.tensor([[104, 105]]))
        streamer.put(torch.tensor([97]))
        streamer.end()
    assert shown == ["a", "aa"]
