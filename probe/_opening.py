"""Where a recording goes: a new store, the same one resumed, or a longer one; and what is refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from probe import provenance
from probe._groups import Group
from probe._headers import half_created
from probe._locks import Rank
from probe._places import Place
from probe._samples import starts_with
from probe._store import RunStore, check_room
from probe.errors import BadInput, HeaderMismatch, StoreDamaged, WorkbenchError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from probe._sites import Site

logger = logging.getLogger(__name__)

#: Seconds that a rank waits for the first one to create the run, and between looks.
PATIENCE, LOOK = 600.0, 0.2


class StorePlan(Protocol):
    """What is decided before the first sample: ``store`` and ``reader`` are the classes of what will be written."""

    @property
    def store(self) -> type[RunStore]:
        """What is written with."""
        ...

    @property
    def reader(self) -> Any:
        """What is read with: path -> an object with ``samples``."""
        ...

    @property
    def table(self) -> pd.DataFrame:
        """The samples."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the numbers depend on."""
        ...

    @property
    def branches(self) -> tuple[str, ...]:
        """Those of every sample."""
        ...

    @property
    def timesteps(self) -> np.ndarray:
        """The timestep at every UNet call, (t,)."""
        ...

    @property
    def sites(self) -> Sequence[Site]:
        """Every site of which anything is kept."""
        ...

    @property
    def unit(self) -> int:
        """Samples that are made, written and marked done together."""
        ...

    def stored_groups(self, *, coordinates: bool = True) -> list[Group]:
        """The groups of the store; without ``coordinates`` no weight is read."""
        ...

    def size_of(self, samples: int) -> int:
        """Bytes that so many samples take, before compression."""
        ...

    def create(self, path: str | Path | Place, *, replace: bool) -> RunStore:
        """Make the empty store."""
        ...


def open_or_create(place: Place, plan: StorePlan, *, force: bool, extend: bool, rank: Rank) -> RunStore:
    """The store that ``plan`` asks for at ``place``; see `probe.record` for what is refused.

    Of several ranks the first creates, extends or refuses, and the others wait for what it makes.
    """
    if rank.world > 1 and force:
        fix = f"delete the {plan.store.kind} first, or replace it with one process"
        raise BadInput(
            f"several ranks cannot replace a {plan.store.kind} that each of them sees", given="force=True", fix=fix
        )
    if rank.first:
        with place.creating():
            return _first(place, plan, force=force, extend=extend)
    return _wait(place, plan, extend=extend)


def _first(place: Place, plan: StorePlan, *, force: bool, extend: bool) -> RunStore:
    if not place.occupied():
        return plan.create(place, replace=False)
    try:
        store = plan.store(place)
    except StoreDamaged as error:
        if half_created(place):
            return plan.create(place, replace=True)
        what, fix = f"the output path exists and is no {plan.store.kind}", "choose another path"
        raise BadInput(what, given=str(place.path), fix=fix) from error
    if force:
        with store.locked():  # nobody is writing into what is about to go
            pass
        return plan.create(place, replace=True)
    _check_recordable(store)
    if extend and plan.identity["samples"] != store.identity["samples"]:
        return _extend(store, plan)
    _check_identity(store, plan, [*plan.identity])
    store.check_coordinates()
    check_room(place, int(plan.size_of(store.n_samples) * (1 - store.done.mean())))
    return store


def _wait(place: Place, plan: StorePlan, *, extend: bool) -> RunStore:
    """What the first rank makes, once its header is there."""
    logger.info("waiting for the first rank at %s", place.path)
    end = time.monotonic() + PATIENCE
    while True:
        if place.exists():
            try:
                store = plan.store(place)
            except (StoreDamaged, BadInput) as error:  # a remote header that is still to come
                logger.debug("%s: %s", place.path, error)
            else:
                if not extend or store.identity["samples"] == plan.identity["samples"]:
                    _check_recordable(store)
                    _check_identity(store, plan, [*plan.identity])
                    return store
        if time.monotonic() > end:
            fix = "look at what rank 0 says; all ranks must name the same out="
            raise WorkbenchError(f"the first rank has not made the {plan.store.kind}", given=str(place.path), fix=fix)
        time.sleep(LOOK)


def _check_recordable(store: RunStore) -> None:
    if store.rechunked is not None:
        given, fix = f"{store.path}, by {store.rechunked}", "record into another folder, or into the run it came from"
        raise BadInput("this is a rechunked copy of a run: it is read, not recorded into", given=given, fix=fix)


def _extend(store: RunStore, plan: StorePlan) -> RunStore:
    _check_identity(store, plan, [key for key in plan.identity if key != "samples"])
    stored = plan.reader(store.path).samples.drop(columns="shown")
    if not starts_with(plan.table, stored):
        given = f"{len(plan.table)} samples"
        expected = f"the {len(stored)} stored samples, then others"
        raise HeaderMismatch(
            f"a {store.kind} is extended by a list that starts with its own", given=given, expected=expected
        )
    check_room(store.place, plan.size_of(len(plan.table) - store.n_samples))
    stamp = provenance.stamp(plan.identity)
    with store.locked():
        return store.extend(identity=stamp["identity"], id=stamp["id"], samples=plan.table)


def _check_identity(store: RunStore, plan: StorePlan, keys: Sequence[str]) -> None:
    try:
        provenance.check_same(store.identity, plan.identity, f"another {store.kind} is at {store.path}", keys)
    except HeaderMismatch as error:
        fix = f"choose another folder, or replace this {store.kind} with force=True"
        if ": samples" in error.what:
            fix += "; extend=True allows samples to be added at the end"
        raise HeaderMismatch(error.what, given=error.given, expected=error.expected, fix=fix) from None
