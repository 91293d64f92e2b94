"""Encoders on disk: our own, those of others, and damaged ones."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from neurovfm_core.errors import IntegrityError, UsageError
from neurovfm_core.models.checkpoints import encoder_digest, load_encoder, save_encoder
from neurovfm_core.models.config import EncoderConfig
from neurovfm_core.models.encoder import Encoder

CONFIG = EncoderConfig(width=48, depth=2, num_heads=4)


@pytest.fixture
def encoder():
    return Encoder(CONFIG, seed=7)


@pytest.fixture
def folder(tmp_path, encoder):
    save_encoder(tmp_path / "encoder", encoder, card={"steps": 3})
    return tmp_path / "encoder"


def published(tmp_path, weights):
    """Lay weights out as the authors publish them: config.json and a pickle, no card."""
    params = {"embed_dim": 48, "depth": 2, "num_heads": 4, "embed_layer_cf": {"params": {"embed_dim": 18}}}
    (tmp_path / "config.json").write_text(json.dumps({"which": "vit", "params": params}))
    torch.save(weights, tmp_path / "pytorch_model.bin")
    return tmp_path


def test_an_encoder_comes_back_as_it_was(folder, encoder):
    again = load_encoder(folder)
    assert again.config == CONFIG
    assert encoder_digest(again) == encoder_digest(encoder)
    tokens, coords = torch.ones(3, 1024), torch.arange(9).reshape(3, 3)
    assert torch.equal(again(tokens, coords, [3]), encoder(tokens, coords, [3]))


def test_saving_twice_gives_the_same_bytes(folder, encoder, tmp_path):
    save_encoder(tmp_path / "again", encoder, card={"steps": 3})
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    assert set(json.loads((folder / "config.json").read_text())) == {"which", "params"}


@pytest.mark.parametrize("prefix", ["", "encoder.", "model.teacher.vision_encoder.", "model.bb."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_published_pickles_are_read_whatever_prefix_wrapper_and_dtype(tmp_path, encoder, prefix, wrapped):
    halves = {n: x.bfloat16() if "mixer" in n else x for n, x in encoder.state_dict().items()}
    weights = {prefix + name: tensor for name, tensor in halves.items()}
    if prefix.startswith("model."):
        weights["model.predictor.norm.weight"] = torch.ones(3)
    loaded = load_encoder(published(tmp_path, {"state_dict": weights} if wrapped else weights))
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, halves[name].float())


def test_of_student_and_teacher_the_caller_has_to_choose(tmp_path, encoder):
    other = Encoder(CONFIG, seed=8)
    weights = {f"model.student.vision_encoder.{n}": x for n, x in encoder.state_dict().items()}
    weights |= {f"model.teacher.vision_encoder.{n}": x for n, x in other.state_dict().items()}
    folder = published(tmp_path, weights)
    with pytest.raises(UsageError, match="several encoders"):
        load_encoder(folder)
    chosen = load_encoder(folder, prefix="model.teacher.vision_encoder.")
    assert encoder_digest(chosen) == encoder_digest(other)


def test_a_named_size_needs_no_shape(tmp_path):
    tiny = Encoder(EncoderConfig(width=192, depth=12, num_heads=3), seed=0)
    save_file(tiny.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"which": "vit_tiny", "params": {"drop_path_rate": 0.0}}))
    assert encoder_digest(load_encoder(tmp_path)) == encoder_digest(tiny)


def test_missing_unexpected_and_misshapen_weights_are_named(tmp_path, encoder):
    weights = dict(encoder.state_dict())
    del weights["blocks.1.mlp.fc1.bias"]
    weights["cls_token"] = torch.zeros(1)
    weights["norm.bias"] = torch.zeros(5)
    with pytest.raises(UsageError) as caught:
        load_encoder(published(tmp_path, weights))
    for text in (
        "missing blocks.1.mlp.fc1.bias",
        "unexpected cls_token",
        "norm.bias is (5,), expected (48,)",
    ):
        assert text in caught.value.what


def test_weights_that_fit_nowhere_are_not_loaded_in_silence(tmp_path, encoder):
    with pytest.raises(UsageError, match=r"missing token_embed\.proj\.weight"):
        load_encoder(published(tmp_path, {f"strange.{n}": x for n, x in encoder.state_dict().items()}))


class Malicious:
    def __reduce__(self):
        return (print, ("a pickle was executed",))


def test_a_pickle_with_code_is_refused_and_not_executed(tmp_path, encoder, capsys):
    folder = published(tmp_path, {})
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(IntegrityError, match="cannot read the weights"):
        load_encoder(folder)
    assert capsys.readouterr().out == ""


def test_weights_that_differ_from_the_card_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    weights["norm.bias"] = weights["norm.bias"] + 1
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(IntegrityError, match="checksum"):
        load_encoder(folder)


def test_a_truncated_file_is_refused(folder):
    (folder / "card.json").unlink()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="cannot read"):
        load_encoder(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"which": "resnet", "params": {}},
        {"which": "vit", "params": {"depth": 2}},
        {"params": {}},
        {"which": "vit_tiny", "params": {"embed_layer_cf": {"which": "linear"}}},
    ],
)
def test_a_config_that_we_cannot_build_is_refused(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError):
        load_encoder(folder)


def test_a_folder_without_an_encoder_says_so(tmp_path, folder):
    with pytest.raises(UsageError, match=r"config\.json is missing"):
        load_encoder(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="no weights"):
        load_encoder(folder)


def test_the_digest_tells_weights_and_heads_apart(encoder):
    digest = encoder_digest(encoder)
    heads = Encoder(EncoderConfig(width=48, depth=2, num_heads=3), seed=None)
    heads.load_state_dict(encoder.state_dict())
    assert encoder_digest(heads) != digest
    with torch.no_grad():
        encoder.blocks[1].mlp.fc2.bias[0] += 1e-6
    assert encoder_digest(encoder) != digest
