"""Made-up tweets to send in load tests: as long as real ones, and with an obvious mood."""

from __future__ import annotations

import random
from typing import NamedTuple

_SUBJECTS = (
    "my flight", "the new album", "this phone", "the meeting", "dinner at my sister's place",
    "the update they pushed last night", "our trip to the lake", "that movie everyone talks about",
    "customer support", "the coffee at work", "my new bike", "the last episode", "the train to work",
    "this game", "the weather this week", "her talk at the conference", "the book you lent me",
)  # fmt: skip
_VERDICTS = {
    "Positive": (
        "is wonderful", "made my day, and I tell everybody", "was so much better than I had hoped",
        "is the best thing that happened all week", "was great fun", "looks amazing", "is a real joy",
        "keeps making me smile",
    ),
    "Negative": (
        "is awful", "broke again and nobody can tell me why", "was a complete waste of money",
        "makes me so angry", "is the worst I have seen in years", "was ruined by terrible service",
        "is a horrible mess", "was so boring that I left early and I still regret going",
    ),
    "Neutral": (
        "is at ten tomorrow", "starts on monday", "comes in two colours", "is on the second floor",
        "takes about an hour", "was moved to thursday", "is next to the station",
        "will be in town from the 3rd to the 9th",
    ),
}  # fmt: skip
_OPENINGS = ("", "", "", "@anna ", "ok so ", "just saying: ", "RT @daily_news: ", "well, ")
_ENDINGS = {
    "Positive": (".", "!", "!!", " :)", " 😍", " #happy", " ❤️ http://t.co/x1Y2z3"),
    "Negative": (".", "!", "...", " :(", " 😡", " #fail", " http://t.co/a4B5c6"),
    "Neutral": (".", "", ".", " http://t.co/d7E8f9", " #fyi"),
}


class Tweet(NamedTuple):
    """A text, and its mood as index_to_name.json names it."""

    text: str
    label: str


def sample_tweets(count: int, *, seed: int = 0) -> list[Tweet]:
    """Returns different made-up tweets, each of one mood, of one to three sentences.

    With the embedded model's tokenizer 500 of them are 8 to 65 tokens long, 24 on average, like
    the 630 real tweets of the model's test.

    >>> sample_tweets(2) == sample_tweets(2), len({text for text, _ in sample_tweets(500)})
    (True, 500)
    """
    draw = random.Random(seed)
    tweets: dict[str, Tweet] = {}
    while len(tweets) < count:
        label = draw.choice(tuple(_VERDICTS))
        opening, sentences = draw.choice(_OPENINGS), draw.choice((1, 1, 1, 1, 2, 2, 3))
        text = opening + " ".join(_sentence(draw, label) for _ in range(sentences))
        tweets[text] = Tweet(text, label)
    return list(tweets.values())


def _sentence(draw: random.Random, label: str) -> str:
    return f"{draw.choice(_SUBJECTS)} {draw.choice(_VERDICTS[label])}{draw.choice(_ENDINGS[label])}"
