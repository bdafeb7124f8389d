"""Texts -> (embeddings, mask) by a frozen T5 encoder, which is loaded at its first call, not at construction.

T5: Raffel et al. 2020, https://arxiv.org/abs/1910.10683; b texts, n tokens of the longest one, d wide.
"""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch
from torch import Tensor, nn

from phenaki_pytorch.core.modules import autocast_dtype

# d_model in the public config.json of every size
_FIRST = {"small": 512, "base": 768, "large": 1024, "3b": 1024, "11b": 1024}
_LATER = {"small": 512, "base": 768, "large": 1024, "xl": 2048, "xxl": 4096}
_DIMS = {"t5": _FIRST, "google-t5/t5": _FIRST, "google/t5-v1_1": _LATER, "google/flan-t5": _LATER}

_HUB_TIMEOUT = 1.2  # seconds; that of transformers is up to a minute
_loading = Lock()  # transformers cannot load in several threads at once
_WAYS_ON = (
    "Pass the directory of a saved model and tokenizer in place of the name (on a machine with a network: "
    "`hf download NAME --local-dir DIRECTORY`), or embeddings (text_embeds=), or your own encoder "
    "(text_encoder=, any callable texts -> (embeddings, mask))"
)


def _find_directory(name: str) -> Path | None:
    """The directory `name`, or that of the hub's local cache, or None; without a network."""
    if os.path.isdir(name):
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(name, "config.json")
    except ValueError:  # not a valid name on the hub, so a path was meant
        raise FileNotFoundError(f"no such directory, and not a name on the hub either: {name!r}") from None
    return Path(config).parent if isinstance(config, str) else None


def _has_weights(directory: Path) -> bool:
    for file in ("model.safetensors", "pytorch_model.bin"):  # the order in which transformers looks
        if (directory / file).is_file():
            return True
        index = directory / f"{file}.index.json"
        if index.is_file():  # a download that was broken off lacks some of the shards
            shards = json.loads(index.read_text())["weight_map"].values()
            return all((directory / shard).is_file() for shard in shards)
    return False


def _missing_parts(directory: Path) -> list:
    tokenizer_files = ("tokenizer.json", "spiece.model", "tokenizer_config.json")  # ByT5 has only the last
    present = {
        "config.json": (directory / "config.json").is_file(),
        "weights (model.safetensors)": _has_weights(directory),
        "tokenizer (tokenizer.json or spiece.model)": any((directory / f).is_file() for f in tokenizer_files),
    }
    return [part for part, is_there in present.items() if not is_there]


def _why_unreachable(name: str) -> str | None:
    """Why the hub cannot be asked, under its own settings (HF_ENDPOINT, HF_HUB_OFFLINE, proxies); None if it can."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(name, "config.json")
    outcome: list[str | None] = []

    def ask() -> None:
        try:
            status = get_session().head(url, headers=build_hf_headers(), timeout=_HUB_TIMEOUT).status_code
            outcome.append(f"status {status}" if status >= 400 else None)
        except Exception as error:
            outcome.append(f"{type(error).__name__}: {error}")

    thread = Thread(target=ask, daemon=True)  # because a name look-up ignores the timeout
    thread.start()
    thread.join(_HUB_TIMEOUT)
    reason = outcome[0] if outcome else f"no answer within {_HUB_TIMEOUT} s"
    return reason and f"{url} cannot be reached ({reason})"


def _find_source(name: str) -> str:
    """A complete directory, or else the name if the hub can be reached."""
    directory = _find_directory(name)
    if directory and not (missing := _missing_parts(directory)):
        return str(directory)
    if os.path.isdir(name):
        raise FileNotFoundError(f"the text encoder's directory {name!r} lacks its {', '.join(missing)}")
    if reason := _why_unreachable(name):
        raise OSError(f"the text encoder {name!r} is not on this machine, and {reason}. {_WAYS_ON}")
    return name


def _load_tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (ValueError, ImportError) as error:  # whose message names the wrong package
        raise OSError(f"no tokenizer in {source!r}; spiece.model needs sentencepiece and protobuf") from error
    # Without a vocabulary, transformers silently builds a tokenizer of special tokens and one space.
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) <= 1:
        expected = "expected a tokenizer.json or spiece.model with words, or a saved ByT5Tokenizer"
        raise OSError(f"the tokenizer of {source!r} has no vocabulary: {len(tokenizer)} tokens; {expected}")
    return tokenizer


def _load(name: str) -> tuple[Any, nn.Module]:
    source = _find_source(name)  # before the import, which takes seconds
    from transformers import T5EncoderModel

    tokenizer = _load_tokenizer(source)
    model, report = T5EncoderModel.from_pretrained(source, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):  # transformers only warns, and encodes with random weights
        raise OSError(f"{source!r} holds no T5 encoder: {len(missing)} weights are missing, as {missing[0]}")
    if len(tokenizer) > (known := model.config.vocab_size):
        raise OSError(f"{source!r}: the tokenizer has {len(tokenizer)} tokens, the model knows only {known}")
    return tokenizer, model.eval().requires_grad_(False)


def _without_float16(device_type: str) -> AbstractContextManager:
    """Switch float16 autocast off: T5's feed-forward overflows in float16 and gives NaN."""
    if autocast_dtype(device_type) == torch.float16:
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


class T5TextEncoder(nn.Module):
    """A frozen T5 encoder: `encoder(texts) -> (embeddings, mask)`.

    `name` is a name on the Hugging Face hub or a directory saved by `save_pretrained` (model and tokenizer,
    T5's or ByT5's). Texts are cut after `max_length` ≥ 1 tokens, the end mark included.

    The first call loads the model: from the directory or the local cache without a network, else from the
    hub. It is not in `parameters()`, `buffers()` or `state_dict()`; copies and pickles load it again at their
    first call. It follows `.to(device)`, also that of a parent, but not `.to(dtype)`: the weights keep the dtype
    in which they were saved (bfloat16 halves the memory). float16 autocast is ignored inside, because T5 overflows
    in it; bfloat16 autocast is used. Embeddings are always float32.
    """

    def __init__(self, name: str | os.PathLike = "google/t5-v1_1-base", *, max_length: int = 256):
        super().__init__()
        if max_length < 1:
            raise ValueError(f"expected max_length of at least 1, got {max_length}")
        self.name, self.max_length = os.fspath(name), max_length
        self._device = torch.empty(0).device  # respects `with torch.device(...)`
        self._loaded: tuple[Any, nn.Module] | None = None  # nn.Module registers no module inside a tuple

    @property
    def dim(self) -> int | None:
        """Width d of the embeddings; None if neither the name nor a local config.json gives it."""
        family, _, size = self.name.rpartition("-")
        if size in _DIMS.get(family, {}) and not os.path.isdir(self.name):
            return _DIMS[family][size]
        try:
            directory = _find_directory(self.name)
            return directory and json.loads((directory / "config.json").read_text()).get("d_model")
        except (OSError, ValueError):
            return None

    @torch.compiler.disable
    def forward(self, texts: Any) -> tuple[Tensor, Tensor]:
        """Encode b ≥ 1 texts; an empty text is one token, the end mark.

        Returns float32 embeddings (b, n, d), zero where padded, and a bool mask (b, n), True where real; n is
        the number of tokens of the longest text, at most `max_length`. Raises TypeError for anything but a list or
        tuple of str, ValueError for an empty one, OSError where the model cannot be loaded.
        """
        if not isinstance(texts, list | tuple):
            raise TypeError(f"expected a list of str, got {type(texts).__name__}")
        if wrong := [type(text).__name__ for text in texts if not isinstance(text, str)]:
            raise TypeError(f"expected every text to be a str, got {wrong[0]}")
        if not texts:
            raise ValueError("expected at least one text, got none")

        with _loading:
            if self._loaded is None:
                tokenizer, model = _load(self.name)
                self._loaded = tokenizer, model.to(self._device)
        tokenizer, model = self._loaded

        options = {"padding": True, "truncation": True, "max_length": self.max_length, "return_tensors": "pt"}
        tokens = tokenizer(list(texts), **options).to(self._device)
        mask = tokens.attention_mask.bool()  # (b, n)
        with torch.no_grad(), _without_float16(self._device.type):
            embeddings = model(input_ids=tokens.input_ids, attention_mask=mask).last_hidden_state  # (b, n, d)
        return embeddings.float().masked_fill(~mask[..., None], 0.0), mask

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "T5TextEncoder":
        """Called by a parent's `.to`, `.cuda` and `.cpu`; an empty tensor shows to which device they move."""
        before, self._device = self._device, fn(torch.empty(0, device=self._device)).device
        if self._loaded is not None and self._device != before:
            is_lost = "meta" in (before.type, self._device.type)  # no data there: load it again when used
            self._loaded = None if is_lost else (self._loaded[0], self._loaded[1].to(self._device))
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}
