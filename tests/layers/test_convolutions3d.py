"""3-D convolutions with strides: lengths, padding and cropping are those of plain formulas."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from phenaki_pytorch.layers.convolutions3d import Convolution, DownConvolution, UpConvolution, strides_of_2

STRIDES = [(2, 2, 2), (1, 2, 2), (2, 1, 1), (1, 1, 1)]


def first(x):
    return rearrange(x, "b t h w c -> b c t h w")


def last(x):
    return rearrange(x, "b c t h w -> b t h w c")


@pytest.mark.parametrize("stride", STRIDES)
def test_each_axis_is_divided_and_multiplied_by_its_stride(stride):
    x = torch.randn(2, 4, 6, 8, 3)
    down = DownConvolution(3, 5, stride=stride)(x)
    assert down.shape == (2, *(length // each for length, each in zip((4, 6, 8), stride)), 5)
    assert UpConvolution(5, 3, stride=stride)(down).shape == x.shape


@pytest.mark.parametrize("stride", STRIDES)
def test_down_convolutions_pad_zeros_as_stated(stride):
    layer, x = DownConvolution(3, 5, stride=stride), torch.randn(1, 2, 4, 6, 3)
    padding = [side for each in reversed(stride) for side in ((1, 1) if each == 2 else (2, 1))]
    expected = last(F.conv3d(F.pad(first(x), padding), layer.weight, layer.bias, stride))
    torch.testing.assert_close(layer(x), expected)
    if 1 in stride:  # the longer side of the padding comes first
        padding = [side for each in reversed(stride) for side in ((1, 1) if each == 2 else (1, 2))]
        other = last(F.conv3d(F.pad(first(x), padding), layer.weight, layer.bias, stride))
        assert (other - expected).abs().max() > 1e-3


@pytest.mark.parametrize("stride", STRIDES)
def test_up_convolutions_crop_as_stated(stride):
    layer, x = UpConvolution(3, 5, stride=stride), torch.randn(1, 2, 4, 6, 3)
    whole = F.conv_transpose3d(first(x), layer.weight, layer.bias, stride)
    before, behind = 1, [1 if each == 2 else 2 for each in stride]
    t, h, w = (length - end for length, end in zip(whole.shape[2:], behind))
    torch.testing.assert_close(layer(x), last(whole[:, :, before:t, before:h, before:w]))
    # The released code pads the input instead, as for the convolution of the same strides, and crops 3 on both sides.
    padding = [side for each in reversed(stride) for side in ((1, 1) if each == 2 else (2, 1))]
    expected = F.conv_transpose3d(F.pad(first(x), padding), layer.weight, layer.bias, stride, padding=3)
    torch.testing.assert_close(layer(x), last(expected))


def test_kernel_3_keeps_the_size():
    layer, x = Convolution(3, 5, bias=False), torch.randn(2, 1, 4, 6, 3)
    torch.testing.assert_close(layer(x), last(F.conv3d(first(x), layer.weight, padding=1)))
    assert layer.bias is None and layer(x).shape == (2, 1, 4, 6, 5)


@pytest.mark.parametrize("build", [Convolution, lambda *c: DownConvolution(*c, stride=(1, 2, 2))])
def test_inputs_of_any_dtype_are_cast_to_the_weights(build):
    layer = build(3, 5).bfloat16()
    assert layer(torch.randn(1, 2, 4, 4, 3)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "strides, layers",
    [
        ((2, 4, 4), [(2, 2, 2), (1, 2, 2)]),
        ((2, 2, 2), [(2, 2, 2)]),
        ((4, 2, 2), [(2, 2, 2), (2, 1, 1)]),
        ((1, 4, 4), [(1, 2, 2), (1, 2, 2)]),
        ((1, 1, 8), [(1, 1, 2)] * 3),
        ((1, 1, 1), [(1, 1, 1)]),
    ],
)
def test_there_is_one_convolution_per_factor_of_2(strides, layers):
    assert strides_of_2(strides) == layers


@pytest.mark.parametrize("strides", [(2, 3, 4), (0, 2, 2), (2, -2, 2), (6, 2, 2)])
def test_strides_that_are_no_powers_of_2_are_refused(strides):
    with pytest.raises(ValueError, match=rf"powers of 2, got \({strides[0]}, {strides[1]}, {strides[2]}\)"):
        strides_of_2(strides)


@pytest.mark.parametrize("layer", [DownConvolution, UpConvolution])
def test_a_single_convolution_has_strides_of_1_or_2(layer):
    with pytest.raises(ValueError, match=r"strides of 1 or 2, got \(4, 1, 1\)"):
        layer(2, 2, stride=(4, 1, 1))
