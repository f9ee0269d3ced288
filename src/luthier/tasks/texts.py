"""Built-in tasks on texts."""

from __future__ import annotations

from typing import Literal

from luthier.data import load
from luthier.nets import RNN
from luthier.recipe import Recipe
from luthier.task import Task
from luthier.tasks.subjects import Subject

Cell = Literal["lstm", "gru", "rnn"]
Pool = Literal["last", "mean", "max"]


def movie_reviews() -> Subject:
    """A recurrent network that tells good from bad movie reviews."""
    data = load("movie-reviews")
    words = len(data.vocabulary or ())

    def review_rnn(embedding: int = 64, hidden: int = 64, cell: Cell = "gru", pool: Pool = "max") -> RNN:
        return RNN(vocabulary=words, outputs=2, embedding=embedding, hidden=hidden, cell=cell, pool=pool)

    task = Task(review_rnn, data.train, val=0.1, test=data.test, name="movie-reviews")
    return Subject(task, Recipe(lr=2e-3, dropout=0.3, epochs=5, batch_size=64))
