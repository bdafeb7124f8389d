"""A frozen text encoder that needs no file: every word has a fixed random vector, every place another.

It stands in for T5 where the captions' words are few and what they mean can be learned from the videos alone,
as in the moving shapes. For open text use T5.
"""

import re
import zlib
from functools import lru_cache

import torch
from torch import Tensor


class WordVectors:
    """texts -> (embeddings (b, m, dim), bool mask (b, m)), as `Phenaki(text_encoder=...)` wants it.

    The same word has the same vector on every machine and in every run: its checksum is the seed.
    """

    def __init__(self, dim: int = 64):
        self.dim = dim

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        # A caption without any word still needs one token to look at.
        words = [words_of(text) or [""] for text in texts]
        longest = max(map(len, words))
        embeddings = torch.zeros(len(texts), longest, self.dim)
        mask = torch.zeros(len(texts), longest, dtype=torch.bool)
        for row, text in enumerate(words):
            for place, word in enumerate(text):
                # The place counts for less than the word, but "a dog bites a man" is not the reverse.
                embeddings[row, place] = vector(word, self.dim) + 0.3 * vector(f"place {place}", self.dim)
                mask[row, place] = True
        return embeddings, mask


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@lru_cache(maxsize=100_000)
def vector(word: str, dim: int) -> Tensor:
    """A word's vector (dim,), each value normal."""
    return torch.randn(dim, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))
