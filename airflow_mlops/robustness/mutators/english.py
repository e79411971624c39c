"""The English that mutators of texts need: what contracts to what, and where a "not" turns a whole text."""

from __future__ import annotations

# Verb and its form with n't. "is not" and "isn't" mean the same; "may not" has no form, "am not" contracts as "I'm not".
NEGATIVE = {
    **{verb: f"{verb}n't" for verb in ("is", "are", "was", "were", "do", "does", "did", "has", "have", "had", "could", "would", "should")},
    "can": "can't",
    "cannot": "can't",
    "will": "won't",
}
WRITTEN_OUT = {short: f"{verb} not" for verb, short in NEGATIVE.items() if verb not in ("can", "cannot")} | {"can't": "cannot"}
# Words that hold a negation, and what stays without it.
POSITIVE = {short: verb for verb, short in NEGATIVE.items() if verb != "cannot"} | {"cannot": "can"}
PRONOUNS = {
    **dict.fromkeys(("he", "she", "it"), ("is", "will")),
    **dict.fromkeys(("you", "we", "they"), ("are", "will")),
    "i": ("am", "will"),
    "that": ("is",),
}
_PAIRS = {
    (pronoun, verb): f"{pronoun}'{'m' if verb == 'am' else 'll' if verb == 'will' else 're' if verb == 'are' else 's'}"
    for pronoun, verbs in PRONOUNS.items()
    for verb in verbs
}
_WHOLE = {short: f"{pronoun} {verb}" for (pronoun, verb), short in _PAIRS.items()}
# After "it's" these, and participles, make it "it has".
_MAY_BE_HAS = {"been", "got", "had", "gone", "become", "begun", "done", "made", "come", "taken"}
_FOCUS = {"only", "just", "merely", "simply"}  # "not only" negates nothing
_STATES = {"is", "are", "was", "were", "can", "could", "will", "would", "should"} | {short for (_, verb), short in _PAIRS.items() if verb != "will"}
# Any of these makes it unclear what a "not" turns: other negations, clauses, quantities, superlatives.
_UNCLEAR = {
    *("no", "never", "nobody", "nothing", "none", "neither", "nor", "nowhere", "hardly", "barely", "scarcely", "without", "ain't"),
    *("lack", "lacks", "fail", "fails", "failed", "but", "although", "though", "however", "yet", "while", "whereas", "if", "unless"),
    *("because", "since", "until", "when", "and", "or", "so", "as", "than", "all", "every", "everything", "everyone", "everybody"),
    *("everywhere", "always", "both", "each", "some", "sometimes", "often", "any", "anything", "anyone", "ever", "too", "rather"),
    *("only", "just", "merely", "simply", "best", "worst", "most", "least", "better", "worse", "more", "less"),
}
_RELATIVE = {"that", "which", "who", "whom", "whose", "what", "where", "how", "why"}
_MAX_SUBJECT = 5


def plain(token: str) -> str:
    """Return a token as the tables spell it: lower case, straight apostrophe."""
    return token.lower().replace("\u2019", "'")


def like(model: str, word: str) -> str:
    """Return `word` in capitals, with a capital first, or as it is, after the pattern of `model`."""
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def word_after(text: list[str], place: int, num: int = 1) -> str:
    """Return the `num`-th token after `place` in plain form if only spaces stand between, else an empty string."""
    between = text[place + 1 : place + 2 * num : 2]
    whole = place + 2 * num < len(text) and all(space.isspace() for space in between)
    return plain(text[place + 2 * num]) if whole else ""


def contraction(text: list[str], place: int) -> tuple[int, str] | None:
    """Return (end of the tokens it replaces, replacement) of the contraction, or of what it stands for, at `place`; None where there is none."""
    word, following, third = plain(text[place]), word_after(text, place), word_after(text, place, 2)
    if word in WRITTEN_OUT:
        # "Don't you think" does not write out.
        return None if following in PRONOUNS else (place + 1, like(text[place], WRITTEN_OUT[word]))
    if word in _WHOLE:
        may_be_has = word.endswith("'s") and (following in _MAY_BE_HAS or following.endswith("ed"))
        return None if may_be_has or not following else (place + 1, like(text[place], _WHOLE[word]))
    if following == "not" and word in NEGATIVE and third not in _FOCUS:
        return place + 3, like(text[place], NEGATIVE[word])
    if word == "cannot" and following not in _FOCUS:
        return place + 1, like(text[place], NEGATIVE[word])
    # "Yes, it is." does not contract, nor does "IT is".
    pair = _PAIRS.get((word, following))
    noun = len(word) > 1 and text[place].isupper() and not text[place + 2].isupper() if pair else False
    return (place + 3, like(text[place], pair)) if pair and third and not noun else None


def auxiliary(text: list[str]) -> int | None:
    """Return the place of the one auxiliary verb whose "not" turns the meaning of the whole text, or None where that is not clear.

    Clear is one statement of one clause: one auxiliary, no other negation, question, inner mark, conjunction, quantity or superlative, and a
    subject of up to five words without an "I think" or "hate that" in it.
    """
    places = [place for place, token in enumerate(text) if token[:1].isalnum()]
    words = [plain(text[place]) for place in places]
    marks = [token for token in text[: places[-1]] if token.strip("-").strip() and not token[:1].isalnum()] if places else []
    if marks or "?" in text or _UNCLEAR & set(words):
        return None
    verbs = [at for at, word in enumerate(words) if word in _STATES or word in POSITIVE or (word in NEGATIVE and words[at + 1 : at + 2] == ["not"])]
    if len(verbs) != 1 or verbs[0] > _MAX_SUBJECT:
        return None
    at, following = verbs[0], word_after(text, places[verbs[0]])
    nots = words.count("not") - (following == "not")
    spoken = {"i", "we", "you"} & set(words[: max(0, at - 1)]) or _RELATIVE & set(words[1:at])
    # An auxiliary in front is a question; "Don't" is a command and turns, and "It's" brings its own subject.
    asked = (at == 0 and words[0] in NEGATIVE) or following in PRONOUNS
    clear = following and words[at + 1] == following and not (nots or spoken or asked)
    return places[at] if clear else None
