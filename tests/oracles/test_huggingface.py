"""transformers' Mask2Former as the oracle: its weights answer the same here, and ours the same there.

Both sides agree to the digits of float32. Where transformers differs, confirmed by these tests or beside them:

- `pixel_mask` is read by nothing: padding is looked at like any other pixel, as in m2f and the official code.
- Layer norms have eps 1e-5, but Swin's two per block take `layer_norm_eps`; another value is refused.
- `dropout` also acts in the decoder and leaves out whole layers, in training; in eval mode there is none.
- The position table of `use_absolute_embeddings` is never resized: images must have exactly `image_size`.
- Attention masks are resized after the product of queries and features, m2f's before it; both are linear.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from m2f.checkpoint.huggingface_spec import spec_from_config
from m2f.checkpoint.loading import load_weights
from m2f.checkpoint.schemes import from_m2f, to_m2f
from m2f.checkpoint.writing import Weights, write_weights
from m2f.config import CfgNode, get_cfg
from m2f.modeling.build import BACKBONE_REGISTRY, build_model
from m2f.modeling.maskformer import MaskFormer
from m2f.structures.metadata import Category, Metadata

transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

STAGES = ["stage1", "stage2", "stage3", "stage4"]
TINY = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 48,
    "dim_feedforward": 40,
    "num_attention_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "num_queries": 7,
    "num_labels": 3,
}


class Case(NamedTuple):
    backbone: str
    sizes: dict[str, Any]  # of the backbone
    model: dict[str, Any]  # what is not as in TINY
    images: tuple[int, int, int]  # batch, height, width


SWIN = {"embed_dim": 8, "depths": [2, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 3, "image_size": 32}
RESNET = {"embedding_size": 8, "hidden_sizes": [16, 32, 64, 128]}
BASIC = {**RESNET, "layer_type": "basic", "depths": [2, 2, 2, 2]}
CASES = {
    "swin": Case("swin", SWIN, {}, (2, 70, 93)),
    "swin of other sizes": Case(
        "swin",
        {
            **SWIN,
            "embed_dim": 12,
            "depths": [1, 2, 1, 2],
            "num_heads": [2, 2, 4, 8],
            "window_size": 4,
            "mlp_ratio": 2.5,
        },
        {"hidden_dim": 64, "mask_feature_size": 20, "encoder_layers": 2, "decoder_layers": 6, "num_labels": 11},
        (1, 65, 40),
    ),
    "swin, norm first, no bias": Case(
        "swin", {**SWIN, "qkv_bias": False}, {"pre_norm": True, "num_queries": 3, "decoder_layers": 5}, (1, 96, 64)
    ),
    "swin with a position table": Case(
        "swin",
        {**SWIN, "use_absolute_embeddings": True, "image_size": 48, "patch_size": 2},
        {"feature_strides": [2, 4, 8, 16], "common_stride": 2},
        (1, 48, 48),
    ),
    "swin without its finest map": Case(
        "swin",
        {**SWIN, "out_features": STAGES[1:]},
        {"feature_strides": [8, 16, 32], "common_stride": 8, "feature_size": 64, "num_attention_heads": 8},
        (2, 81, 64),
    ),
    "resnet18": Case("resnet", BASIC, {}, (2, 65, 97)),
    "resnet18 with a wide stem": Case("resnet", {**BASIC, "embedding_size": 16}, {"num_labels": 1}, (1, 64, 64)),
    "resnet50": Case(
        "resnet",
        {**RESNET, "layer_type": "bottleneck", "depths": [3, 4, 6, 3]},
        {"encoder_layers": 3, "hidden_dim": 48, "num_queries": 12},
        (1, 77, 50),
    ),
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """No progress bars and no remarks on random weights."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


def randomised(model: nn.Module) -> nn.Module:
    """The same model with every tensor random, also those that are born as zeros or ones."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.add_(0.5 * torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.2 * torch.randn_like(parameter) + float(name.endswith("weight")))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model.eval()


def their_model(case: Case) -> nn.Module:
    kind = {"swin": transformers.SwinConfig, "resnet": transformers.ResNetConfig}[case.backbone]
    backbone = kind(**{"out_features": STAGES, **case.sizes})
    config = transformers.Mask2FormerConfig(backbone_config=backbone, **{**TINY, **case.model})
    return randomised(transformers.Mask2FormerForUniversalSegmentation(config))


def our_model(config: dict[str, Any]) -> tuple[MaskFormer, CfgNode, Metadata]:
    cfg = get_cfg()
    cfg.merge(spec_from_config(config), "config.json")
    names = [f"class {label}" for label in range(cfg.model.sem_seg_head.num_classes)]
    metadata = Metadata("test", tuple(Category(label + 1, name) for label, name in enumerate(names)))
    model = build_model(cfg, metadata)
    assert isinstance(model, MaskFormer)
    return model.eval(), cfg, metadata


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def their_layers(model: nn.Module, images: Tensor, **inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Class and mask logits of the bare queries and of every layer."""
    with torch.no_grad():
        output = model(images, output_auxiliary_logits=True, **inputs)
    earlier = [(layer["class_queries_logits"], layer["masks_queries_logits"]) for layer in output.auxiliary_logits]
    return [*earlier, (output.class_queries_logits, output.masks_queries_logits)]


def our_layers(model: MaskFormer, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        return [(layer.class_logits, layer.all_mask_logits()) for layer in model.layers(images)]


def assert_same(ours: list[tuple[Tensor, Tensor]], theirs: list[tuple[Tensor, Tensor]]) -> None:
    """Equal to 1e-4 of their scale, layer by layer."""
    assert len(ours) == len(theirs)
    for our_layer, their_layer in zip(ours, theirs, strict=True):
        for our, their in zip(our_layer, their_layer, strict=True):
            assert our.shape == their.shape
            assert float(their.std()) > 1e-2  # there is something to compare
            assert float((our - their).abs().max()) < 1e-4 * float(their.abs().max())


def write(folder: Path, model: MaskFormer, cfg: CfgNode, metadata: Metadata) -> None:
    weights = Weights(model.state_dict(), metadata=metadata, cfg=cfg)
    write_weights(weights, "huggingface", folder)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_their_weights_answer_here_as_at_home(case: Case, tmp_path: Path) -> None:
    theirs = their_model(case)
    theirs.save_pretrained(tmp_path)
    ours, _, _ = our_model(read_json(tmp_path / "config.json"))
    images = torch.randn(case.images[0], 3, *case.images[1:])
    expected = their_layers(theirs, images)
    for weights in (tmp_path, theirs.state_dict()):  # a file has the names of transformers 4, a state dict those of 5
        randomised(ours)
        report = load_weights(ours, weights, complete=True)
        assert report.scheme == "huggingface"
        assert (report.fresh, report.ignored, report.adapted) == ((), (), ())
        assert_same(our_layers(ours, images), expected)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_our_weights_answer_there_as_here(case: Case, tmp_path: Path) -> None:
    theirs = their_model(case)
    ours, cfg, metadata = our_model(json.loads(theirs.config.to_json_string(use_diff=False)))
    randomised(ours)
    write(tmp_path / "ours", ours, cfg, metadata)
    home, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values()), info
    images = torch.randn(case.images[0], 3, *case.images[1:])
    assert_same(our_layers(ours, images), their_layers(home.eval(), images))
    assert home.config.id2label == dict(enumerate(metadata.names))
    assert spec_from_config(json.loads(home.config.to_json_string(use_diff=False))) == spec_from_config(
        read_json(tmp_path / "ours" / "config.json")
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_our_files_have_the_names_that_theirs_have(case: Case, tmp_path: Path) -> None:
    theirs = their_model(case)
    theirs.save_pretrained(tmp_path)
    ours, _, _ = our_model(read_json(tmp_path / "config.json"))
    file = safetensors_torch.load_file(tmp_path / "model.safetensors")
    written = from_m2f(ours.state_dict(), "huggingface")
    assert {name: tensor.shape for name, tensor in written.items()} == {n: t.shape for n, t in file.items()}
    ours.load_state_dict(to_m2f(file)[0])
    for name, tensor in from_m2f(ours.state_dict(), "huggingface").items():
        if not name.startswith("model.pixel_level_module.encoder.swin.layernorm."):
            assert tensor.equal(file[name]), name


def test_a_pixel_mask_changes_nothing_there() -> None:
    theirs = their_model(CASES["swin"])
    images, mask = torch.randn(2, 3, 64, 64), torch.ones(2, 64, 64, dtype=torch.int64)
    mask[0, 40:] = 0
    with_mask, without = their_layers(theirs, images, pixel_mask=mask), their_layers(theirs, images)
    assert all(a.equal(b) for pair in zip(with_mask, without, strict=True) for a, b in zip(*pair, strict=True))


def test_without_auxiliary_losses_their_model_does_not_run() -> None:
    """Why `config_json` writes True whatever `deep_supervision` says."""
    config = their_model(CASES["resnet18"]).config
    config.use_auxiliary_loss = False
    with pytest.raises(TypeError):
        transformers.Mask2FormerForUniversalSegmentation(config).eval()(torch.randn(1, 3, 64, 64))


def test_their_processor_reads_ours(tmp_path: Path) -> None:
    ours, cfg, metadata = our_model(json.loads(their_model(CASES["swin"]).config.to_json_string()))
    cfg.merge({"dataset": {"pixel_mean": [0.1, 0.2, 0.3], "augmentation": {"test_max_size": 900}}}, "test")
    write(tmp_path / "ours", ours, cfg, metadata)
    for kind in (transformers.Mask2FormerImageProcessor, transformers.AutoImageProcessor):
        processor = kind.from_pretrained(tmp_path / "ours")
        assert type(processor).__name__.startswith("Mask2FormerImageProcessor")
        assert dict(processor.size) == {"shortest_edge": 640, "longest_edge": 900}
        assert list(processor.image_mean) == [0.1, 0.2, 0.3]
        assert list(processor.image_std) == [0.229, 0.224, 0.225]
        assert (processor.ignore_index, processor.do_reduce_labels, processor.size_divisor) == (255, True, 32)
        image = torch.randint(256, (3, 100, 130), dtype=torch.uint8)
        pixels = processor(image, return_tensors="pt", do_resize=False)["pixel_values"]
        (expected,) = ours.preprocess([{"image": image}]).tensor
        pixel_mean = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
        pixel_std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        torch.testing.assert_close(pixels[0], (image / 255 - pixel_mean) / pixel_std)
        assert pixels.shape[2:] == (100, 130)
        assert expected.shape[1:] == (128, 160)  # ours are padded, theirs would have been stretched


@pytest.mark.parametrize("kind", ["SwinModel", "SwinForImageClassification", "SwinBackbone"])
def test_a_swin_of_theirs_alone(kind: str, tmp_path: Path) -> None:
    config = transformers.SwinConfig(**SWIN, out_features=STAGES)
    check_backbone(randomised(getattr(transformers, kind)(config)), "swin", "huggingface_swin", tmp_path)


@pytest.mark.parametrize("kind", ["ResNetModel", "ResNetForImageClassification", "ResNetBackbone"])
def test_a_resnet_of_theirs_alone(kind: str, tmp_path: Path) -> None:
    config = transformers.ResNetConfig(**BASIC, out_features=STAGES)
    check_backbone(randomised(getattr(transformers, kind)(config)), "resnet", "huggingface_resnet", tmp_path)


def check_backbone(theirs: nn.Module, name: str, scheme: str, folder: Path) -> None:
    """Every one of our tensors is in the file, norms of single feature maps excepted; features are equal."""
    theirs.save_pretrained(folder)
    cfg = get_cfg()
    whole = {"model_type": "mask2former", "backbone_config": read_json(folder / "config.json")}
    cfg.merge(spec_from_config(whole), "config.json")
    ours: nn.Module = BACKBONE_REGISTRY.build(name, cfg).eval()
    for state in (safetensors_torch.load_file(folder / "model.safetensors"), theirs.state_dict()):
        converted, found = to_m2f(state)
        assert found == scheme
        missing, unexpected = ours.load_state_dict(
            {key.removeprefix("backbone."): tensor for key, tensor in converted.items()}, strict=False
        )
        norms = [f"norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias")]
        assert missing == ([] if name == "resnet" or "Backbone" in type(theirs).__name__ else norms)
        assert all(key.startswith(("layernorm.", "classifier.")) for key in unexpected)
    images = torch.randn(2, 3, 75, 64)
    with torch.no_grad():
        if hasattr(theirs, "feature_maps") or type(theirs).__name__.endswith("Backbone"):
            expected = theirs(images).feature_maps
        elif name == "resnet":
            expected = getattr(theirs, "resnet", theirs)(images, output_hidden_states=True).hidden_states[1:]
        else:
            return  # its maps lie behind the next stage's merging, and have no norms
        for our, their in zip(ours(images).values(), expected, strict=True):
            assert float((our - their).abs().max()) < 1e-4 * float(their.abs().max())
