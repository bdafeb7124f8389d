"""A text encoder without weights to download: every word and every position has a fixed random vector.

It replaces T5 where captions have few different words, whose meaning can be learnt from the videos alone, as in the
moving shapes. For open text use T5.

b = batch · m = text tokens
"""

import re
import unicodedata
import zlib
from functools import lru_cache

import torch
from torch import Tensor


class WordVectors:
    """texts -> (embeddings (b, m, dim), bool mask (b, m)), a text encoder for `Phenaki`.

    A word has the same vector on every machine, because its checksum is the seed.
    """

    def __init__(self, dim: int = 64):
        self.dim = dim

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        # A caption without any word still needs one token to attend to.
        words = [words_of(text) or [""] for text in texts]
        longest = max(map(len, words))
        embeddings = torch.zeros(len(texts), longest, self.dim)
        mask = torch.zeros(len(texts), longest, dtype=torch.bool)
        for row, text in enumerate(words):
            for position, word in enumerate(text):
                # The position counts for less than the word; without it, "a dog bites a man" would equal its reverse.
                embeddings[row, position] = vector(word, self.dim) + 0.3 * vector(f"place {position}", self.dim)
                mask[row, position] = True
        return embeddings, mask


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case, each letter with its accents as one character where there is one."""
    return re.findall(r"\w+", unicodedata.normalize("NFC", text).lower())


@lru_cache(maxsize=100_000)
def vector(word: str, dim: int) -> Tensor:
    """A word's vector (dim,), each value normal."""
    return torch.randn(dim, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))
