"""What the programs that train a stage refuse before they begin, and what they take."""

import math

import pytest

import train
from data.flags import flag_of
from training import checks, tokenizer
from training.arguments import diffusion_arguments, fps, prior_arguments, tokenizer_arguments
from training.plans import words_of

PARSES = (tokenizer_arguments, prior_arguments, diffusion_arguments, train.parse_arguments)
NUMBERS_WITHOUT_DEFAULT = {"minutes", "fps", "distil_guidance", "size", "frames", "cond_scale", "image_weight"}
NUMBERS_WITHOUT_DEFAULT |= {"depth", "strides", "heads", "top_k", "top_p"}  # of other tokenizers and priors
COUNTS = {"token_temperature": 2, "strides": 3}


def number_names(parse):
    """The names of the arguments that are numbers, or lists of them."""
    for name, value in vars(parse([])).items():
        numbers = value if isinstance(value, list | tuple) and value else [value]
        if name in NUMBERS_WITHOUT_DEFAULT or all(type(each) in (int, float) for each in numbers):
            yield name


NUMBERS = [(parse, name) for parse in PARSES for name in number_names(parse)]


def refused(parse, argv, capsys):
    """The error with which a command line is refused."""
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2
    return capsys.readouterr().err.partition("error: ")[2]


@pytest.mark.parametrize("wrong", ["-1", "nan", "inf", "many"])
@pytest.mark.parametrize("parse, name", NUMBERS)
def test_every_number_has_a_range_and_is_finite(capsys, parse, name, wrong):
    said = refused(parse, [flag_of(name), *[wrong] * COUNTS.get(name, 1)], capsys)
    assert flag_of(name) in said or name in said


@pytest.mark.parametrize(
    "parse, flag, lowest",
    [
        (tokenizer_arguments, "--warmup", "0"),
        (tokenizer_arguments, "--ema", "0"),
        (tokenizer_arguments, "--temporal-depth", "0"),
        (tokenizer_arguments, "--seed", str(2**32 - 1)),
        (tokenizer_arguments, "--levels", "2"),
        (prior_arguments, "--prime-prob", "1"),
        (prior_arguments, "--stories", "0"),
        (prior_arguments, "--encoded", "1"),
        (train.parse_arguments, "--prior-steps", "1"),
    ],
)
def test_the_ends_of_a_range_are_taken(parse, flag, lowest):
    parse([flag, lowest])


@pytest.mark.parametrize(
    "parse, flag, values",
    [
        (tokenizer_arguments, "--clip", "0"),
        (tokenizer_arguments, "--lr", "0"),
        (tokenizer_arguments, "--ema", "1"),
        (tokenizer_arguments, "--steps", "0"),
        (tokenizer_arguments, "--steps", "2.5"),
        (tokenizer_arguments, "--levels", "4 1"),
        (tokenizer_arguments, "--other-sizes", "16 0"),
        (tokenizer_arguments, "--seed", str(2**32)),
        (tokenizer_arguments, "--adversarial-start", "1"),
        (tokenizer_arguments, "--adversarial-ramp", "1.1"),
        (prior_arguments, "--prime-prob", "2"),
        (prior_arguments, "--encoded", "0"),
        (train.parse_arguments, "--share", "1"),
        (train.parse_arguments, "--share", "0"),
        (train.parse_arguments, "--minutes", "0"),
    ],
)
def test_a_number_out_of_its_range_is_refused(capsys, parse, flag, values):
    assert f"argument {flag}: expected" in refused(parse, [flag, *values.split()], capsys)


OF_OTHER_PRIORS = [
    (prior, name, value)
    for prior, defaults in checks.PRIOR_DEFAULTS.items()
    for each in checks.PRIOR_DEFAULTS.values()
    for name, value in each.items()
    if name not in defaults
]


@pytest.mark.parametrize("prior, name, value", OF_OTHER_PRIORS)
def test_the_flags_of_the_other_prior_are_refused(prior, name, value, capsys):
    words = [flag_of(name)] if value is False else words_of(name, list(value) if name in COUNTS else value or 1)
    said = refused(prior_arguments, ["--prior", prior, *words], capsys)
    assert f"{flag_of(name)} would have no effect on a {prior}" in said


IDLE = [
    (tokenizer_arguments, "--fps 8", "--fps would have no effect on moving shapes"),
    (tokenizer_arguments, "--stride 1 --flip", "--stride, --flip would have no effect on moving shapes"),
    (tokenizer_arguments, "--data . --fps 8 --stride 2", "--stride would have no effect beside --fps"),
    (tokenizer_arguments, "--data . --video-weight 0 --fps 8", "--fps would have no effect without videos"),
    (tokenizer_arguments, "--minutes 1 --steps 5", "--steps would have no effect beside --minutes"),
    (tokenizer_arguments, "--perceptual-steps 5", "--perceptual-steps would have no effect without --image-perceptual"),
    (tokenizer_arguments, "--codebook-size 64", "--codebook-size would have no effect with --quantizer fsq"),
    (tokenizer_arguments, "--quantizer vq --levels 4 4", "--levels would have no effect with --quantizer vq"),
    (tokenizer_arguments, "--video-perceptual 1 --frames 1", "--video-perceptual would have no effect without videos"),
    (tokenizer_arguments, "--video-perceptual 1 --video-weight 0", "--video-perceptual would have no effect"),
    *[
        (tokenizer_arguments, f"{flag_of(name)} {value}", f"{flag_of(name)} would have no effect without --adversarial")
        for name, value in zip(checks.ADVERSARIAL, (0.5, 0.5, 2, 0.5, 8, 0.5), strict=True)
    ],
    (prior_arguments, "--critic-scale 2", "--critic-scale would have no effect without a critic"),
    (prior_arguments, "--critic-inline", "--critic-inline would have no effect without a critic"),
    (prior_arguments, "--crossed-weight 1", "--crossed-weight would have no effect without --distil-guidance"),
    (prior_arguments, "--model m --distil-guidance 2 --image-weight 0 --crossed-weight 1", "without both videos and"),
    (tokenizer_arguments, "--tokenizer vqgan --adversarial 1 --r1-weight 1", "no effect on LAION's discriminator"),
    (prior_arguments, "--prior gpt --condition frames --prompts 5", "--prompts would have no effect with --condition"),
    (prior_arguments, "--prior gpt --condition text --frame-encoder map", "--frame-encoder would have no effect with"),
    (prior_arguments, "--condition none --text-encoder words", "--text-encoder would have no effect with --condition"),
    (prior_arguments, "--data . --prompts 5", "--prompts would have no effect on a folder"),
    (prior_arguments, "--condition none --stories 5", "--stories would have no effect with --condition none"),
    (prior_arguments, "--condition none --cond-scale 2", "--cond-scale would have no effect with --condition none"),
    (prior_arguments, "--cond-scale 1 --guide-every 2", "--guide-every would have no effect without guidance"),
    (prior_arguments, "--video-weight 0 --prime-prob 0.5", "--prime-prob would have no effect without videos"),
    (diffusion_arguments, "--condition none --cond-scale 2", "--cond-scale would have no effect with --condition none"),
    (diffusion_arguments, "--condition classes --prompts 5", "--prompts would have no effect with --condition classes"),
    (diffusion_arguments, "--data . --prompts 5", "--prompts would have no effect on a folder"),
    (
        diffusion_arguments,
        "--condition classes --text-encoder words",
        "--text-encoder would have no effect with --cond",
    ),
    (train.parse_arguments, "--share 0.5", "--share would have no effect without --minutes"),
    (train.parse_arguments, "--minutes 1 --prior-steps 5", "--prior-steps would have no effect beside --minutes"),
]


@pytest.mark.parametrize("parse, argv, message", IDLE)
def test_arguments_without_effect_are_refused(capsys, parse, argv, message):
    assert message in refused(parse, argv.split(), capsys)


APART = [
    (tokenizer_arguments, "--adversarial 0.4 --other-sizes 48", "the discriminator reads frames of one size"),
    (tokenizer_arguments, "--data . --image-perceptual 1", "the perceptual networks here learn the labels"),
    (tokenizer_arguments, "--video-weight 0 --image-weight 0", "expected one of them above 0"),
    (tokenizer_arguments, f"--data {__file__}", "--data must be moving_shapes or a folder"),
    (tokenizer_arguments, f"--out {__file__}", f"--out needs {__file__} to be a folder"),
    (tokenizer_arguments, "--out run --model run/model", "--model must lie outside of --out"),
    (prior_arguments, "--out run --model run/model", "--model must lie outside of --out"),
    (prior_arguments, "--critic token --critic-inline", "expected --critic self, got token"),
    (prior_arguments, "--critic self --critic-inline --critic-scale 2", "critic_scale must be 1"),
    (prior_arguments, "--distil-guidance 2", "--distil-guidance needs a --model to learn from"),
    (prior_arguments, "--model m --distil-guidance 2 --condition none", "guidance needs texts"),
    (prior_arguments, "--model m --tokenizer t", "expected no --tokenizer"),
    (prior_arguments, "--prior gpt --condition none text", "--condition none stands alone, got none text"),
    (prior_arguments, "--condition classes", "a maskgit reads texts alone: expected --condition text or none"),
    (prior_arguments, "--prior gpt --condition actions", "moving shapes have no actions"),
    (diffusion_arguments, "--model m --tokenizer t", "expected no --tokenizer and no --vae"),
    (diffusion_arguments, "--vae v --tokenizer t", "expected no --tokenizer"),
    (diffusion_arguments, "--patches compressed --joint-images 2", "expected --patches uniform"),
    (diffusion_arguments, "--video-weight 0 --joint-images 2", "expected a --video-weight above 0"),
    (diffusion_arguments, "--sampler ddpm --eta 0.5", "eta is of the sampler 'ddim'"),
    (prior_arguments, "--prior gpt --temperature 0", "temperature must be finite and above 0"),
]


@pytest.mark.parametrize("parse, argv, message", APART)
def test_arguments_that_do_not_go_together_are_refused(capsys, parse, argv, message):
    assert message in refused(parse, argv.split(), capsys)


@pytest.mark.parametrize(
    "parse, argv",
    [
        (tokenizer_arguments, "--adversarial 0.5 --judged-frames 2 --r1-weight 0"),
        (tokenizer_arguments, "--image-perceptual 0.1 --perceptual-steps 5"),
        (tokenizer_arguments, "--quantizer lfq --codebook-size 64"),
        (tokenizer_arguments, "--data . --fps 8 --flip"),
        (prior_arguments, "--critic self --critic-inline"),
        (prior_arguments, "--model m --critic-inline"),
        (prior_arguments, "--model m --distil-guidance 2 --crossed-weight 1"),
        (prior_arguments, "--data . --prompts 0 --stories 0 --stride 2"),
        (prior_arguments, "--prior gpt --condition classes frames text --top-k 5 --top-p 0.5 --cond-scale 3"),
        (prior_arguments, "--prior gpt --data . --condition actions --prompts 0 --axes time --positions sincos"),
        (prior_arguments, "--prior gpt --condition frames classes --frame-encoder map"),
        (diffusion_arguments, "--condition classes --cond-scale 4 --joint-images 2 --variant 3 --sampler ddpm"),
        (diffusion_arguments, "--vae v --size 16 --data . --condition none --patches compressed"),
        (train.parse_arguments, "--minutes 1 --share 0.5"),
    ],
)
def test_the_same_arguments_are_taken_where_they_have_an_effect(parse, argv):
    parse(argv.split())


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--other-sizes 18", "--size, --other-sizes or --frames does not fit"),
        ("--frames 6", "a clip needs 1 \\+ k · 2 frames"),
        ("--quantizer lfq --codebook-size 500", "--codebook-size, .* does not fit: .*must be a power of 2"),
        ("--size 15", "--size, .* does not fit: .*must be multiples of the patch"),
        ("--levels 40000 40000 40000 40000 40000", "--levels, .* does not fit: "),
        ("--size 2 --patch-size 2 --adversarial 1", "--size or --discriminator-dim does not fit: image_size"),
        ("--model nowhere", "no tokenizer in nowhere"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_any_data_is_read(monkeypatch, tmp_path, argv, message):
    monkeypatch.setattr(tokenizer, "tokenizer_data", lambda args: pytest.fail("the data was read"))
    with pytest.raises(ValueError, match=message):
        tokenizer.train_tokenizer(tokenizer_arguments([*argv.split(), "--precision", "no", "--out", str(tmp_path)]))


def test_a_file_in_place_of_a_folder_of_results_is_found_at_the_start(capsys, tmp_path):
    (tmp_path / "model").touch()
    for parse in (tokenizer_arguments, prior_arguments, diffusion_arguments):
        assert f"--out needs {tmp_path / 'model'} to be a folder" in refused(parse, ["--out", str(tmp_path)], capsys)


@pytest.mark.parametrize("given, expected", [("0.01", 1.0), ("12.5", 12.5), ("1000", 50.0)])
def test_every_frame_rate_gives_a_gif_that_can_be_written(given, expected):
    assert math.isclose(fps(tokenizer_arguments(["--data", ".", "--fps", given])), expected)
