"""What a prior is told of a clip stays with the clip, from the data set to the batch."""

import torch
from torch.utils.data import Dataset

from conftest import WordEncoder, tiny_vqvae
from data.conditions import CONDITIONS, Captions, Conditions
from data.encoded import encode_all

NAMES = ["clip", "film", "video"]


class Clips(Dataset):
    """Clips of 4 frames, of which the first, the caption and the actions tell the index."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        video = torch.rand(3, 4, 16, 16, generator=torch.Generator().manual_seed(index))
        video[:, 0] = index / 255
        actions = torch.tensor([[index + frame, index % 2] for frame in range(4)]).float()
        return {"video": video, "caption": NAMES[index % 3], "actions": actions}


def test_what_is_told_stays_with_its_clip():
    clips, encoder, tokenizer = Clips(), WordEncoder(), tiny_vqvae()
    conditions = Conditions(CONDITIONS, encoder=encoder, classes=NAMES, actions=["one", "other"])
    encoded = encode_all(tokenizer, clips, 50, seed=0, device=torch.device("cpu"), tell=conditions.tell)
    seen = []
    for part in encoded.split(20):
        batch = conditions.collate([part.draw(index, epoch=0) for index in range(len(part))])
        indices = (255 * batch["frames"].mean(dim=(1, 2, 3, 4))).round().int().tolist()
        items = [clips[index] for index in indices]
        assert torch.equal(batch["video_ids"], tokenizer.encode(torch.stack([item["video"] for item in items])))
        assert torch.equal(batch["actions"], torch.stack([item["actions"] for item in items]))
        assert batch["classes"].tolist() == [index % 3 for index in indices]
        embeds, mask = encoder([item["caption"] for item in items])
        assert torch.equal(batch["text_embeds"], embeds) and torch.equal(batch["text_mask"], mask)
        assert batch["frames"].shape[1:] == (3, 1, 16, 16) and batch["frames"].max() <= 1
        seen += indices
    assert sorted(seen) == list(range(50))


def test_nothing_else_is_told():
    items = [Clips()[0], Clips()[1]]
    for name in CONDITIONS:
        assert Conditions([name], encoder=WordEncoder()).tell(items).keys() == {name} & {"frames", "actions"}
    conditions = Conditions(["none"], encoder=WordEncoder())
    assert conditions.texts.width is None and conditions.tell(items) == {}
    assert conditions.collate([{"latents": torch.zeros(2, 2, 2), "caption": "clip"}]).keys() == {"video_ids"}


def test_each_caption_is_encoded_once_and_padded_to_the_longest():
    encoder = WordEncoder()
    captions = Captions(encoder)
    assert captions.width == 12
    for texts in (["a b c", "a"], ["a", "d e", "a b c"]):
        embeds, mask = captions(texts)
        assert mask.sum(dim=1).tolist() == [len(text.split()) for text in texts]
        assert all(torch.equal(embeds[i][mask[i]], WordEncoder()([text])[0][0]) for i, text in enumerate(texts))
    asked = [text for call in encoder.calls for text in call]
    assert len(asked) == len(set(asked)) == 4
