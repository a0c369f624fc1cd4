"""Slow twin of ConceptPrune's mask: loops over lists in double precision, written from the paper (arXiv 2405.19237)."""

from __future__ import annotations

Matrix = list[list[float]]
Flags = list[list[bool]]


def skilled_at_one_step(weight: Matrix, n_target: list[float], n_reference: list[float], skill_ratio: float) -> Flags:
    """M_t[i][j]: j is in the top-k of row i of S_target, k = int(skill_ratio * width), and S_target > S_reference."""
    mask = []
    for row in weight:
        width = len(row)
        s_target = [abs(w) * n for w, n in zip(row, n_target, strict=True)]
        s_reference = [abs(w) * n for w, n in zip(row, n_reference, strict=True)]
        top = sorted(range(width), key=lambda j: (-s_target[j], j))[: int(skill_ratio * width)]
        mask.append([j in top and s_target[j] > s_reference[j] for j in range(width)])
    return mask


def concept_mask(
    weight: Matrix,
    n_target: Matrix,
    n_reference: Matrix,
    timesteps: list[int],
    skill_ratio: float,
    window: tuple[int, int],
    select_ratio: float = 0.0,
) -> Flags:
    """U[i][j]: skilled in more than select_ratio * steps of the steps whose timestep lies in the window."""
    steps = [t for t, timestep in enumerate(timesteps) if window[1] <= timestep <= window[0]]
    votes = [[0] * len(weight[0]) for _ in weight]
    for t in steps:
        mask = skilled_at_one_step(weight, n_target[t], n_reference[t], skill_ratio)
        for i, row in enumerate(mask):
            for j, flag in enumerate(row):
                votes[i][j] += flag
    return [[count > select_ratio * len(steps) for count in row] for row in votes]


def packed(flags: list[bool]) -> bytes:
    """Flag i in bit i % 8, counted from the lowest, of byte i // 8."""
    data = bytearray((len(flags) + 7) // 8)
    for i, flag in enumerate(flags):
        if flag:
            data[i // 8] += 2 ** (i % 8)
    return bytes(data)
