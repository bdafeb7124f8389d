"""Record clips of ViZDoom, with captions and actions, as VideoGPT's data of this game were made.

    pip install ".[doom]"
    python examples/vizdoom_clips.py --out runs/doom --scenario health_gathering_supreme --episodes 1000 --seed 0

VideoGPT (https://arxiv.org/abs/2104.10157, section 4) records 1000 episodes of 100 steps of trained players in two
scenarios, and splits the episodes 8:1:1. Here the player follows rules. Each episode is cut into clips; every folder
OUT/train, valid and test holds mp4 files, captions.csv (file, caption) and actions.csv (file, frame, actions), and is a
folder of videos like any other: `train_tokenizer.py --data OUT/train`.

The scenario battle2 is no part of ViZDoom. Its file is in the package sample-factory:
`pip download --no-deps sample-factory==2.1.1`, unzip, and `--wad` sf_examples/vizdoom/doom/scenarios/battle2.wad.
"""

import argparse
from collections.abc import Sequence

from tqdm import tqdm

from data.flags import integer, mistakes_in_one_line, path
from data.outputs import alone
from data.vizdoom_clips import SCENARIOS, STEPS, Recorder, opened_game, play, summary


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=path, required=True, help="the folder of the data set, new or empty")
    parser.add_argument("--scenario", choices=SCENARIOS, default="health_gathering_supreme")
    parser.add_argument("--wad", type=path, help="the scenario's file, where ViZDoom does not bring it")
    parser.add_argument("--episodes", type=integer(), default=1000, help=f"of {STEPS} steps")
    parser.add_argument("--frames", type=integer(2, STEPS), default=20, help="frames of a clip")
    parser.add_argument("--size", type=integer(8, 120), default=64, help="height and width of the clips, even")
    parser.add_argument("--seed", type=integer(0), default=0)
    return parser.parse_args(argv)


def record(args: argparse.Namespace) -> Recorder:
    """Record the data set that the arguments ask for."""
    if args.size % 2:
        raise ValueError(f"--size must be even for mp4, got {args.size}")
    with alone(args.out):
        if found := sorted(path.name for path in args.out.iterdir() if path.name[0] != "."):
            raise ValueError(f"--out must be a new or empty folder, {args.out} holds {found[0]}")
        recorder = Recorder(args.out, args.frames)
        with opened_game(args.scenario, args.wad) as game:
            for number in tqdm(range(args.episodes), desc="episodes"):
                recorder.add(number, play(game, args.scenario, (args.seed, number), args.size))
        about = {name: getattr(args, name) for name in ("scenario", "episodes", "frames", "size", "seed")}
        recorder.finish(about)
    return recorder


def main(argv: Sequence[str] | None = None) -> None:
    with mistakes_in_one_line(__file__):
        print(summary(record(parse(argv))))


if __name__ == "__main__":
    main()
