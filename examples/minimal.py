"""Train a text-to-video model from nothing in one short file, to read and to copy.

    python examples/minimal.py      # a few minutes on a processor; leaves runs/minimal.gif, "a red circle moves left"

Stage 1: CViViT, the tokenizer, learns to turn video into ids and back. Stage 2: MaskGit learns to fill in masked ids,
given a caption. Then Phenaki generates. The data are captioned clips of moving shapes, which are drawn, not downloaded.
train.py is the full program.
"""

import argparse
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from data.moving_shapes import MovingShapes
from phenaki_pytorch import CViViT, MaskGit, Phenaki

SIZE, FRAMES = 24, 5  # pixels of a side, frames of a clip
WORDS = ("a", "red", "green", "blue", "yellow", "purple", "white", "circle", "square", "triangle", "moves")
WORDS += ("left", "right", "up", "down")
LONGEST = 5  # words of a caption
WIDTH = {"dim": 96, "heads": 3, "dim_head": 32}  # of both transformers


def read_texts(texts: list[str]) -> tuple[Tensor, Tensor]:
    """The text encoder: captions -> embeddings (b, m, d), each a one-hot word and its one-hot position; mask (b, m)."""
    embeddings = torch.zeros(len(texts), LONGEST, len(WORDS) + LONGEST)
    mask = torch.zeros(len(texts), LONGEST, dtype=torch.bool)
    for row, text in enumerate(texts):
        for position, word in enumerate(text.split()):
            embeddings[row, position, WORDS.index(word)] = 1
            embeddings[row, position, len(WORDS) + position] = 1
            mask[row, position] = True
    return embeddings, mask


class Muon(torch.optim.SGD):
    """Steps along the momentum made orthogonal (https://kellerjordan.github.io/posts/muon/), for matrices only.

    With AdamW alone, both stages learn more slowly. torch.optim.Muon computes in bfloat16, which is slow on many
    processors.
    """

    @torch.no_grad()
    def step(self) -> None:
        [group] = self.param_groups
        for shape in {parameter.shape for parameter in group["params"]}:  # all matrices of a shape at once
            alike = [parameter for parameter in group["params"] if parameter.shape == shape]
            grad = torch.stack([parameter.grad for parameter in alike])
            momentum = self.state[alike[0]].setdefault("momentum", torch.zeros_like(grad)).lerp_(grad, 0.05)
            x = grad.lerp(momentum, 0.95)
            tall = shape[0] > shape[1]
            x = (x.mT if tall else x) / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):  # brings all singular values near 1
                gram = x @ x.mT
                x = 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
            size = group["lr"] * 0.2 * max(shape) ** 0.5  # so that a step is as large as one of AdamW
            for parameter, direction in zip(alike, x.mT if tall else x):
                parameter.sub_(direction, alpha=size)


def train(name: str, model: nn.Module, losses: Iterable[Tensor], steps: int, lr: float) -> None:
    """Train in `steps` steps; `losses` computes each of them only when it is asked for."""
    inside = {key: value for key, value in model.named_parameters() if ".blocks." in key and value.ndim == 2}
    others = [value for key, value in model.named_parameters() if key not in inside]
    optimizers = [Muon(inside.values(), lr=2 * lr), torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98))]
    cycle = {"total_steps": steps, "pct_start": 0.03, "cycle_momentum": False}
    schedules = [torch.optim.lr_scheduler.OneCycleLR(each, each.defaults["lr"], **cycle) for each in optimizers]
    began = time.perf_counter()
    for step, loss in zip(range(1, steps + 1), losses):
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in (*optimizers, *schedules):
            each.step()
        model.zero_grad()
        if step % 100 == 0:
            seconds = time.perf_counter() - began
            print(f"{name}: step {step} of {steps}, loss {loss.item():.4f}, {seconds:.0f} s", flush=True)


def clips_of(split: str, count: int) -> Subset:
    """Clips that do not turn: "moves" alone is learnt sooner."""
    data = MovingShapes(split, size=SIZE, num_frames=FRAMES)
    chosen = (index for index in range(len(data)) if len(set(data.clip(index).motions)) == 1)
    return Subset(data, list(islice(chosen, count)))


def train_tokenizer(steps: int) -> CViViT:
    sizes = {"image_size": SIZE, "patch_size": 4, "temporal_patch_size": 2, "spatial_depth": 2, "temporal_depth": 1}
    # FSQ needs no loss of its own: its codes are a fixed lattice of five numbers with four values each.
    codes = {"quantizer": "fsq", "quantizer_kwargs": {"levels": [4] * 5}, "codebook_size": 4**5, "code_dim": 5}
    cvivit = CViViT(**WIDTH, **sizes, **codes, temporal_window=1 + FRAMES // 2)
    clips = DataLoader(MovingShapes("tokenizer", size=SIZE, num_frames=FRAMES), batch_size=4)
    train("tokenizer", cvivit, (cvivit(batch["video"]) for batch in clips), steps, lr=2e-3)
    return cvivit


def train_phenaki(cvivit: CViViT, steps: int, clips: int) -> Phenaki:
    tokens = {"num_tokens": cvivit.codebook_size, "grid": cvivit.grid(FRAMES)}
    maskgit = MaskGit(**WIDTH, **tokens, depth=4, dim_context=len(WORDS) + LONGEST, schedule="cubic")
    phenaki = Phenaki(cvivit=cvivit, maskgit=maskgit, text_encoder=read_texts)  # freezes the tokenizer

    # Each clip is encoded only once.
    data = clips_of("captioned_video", clips)
    captions = [data.dataset.clip(index).caption for index in data.indices]
    ids = torch.cat([cvivit.encode(batch["video"]) for batch in DataLoader(data, batch_size=50)])
    context, context_mask = read_texts(captions)
    draws = (torch.randint(len(ids), (8,)) for _ in range(steps))
    losses = (phenaki(video_ids=ids[i], text_embeds=context[i], text_mask=context_mask[i]) for i in draws)
    train("maskgit", maskgit, losses, steps, lr=3e-3)
    return phenaki.eval()


def main(
    tokenizer_steps: int = 1200,
    maskgit_steps: int = 2200,
    clips: int = 3000,
    text: str = "a red circle moves left",
    path: Path = Path("runs/minimal.gif"),
) -> Phenaki:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("ab").close()  # a path that cannot be written fails here, not after the training
    torch.manual_seed(0)
    phenaki = train_phenaki(train_tokenizer(tokenizer_steps), maskgit_steps, clips)
    sampling = {"steps": 24, "cond_scale": 1.5, "temperature": 4.0, "token_temperature": (1.0, 0.05)}
    generator = torch.Generator().manual_seed(0)
    [video] = phenaki.generate([text], num_frames=FRAMES, generator=generator, **sampling)  # (3, f, h, w)
    frames = (video.clamp(0, 1) * 255).byte().permute(1, 2, 3, 0).numpy()
    images = [Image.fromarray(frame).resize((8 * SIZE, 8 * SIZE), Image.Resampling.NEAREST) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=200, loop=0)
    print(f"{path}: {text}")
    return phenaki


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
