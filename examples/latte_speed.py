"""Speed and memory of LatteTransformer beside diffusers' LatteTransformer3DModel with the same weights.

    python examples/latte_speed.py                                  # Latte-S with a text, 16 frames of 256×256 pixels
    python examples/latte_speed.py --dim 1152 --depth 28 --heads 16 --device cuda --precision bfloat16

Both predict the noise of one step of sampling with guidance: a batch of two, the text and the null text. The weights
are random and the same in both, and so are latents, time and texts; the largest difference of the outputs is printed.
The models are timed in turn, because the speed of shared machines varies. The table has the median over the turns, and
in brackets the least and the most.

s/step     seconds of one step
speed      how many times as fast as diffusers' in the same turn
memory     MiB in use at most in a step, above what is in use before it: a CPU's allocator gives no exact figure
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from benchmarks.machine import mebibytes, reset_peak
from benchmarks.turns import add_machine, check_machine, seconds_in_turn, spread
from data.flags import integer, mistakes_in_one_line
from phenaki_pytorch import LatteTransformer
from phenaki_pytorch.diffusion.conversion import from_diffusers

OURS, THEIRS = "LatteTransformer", "diffusers"
COLUMNS = ("model", "s/step", f"speed of {OURS}", "memory, MiB")
CODE_DIM = 4  # channels of Stable Diffusion's latents
TEXT_DIM = 4096  # of T5-XXL
TEXT_TOKENS = 120


def build_models(args: argparse.Namespace) -> tuple[LatteTransformer, nn.Module]:
    """Ours and diffusers', of the same weights, in eval mode. Raises ValueError for sizes that do not fit together."""
    from diffusers import LatteTransformer3DModel  # takes seconds, and --help needs none of it

    t, h, w = args.grid
    sizes = {"dim": args.dim, "depth": args.depth, "heads": args.heads, "dim_context": TEXT_DIM}
    ours = LatteTransformer(code_dim=CODE_DIM, grid=args.grid, **sizes)
    if h != w:
        raise ValueError(f"diffusers' model has square frames: expected --grid T H H, got {t} {h} {w}")
    theirs = LatteTransformer3DModel(
        sample_size=h,
        video_length=t,
        patch_size=2,
        in_channels=CODE_DIM,
        out_channels=2 * CODE_DIM,
        num_layers=args.depth // 2,
        num_attention_heads=args.heads,
        attention_head_dim=args.dim // args.heads,
        cross_attention_dim=args.dim,
        caption_channels=TEXT_DIM,
        attention_bias=True,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        num_embeds_ada_norm=1000,
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    ours.load_state_dict(from_diffusers(theirs.state_dict(), torch.zeros(TEXT_DIM)))
    return tuple(model.eval().to(args.device, getattr(torch, args.precision)) for model in (ours, theirs))


def steps_of(ours: LatteTransformer, theirs: nn.Module, grid: Sequence[int]) -> dict[str, Callable[[], Tensor]]:
    """What is timed, by the names in the table; each gives (b, t, h, w, 2 e) for a batch of two."""
    like = ours.placement()
    latents = torch.randn(2, *grid, CODE_DIM, device=like.device, dtype=like.dtype)
    texts = torch.randn(2, TEXT_TOKENS, TEXT_DIM, device=like.device, dtype=like.dtype)
    time = torch.full((2,), 500, device=like.device)
    turned = rearrange(latents, "b t h w e -> b e t h w").contiguous()

    @torch.no_grad()
    def our_step() -> Tensor:
        return ours(latents, time, context=texts)

    @torch.no_grad()
    def their_step() -> Tensor:
        output = theirs(turned, timestep=time, encoder_hidden_states=texts).sample
        return rearrange(output, "b e t h w -> b t h w e")

    return {OURS: our_step, THEIRS: their_step}


def measured(steps: dict[str, Callable[[], Tensor]], turns: int, device: str) -> dict[str, list[float]]:
    """The seconds of each model in each turn, after one call of each to warm up."""
    for step in steps.values():
        step()
    return seconds_in_turn(steps, turns, device)


def memory_of(step: Callable[[], Tensor], device: str) -> float:
    """The MiB in use at most in a step, above what is in use before it."""
    reset_peak(device)
    before = mebibytes(device)
    step()
    return mebibytes(device) - before


def line(name: str, times: dict[str, list[float]], memory: float) -> str:
    """A row of the table, in Markdown."""
    ratios = [other / ours for ours, other in zip(times[OURS], times[name])]
    ratio = "" if name == OURS else spread(ratios, ".2f")
    return f"| {name} | {spread(times[name], '.2f')} | {ratio} | {memory:.0f} |"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dim", type=integer(), default=384, help="width of both models; default: %(default)s")
    add("--depth", type=integer(), default=12, help="blocks, of space and of time in turn; default: %(default)s")
    add("--heads", type=integer(), default=6, help="attention heads; default: %(default)s")
    add("--grid", type=integer(), nargs=3, metavar=("T", "H", "W"), default=[16, 32, 32], help="default: %(default)s")
    add("--turns", type=integer(), default=5, help="default: %(default)s")
    add_machine(parser)
    args = parser.parse_args(argv)
    check_machine(parser, args)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    with mistakes_in_one_line(__file__):
        ours, theirs = build_models(args)
        steps = steps_of(ours, theirs, args.grid)
        difference = float((steps[OURS]() - steps[THEIRS]()).abs().max())
        parameters = sum(weight.numel() for weight in ours.parameters()) / 1e6
        print(
            f"{parameters:.1f} million parameters; {args.device}, {args.precision}; outputs differ by {difference:.1e}"
        )
        memory = {name: memory_of(step, args.device) for name, step in steps.items()}
        times = measured(steps, args.turns, args.device)
        print(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        print(*(line(name, times, memory[name]) for name in steps), sep="\n", flush=True)


if __name__ == "__main__":
    main()
