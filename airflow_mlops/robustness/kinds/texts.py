"""Texts: (N,) strings, as a model with its own text vectorisation takes them."""

from __future__ import annotations

import difflib
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness.kinds.base import InputKind
from airflow_mlops.robustness.mutators import texts
from airflow_mlops.robustness.mutators.base import Floats, Ints, Mutator

CONTEXT = 24  # tokens, about a line, shown beside a change


@dataclass(frozen=True)
class Texts(InputKind):
    """English texts; raises `SpecError` for an impossible table.

    synonyms: (word, alternatives) of words that mean the same wherever they stand in these texts; without it, `synonyms` changes nothing.
    `negation` is no default: it holds for classes of opinions and claims, not for topics.
    """

    name: ClassVar[str] = "texts"
    mutators: ClassVar[dict[str, Mutator]] = texts.MUTATORS
    default: ClassVar[tuple[str, ...]] = ("contractions", "synonyms", "typos", "case", "punctuation")
    legend: ClassVar[str] = "What the mutant lost of the seed is struck out, what is new is marked."
    shows_both: ClassVar[bool] = True

    synonyms: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        words = [word.lower() for word, _ in self.synonyms]
        for word, alternatives in self.synonyms:
            if isinstance(alternatives, str):
                raise SpecError(f"The synonyms of {word!r} are the text {alternatives!r}; expected a tuple of words: ({alternatives!r},).")
            same = word.lower() in map(str.lower, alternatives)
            if texts.tokens(word) != [word] or not texts.is_word(word) or not alternatives or not all(map(str.strip, alternatives)) or same:
                raise SpecError(f"The synonyms of {word!r} are {alternatives}; expected one word, and other words that mean the same.")
        if len(set(words)) != len(words):
            raise SpecError(f"The synonyms name a word twice: {', '.join(sorted({word for word in words if words.count(word) > 1}))}. Merge them.")

    def checked(self, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if inputs.ndim != 1 or inputs.shape[0] == 0:
            raise RobustnessError(f"The inputs are {inputs.dtype} of shape {inputs.shape}; expected texts of shape (N,), N >= 1.")
        for row, text in enumerate(inputs):
            if not isinstance(text, str):
                raise RobustnessError(
                    f"Text {row} is {type(text).__name__}; expected str. Decode bytes, and pass the text itself, not its numbers: "
                    "the model must start with its own TextVectorization."
                )
            if not any(map(texts.is_word, texts.tokens(text))) or "\0" in text or text != text.encode(errors="ignore").decode():
                raise RobustnessError(f"Text {row}, {text[:40]!r}, has no word, or a character that is no text. Remove such rows or repair them.")
        made = np.empty(len(inputs), object)
        made[:] = [str(text) for text in inputs]
        return made

    def mutate(self, inputs: npt.NDArray[Any], mutator: Ints, severity: Floats, key: Ints, *, names: Sequence[str]) -> npt.NDArray[Any]:
        """Return one mutant per row (N,) of str, by each mutator's loop over its texts: TensorFlow has no graph for words."""
        mutants = np.empty(len(inputs), object)
        for position in np.unique(mutator):
            rows = np.flatnonzero(mutator == position)
            mutants[rows] = self.mutators[names[position]].apply(inputs[rows], np.asarray(severity)[rows], np.asarray(key)[rows], self)
        return mutants

    def legal(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the inputs: every string is a legal text."""
        return inputs

    def distances(self, reference: npt.NDArray[Any], mutants: npt.NDArray[Any]) -> tuple[Ints, Floats]:
        """Return per row (number of words and marks that differ; at least 1 if anything does, 0 if nothing, 0.0)."""
        l0 = [num_changed(old, new) for old, new in zip(reference, mutants, strict=True)]
        return np.array(l0, np.intp), np.zeros(len(mutants), np.float32)

    def size(self, inputs: npt.NDArray[Any]) -> Any:
        """Return (N,) the number of words."""
        return np.array([sum(map(texts.is_word, texts.tokens(text))) for text in inputs], np.intp)

    def satisfied(self, l0: Ints, linf: Floats, size: Any) -> npt.NDArray[np.bool_]:
        """Return (N,): at most half of the words changed."""
        return np.asarray(2 * l0 <= size)

    def show(self, original: Any, shown: Any) -> str:
        """Return the text as HTML, its changed words marked and what it lost struck out; long stretches without a change are left out."""
        old, new = texts.tokens(original), texts.tokens(shown)
        parts = []
        for kind, start, stop, first, last in _operations(old, new):
            if kind == "equal":
                begins, ends = start == first == 0, (stop, last) == (len(old), len(new))
                parts.append(html.escape(_shortened(new[first:last], begins=begins, ends=ends)))
            else:
                lost, present = (html.escape("".join(part)) for part in (old[start:stop], new[first:last]))
                parts += [f"<{tag}>{part}</{tag}>" for tag, part in (("del", lost), ("mark", present)) if part]
        return f"<p>{''.join(parts)}</p>"


def num_changed(old: str, new: str) -> int:
    """Return how many words and marks of two texts differ; 1 where only spaces do, 0 where nothing does."""
    if old == new:
        return 0
    left, right = ([token for token in texts.tokens(text) if not token.isspace()] for text in (old, new))
    # Place by place is quick, and right unless words were added here and removed there.
    in_place = sum(a != b for a, b in zip(left, right, strict=False)) if len(left) == len(right) else len(left) + len(right)
    if 2 * in_place > len(left):
        blocks = [max(stop - start, last - first) for kind, start, stop, first, last in _operations(left, right) if kind != "equal"]
        in_place = min(in_place, sum(blocks))
    return max(1, in_place)


def _shortened(tokens: Sequence[str], *, begins: bool, ends: bool) -> str:
    """Return unchanged tokens as one text; of many only those next to a change, unless nothing changed (it both begins and ends the text)."""
    before, after = (0 if begins else CONTEXT), (0 if ends else CONTEXT)
    if len(tokens) <= before + after + CONTEXT or (begins and ends):
        return "".join(tokens)
    return "".join(tokens[:before]) + " \u2026 " + "".join(tokens[len(tokens) - after :])


def _operations(old: list[str], new: list[str]) -> Sequence[tuple[str, int, int, int, int]]:
    return difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
