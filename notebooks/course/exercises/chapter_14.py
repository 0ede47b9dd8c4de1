from collections.abc import Callable, Iterator

from course.exercises import Exercise

_TOKENS, _SHARES = ["<s>", "gre@@", "a@@", "t", "day"], [0.0, 0.25, 0.5, 0.25, -0.5]


def _yields_sentences(sentences: Callable[[Iterator[str]], Iterator[str]]) -> bool:
    words = iter([" good", " day.", " so", " happy!", " the", " end"])
    parts = sentences(words)
    early = next(parts) == " good day." and next(words) == " so"  # it yields before it reads the next word
    return early and list(parts) == [" happy!", " the end"] and list(sentences(iter([" a."]))) == [" a."]


EXERCISES = {
    "14.1": Exercise(
        lambda answer: (
            [(word, float(share)) for word, share in answer(_TOKENS, _SHARES)]
            == [("<s>", 0.0), ("great", 1.0), ("day", -0.5)]
        ),
        'collect text and share until a token does not end in "@@"',
        """def answer(tokens, shares):
    found, word, total = [], "", 0.0
    for token, share in zip(tokens, shares):
        word, total = word + token.removesuffix("@@"), total + share
        if not token.endswith("@@"):
            found.append((word, total))
            word, total = "", 0.0
    return found""",
    ),
    "14.2": Exercise(
        _yields_sentences,
        'collect text, and yield it and begin anew when word.endswith((".", "!"))',
        """def answer(words):
    text = ""
    for word in words:
        text += word
        if word.endswith((".", "!")):
            yield text
            text = ""
    if text:
        yield text""",
    ),
}
