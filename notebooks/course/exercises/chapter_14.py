from course.exercises import Exercise

_TOKENS, _SHARES = ["<s>", "gre@@", "a@@", "t", "day"], [0.0, 0.25, 0.5, 0.25, -0.5]
_SPEC = {
    "openapi": "3.0.1",
    "paths": {"/models": {"post": {}, "get": {}}, "/api": {"options": {}}},
}

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
        lambda answer: (
            [tuple(pair) for pair in answer(_SPEC)]
            == [("GET", "/models"), ("OPTIONS", "/api"), ("POST", "/models")]
        ),
        'spec["paths"] maps a path to its methods',
        """def answer(spec):
    return sorted((method.upper(), path) for path, methods in spec["paths"].items() for method in methods)""",
    ),
}
