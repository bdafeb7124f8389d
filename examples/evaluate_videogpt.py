"""Measure how a VideoGPT follows its conditions: the loss with each of them shuffled, motion and turns of its samples.

    python examples/evaluate_videogpt.py --model runs/frames/model                             # moving shapes
    python examples/evaluate_videogpt.py --model runs/doom/model --data runs/doom/test --sheet turns.png

The loss is in thousandths of a bit per value of a pixel, over clips that the model was not trained on: those of --data,
or moving shapes. A model that is told first frames continues those of --count clips: moving shapes are judged by their
velocity. A model that is also told actions makes a video under each action from the same first frame. Their turns are
judged by the horizontal shift from frame to frame, and --sheet shows them. The sampling options are the plan's.
"""

import argparse
from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from data.encoded import encode_all
from data.flags import integer, mistakes_in_one_line, path
from data.media import write_sheet
from data.moving_shapes import MovingShapes
from data.runs import SEED, device_of, labels_of, load_model, read_plan
from data.sampling import add_sampling, asked_sampling, check_sampling, planned_sampling
from data.targets import check_targets, png
from data.video_folder import VideoFolder
from evaluation.conditional import conditions_of, millibits_per_dimension, steady_motion, steered
from evaluation.measures import table
from phenaki_pytorch import VideoGPT

SHOWN = 3  # first frames on the sheet


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=path, required=True, help="the folder model/ that train_prior.py left")
    add("--data", type=path, help="a folder of videos; default: moving shapes")
    add("--clips", type=integer(), default=200, help="for the loss; default: %(default)s")
    add("--count", type=integer(), default=60, help="first frames to continue; default: %(default)s")
    add("--seed", type=SEED, default=1, help="of the clips and the samples; default: %(default)s")
    add("--sheet", type=png, help="a PNG: the videos under each action from the same first frames")
    add_sampling(parser)
    return parser.parse_args(argv)


def data_of(args: argparse.Namespace, model: VideoGPT, plan: dict) -> Dataset:
    """Clips of one window that the model was not trained on, at the rate of its training."""
    if args.data is None:
        size = model.tokenizer.image_size[0]
        return MovingShapes("captioned_video", size=size, num_frames=model.window, seed=args.seed)
    rate = {"fps": plan["fps"]} if plan.get("fps") else {"stride": plan.get("stride", 1)}
    return VideoFolder(args.data, size=model.tokenizer.image_size, num_frames=model.window, seed=args.seed, **rate)


def evaluate(args: argparse.Namespace, model: VideoGPT) -> None:
    """Measure and print all that goes with the model."""
    plan, labels = read_plan(args.model), labels_of(args.model, model)
    sampling = planned_sampling(plan | {"prior": "gpt"})
    sampling |= {name: value for name, value in asked_sampling(args, "gpt").items() if value is not None}
    check_sampling(asked_sampling(args), sampling, model)
    conditions, dataset = conditions_of(model, labels), data_of(args, model, plan)
    options = {"seed": args.seed, "device": device_of(model), "tell": conditions.tell}
    clips = encode_all(model.tokenizer, dataset, args.clips, **options)
    table(millibits_per_dimension(model, clips, conditions, seed=args.seed))
    options = {"seed": args.seed, "sampling": sampling}
    if conditions.names == {"frames"} and args.data is None:
        table(steady_motion(model, args.count, **options))
    if conditions.names == {"frames", "actions"}:
        first = torch.stack([dataset.draw(index, 0)["video"][:, 0] for index in range(min(args.count, len(dataset)))])
        videos, measured = steered(model, first, labels.actions, **options)
        table(measured)
        if args.sheet:
            rows = [(action, each[index]) for index in range(min(SHOWN, len(first))) for action, each in videos.items()]
            write_sheet(args.sheet, rows, columns=model.window, scale=1)
    elif args.sheet:
        raise ValueError("--sheet shows the videos of a model that is told first frames and actions, this one is not")


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    with mistakes_in_one_line(__file__):
        check_targets({"--sheet": args.sheet})
        model = load_model(args.model)
        if not isinstance(model, VideoGPT):
            raise ValueError(f"{args.model} holds a {type(model).__name__}, expected a VideoGPT: see evaluate.py")
        evaluate(args, model)


if __name__ == "__main__":
    main()
