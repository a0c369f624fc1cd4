"""Measure the embedded model on prompts that training never used, set judge thresholds, choose the lists, write the
card.

    python -m data.build.measure draw        # generate; resumable, `--share 1/2` and `2/2` run beside each other
    python -m data.build.measure score       # both judges look: one CSV row per picture
    python -m data.build.measure thresholds  # false-positive rate at most 0.5 % on generated pictures of other prompts
    python -m data.build.measure lists       # benchmark list, chosen on one seed set, reported on the other
    python -m data.build.measure fires       # the deciding judge's false alarms, to be looked at
    python -m data.build.measure             # all four and the card
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
from safetensors.numpy import load_file, save_file

import probe
from data.build.concepts import FOLDER, lists
from data.build.judges import FALSE_POSITIVES
from data.build.judges import FOLDER as JUDGES
from data.build.training import ema_weights
from data.build.unet import RUNS, make_unet, pipeline
from data.build.words import CHARACTERS, GROUPS, NEVER_DRAWN, PROFESSIONS, STYLES
from probe.world import World

RESULTS = Path("data/build/results")
PICTURES = RUNS / "measured"
BATCH = 60
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


def draw(table: pd.DataFrame, share: tuple[int, int] = (1, 1)) -> None:
    """Generate every ``share[1]``-th batch from the ``share[0]``-th on: a file of uint8 (s, y, x, rgb) each."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    pipe = probe.load("emoji")
    for start in range(BATCH * (share[0] - 1), len(table), BATCH * share[1]):
        path = pictures(start)
        if path.exists():
            continue
        samples = probe.samples(table.iloc[start : start + BATCH][["prompt", "seed"]])
        images = probe.generate(pipe, samples, steps=STEPS, guidance=GUIDANCE, batch_size=BATCH, progress=False)
        save_file({"images": np.ascontiguousarray(images)}, path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
        print(f"{start + len(images)}/{len(table)}", flush=True)


def pictures(start: int) -> Path:
    """The file of the batch that begins at sample ``start``."""
    return PICTURES / f"{start:05d}.safetensors"


def score(table: pd.DataFrame) -> None:
    """What both judges say of every picture, as `images.csv`."""
    judges = [probe.detector("emoji_cnn"), probe.detector("emoji_nearest")]
    parts = [
        scored(table.iloc[start : start + BATCH], load_file(pictures(start))["images"], judges)
        for start in range(0, len(table), BATCH)
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    pd.concat(parts).round(4).to_csv(RESULTS / "images.csv", index=False)


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


def false_alarms(table: pd.DataFrame) -> None:
    """Sheets (``runs/model/fires_*.png``) and a CSV of the pictures on which `emoji_cnn` sees another concept.

    Whether the picture does show what the judge says is for the eye: column ``eye`` of ``results/fires.csv``, 1 or 0.
    """
    from data.build.eyes import sheet

    seen = judged(
        table[table["kind"].isin(["object", "character", "profession"]) & ~table["concept"].isin(NEVER_DRAWN)]
    )
    data = json.loads((JUDGES / "emoji_cnn.json").read_text())
    cut = dict(zip(data["labels"], data["thresholds"], strict=True))
    said = seen["emoji_cnn/object"]
    passed = seen["emoji_cnn/object_score"].astype(float) >= [cut[f"object/{word}"] for word in said]
    fired = seen[passed & (said != "none") & (said != seen["concept"])]
    images = [load_file(pictures(i // BATCH * BATCH))["images"][i % BATCH] for i in fired.index]
    for start in range(0, len(images), 50):
        sheet(np.stack(images[start : start + 50]), start).save(RUNS / f"fires_{start:03d}.png")
    columns = {"prompt": "prompt", "concept": "concept", "emoji_cnn/object": "said", "emoji_cnn/object_score": "score"}
    fired[list(columns)].rename(columns=columns).assign(eye="").to_csv(RESULTS / "fires.csv", index=False)
    print(f"{len(fired)} of {len(seen)}")


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
    parser.add_argument("what", nargs="?", choices=("draw", "score", "thresholds", "lists", "check", "fires"))
    parser.add_argument("--share", default="1/1", help="of the drawing, as 1/2")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    world = probe.concepts(FOLDER)
    if args.what == "check":
        return check(world)
    if args.what in (None, "draw"):
        nth, of = map(int, args.share.split("/"))
        draw(plan(world), (nth, of))
        if args.what:
            return None
    if args.what in (None, "score"):
        score(plan(world))
    table = pd.read_csv(RESULTS / "images.csv", keep_default_na=False)
    if args.what in (None, "thresholds"):
        thresholds(table)
    if args.what in (None, "lists"):
        chosen = choose_lists(world, table)
        print({k: len(v) for k, v in chosen.items()})
    if args.what == "fires":
        false_alarms(table)
    if args.what is None:
        from data.build.card import write_card

        write_card(world, table)


if __name__ == "__main__":
    main()
