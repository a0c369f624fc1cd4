"""Quirks of library versions, kept in one place so that the rest of the code never asks for a version.

- transformers 5 builds `CLIPTokenizer` from dictionaries and saves only ``tokenizer.json``; transformers 4 reads only
  ``vocab.json`` + ``merges.txt``. `clip_tokenizer` and `save_tokenizer` serve both.
- transformers 4 (and every checkpoint on the hub) prefixes the parameters of `CLIPTextModel` with ``text_model.``,
  transformers 5 does not. `canonical_name` and `live_name` map between the two; files hold canonical names.
- `save_pipeline` writes the SD 1.x hub layout whatever the installed versions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe._files import occupied, written_whole
from probe.errors import BadInput

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

BOS, EOT = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"


# --- CLIP tokenizers --------------------------------------------------------------------------------------------------


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
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)


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
    _write_json(folder / "vocab.json", vocab, indent=None)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


# --- names ------------------------------------------------------------------------------------------------------------

_PREFIX = "text_model."


def canonical_name(component: str, name: str) -> str:
    """The name of a module or parameter as files have it: text encoders with ``text_model.``, as on the hub."""
    if not component.startswith("text_encoder") or name.startswith((_PREFIX, "text_projection")):
        return name
    return _PREFIX + name


def live_name(component: Any, name: str) -> str:
    """The name that a canonical one has inside ``component`` (a module) on the installed version."""
    if name.startswith(_PREFIX) and not hasattr(component, _PREFIX.rstrip(".")):
        return name.removeprefix(_PREFIX)
    return name


# --- UNets ------------------------------------------------------------------------------------------------------------


def refuse_compiled(module: Any, what: str) -> None:
    """Raise `BadInput` for a `torch.compile`d module: its graph bypasses hooks."""
    if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
        raise BadInput(
            f"{what} is compiled, and a compiled graph does not call hooks",
            given=type(module).__name__,
            fix="work on the module as it was before torch.compile (module._orig_mod), or load the pipeline again",
        )


def unet_inputs(config: Any, *, device: str = "cpu", samples: int = 1, tokens: int = 4) -> dict[str, Any]:
    """Keyword arguments of the right shapes, all zero, for one call of the `UNet2DConditionModel` of that config."""
    import torch

    size = config.sample_size if isinstance(config.sample_size, int | None) else max(config.sample_size)
    multiple = 2 ** (len(config.block_out_channels) - 1)  # so that up and down paths meet in size
    size = -(-min(size or 64, 64) // multiple) * multiple
    width = config.encoder_hid_dim or config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(samples, *shape, device=device)

    inputs: dict[str, Any] = {
        "sample": zeros(config.in_channels, size, size),
        "timestep": torch.zeros(samples, device=device),
        "encoder_hidden_states": zeros(tokens, width),
    }
    if config.addition_embed_type == "text_time":  # SDXL
        ids = 6 * config.addition_time_embed_dim
        pooled = config.projection_class_embeddings_input_dim - ids
        inputs["added_cond_kwargs"] = {"text_embeds": zeros(pooled), "time_ids": zeros(6)}
    return inputs


# --- configs ----------------------------------------------------------------------------------------------------------

#: Entries of a transformers config that say how it was saved or run, not what the network is.
_BOOKKEEPING = {"architectures", "dtype", "torch_dtype", "transformers_version", "model_type", "use_cache"}


def clean_config(component: Any) -> dict[str, Any]:
    """What a network's config decides, without bookkeeping and without entries at their default.

    Leaving defaults out keeps it the same when a later library version adds an entry that changes nothing.
    """
    config = component.config
    if hasattr(config, "to_dict"):  # transformers
        values, defaults = config.to_dict(), type(config)().to_dict()
    else:  # diffusers
        import inspect

        values = dict(config)
        defaults = {k: p.default for k, p in inspect.signature(type(component).__init__).parameters.items()}
    kept = {k: _lists(v) for k, v in values.items() if not k.startswith("_") and k not in _BOOKKEEPING}
    return {k: v for k, v in kept.items() if k not in defaults or v != _lists(defaults[k])}


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


# --- pipelines on disk ------------------------------------------------------------------------------------------------


def dtype_argument(dtype: Any) -> dict[str, Any]:
    """``dtype`` as the keyword that diffusers' loaders have for it."""
    import diffusers
    from packaging.version import Version

    return {"dtype" if Version(diffusers.__version__) >= Version("0.40.0") else "torch_dtype": dtype}


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No bars and no advice from diffusers and transformers while they load or save; everything as before afterwards.

    Among the advice: that image processors want torchvision, which nothing here needs.
    """
    import diffusers.utils.logging as of_diffusers
    import transformers.utils.logging as of_transformers

    with ExitStack() as undo:
        for library in (of_diffusers, of_transformers):
            undo.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_error()
            if library.is_progress_bar_enabled():
                undo.callback(library.enable_progress_bar)
                library.disable_progress_bar()
        yield


def save_pipeline(pipe: Any, folder: str | Path, dtype: Any = None, *, replace: bool = False) -> Path:
    """Write a Stable Diffusion pipeline as the hub has it, readable by transformers 4 and 5.

    ``model_index.json``; for each network ``config.json`` and one safetensors file, text encoders with the prefix
    ``text_model.``; tokenizers as ``vocab.json`` and ``merges.txt``; no safety checker. The folder appears whole or not
    at all.

    Args:
        pipe: the pipeline; weights are written as they are, edits in force included.
        folder: new or empty; with ``replace`` a pipeline that is there gives way.
        dtype: a torch dtype to which floating tensors are cast (``torch.float16``); None keeps each tensor's own.
    """
    folder = Path(folder)
    if occupied(folder) and not (replace and (folder / "model_index.json").is_file()):
        raise BadInput(
            "the output path exists", given=str(folder), fix="choose another path, or replace=True a pipeline"
        )
    with quiet_libraries(), written_whole(folder, replace=replace) as partial:
        partial.mkdir()
        _write_json(partial / "model_index.json", _model_index(pipe))
        for name, component in pipe.components.items():
            if component is None or name in _LEFT_OUT:
                continue
            if hasattr(component, "state_dict"):
                _save_network(name, component, partial / name, dtype)
            elif hasattr(component, "get_vocab"):
                save_tokenizer(component, partial / name)
            else:
                component.save_pretrained(partial / name)
    return folder


#: Parts that pipelines here go without: they judge images, or prepare images that nothing here puts in.
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")


def _model_index(pipe: Any) -> dict[str, Any]:
    index = json.loads(pipe.to_json_string())
    index |= {name: [None, None] for name in _LEFT_OUT if name in index}
    index.pop("_name_or_path", None)
    if "safety_checker" in index:
        index["requires_safety_checker"] = False
    return index


def _save_network(name: str, network: Any, folder: Path, dtype: Any) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    state = {}
    for key, tensor in network.state_dict().items():
        cast = tensor.detach().cpu()
        cast = cast.to(dtype) if dtype is not None and cast.is_floating_point() else cast
        state[canonical_name(name, key)] = cast.contiguous()
    kept = str(dtype or network.dtype).removeprefix("torch.")
    if hasattr(network.config, "to_dict"):  # transformers
        weights, config = "model.safetensors", _own_entries(network.config)
        config |= {"architectures": [type(network).__name__], "torch_dtype": kept}  # the key that 4 and 5 both read
    else:
        weights, config = "diffusion_pytorch_model.safetensors", json.loads(network.to_json_string())
    _write_json(folder / "config.json", {k: v for k, v in config.items() if k != "_name_or_path"})
    save_file(state, folder / weights, metadata={"format": "pt"})


def _own_entries(config: Any) -> dict[str, Any]:
    """A transformers config less ``dtype`` and what every config of any model has by default."""
    from transformers import PretrainedConfig

    common = PretrainedConfig().to_dict()
    values = config.to_dict().items()
    return {k: v for k, v in values if k == "model_type" or (k != "dtype" and (k not in common or v != common[k]))}
