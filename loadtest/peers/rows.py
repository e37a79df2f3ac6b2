"""What the services of a row read and answer, those that are written with FastAPI."""

from __future__ import annotations

from pydantic import BaseModel, Field

FEATURES = 30  # of the forest


class Row(BaseModel):
    """A row of the table, its columns in the order in which the model was trained."""

    features: list[float] = Field(min_length=FEATURES, max_length=FEATURES)


class Label(BaseModel):
    """A class and its probability."""

    label: str
    score: float
