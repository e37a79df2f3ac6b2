"""What the blocking clients have in common, whatever they speak."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from clients.vocabulary import BATCH_SIZE, Arrays, batches, embedding_of, text_array

Client = TypeVar("Client", bound="BlockingClient")


class BlockingClient(ABC):
    """`embed` on top of `infer`, and a `with` block that closes the connection."""

    @abstractmethod
    def infer(
        self,
        model: str,
        inputs: Arrays,
        *,
        version: str = "",
        timeout: float | None = None,
        request_id: str = "",
    ) -> dict[str, NDArray]:
        """See `clients.GrpcClient.infer`."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    def embed(
        self,
        texts: Sequence[str],
        *,
        model: str = "minilm",
        timeout: float | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> NDArray[np.float32]:
        """Text to vectors, float32 [texts, width], any number of texts, `batch_size` a request.

        Args:
            timeout: deadline in seconds of each request, instead of the client's.

        Raises:
            ClientError: see `clients.errors`.
        """
        parts = [
            embedding_of(self.infer(model, text_array(batch), timeout=timeout), model)
            for batch in batches(texts, batch_size)
        ]
        return np.concatenate(parts)

    def __enter__(self: Client) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
