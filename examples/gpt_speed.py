"""Speed of sampling with GPT, beside a GPT-2 of the same sizes, and beside GPT without its cache.

    python examples/gpt_speed.py                                             # the default sizes, batches of 1 and 8
    python examples/gpt_speed.py --dim 768 --depth 12 --heads 12 --precision bfloat16

GPT.generate     draws all ids of the grid; each layer keeps the keys and values of earlier ids.
GPT-2, cache     draws as many ids in a plain loop over transformers' GPT2LMHeadModel with its DynamicCache, which was
                 faster on a CPU than transformers' `generate` and than a StaticCache. It has as many layers, heads,
                 codes and positions as the GPT, the same width and the same activation.
GPT, no cache    a plain loop over GPT.logits, which reads all time steps so far again for each id. It is slow, so it
                 draws only --uncached-ids ids, spread evenly from the first position to the last.

All choose an id from its logits by the same function, with all options at their defaults. The weights are random. The
samplers are timed in turn, because the speed of shared machines varies. The table has the median over the turns, and in
brackets the least and the most.

tokens/s                ids per second, of all samples of the batch together
speed of GPT.generate   how many times as fast as the sampler of the row, in the same turn
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from benchmarks.turns import add_machine, check_machine, seconds_in_turn, spread
from data.flags import integer, mistakes_in_one_line
from phenaki_pytorch import GPT
from phenaki_pytorch.priors.autoregressive import DEFAULTS, choose

OURS = "GPT.generate"
COLUMNS = ("batch", "sampler", "tokens/s", f"speed of {OURS}")


def build_models(args: argparse.Namespace) -> tuple[GPT, nn.Module]:
    """A GPT and a GPT-2 of the same sizes, in eval mode. Raises ValueError for sizes that do not fit together."""
    from transformers import GPT2Config, GPT2LMHeadModel  # takes seconds, and --help needs none of it

    gpt = GPT(num_tokens=args.num_tokens, grid=args.grid, dim=args.dim, depth=args.depth, heads=args.heads)
    config = GPT2Config(
        vocab_size=args.num_tokens,
        n_positions=math.prod(args.grid),
        n_embd=args.dim,
        n_layer=args.depth,
        n_head=args.heads,
        activation_function="quick_gelu",  # as in GPT; GPT-2's own takes more passes over memory
        tie_word_embeddings=False,
        bos_token_id=None,  # the defaults are beyond the codes
        eos_token_id=None,
    )
    dtype = getattr(torch, args.precision)
    return tuple(model.eval().to(args.device, dtype) for model in (gpt, GPT2LMHeadModel(config)))


def draw(logits: Tensor) -> Tensor:
    """Logits (b, k) -> ids (b,)."""
    return choose(logits, torch.rand(len(logits), device=logits.device), DEFAULTS)


@torch.no_grad()
def sample_gpt2(gpt2: nn.Module, batch_size: int) -> Tensor:
    """As many ids as a GPT-2 has positions, (b, n), with its cache. The id 0 stands for the learned start of GPT."""
    from transformers import DynamicCache

    ids = torch.zeros(batch_size, 1 + gpt2.config.n_positions, dtype=torch.int64, device=gpt2.device)
    cache = DynamicCache(config=gpt2.config)
    for position in range(gpt2.config.n_positions):
        # By position, because the argument's name differs between versions of transformers.
        logits = gpt2(ids[:, position : position + 1], cache, use_cache=True).logits
        ids[:, position + 1] = draw(logits[:, -1])
    return ids[:, 1:]


@torch.no_grad()
def sample_uncached(gpt: GPT, batch_size: int, count: int) -> Tensor:
    """The ids (b, p) at `count` positions, or at all where the grid has fewer, from a whole pass each."""
    t, h, w = gpt.grid
    ids = torch.zeros(batch_size, t * h * w, dtype=torch.int64, device=gpt.placement().device)
    positions = torch.linspace(0, t * h * w - 1, min(count, t * h * w)).long().tolist()
    for position in positions:
        known = ids[:, : (position // (h * w) + 1) * h * w]
        logits = gpt.logits(rearrange(known, "b (t h w) -> b t h w", h=h, w=w))
        ids[:, position] = draw(rearrange(logits, "b t h w k -> b (t h w) k")[:, position])
    return ids[:, positions]


def samplers_of(gpt: GPT, gpt2: nn.Module, batch_size: int, uncached_ids: int) -> dict[str, Callable[[], Tensor]]:
    """What is timed, by the names in the table."""
    return {
        OURS: partial(gpt.generate, batch_size=batch_size),
        "GPT-2, cache": partial(sample_gpt2, gpt2, batch_size),
        "GPT, no cache": partial(sample_uncached, gpt, batch_size, uncached_ids),
    }


def measured(samplers: dict[str, Callable[[], Tensor]], turns: int, device: str) -> dict[str, list[float]]:
    """The ids per second of each sampler in each turn, after one call of each to warm up."""
    counts = {name: sample().numel() for name, sample in samplers.items()}
    times = seconds_in_turn(samplers, turns, device)
    return {name: [counts[name] / each for each in times[name]] for name in samplers}


def line(batch_size: int, name: str, speeds: dict[str, list[float]]) -> str:
    """A row of the table, in Markdown."""
    ratios = [ours / other for ours, other in zip(speeds[OURS], speeds[name])]
    ratio = "" if name == OURS else spread(ratios, ".2f")
    return f"| {batch_size} | {name} | {spread(speeds[name], '.0f')} | {ratio} |"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dim", type=integer(), default=384, help="width of both models; default: %(default)s")
    add("--depth", type=integer(), default=8, help="layers; default: %(default)s")
    add("--heads", type=integer(), default=6, help="attention heads; default: %(default)s")
    add("--num-tokens", type=integer(), default=2048, help="codes; default: %(default)s")
    add("--grid", type=integer(), nargs=3, metavar=("T", "H", "W"), default=[4, 8, 8], help="default: %(default)s")
    add("--batch-sizes", type=integer(), nargs="+", default=[1, 8], help="default: %(default)s")
    add("--turns", type=integer(), default=5, help="default: %(default)s")
    add("--uncached-ids", type=integer(2), default=16, help="ids drawn without a cache; default: %(default)s")
    add_machine(parser)
    args = parser.parse_args(argv)
    check_machine(parser, args)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    with mistakes_in_one_line(__file__):
        gpt, gpt2 = build_models(args)
        sizes = [sum(weight.numel() for weight in model.parameters()) / 1e6 for model in (gpt, gpt2)]
        print(f"{sizes[0]:.1f} million parameters in GPT, {sizes[1]:.1f} in GPT-2; {args.device}, {args.precision}\n")
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
        for batch_size in args.batch_sizes:
            samplers = samplers_of(gpt, gpt2, batch_size, args.uncached_ids)
            speeds = measured(samplers, args.turns, args.device)
            print(*(line(batch_size, name, speeds) for name in samplers), sep="\n", flush=True)


if __name__ == "__main__":
    main()
