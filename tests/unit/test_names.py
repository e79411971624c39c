"""Names from outside are safe where they are shown and where they are paths, and never taken for each other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_mlops.names import MAX_FILE_NAME, file_name, shown, text_of

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=400)


@given(ANY_TEXT, ANY_TEXT)
@example("a:b", "a_b")
@example("a:b", "a~3ab")
@example(".", "~2e")
@example("", "~")
@example("x" * 300, "x" * 301)
@example("\ud800", "~ed~a0~80")
def test_two_texts_never_share_a_file_name(one: str, other: str) -> None:
    assert (file_name(one) == file_name(other)) == (one == other)


@given(ANY_TEXT)
@example("..")
@example("a/../b")
def test_a_file_name_is_safe_visible_and_short(text: str) -> None:
    name = file_name(text)
    assert 0 < len(os.fsencode(name)) <= MAX_FILE_NAME
    assert Path(name).name == name and not name.startswith(".") and ".." not in name and name.isprintable()


@given(ANY_TEXT)
@example("größer~7e")
@example(".")
@example("")
def test_the_text_of_a_file_name_is_found_again_unless_it_was_shortened(text: str) -> None:
    name = file_name(text)
    whole = "~~" not in name and not any("\ud800" <= letter <= "\udfff" for letter in text)
    assert text_of(name) == text if whole else text_of(name) in (text, None)


@given(ANY_TEXT)
def test_what_is_not_a_file_name_has_no_text(name: str) -> None:
    text = text_of(name)
    assert text is None or file_name(text) == name


def test_an_ordinary_id_is_still_read_in_its_file_name() -> None:
    assert file_name("manual__2026-01-01T00:00:00+00:00") == "manual__2026-01-01T00~3a00~3a00+00~3a00"
    assert file_name("digits_on_dataset") == "digits_on_dataset"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v1 größer", "v1 größer"),
        ("v\n1", r"v\n1"),
        ("v\x1b[31m", r"v\x1b[31m"),
        (os.fsdecode(b"v\xff1"), r"v\udcff1"),
        ("v\u202e1", r"v\u202e1"),
        ("a\0b", r"a\x00b"),
    ],
)
def test_what_does_not_print_is_escaped(text: str, expected: str) -> None:
    assert shown(text) == expected


@given(ANY_TEXT, st.integers(10, 300))
def test_what_is_shown_prints_can_be_stored_and_is_short(text: str, limit: int) -> None:
    said = shown(text, limit)
    assert said.isprintable() and len(said) <= limit
    said.encode()
