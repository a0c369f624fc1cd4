"""Slow twins of the reducers: plain Python loops over lists, written from the definitions in the papers."""

from __future__ import annotations

import math


def reduce_rows(name: str, rows: list[list[float]]) -> list[float]:
    """One sample's token rows (k n) reduced to one number a neuron, in double precision."""
    width = len(rows[0])
    columns = [[row[j] for row in rows] for j in range(width)]
    if name == "norm":
        return [math.sqrt(sum(v * v for v in column)) for column in columns]
    if name == "unit_norm":  # ConceptPrune: x_r / ||x_r||_2, then the column norm over all rows
        unit = []
        for row in rows:
            length = math.sqrt(sum(v * v for v in row))
            unit.append([v / length if length else 0.0 for v in row])
        return reduce_rows("norm", unit)
    if name == "mean":
        return [sum(column) / len(rows) for column in columns]
    if name == "absmean":
        return [sum(abs(v) for v in column) / len(rows) for column in columns]
    if name == "max":
        return [max(column) for column in columns]
    if name == "count":
        return [float(sum(1 for v in column if v > 0)) for column in columns]
    raise ValueError(name)


def top_rows(rows: list[list[float]], ranks: int) -> list[list[tuple[float, int] | None]]:
    """For each rank and neuron the (value, row) that this rank has among one sample's token rows; None beyond them."""
    ordered = [
        sorted(((row[j], k) for k, row in enumerate(rows)), key=lambda pair: -pair[0]) for j in range(len(rows[0]))
    ]
    return [[column[r] if r < len(column) else None for column in ordered] for r in range(ranks)]
