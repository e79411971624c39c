"""Each mutator of texts changes what its name says, and leaves alone what it is not sure of."""

from __future__ import annotations

import numpy as np
import pytest

from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness.kinds import Texts
from airflow_mlops.robustness.kinds.texts import CONTEXT, num_changed
from airflow_mlops.robustness.mutators.texts import mistyped, tokens

KIND = Texts(synonyms=(("film", ("movie", "motion picture")), ("Good", ("fine",))))
LONG = "The quiet waiter brought twelve bowls of wonderful soup to our table near the window"


def mutants(name, text, severity=1.0, num=40):
    """Return the mutants of one text under the keys 0 to `num` - 1."""
    texts = KIND.checked(np.array([text] * num))
    return list(KIND.mutate(texts, np.zeros(num, int), np.full(num, severity, np.float32), np.arange(num, dtype=np.uint32), names=[name]))


def mutant(name, text):
    """Return the one text that the strongest mutation gives under every key."""
    (made,) = set(mutants(name, text))
    return made


def changed(text, other):
    return [(old, new) for old, new in zip(tokens(text), tokens(other), strict=True) if old != new]


@pytest.mark.parametrize("text", ["It's 3.5 %, isn\u2019t it?\n  Yes—naïve :)", "a", "  x_1 \t"])
def test_tokens_joined_again_are_the_text(text):
    assert "".join(tokens(text)) == text
    assert tokens("It's a café.") == ["It's", " ", "a", " ", "café", "."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("We do not know", "We don't know"),
        ("It is late", "It's late"),
        ("I am here and they will come", "I'm here and they'll come"),
        ("I cannot go, I can not go", "I can't go, I can't go"),
        ("THAT IS LOUD", "THAT'S LOUD"),
        ("We don\u2019t know", "We do not know"),
        ("I can't go; I won't", "I cannot go; I will not"),
        ("I'm here", "I am here"),
        ("ISN'T THIS GOOD", "IS NOT THIS GOOD"),
    ],
)
def test_contractions_go_both_ways(text, expected):
    assert mutant("contractions", text) == expected


@pytest.mark.parametrize(
    "text", ["Yes, it is.", "Don't you see", "It's been long", "He's improved a lot", "Anna's car", "It is, I think", "not only good", "IT is down"]
)
def test_contractions_leave_what_does_not_contract(text):
    assert mutant("contractions", text) == text


def test_not_only_keeps_its_not():
    assert mutant("contractions", "They are not only good") == "They're not only good"
    assert mutant("contractions", "Films are not only good") == "Films are not only good"


def test_severity_says_how_many_of_the_places_contract():
    text = "I am, we are old, you are old and they do not care"
    assert {num_changed(text, made) for made in mutants("contractions", text, severity=0.3)} == {2}
    assert len(set(mutants("contractions", text, severity=0.3))) == 3


def test_synonyms_come_from_the_users_table_in_the_case_of_the_word():
    assert set(mutants("synonyms", "A nice old Film, they said")) == {"A nice old Movie, they said", "A nice old Motion picture, they said"}
    assert mutant("synonyms", "GOOD for them") == "FINE for them"
    assert mutant("synonyms", "nothing known here") == "nothing known here"


def test_synonyms_replace_half_of_the_words_at_most():
    assert {tuple(changed("good good good good", made)) for made in mutants("synonyms", "good good good good")} == {(("good", "fine"),) * 2}


def test_typos_are_one_per_word_in_a_fifth_of_the_words_and_spare_first_letters_and_short_words():
    seen = set()
    for made in mutants("typos", LONG, num=200):
        pairs = changed(LONG, made)
        assert len(pairs) == 3  # of 15 words
        assert all(old[0] == new[0] and len(old) >= 4 and abs(len(old) - len(new)) <= 1 for old, new in pairs)
        seen |= {old for old, _ in pairs}
    assert seen == {word for word in LONG.split() if len(word) >= 4}
    assert {len(changed(LONG, made)) for made in mutants("typos", LONG, severity=0.05)} == {1}


def test_texts_of_short_words_numbers_and_contractions_have_no_typos():
    assert mutant("typos", "It's not 12345 as we won't go") == "It's not 12345 as we won't go"


@pytest.mark.parametrize(
    ("lot", "typo"), [(0.0, "wrod"), (0.125, "wodr"), (0.25, "wrd"), (0.45, "wor"), (0.5, "woord"), (0.7, "wordd"), (0.75, "wprd"), (0.9, "woed")]
)
def test_the_four_typing_errors_are_swap_drop_double_and_the_next_key(lot, typo):
    assert mistyped("word", lot) == typo
    assert mistyped("WORD", lot) == typo.upper()


@pytest.mark.parametrize(("word", "lot", "typo"), [("moon", 0.0, "mon"), ("moon", 0.2, "moo"), ("née", 0.75, "neé")])
def test_a_typo_that_would_change_nothing_becomes_the_next_kind(word, lot, typo):
    assert mistyped(word, lot) == typo


def test_case_changes_up_to_half_of_the_words_in_one_style_and_words_in_capitals_never():
    text = "The US team of Anna won nine games here"
    made = mutants("case", text, num=60)
    assert all(other.lower() == text.lower() and "US" in other.split() for other in made)
    assert {len(changed(text, other)) for other in made} == {2, 4}  # "The" and "Anna" in lower case; else half of nine words
    assert any("TEAM" in other or "GAMES" in other for other in made)
    assert any("Team" in other or "Games" in other for other in made)
    assert any(other.startswith("the ") for other in made)


def test_punctuation_drops_or_doubles_marks_and_may_end_a_text():
    assert set(mutants("punctuation", "Yes, it is")) == {"Yes it is", "Yes, it is."}
    assert set(mutants("punctuation", "We won!")) == {"We won", "We won!!"}
    assert mutant("punctuation", "Did we win?") == "Did we win??"


def test_punctuation_leaves_numbers_faces_and_quotes_alone():
    assert mutant("punctuation", "Costs 3.5 or 1,000 $ :)") == "Costs 3.5 or 1,000 $ :)"
    assert mutant("punctuation", "well-made 'thing'") == "well-made 'thing'"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The film is good.", "The film is not good."),
        ("The film is not good.", "The film is good."),
        ("I would recommend it", "I would not recommend it"),
        ("It's good!", "It's not good!"),
        ("It isn\u2019t good", "It is good"),
        ("You won't regret it", "You will regret it"),
        ("I don't like it", "I do like it"),
        ("I did not like it", "I did like it"),
        ("I cannot recommend it", "I can recommend it"),
        ("Don't watch it!", "Do watch it!"),
        ("THIS IS GREAT", "THIS IS NOT GREAT"),
        ("It is well-made", "It is not well-made"),
    ],
)
def test_negation_turns_a_statement_of_one_clause(text, expected):
    assert mutant("negation", text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Great film",
        "Is it good",
        "It is good?",
        "It is.",
        "I loved it",
        "I think it is good",
        "Fans of what is new bought it",
        "It is never good",
        "It is not only good",
        "All of it is good",
        "It is the best film",
        "It is good. Go there",
        "It is good, they said",
        "It is thin but they can act",
        "It is odd that it was good",
        "One of the many old films in town is good",
        "It is -good",
        "That is it",
    ],
)
def test_negation_changes_nothing_where_its_scope_is_in_doubt(text):
    assert mutant("negation", text) == text


@pytest.mark.parametrize("name", list(Texts.mutators))
def test_severity_zero_changes_nothing_and_the_longest_text_of_the_batch_decides_nothing(name):
    random = np.random.default_rng(0)
    texts = KIND.checked(np.array([LONG + ". It isn't a good film, it is old.", "It's good, Anna.", "The film is good", f"{LONG}! " * 9]))
    keys = random.integers(0, 2**32, (50, len(texts)), dtype=np.uint32)
    for key in keys:
        where, full = np.zeros(len(texts), int), np.ones(len(texts), np.float32)
        assert list(KIND.mutate(texts, where, 0 * full, key, names=[name])) == list(texts)
        single = [KIND.mutate(texts[row : row + 1], where[:1], full[:1], key[row : row + 1], names=[name])[0] for row in range(len(texts))]
        assert list(KIND.mutate(texts, where, full, key, names=[name])) == single


def test_every_row_gets_the_mutator_it_asked_for():
    texts = KIND.checked(np.array(["The film is good"] * 3))
    made = KIND.mutate(texts, np.array([1, 0, 1]), np.ones(3), np.arange(3), names=["synonyms", "negation"])
    assert list(made[[0, 2]]) == ["The film is not good"] * 2
    assert made[1] in {"The movie is good", "The motion picture is good", "The film is fine", "The movie is fine", "The motion picture is fine"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "a  b c", 1),
        ("a b c", "a x c", 1),
        ("a b c", "a not b c", 1),
        ("it is not so", "it isn't so", 2),
        ("a b c d e f", "b c d e f g", 2),
        ("a b.", "A B", 3),
    ],
)
def test_distances_count_words_and_marks_that_differ(old, new, expected):
    l0, linf = KIND.distances(np.array([old], object), np.array([new], object))
    assert l0.tolist() == [expected]
    assert linf.tolist() == [0.0]


def test_half_of_the_words_may_change():
    texts = KIND.checked(np.array(["One two three four, five.", "One two."]))
    assert KIND.size(texts).tolist() == [5, 2]
    assert KIND.satisfied(np.array([2, 2]), np.zeros(2, np.float32), KIND.size(texts)).tolist() == [True, False]
    assert KIND.satisfied(np.array([3, 1]), np.zeros(2, np.float32), KIND.size(texts)).tolist() == [False, True]


def test_the_report_marks_changed_words_and_strikes_lost_ones_and_escapes_all():
    assert (
        KIND.show("a <b> is & here", "a <b> was & there")
        == "<p>a &lt;b&gt; <del>is</del><mark>was</mark> &amp; <del>here</del><mark>there</mark></p>"
    )
    assert KIND.show("This is not it", "This is it") == "<p>This is <del>not </del>it</p>"
    assert KIND.show("<script>", "<script>") == "<p>&lt;script&gt;</p>"


def test_the_report_shows_of_a_long_text_what_stands_beside_a_change():
    words = [f"word{place}" for place in range(200)]
    changed = [*words[:100], "<new>", *words[101:]]
    before = " ".join(words[100 - CONTEXT // 2 : 100])
    after = " ".join(words[101 : 101 + CONTEXT // 2])
    assert KIND.show(" ".join(words), " ".join(changed)) == (f"<p> \u2026 {before} <del>word100</del><mark>&lt;new&gt;</mark> {after} \u2026 </p>")
    assert KIND.show(" ".join(words), " ".join(words[1:])).startswith("<p><del>word0 </del>word1 word2 ")
    assert KIND.show(" ".join(words), " ".join(words)) == f"<p>{' '.join(words)}</p>"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.array([["a"]]), r"shape \(1, 1\); expected texts of shape \(N,\)"),
        (np.array([], dtype=object), "N >= 1"),
        (np.array([1.0]), "Text 0 is float64; expected str"),
        (np.array(["a", b"b"], object), "Text 1 is bytes.*Decode"),
        (np.array(["a", None], object), "Text 1 is NoneType"),
        (np.array(["a", float("nan")], object), "Text 1 is float"),
        (np.array(["a", " ... "]), "Text 1, ' ... ', has no word"),
        (np.array(["a\ud800"], object), "no text"),
    ],
)
def test_inputs_that_are_no_texts_are_refused(inputs, message):
    with pytest.raises(RobustnessError, match=message):
        KIND.checked(inputs)


@pytest.mark.parametrize(
    "synonyms",
    [
        (("good", "fine"),),
        (("two words", ("a",)),),
        (("a", ()),),
        (("a", (" ",)),),
        (("a", ("A",)),),
        (("!", ("a",)),),
        (("a", ("b",)), ("A", ("c",))),
    ],
)
def test_impossible_synonyms_are_refused(synonyms):
    with pytest.raises(SpecError, match="synonyms"):
        Texts(synonyms=synonyms)
