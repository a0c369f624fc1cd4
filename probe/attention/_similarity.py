"""How alike the embeddings of a prompt's tokens are (the counterpart of TRCE's Fig. 7b)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probe import guidance
from probe.attention._maths import cosines
from probe.compat import END_OF_WORD
from probe.errors import BadInput
from probe.tokens import encode, eot_index

if TYPE_CHECKING:
    import pandas as pd


def token_similarity(pipe: Any, prompt: str) -> pd.DataFrame:
    """Cosine similarity of the embeddings that the UNet is told for every two tokens of a prompt: (k, k).

    Embeddings are those of the pipeline's own ``encode_prompt`` (of SDXL both encoders' side by side). Rows and columns
    are named by position and token: ``0 [SoT]``, ``1 a``, ``2 chur-`` (more of the word follows), ``7 [EoT]``.

    Raises:
        BadInput: ``prompt`` is no text.

    """
    import pandas as pd
    import torch

    if not isinstance(prompt, str):
        raise BadInput("one prompt at a time", given=type(prompt).__name__)
    with torch.no_grad():
        embeddings = guidance.condition(pipe, [prompt], guidance=1.0).text[0].float().cpu().numpy()
    names = token_names(pipe.tokenizer, encode(pipe.tokenizer, prompt)[0])
    return pd.DataFrame(cosines(embeddings), index=names, columns=names)


def token_names(tokenizer: Any, ids: np.ndarray) -> list[str]:
    """``0 [SoT]``, ``1 a``, ``2 chur-``, ``3 ch``, ``4 [EoT]``, ... of one row of token ids (k,)."""
    end = int(eot_index(tokenizer, ids[None])[0])
    names = ["0 [SoT]"]
    for i in range(1, len(ids)):
        if i >= end:
            names.append(f"{i} [EoT]")
            continue
        token = str(tokenizer.convert_ids_to_tokens(int(ids[i])))
        names.append(f"{i} {token.removesuffix(END_OF_WORD)}" + ("" if token.endswith(END_OF_WORD) else "-"))
    return names
