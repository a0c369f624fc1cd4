"""Retrain the embedded model from the atlas: every stage in order, each resumable, finished ones skipped
(``make model``).

    python -m data.build.make [--until STAGE] [--threads 2]

Stages: clip, judge_clip, vae, unet, none (the generator's failures, for the judges), redrawn
(renders it has gone over), cnn, nearest, assemble, measure.
State lies under ``runs/model`` (ignored by git); delete it to start from nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path

from data.build.clip import RUNS

log = logging.getLogger(__name__)

STAGES: dict[str, tuple[str, ...]] = {
    "clip": ("data.build.clip", "clip"),
    "vae": ("data.build.vae",),
    "unet": ("data.build.unet",),
    "judge_clip": ("data.build.clip", "judge_clip"),
    "none": ("data.build.judges", "none"),
    "redrawn": ("data.build.judges", "redrawn"),
    "cnn": ("data.build.judges", "cnn"),
    "nearest": ("data.build.judges", "nearest"),
    "assemble": ("data.build.assemble",),
    "measure": ("data.build.measure",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--until", choices=STAGES, default="measure")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    RUNS.mkdir(parents=True, exist_ok=True)
    stamp_file: Path = RUNS / "stages.json"
    done: list[str] = json.loads(stamp_file.read_text()) if stamp_file.exists() else []
    for stage, command in STAGES.items():
        if stage not in done:
            log.info("stage %s", stage)
            threads = [] if stage in {"assemble"} else ["--threads", str(args.threads)]
            subprocess.run([sys.executable, "-m", *command, *threads], check=True)
            done.append(stage)
            stamp_file.write_text(json.dumps(done))
        if stage == args.until:
            break


if __name__ == "__main__":
    main()
