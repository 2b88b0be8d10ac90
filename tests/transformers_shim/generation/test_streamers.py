"""Streamers: what is printed when, threads, and generations that fail."""

from __future__ import annotations

import queue
import threading

import pytest
import torch

from shardload.transformers_shim.generation import BaseStreamer, TextIteratorStreamer, TextStreamer
from tests.transformers_shim.generation.small_repos import likeliest, model, prompt


class Words:
    """A tokenizer whose tokens are these pieces of text."""

    pieces = ("<s>", "to", "ken", " is", " a", "\n", "你", "好", " ", "x")

    def decode(self, ids, skip_special_tokens=False, **_):
        texts = [self.pieces[i % len(self.pieces)] for i in ids]
        return "".join(t for t in texts if not (skip_special_tokens and t == "<s>"))


class Pieces(TextStreamer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.heard = []

    def on_finalized_text(self, text, stream_end=False):
        self.heard.append((text, stream_end))


def stream(streamer, *tokens):
    for token in tokens:
        streamer.put(torch.tensor([token]))
    streamer.end()


def test_text_is_passed_on_when_it_is_whole():
    streamer = Pieces(Words(), skip_prompt=True)
    streamer.put(torch.tensor([[1, 1, 1]]))
    stream(streamer, 1, 2, 3, 4, 6, 7, 5, 1)
    texts = [text for text, _ in streamer.heard]
    #        to  token  token_ is_   你(whole)   好   line end
    assert texts == ["", "", "token ", "is ", "a你", "好", "\n", "", "to"]
    assert [end for _, end in streamer.heard] == [False] * 8 + [True]


def test_the_prompt_is_text_too_unless_skipped():
    streamer = Pieces(Words(), skip_special_tokens=True)
    streamer.put(torch.tensor([[0, 1, 2, 3]]))
    stream(streamer, 4)
    assert "".join(text for text, _ in streamer.heard) == "token is a"


def test_a_streamer_can_be_used_again():
    streamer = Pieces(Words(), skip_prompt=True)
    for _ in range(2):
        streamer.put(torch.tensor([[1]]))
        stream(streamer, 1, 2)
    assert streamer.heard == [("", False), ("", False), ("token", True)] * 2


def test_printed(capsys):
    streamer = TextStreamer(Words())
    stream(streamer, 1, 2, 3)
    assert capsys.readouterr().out == "token is\n"


def test_one_sequence_only(tmp_path):
    with pytest.raises(ValueError, match="one sequence, not 2"):
        TextStreamer(Words()).put(torch.ones(2, 3))


def test_as_in_transformers():
    theirs = pytest.importorskip("transformers.generation.streamers")

    class Theirs(theirs.TextStreamer):
        heard: list

        on_finalized_text = Pieces.on_finalized_text

    generator = torch.Generator().manual_seed(0)
    for skip in (False, True):
        one, other = Pieces(Words(), skip), Theirs(Words(), skip)
        other.heard = []
        for _ in range(20):
            tokens = torch.randint(0, 10, (12,), generator=generator).tolist()
            stream(one, *tokens)
            stream(other, *tokens)
        assert one.heard == other.heard


def test_generate_streams_the_prompt_and_each_token(tmp_path):
    class Tokens(BaseStreamer):
        def __init__(self):
            self.heard = []

        def put(self, value):
            self.heard.append(value.tolist())

        def end(self):
            self.heard.append("end")

    made, streamer = model(tmp_path), Tokens()
    made.generate(prompt(), max_new_tokens=3, streamer=streamer)
    ids = likeliest(made, prompt(), 3)
    assert streamer.heard == [[ids[:5]], [ids[5]], [ids[6]], [ids[7]], "end"]


def test_another_threads_text(tmp_path):
    made, streamer = model(tmp_path), TextIteratorStreamer(Words(), skip_prompt=True, timeout=600)
    thread = threading.Thread(
        target=made.generate, args=(prompt(),), kwargs={"max_new_tokens": 12, "streamer": streamer}
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == Words().decode(likeliest(made, prompt(), 12)[5:])


def test_waiting_has_an_end():
    with pytest.raises(queue.Empty):
        next(TextIteratorStreamer(Words(), timeout=0.01))


def test_whoever_waits_hears_of_a_failure(tmp_path):
    made, streamer = model(tmp_path), TextIteratorStreamer(Words())
    with pytest.raises(IndexError):
        made.generate(prompt(99), max_new_tokens=3, streamer=streamer)
    with pytest.raises(IndexError):
        list(streamer)


def test_a_repos_streamer_is_ended_when_generation_fails(tmp_path):
    class Own:
        ended = False

        def put(self, value):
            pass

        def end(self):
            self.ended = True

    made, streamer = model(tmp_path), Own()
    with pytest.raises(ValueError, match="max_new_token,"):
        made.generate(prompt(), max_new_token=3, streamer=streamer)
    assert streamer.ended
