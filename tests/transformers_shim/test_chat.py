"""Conversations as text and as ids."""

from __future__ import annotations

import pytest

import shardload
from shardload.transformers_shim._chat import ChatMixin
from tests.transformers_shim.vocabularies import ids, new


def test_chat_templates_are_rendered_with_the_special_tokens(tmp_path):
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}!{% endif %}"
    tokenizer = new(tmp_path, {"chat_template": template})
    messages = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == "^abcd!"
    assert tokenizer.apply_chat_template(messages) == ids("^abcd")
    tensors = tokenizer.apply_chat_template(
        [messages, messages[:1]], padding=True, return_tensors="pt", return_dict=True
    )
    assert tensors["input_ids"].tolist() == [ids("^abcd"), ids("^ab__")]
    assert tokenizer.apply_chat_template(messages, tokenize=False, chat_template="{{ x }}", x=3) == "3"
    cut = "{% for m in messages %}{{ m.content }}${% endfor %}"
    assert (
        tokenizer.apply_chat_template(
            messages, tokenize=False, chat_template=cut, continue_final_message=True
        )
        == "ab$cd"
    )


def test_templates_of_their_own_files_and_by_name(tmp_path):
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    tokenizer = new(tmp_path / "a", {"chat_template": named})
    assert tokenizer.apply_chat_template([], tokenize=False) == "d"
    assert tokenizer.apply_chat_template([], tokenize=False, tools=[{}]) == "t"
    tokenizer = new(tmp_path / "b", chat_template_json={"chat_template": "from json"})
    assert tokenizer.apply_chat_template([], tokenize=False) == "from json"
    (tmp_path / "b" / "chat_template.jinja").write_text("from jinja")
    tokenizer = shardload.load_tokenizer(tmp_path / "b", trust_remote_code=True)
    assert tokenizer.apply_chat_template([], tokenize=False) == "from jinja"
    with pytest.raises(shardload.UsageError, match="no chat template"):
        new(tmp_path / "c").apply_chat_template([])


class Chat(ChatMixin):
    name_or_path = "org/name"
    chat_template = None
    special_tokens_map = property(lambda self: {"eos_token": "$"})


@pytest.mark.parametrize(
    ("own", "asked", "tools", "found"),
    [
        ("own", None, None, "own"),
        ("own", "given", None, "given"),
        ({"default": "d", "tool_use": "t"}, None, None, "d"),
        ({"default": "d", "tool_use": "t"}, None, [{}], "t"),
        ({"default": "d"}, None, [{}], "d"),
        ({"default": "d", "rag": "r"}, "rag", None, "r"),
        ({"default": "d"}, "{{ x }}", None, "{{ x }}"),
        ([{"name": "default", "template": "d"}], None, None, "d"),
    ],
)
def test_which_template_is_taken(own, asked, tools, found):
    chat = Chat()
    chat.chat_template = own
    assert chat.get_chat_template(asked, tools) == found


def test_without_a_template_the_repo_is_named():
    for own in (None, "", {}, {"rag": "r"}):
        chat = Chat()
        chat.chat_template = own
        with pytest.raises(shardload.UsageError, match="no chat template") as caught:
            chat.get_chat_template()
        assert caught.value.where == "org/name"
    assert Chat().default_chat_template is None


def test_a_message_that_the_template_changes_can_not_be_continued():
    messages = [{"role": "user", "content": "hi hi"}]
    options = {"tokenize": False, "continue_final_message": True}
    text = Chat().apply_chat_template(
        messages, chat_template="<{{ messages[0].content }}>{{ eos_token }}", **options
    )
    assert text == "<hi hi"
    with pytest.raises(shardload.UsageError, match="changes the last message"):
        Chat().apply_chat_template(messages, chat_template="{{ messages[0].content | upper }}", **options)
    with pytest.raises(shardload.UsageError, match="not a text"):
        Chat().apply_chat_template("hi", chat_template="x")


def test_several_conversations_are_several_texts():
    both = [[{"content": "a"}], [{"content": "b"}]]
    assert Chat().apply_chat_template(both, chat_template="{{ messages[0].content }}", tokenize=False) == [
        "a",
        "b",
    ]
