"""CLIP tokenizers from tables and back, on transformers 4 and 5."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import BadInput

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

BOS, EOT = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"


def byte_symbols() -> list[str]:
    """CLIP's (and GPT-2's) 256 printable stand-ins for the 256 bytes, in CLIP's order: printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(others)]


def clip_vocab(merges: Iterable[tuple[str, str] | str] = ()) -> dict[str, int]:
    """CLIP's vocabulary for a list of merges: 256 bytes, the same with ``</w>``, the merged tokens, BOS and EoT last.

    Without merges this is 512 + 2 tokens, ids of the base tokens equal to CLIP's own; nothing can be unknown.
    """
    symbols = byte_symbols()
    tokens = symbols + [symbol + END_OF_WORD for symbol in symbols]
    tokens += dict.fromkeys("".join(pair) for pair in _pairs(merges))  # two merges may spell the same token
    return {token: i for i, token in enumerate([*tokens, BOS, EOT])}


def clip_tokenizer(
    vocab: Mapping[str, int] | str | Path | None = None,
    merges: Iterable[tuple[str, str] | str] | Path = (),
    model_max_length: int = 77,
) -> CLIPTokenizer:
    """A `CLIPTokenizer` from tables or from files, on transformers 4 and 5.

    Args:
        vocab: token -> id, or a ``vocab.json``; None builds `clip_vocab` of the merges.
        merges: pairs (``("c", "h")`` or ``"c h"``) in order of rank, or a ``merges.txt``.
        model_max_length: positions, BOS and EoT included.

    The token ``<|endoftext|>`` also pads and stands for the unknown, as in SD 1.x.
    """
    from transformers import CLIPTokenizer

    pairs = _read_merges(merges) if isinstance(merges, Path) else _pairs(merges)
    if vocab is None:
        table = clip_vocab(pairs)
    elif isinstance(vocab, Mapping):
        table = dict(vocab)
    else:
        table = json.loads(Path(vocab).read_text(encoding="utf-8"))
    missing = [t for t in (BOS, EOT, *("".join(pair) for pair in pairs)) if t not in table]
    if missing:
        raise BadInput(
            "the vocabulary lacks tokens that the merges or CLIP need",
            given=", ".join(map(repr, missing[:5])),
            fix="build the vocabulary with clip_vocab(merges)",
        )
    options: dict[str, Any] = {"bos_token": BOS, "eos_token": EOT, "pad_token": EOT, "unk_token": EOT}
    options["model_max_length"] = model_max_length
    if not _tokenizer_takes_tables():
        return _tokenizer_by_files(table, pairs, options)
    return CLIPTokenizer(vocab=table, merges=pairs, **options)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: str | Path) -> None:
    """Write a CLIP tokenizer as the hub has it: vocab.json, merges.txt, two small JSON files, nothing else.

    ``tokenizer.json`` is left out on purpose: a second copy of the same tables that only some versions would read.
    """
    vocab, pairs = tokenizer_tables(tokenizer)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_tables(vocab, pairs, folder)
    special = {name: str(getattr(tokenizer, name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": int(tokenizer.model_max_length),
        "tokenizer_class": "CLIPTokenizer",
        **special,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)


def tokenizer_tables(tokenizer: CLIPTokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary (token -> id) and the ranked merges of a CLIP tokenizer, fast or slow."""
    vocab = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # transformers 4, slow
        ranks = tokenizer.bpe_ranks
        return vocab, sorted(ranks, key=ranks.__getitem__)
    return vocab, _pairs(json.loads(backend.to_str())["model"]["merges"])


def _tokenizer_takes_tables() -> bool:
    import inspect

    from transformers import CLIPTokenizer

    return "vocab" in inspect.signature(CLIPTokenizer.__init__).parameters


def _tokenizer_by_files(table: dict[str, int], pairs: list[tuple[str, str]], options: dict[str, Any]) -> CLIPTokenizer:
    import tempfile

    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        _write_tables(table, pairs, Path(folder))
        return CLIPTokenizer(vocab_file=f"{folder}/vocab.json", merges_file=f"{folder}/merges.txt", **options)


def _pairs(merges: Iterable[Any]) -> list[tuple[str, str]]:
    split = [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in merges]
    bad = [merge for merge in split if len(merge) != 2]
    if bad:
        raise BadInput("a merge is a pair of tokens", given=repr(bad[0]), expected="('c', 'h') or 'c h'")
    return [(left, right) for left, right in split]


def _read_merges(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return _pairs(line for i, line in enumerate(lines) if line and not (i == 0 and line.startswith("#version")))


def _write_tables(vocab: dict[str, int], pairs: list[tuple[str, str]], folder: Path) -> None:
    write_json(folder / "vocab.json", vocab, indent=None)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """JSON as the hub's files have it."""
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
