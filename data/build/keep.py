"""Put the EMA weights of every network that still trains under ``data/build/resume``, to be committed.

    python -m data.build.keep

A later ``make model`` goes on from them, with fresh optimiser moments and a new warm-up. They go with the final model.
"""

from __future__ import annotations

from data.build.clip import RUNS
from data.build.training import keep_ema, resume_file


def main() -> None:
    for name in ("clip", "judge_clip", "vae", "unet"):
        state = RUNS / f"{name}.state.safetensors"
        if state.exists():
            keep_ema(state, resume_file(name))
            print(f"{resume_file(name).name}: {resume_file(name).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
