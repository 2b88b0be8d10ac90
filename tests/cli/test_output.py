import io

from shardload.cli import output


def test_what_is_not_printable_is_escaped():
    assert output.escape("layers.0.weight ünï 重み") == "layers.0.weight ünï 重み"
    assert output.escape("a\x1b[31mb\r\n") == "a\\x1b[31mb\\r\\n"
    assert output.escape("\u202eevil\u2066\u200b") == "\\u202eevil\\u2066\\u200b"
    assert output.escape("\udc80\x00\x9b") == "\\udc80\\x00\\x9b"


def test_lines_keep_their_breaks_only():
    assert output.escape_lines("one\ntwo\x07\n") == "one\ntwo\\x07\n"


def test_columns_are_aligned_without_trailing_blanks():
    rows = [("name", "n", "note"), ("a", "1,000", ""), ("long one", "7", "x")]
    assert output.columns(rows, right=(1,), indent=" ") == [
        " name          n  note",
        " a         1,000",
        " long one      7  x",
    ]


def test_sizes_are_powers_of_ten():
    shown = [output.size_of(size) for size in (0, 999, 1_000, 12_345_678, 12_487_168_064)]
    assert shown == ["0 B", "999 B", "1.0 kB", "12.3 MB", "12.49 GB"]
    assert [output.grown(size) for size in (0, -10_000, 43_500_000, -1_200_000)] == [
        "0",
        "0",
        "+43.5 MB",
        "-1.2 MB",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colour_is_for_terminals_that_want_it(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert output.takes_colour(Terminal())
    assert not output.takes_colour(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not output.takes_colour(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not output.takes_colour(Terminal())
