"""Mutators of texts (N,): strings, so these alone are loops over mutants, and over words.

A text is cut into tokens (words, marks, spaces) that joined again give it back. Tables and rules are English; where a rule is not sure that the
meaning stays (or, for negation, turns), it leaves the place alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import tensorflow as tf

from airflow_mlops.robustness.mutators import english
from airflow_mlops.robustness.mutators.base import Apply, Mutator, random_uniform

if TYPE_CHECKING:
    from airflow_mlops.robustness.kinds.texts import Texts

Lots: TypeAlias = Any  # (num, 2) floats in [0, 1), num > tokens: column 0 draws places, column 1 says what happens there; row len(text) is spare
Change: TypeAlias = Callable[[list[str], float, Lots, "Texts"], Sequence[str]]

HALF, FIFTH = 0.5, 0.2
MIN_LETTERS = 4
_TOKEN = re.compile(r"\w+(?:['\u2019]\w+)*|\s+|[^\w\s]")
_KEYS = "qwertyuiop asdfghjkl zxcvbnm"
_NEIGHBOURS = {key: (_KEYS[place - 1 : place] + _KEYS[place + 1 : place + 2]).replace(" ", "") for place, key in enumerate(_KEYS)}


def tokens(text: str) -> list[str]:
    """Return the words (with inner apostrophes), marks (one each) and runs of space whose concatenation is `text`."""
    return _TOKEN.findall(text)


def is_word(token: str) -> bool:
    """Return whether a token is a word or a number, not space or punctuation."""
    return token[:1].isalnum()


def each(change: Change, *, stream: int) -> Apply:
    """Return the `apply` of a mutator from what it does to one text: `change(tokens, severity, lots, kind)` returns the new tokens.

    `lots` are random numbers of the row's key and `stream`, two for each token and two more; at severity 0 the text stays.
    """

    def apply(texts: Any, severity: Any, key: Any, kind: Texts) -> Any:
        split = [tokens(text) for text in texts]
        num = 1 + max(map(len, split), default=0)
        # Two numbers of each place lie side by side, so that the longest text of the batch decides nothing.
        lots = random_uniform(tf.constant(np.asarray(key, np.uint32)), 2 * num, stream).numpy().reshape(-1, num, 2)
        made = np.empty(len(split), object)
        for row, words in enumerate(split):
            made[row] = "".join(change(words, float(severity[row]), lots[row], kind)) if severity[row] > 0 else texts[row]
        return made

    return apply


def contractions(text: list[str], severity: float, lots: Lots, kind: Texts) -> Sequence[str]:
    """Contract "do not" and "it is", or write "don't" and "it's" out, in the share `severity` of the places where English allows it."""
    spans, place = {}, 0
    while place < len(text):
        spans[place] = span = english.contraction(text, place)
        place = span[0] if span else place + 1
    made, end = list(text), len(text)
    for start in drawn([place for place, span in spans.items() if span], severity, end, lots):
        stop, replacement = spans[start] or (start + 1, text[start])
        made[start:stop] = [replacement, *[""] * (stop - start - 1)]
    return made


def synonyms(text: list[str], severity: float, lots: Lots, kind: Texts) -> Sequence[str]:
    """Replace up to half of the words, as far as they are in the user's table, by one of their alternatives."""
    table = _table(kind.synonyms)
    places = [place for place, token in enumerate(text) if token.lower() in table]
    for place in drawn(places, severity, _share(text, HALF), lots):
        alternatives = table[text[place].lower()]
        text[place] = english.like(text[place], alternatives[int(lots[place, 1] * len(alternatives))])
    return text


def typos(text: list[str], severity: float, lots: Lots, kind: Texts) -> Sequence[str]:
    """Mistype a word in five: two letters swapped, one dropped, doubled, or the next key hit; never a first letter or a word under four letters."""
    places = [place for place, token in enumerate(text) if len(token) >= MIN_LETTERS and token.isalpha()]
    for place in drawn(places, severity, _share(text, FIFTH), lots):
        text[place] = mistyped(text[place], lots[place, 1])
    return text


def case(text: list[str], severity: float, lots: Lots, kind: Texts) -> Sequence[str]:
    """Write up to half of the words in lower case, in capitals or with a capital first; words in capitals ("US") stay as they are."""
    styles = [str.lower, str.upper, str.capitalize]
    first = int(lots[len(text), 1] * len(styles))
    for style in styles[first:] + styles[:first]:
        places = [place for place, token in enumerate(text) if style(token) != token and not (len(token) > 1 and token.isupper())]
        if places:
            chosen = drawn(places, severity, _share(text, HALF), lots)
            return [style(token) if place in chosen else token for place, token in enumerate(text)]
    return text


def punctuation(text: list[str], severity: float, lots: Lots, kind: Texts) -> Sequence[str]:
    """Drop or double marks after a word, or end the text with a full stop: as many as a fifth of the words. Question marks are never dropped."""
    text = [*text, ""]
    places = [place for place in range(1, len(text)) if is_word(text[place - 1]) and _is_mark(text, place)]
    for place in drawn(places, severity, _share(text, FIFTH), lots):
        doubled = text[place] == "?" or (text[place] in (".", "!") and lots[place, 1] < 0.5)
        text[place] = (2 * text[place] if doubled else "") if text[place] else "."
    return text


def negation(text: list[str], severity: float, lots: Lots, kind: Texts) -> Sequence[str]:
    """Put "not" after the auxiliary verb of a one-clause statement, or take it away; a text with any doubt about its scope stays."""
    place = english.auxiliary(text)
    if place is None:
        return text
    word, following = english.plain(text[place]), english.word_after(text, place)
    if following == "not":
        return [*text[: place + 1], *text[place + 3 :]]
    if word in english.POSITIVE:
        return [*text[:place], english.like(text[place], english.POSITIVE[word]), *text[place + 1 :]]
    return [*text[: place + 1], " NOT" if text[place].isupper() and len(text[place]) > 1 else " not", *text[place + 1 :]]


def mistyped(word: str, lot: float) -> str:
    """Return `word` (two letters or more) with one typing error behind its first letter, chosen by `lot` in [0, 1); as it is if none fits."""
    way, rest = divmod(float(lot) * 4.0, 1.0)
    place = 1 + int(rest * (len(word) - 1))
    before, letter, after = word[:place], word[place], word[place + 1 :]
    near = _NEIGHBOURS.get(letter.lower(), letter)
    hit = near[place % len(near)]
    ways = [before + after[:1] + letter + after[1:], before + after, before + 2 * letter + after]
    ways.append(before + (hit.upper() if letter.isupper() else hit) + after)
    return next((typo for typo in ways[int(way) :] + ways[: int(way)] if typo != word), word)


def drawn(places: list[int], severity: float, most: int, lots: Lots) -> list[int]:
    """Return the share `severity` of `places`, at least one and at most `most`, all equally likely; fewer are a part of more."""
    num = math.ceil(severity * min(len(places), most))
    return sorted(places, key=lambda place: (lots[place, 0], place))[:num]


def _share(text: list[str], share: float) -> int:
    return max(1, int(share * sum(map(is_word, text))))


def _is_mark(text: list[str], place: int) -> bool:
    """Whether a mark stands at `place` and before a space or the end, where it neither parts a number nor makes a face; or nothing, the end."""
    return text[place] in ("", ".", ",", ";", ":", "!", "?") and (place + 2 >= len(text) or text[place + 1].isspace())


@lru_cache(maxsize=8)
def _table(synonyms: tuple[tuple[str, tuple[str, ...]], ...]) -> dict[str, tuple[str, ...]]:
    return {word.lower(): alternatives for word, alternatives in synonyms}


MUTATORS: dict[str, Mutator] = {
    "contractions": Mutator(
        each(contractions, stream=1), 1.0, "of the places", "a contraction is the same words; doubtful places stay", counted=True
    ),
    "synonyms": Mutator(each(synonyms, stream=2), HALF, "of the words", "whoever wrote the table says that the words mean the same", counted=True),
    "typos": Mutator(
        each(typos, stream=3), FIFTH, "of the words", "people read one mistyped word in five, first letters and short words intact", counted=True
    ),
    "case": Mutator(each(case, stream=4), HALF, "of the words", "case carries no meaning here; words in capitals stay", counted=True),
    "punctuation": Mutator(
        each(punctuation, stream=5), FIFTH, "of the words", "a comma or a full stop more or less; questions stay questions", counted=True
    ),
    "negation": Mutator(
        each(negation, stream=6), 1.0, "whole", "the one statement of the text is turned; any doubt leaves it alone", "negated", counted=True
    ),
}
