"""Measure the embedded model on prompts that training never used, set judge thresholds, choose the lists, write the
card.

    python -m data.build.measure draw        # generate and score; resumable, one CSV row per picture
    python -m data.build.measure thresholds  # false-positive rate at most 0.5 % on generated pictures of other prompts
    python -m data.build.measure lists       # benchmark list, chosen on one seed set, reported on the other
    python -m data.build.measure             # all three
    python -m data.build.measure check       # 200 pictures of a UNet that still trains

Rows go to ``data/build/results/images.csv``: set, concept, kind, split, prompt, seed, and per judge the top label of
each family with its score, plus the score of the prompted label.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import probe
from data.build.concepts import FOLDER, lists
from data.build.judges import FALSE_POSITIVES
from data.build.judges import FOLDER as JUDGES
from data.build.training import ema_weights
from data.build.unet import RUNS, make_unet, pipeline
from data.build.words import CHARACTERS, GROUPS, NEVER_DRAWN, PROFESSIONS, STYLES
from probe.world import World

RESULTS = Path("data/build/results")
STEPS, GUIDANCE = 30, 7.5
PER_CONCEPT = {"choose": 20, "report": 20}
FIRST_SEED = {"choose": 10_000, "report": 20_000}


def plan(world: World) -> pd.DataFrame:
    """The samples: per seed set 20 explicit pictures a concept; every held-out implicit prompt of the groups once."""
    rows = []
    for chosen, n in PER_CONCEPT.items():
        for name, concept in world.items():
            if concept.kind == "group":
                continue
            take = concept.test["explicit"][:60][:: 3 if chosen == "choose" else -3][:n]
            rows += [(chosen, name, concept.kind, "explicit", p) for p in take]
    for name in GROUPS:
        for split in ("explicit", "paraphrased", "implicit_phrase", "implicit_combination"):
            rows += [("report", name, "group", split, p) for p in world[name].test[split][:40]]
    for name in PROFESSIONS:  # learned gender shares: the bare profession, never a gender word
        rows += [("gender", name, "profession", "explicit", p) for p in world[name].test["explicit"][60:100]]
    table = pd.DataFrame(rows, columns=["set", "concept", "kind", "split", "prompt"])
    start = table["set"].map({**FIRST_SEED, "gender": 30_000})
    table["seed"] = start + [zlib.crc32(p.encode()) % 9973 for p in table["prompt"]]
    return table


def said_style(prompt: str) -> str:
    """The style word of a prompt, empty where it names none."""
    return next((w for w in prompt.replace(",", " ").split() if w in STYLES), "")


def scored(part: pd.DataFrame, images: np.ndarray, judges: list) -> pd.DataFrame:
    """The samples with what images (s, y, x, rgb) add: the style asked for, and per judge labels and scores."""
    part = part.copy()
    part["said_style"] = [said_style(p) for p in part["prompt"]]
    for judge in judges:
        scores = judge(images)
        for family in ("object", "style", "gender"):
            best = judge.best(scores, family)
            part[f"{judge.name}/{family}"] = [judge.labels[b].split("/", 1)[1] for b in best]
            part[f"{judge.name}/{family}_score"] = scores[np.arange(len(best)), best].round(4)
        own = [
            f"style/{c}" if k == "style" else f"object/{c}" for c, k in zip(part["concept"], part["kind"], strict=True)
        ]
        part[f"{judge.name}/own_score"] = [
            max(s[judge.index(f"object/{m}")] for m in GROUPS[c]) if c in GROUPS else s[judge.index(o)]
            for s, o, c in zip(scores, own, part["concept"], strict=True)
        ]
    return part


def check(world: World, n: int = 200) -> None:
    """Measure the UNet that still trains on ``n`` pictures of the choosing set: a row of ``checks.csv``."""
    weights, state = ema_weights(RUNS / "unet.state.safetensors")
    unet = make_unet().eval()
    unet.load_state_dict(weights)
    table = plan(world)
    named = table[(table["set"] == "choose") & (table["kind"] != "style") & ~table["concept"].isin(NEVER_DRAWN)]
    part = named.sample(n, random_state=0).reset_index(drop=True)
    images = probe.generate(pipeline(unet), probe.samples(part[["prompt", "seed"]]), steps=STEPS, guidance=GUIDANCE,
                            batch_size=40, progress=False)  # fmt: skip
    rows = judged(scored(part, images, [probe.detector("emoji_cnn")]))
    row = {"iteration": state["iteration"], "n": n, "object_shown": rows["shown"].mean(),
           "style_shown": rows["style_shown"].mean()}  # fmt: skip
    path = RESULTS / "checks.csv"
    pd.DataFrame([row]).round(4).to_csv(path, mode="a", header=not path.exists(), index=False)
    print(row)


def draw(world: World, table: pd.DataFrame, batch: int = 60) -> pd.DataFrame:
    """Generate and score what is not yet in the CSV."""
    path = RESULTS / "images.csv"
    RESULTS.mkdir(parents=True, exist_ok=True)
    done = pd.read_csv(path, keep_default_na=False) if path.exists() else table.iloc[:0]
    pipe = probe.load("emoji")
    judges = [probe.detector("emoji_cnn"), probe.detector("emoji_nearest")]
    for start in range(len(done), len(table), batch):
        part = table.iloc[start : start + batch].copy()
        samples = probe.samples(part[["prompt", "seed"]])
        images = probe.generate(pipe, samples, steps=STEPS, guidance=GUIDANCE, batch_size=batch, progress=False)
        part = scored(part, images, judges)
        part.round(4).to_csv(path, mode="a", header=not path.exists(), index=False)
        print(f"{start + len(part)}/{len(table)}", flush=True)
    return pd.read_csv(path, keep_default_na=False)


def thresholds(table: pd.DataFrame) -> None:
    """Per judge and object label: the lowest cut, at least 0.5, that at most 0.5 % of pictures of other prompts pass.

    Only the top label's score is in the table; any label that passes 0.5 is the top one, so nothing is lost.
    """
    seen = table[table["kind"].isin(["object", "character", "profession"]) & ~table["concept"].isin(NEVER_DRAWN)]
    for name in ("emoji_cnn", "emoji_nearest"):
        path = JUDGES / f"{name}.json"
        data = json.loads(path.read_text())
        for i, label in enumerate(data["labels"]):
            family, word = label.split("/", 1)
            if family != "object" or word == "none":
                continue
            others = seen[seen["concept"] != word]
            fired = np.sort(others.loc[others[f"{name}/object"] == word, f"{name}/object_score"].to_numpy(float))[::-1]
            allowed = int(FALSE_POSITIVES * len(others))
            cut = fired[allowed] + 1e-4 if len(fired) > allowed else 0.0
            data["thresholds"][i] = round(float(max(0.5, cut)), 4)
        path.write_text(json.dumps(data, indent=1) + "\n")


def judged(table: pd.DataFrame, judge: str = "emoji_cnn") -> pd.DataFrame:
    """The table with ``shown`` (prompted object, or a member of the group, at its threshold) and ``style_shown``."""
    data = json.loads((JUDGES / f"{judge}.json").read_text())
    cut = {
        label.split("/", 1)[1]: t
        for label, t in zip(data["labels"], data["thresholds"], strict=True)
        if label.startswith("object/")
    }
    top, score = table[f"{judge}/object"], table[f"{judge}/object_score"].astype(float)
    passed = score >= top.map(cut)
    right = np.array([t in GROUPS.get(c, (c,)) for t, c in zip(top, table["concept"], strict=True)])
    out = table.assign(shown=passed & right)
    out["style_shown"] = np.where(table["said_style"] == "", np.nan, table[f"{judge}/style"] == table["said_style"])
    return out


def choose_lists(world: World, table: pd.DataFrame) -> dict[str, list[str]]:
    """Entries at 0.90 on the choosing set and at least 0.80 on the reporting one, best first."""
    rates = judged(table[table["split"] == "explicit"]).groupby(["set", "concept"])["shown"].mean().unstack(0)
    good = rates[(rates["choose"] >= 0.90) & (rates["report"] >= 0.80)]
    good = good.sort_values("choose", ascending=False, kind="stable")
    names = [n for n in good.index if world[n].kind != "style"]
    objects = [n for n in names if world[n].kind == "object" and n not in NEVER_DRAWN]
    characters = [n for n in names if n in CHARACTERS]
    import yaml

    out = lists(objects, characters)
    (FOLDER / "lists.yaml").write_text(yaml.safe_dump(out, sort_keys=False, width=160))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("what", nargs="?", choices=("draw", "thresholds", "lists", "check"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    world = probe.concepts(FOLDER)
    if args.what == "check":
        return check(world)
    if args.what in (None, "draw"):
        draw(world, plan(world))
    table = pd.read_csv(RESULTS / "images.csv", keep_default_na=False)
    if args.what in (None, "thresholds"):
        thresholds(table)
    if args.what in (None, "lists"):
        chosen = choose_lists(world, table)
        print({k: len(v) for k, v in chosen.items()})
    if args.what is None:
        from data.build.card import write_card

        write_card(world, table)


if __name__ == "__main__":
    main()
