"""Quirks of library versions, kept in one place so that the rest of the code never asks for a version.

- transformers 5 builds `CLIPTokenizer` from dictionaries and saves only ``tokenizer.json``; transformers 4 reads only
  ``vocab.json`` + ``merges.txt``. `clip_tokenizer` and `save_tokenizer` serve both.
- transformers 4 (and every checkpoint on the hub) prefixes the parameters of `CLIPTextModel` with ``text_model.``,
  transformers 5 does not. `canonical_name` and `live_name` map between the two; files hold canonical names.
- `save_pipeline` writes the SD 1.x hub layout whatever the installed versions.
"""

from probe.compat._networks import canonical_name, clean_config, live_name, multiply_in, refuse_compiled, unet_inputs
from probe.compat._original import original_names, original_shape
from probe.compat._pipelines import LEFT_OUT, dtype_argument, quiet_libraries, save_pipeline
from probe.compat._sklearn import l1_logistic
from probe.compat._tokenizers import (
    BOS,
    END_OF_WORD,
    EOT,
    byte_symbols,
    clip_tokenizer,
    clip_vocab,
    save_tokenizer,
    tokenizer_tables,
)

__all__ = [
    "BOS",
    "END_OF_WORD",
    "EOT",
    "LEFT_OUT",
    "byte_symbols",
    "canonical_name",
    "clean_config",
    "clip_tokenizer",
    "clip_vocab",
    "dtype_argument",
    "l1_logistic",
    "live_name",
    "multiply_in",
    "original_names",
    "original_shape",
    "quiet_libraries",
    "refuse_compiled",
    "save_pipeline",
    "save_tokenizer",
    "tokenizer_tables",
    "unet_inputs",
]
