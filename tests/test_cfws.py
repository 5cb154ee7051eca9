"""The reader of structured field values: comments, quoted strings, tokens. Values that are broken, deep or long."""

from __future__ import annotations

import time

import pytest

from pillarbox.mail import cfws
from pillarbox.mail.cfws import CfwsFault


@pytest.mark.parametrize(
    ("value", "rest"),
    [
        (b"x", b"x"),
        (b"  \t\r\n x", b"x"),
        (b"(c)x", b"x"),
        (b" (a) (b)\r\n\t(c) x", b"x"),
        (b"(a(b(c)d)e)x", b"x"),
        (b"(a\\)b)x", b"x"),
        (b"(a\\\\)x", b"x"),
        (b'(a")x")x', b'x")x'),
        (b"()x", b"x"),
        (b"", b""),
        (b"(\xff\xfe)x", b"x"),
    ],
)
def test_skip_cfws_stops_behind_comments_and_folds(value: bytes, rest: bytes) -> None:
    assert value[cfws.skip_cfws(value) :] == rest


@pytest.mark.parametrize("value", [b"(", b"(a", b"((a)", b"(a\\)", b" (a)(b", b"(" * 1000])
def test_comment_without_end_is_a_fault(value: bytes) -> None:
    with pytest.raises(CfwsFault):
        cfws.skip_cfws(value)


@pytest.mark.parametrize(
    ("value", "meaning", "rest"),
    [
        (b'"a b";', b"a b", b";"),
        (b'"a\\"b"', b'a"b', b""),
        (b'"a\\\\"x', b"a\\", b"x"),
        (b'"a\r\n b"', b"a b", b""),
        (b'""', b"", b""),
        (b'"mx\\.us.test"; x', b"mx.us.test", b"; x"),
        (b"token;x", b"token", b";x"),
        (b"a.b-c/d", b"a.b-c", b"/d"),
    ],
)
def test_value_is_token_or_quoted_string(value: bytes, meaning: bytes, rest: bytes) -> None:
    found, at = cfws.read_value(value)
    assert found == meaning and value[at:] == rest


@pytest.mark.parametrize("value", [b"", b'"abc', b'"abc\\"', b";", b"=?x", b"(c)x", b"[1]"])
def test_value_that_begins_otherwise_is_a_fault(value: bytes) -> None:
    with pytest.raises(CfwsFault):
        cfws.read_value(value)


@pytest.mark.parametrize(
    ("value", "whole"),
    [
        (b"mx.us.test; x", b"mx.us.test"),
        (b"mx . us . test; x", b"mx.us.test"),
        (b"mx.(c) us (d(e)). test", b"mx.us.test"),
        (b'mx."us".test 1', b"mx.us.test"),
        (b"mx.us.test 1; x", b"mx.us.test"),
        (b"mx.us.test.; x", b"mx.us.test."),
    ],
)
def test_dotted_words_are_joined_over_comments(value: bytes, whole: bytes) -> None:
    assert cfws.read_dotted(value)[0] == whole


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"a (c) b", b"a   b"),
        (b'a "(q)" (c(d)) b', b'a "(q)"   b'),
        (b"a \\(x b", b"a \\(x b"),
        (b"plain", b"plain"),
    ],
)
def test_comments_are_removed_outside_quoted_strings(value: bytes, expected: bytes) -> None:
    assert cfws.remove_comments(value) == expected


def test_long_and_deep_values_take_linear_time() -> None:
    size = 1 << 19
    began = time.process_time()
    cfws.skip_cfws(b"(" * size + b")" * size)
    cfws.skip_cfws(b"()" * size)
    cfws.read_dotted(b"a. " * (size // 3))
    cfws.read_quoted_string(b'"' + b"\\x" * size + b'"')
    cfws.remove_comments(b'"a"(b)' * (size // 6))
    for broken in (b'"' + b"a" * size, b'"' + b"\\a" * size, b'"' + b"a\\" * (size // 2)):
        with pytest.raises(CfwsFault):
            cfws.read_quoted_string(broken)
    assert time.process_time() - began < 5
