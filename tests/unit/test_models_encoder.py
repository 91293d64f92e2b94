"""Encoder and predictor: their size, their names, and what they must not depend on."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from neurovfm_core.models.config import ENCODER_SIZES, EncoderConfig, PredictorConfig
from neurovfm_core.models.encoder import Encoder
from neurovfm_core.models.positions import positional_code
from neurovfm_core.models.predictor import Predictor

SMALL = EncoderConfig(width=48, depth=2, num_heads=3)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def packed_batch(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(sum(lengths), 1024, generator=generator)
    coords = torch.randint(0, 20, (sum(lengths), 3), generator=generator)
    return tokens, coords


@pytest.mark.parametrize(("size", "count"), [("tiny", 5_502_498), ("small", 21_652_578), ("base", 85_803_234)])
def test_an_encoder_has_as_many_parameters_as_the_published_one(size, count):
    with torch.device("meta"):
        assert num_parameters(Encoder(ENCODER_SIZES[size], seed=None)) == count


def test_the_default_predictor_has_as_many_parameters_as_the_published_one():
    predictor = Predictor(768, PredictorConfig())
    assert num_parameters(predictor) == 86_251_776
    own = {name for name, _ in predictor.named_parameters() if not name.startswith(("blocks.", "norm."))}
    linear = {f"{n}_vision_encoder.{kind}" for n in ("from", "to") for kind in ("weight", "bias")}
    assert own == linear | {"mask_tokens.0"}


def test_the_names_and_shapes_of_a_base_encoder_are_the_published_ones():
    with torch.device("meta"):
        shapes = {name: tuple(x.shape) for name, x in Encoder(ENCODER_SIZES["base"], seed=None).named_parameters()}
    expected = {
        "token_embed.proj.weight": (738, 1024),
        "token_embed.proj.bias": (738,),
        "norm.weight": (768,),
        "norm.bias": (768,),
    }
    for i in range(12):
        for norm in ("norm1", "norm2"):
            expected |= {f"blocks.{i}.{norm}.{kind}": (768,) for kind in ("weight", "bias")}
        expected |= {
            f"blocks.{i}.mixer.qkv.weight": (2304, 768),
            f"blocks.{i}.mixer.qkv.bias": (2304,),
            f"blocks.{i}.mixer.proj.weight": (768, 768),
            f"blocks.{i}.mlp.fc1.weight": (3072, 768),
            f"blocks.{i}.mlp.fc1.bias": (3072,),
            f"blocks.{i}.mlp.fc2.weight": (768, 3072),
            f"blocks.{i}.mlp.fc2.bias": (768,),
        }
    assert shapes == expected


def test_the_position_code_is_its_formula():
    code = positional_code(torch.tensor([[0, 7, 19], [3, 191, 1000]]))
    for row, position in zip(code.tolist(), [(0, 7, 19), (3, 191, 1000)], strict=True):
        expected = []
        for p in position:
            for k in range(5):
                angle = p * 10_000 ** (-2 * k / 10)
                expected += [math.sin(angle), math.cos(angle)]
        assert row == pytest.approx(expected, abs=2e-5)


def test_an_encoder_agrees_with_the_transformer_of_torch():
    encoder = Encoder(SMALL, seed=4)
    for parameter in encoder.parameters():  # biases and norms too, or half the test compares zeros
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    layers = []
    for block in encoder.blocks:
        layer = nn.TransformerEncoderLayer(
            48, 3, 192, dropout=0.0, activation=nn.GELU("tanh"), layer_norm_eps=1e-6, norm_first=True,
            batch_first=True,
        )  # fmt: skip
        layer.self_attn.in_proj_weight.data = block.mixer.qkv.weight.data
        layer.self_attn.in_proj_bias.data = block.mixer.qkv.bias.data
        layer.self_attn.out_proj.weight.data = block.mixer.proj.weight.data
        layer.self_attn.out_proj.bias.data.zero_()
        layer.linear1, layer.linear2 = block.mlp.fc1, block.mlp.fc2
        layer.norm1, layer.norm2 = block.norm1, block.norm2
        layers.append(layer)
    tokens, coords = packed_batch([11])
    embedded = tokens @ encoder.token_embed.proj.weight.T + encoder.token_embed.proj.bias
    x = torch.cat((embedded, positional_code(coords)), -1)[None]
    for layer in layers:
        x = layer(x)
    expected = nn.functional.layer_norm(x[0], (48,), encoder.norm.weight, encoder.norm.bias, 1e-6)
    torch.testing.assert_close(encoder(tokens, coords, [11]), expected, atol=1e-5, rtol=1e-5)


def test_a_volume_has_the_same_features_alone_and_in_a_batch():
    encoder, lengths = Encoder(SMALL, seed=1), [9, 1, 14]
    tokens, coords = packed_batch(lengths)
    together = encoder(tokens, coords, lengths).split(lengths)
    for x, c, expected in zip(tokens.split(lengths), coords.split(lengths), together, strict=True):
        torch.testing.assert_close(encoder(x, c, [len(x)]), expected, atol=1e-5, rtol=1e-5)


def test_features_follow_the_tokens_when_these_change_places():
    encoder = Encoder(SMALL, seed=1)
    tokens, coords = packed_batch([12])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    features = encoder(tokens, coords, [12])
    torch.testing.assert_close(encoder(tokens[order], coords[order], [12]), features[order], atol=1e-5, rtol=1e-5)
    moved = encoder(tokens, coords[order], [12])
    assert (moved - features).abs().max() > 0.01  # the place of a token does matter


def test_a_prediction_is_the_same_alone_and_in_a_batch():
    predictor = Predictor(48, PredictorConfig(width=36, depth=2, num_heads=3), seed=2)
    nn.init.normal_(predictor.mask_tokens[0], std=0.1)
    _, coords = packed_batch([6, 8])
    context, target = torch.tensor([0, 4, 7, 9]), torch.tensor([1, 2, 3, 5, 6, 8, 10, 11, 12, 13])
    features = torch.randn(4, 48, generator=torch.Generator().manual_seed(5))
    together = predictor(features, context, target, coords, [6, 8])
    first = predictor(features[:2], context[:2], target[:4], coords[:6], [6])
    second = predictor(features[2:], context[2:] - 6, target[4:] - 6, coords[6:], [8])
    torch.testing.assert_close(together, torch.cat((first, second)), atol=1e-5, rtol=1e-5)


def test_a_prediction_depends_on_the_context_and_on_the_place_of_the_target():
    predictor = Predictor(48, PredictorConfig(width=36, depth=2, num_heads=3), seed=2)
    _, coords = packed_batch([6])
    context, target = torch.tensor([0, 1]), torch.tensor([2, 3, 4, 5])
    features = torch.randn(2, 48, generator=torch.Generator().manual_seed(5))
    predicted = predictor(features, context, target, coords, [6])
    assert not torch.allclose(predicted, predictor(features + 1, context, target, coords, [6]), atol=1e-4)
    assert not torch.allclose(predicted[0], predicted[1], atol=1e-4)


def test_start_weights_belong_to_the_seed_and_shrink_with_depth():
    config = EncoderConfig(width=192, depth=8, num_heads=3)
    one, same, other = Encoder(config, seed=1), Encoder(config, seed=1), Encoder(config, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.token_embed.proj.weight, other.token_embed.proj.weight)
    assert one.blocks[3].mixer.qkv.weight.std().item() == pytest.approx(0.02, rel=0.03)
    for i, block in enumerate(one.blocks, start=1):
        assert block.mlp.fc2.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * i), rel=0.03)
        assert block.mixer.proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * i), rel=0.03)
        assert not block.mlp.fc1.bias.any()
    assert not Predictor(48, PredictorConfig(width=36, depth=1, num_heads=3)).mask_tokens[0].any()


def test_start_weights_do_not_depend_on_the_global_random_state():
    torch.manual_seed(0)
    first = Encoder(SMALL, seed=3).blocks[0].mixer.qkv.weight
    torch.manual_seed(99)
    assert torch.equal(first, Encoder(SMALL, seed=3).blocks[0].mixer.qkv.weight)


@pytest.mark.parametrize(
    "shape",
    [
        {"width": 50, "num_heads": 3},
        {"width": 30, "num_heads": 3},
        {"width": 48, "num_heads": 3, "code_width": 20},
        {"width": 48, "num_heads": 3, "widht": 3},
    ],
)
def test_an_impossible_shape_is_refused(shape):
    with pytest.raises(ValidationError):
        EncoderConfig(depth=1, **shape)
