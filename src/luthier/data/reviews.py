"""Movie reviews: sentences of reviews with a sentiment, as padded token numbers.

The archive holds 10,605 sentences of Pang and Lee's reviews, each rated from -4 to 4 by people; here the mean
rating makes the label: above 0 positive (1), below 0 negative (0), exactly 0 (37 sentences) left out. A sentence
whose tokens occurred before is left out too, so that none is in both parts. One fifth of each class, chosen by a
hash of its text with seed 0, is for testing. The vocabulary holds the tokens that occur at least twice in
the training part, the most frequent first; all others are `<unknown>`.
Source: Hutto and Gilbert, "VADER: a parsimonious rule-based model for sentiment analysis", ICWSM 2014.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.dataset import Arrays, held_out
from luthier.data.fetching import Fetched
from luthier.data.sources import Mirror, PythonSourceArchive, SourceError, find, unpack

ARCHIVE = "hutto_ICWSM_2014.tar.gz"
RATINGS = "movieReviewSnippets_GroundTruth.txt"
PAD, UNKNOWN = "<pad>", "<unknown>"
SPLIT_SEED, TEST_FRACTION, MIN_COUNT = 0, 0.2, 2
_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[!?]")


def tokenize(text: str) -> list[str]:
    """Words in lower case (with inner apostrophes), exclamation and question marks.

    >>> tokenize("It doesn't work, 'Conan'!")
    ['it', "doesn't", 'work', 'conan', '!']
    """
    found: list[str] = _TOKEN.findall(text.lower().replace("’", "'"))
    return found


def decode(folder: Path) -> Arrays:
    """Read the rated sentences in a folder: int64 [N, L] padded with 0, int64 [N], and the vocabulary."""
    if list(folder.rglob(ARCHIVE)):
        unpack(find(folder, ARCHIVE), folder)
    sentences, labels = read_ratings(find(folder, RATINGS))
    keys = [" ".join(tokens).encode() for tokens in sentences]
    test = held_out(keys, labels, TEST_FRACTION, SPLIT_SEED)
    vocabulary = build_vocabulary([tokens for tokens, out in zip(sentences, test, strict=True) if not out])
    inputs = encode(sentences, vocabulary)
    return {
        "train_inputs": inputs[~test],
        "train_targets": labels[~test],
        "test_inputs": inputs[test],
        "test_targets": labels[test],
        "vocabulary": np.frombuffer("\n".join(vocabulary).encode(), np.uint8),
    }


def read_ratings(path: Path) -> tuple[list[list[str]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Tokens and labels of a file of lines `number, mean rating, sentence` separated by tabs.

    Raises:
        SourceError: a line has another form, or no line is left.
    """
    labels: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        cells = line.split("\t")
        if len(cells) != 3:
            raise SourceError(f"{path.name}, line {number}: expected 3 cells separated by tabs, got {len(cells)}")
        rating, tokens = float(cells[1]), tuple(tokenize(cells[2]))
        if rating and tokens:
            labels.setdefault(tokens, int(rating > 0))
    if not labels:
        raise SourceError(f"{path.name} holds no rated sentence")
    return [list(tokens) for tokens in labels], np.array(list(labels.values()), np.int64)


def build_vocabulary(sentences: Sequence[Sequence[str]]) -> list[str]:
    """Tokens in the order of their numbers: pad, unknown, then those frequent enough, the most frequent first.

    >>> build_vocabulary([["a", "b"], ["b", "a", "b", "c"]])
    ['<pad>', '<unknown>', 'b', 'a']
    """
    counts = Counter(token for tokens in sentences for token in tokens)
    frequent = sorted(
        (token for token in counts if counts[token] >= MIN_COUNT), key=lambda token: (-counts[token], token)
    )
    return [PAD, UNKNOWN, *frequent]


def encode(sentences: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Token numbers [N, L], padded on the right with 0 to the longest sentence.

    >>> encode([["b", "new"], ["a"]], ["<pad>", "<unknown>", "b", "a"])
    array([[2, 1],
           [3, 0]])
    """
    numbers = {token: number for number, token in enumerate(vocabulary)}
    encoded = np.zeros((len(sentences), max(map(len, sentences))), np.int64)
    for row, tokens in zip(encoded, sentences, strict=True):
        row[: len(tokens)] = [numbers.get(token, 1) for token in tokens]
    return encoded


MOVIE_REVIEWS = Fetched(
    name="movie-reviews",
    classes=("negative", "positive"),
    checksum="20616955dfebbe20b5acbf996ec6c1dd9765454df68e48f7f97fc8100cf4abc0",
    decode=decode,
    files=(ARCHIVE,),
    sources=(
        Mirror("https://raw.githubusercontent.com/cjhutto/vaderSentiment/master/additional_resources", (ARCHIVE,)),
        PythonSourceArchive(
            "vaderSentiment==3.3.2", sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
        ),
    ),
)
