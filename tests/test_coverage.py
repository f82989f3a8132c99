"""Small members of families that torchvision and timm hold: traced in seconds, nearly all of them can go, laws hold.

Built by the libraries' own classes and functions with few and narrow layers, so that all of them take a minute;
`scripts/benchmarks/coverage.py` goes through the networks at their real sizes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from promises import assert_promises
from timm import layers
from timm import models as timm
from torch import nn
from torchvision import models as tv

CLASSES = 7
group_norm = partial(layers.GroupNormAct, num_groups=4)


def stages(stem: int, *blocks: tuple[Any, ...], image: int | None = None, **options: Any) -> nn.Module:
    """timm's network of named blocks, each (kind, depth, channels, stride, width of a group) and its own options."""
    made = [timm.byobnet.ByoBlockCfg(*given[:5], **(given[5] if given[5:] else {})) for given in blocks]
    whole = timm.byobnet.ByoModelCfg(tuple(made), stem_chs=stem, stem_pool="", **options)
    return timm.byobnet.ByobNet(whole, num_classes=CLASSES, img_size=image)


def attention_behind_convolutions(layer: str, image: int | None = None, **options: Any) -> nn.Module:
    blocks = ("bottle", 1, 32, 2, 0, {"br": 0.5}), ("self_attn", 1, 48, 1, 0, {"br": 0.5})
    return stages(16, *blocks, image=image, self_attn_layer=layer, self_attn_kwargs=options)


def attention_between_convolutions(kind: str, **options: Any) -> nn.Module:
    first = {"br": 2.0, "block_kwargs": {"bottle_in": True, "linear_out": True}}
    inner = {"block_kwargs": {"transformer_depth": 1, "patch_size": 2, **options}}
    return stages(8, ("bottle", 2, 16, 2, 1, first), (kind, 1, 16, 1, 1, inner), downsample="", act_layer="silu")


def mobilenet_v3() -> nn.Module:
    block = partial(tv.mobilenetv3.InvertedResidualConfig, dilation=1, width_mult=1.0)
    settings = [
        block(16, 3, 16, 16, True, "RE", 2),
        block(16, 5, 48, 24, True, "HS", 2),
        block(24, 5, 48, 24, True, "HS", 1),
    ]
    return tv.MobileNetV3(settings, 64, CLASSES)


def efficientnet() -> nn.Module:
    fused, separable = tv.efficientnet.FusedMBConvConfig, tv.efficientnet.MBConvConfig
    settings = [fused(2, 3, 1, 16, 16, 2), separable(4, 3, 2, 16, 24, 2)]
    return tv.EfficientNet(settings, dropout=0.1, num_classes=CLASSES, last_channel=64)


def convnext() -> nn.Module:
    settings = [tv.convnext.CNBlockConfig(16, 32, 2), tv.convnext.CNBlockConfig(32, None, 2)]
    return tv.ConvNeXt(settings, num_classes=CLASSES)


def regnet_y() -> nn.Module:
    blocks = tv.regnet.BlockParams.from_init_params(6, 16, 20.0, 2.2, 8, se_ratio=0.25)
    return tv.RegNet(blocks, CLASSES, stem_width=16)


def resnet(block: Any, **options: Any) -> nn.Module:
    """timm's residual network with blocks of another kind."""
    return timm.ResNet(block, (1, 2, 1, 1), CLASSES, stem_width=16, channels=(16, 32, 32, 32), **options)


def nfnet() -> nn.Module:
    blocks = {"attn_layer": "se", "attn_kwargs": {"rd_ratio": 0.5}, "group_size": 8}
    return timm.NormFreeNet(timm.nfnet.NfCfg((1, 1, 1, 1), (16, 32, 32, 48), stem_chs=16, **blocks), CLASSES)


def ghostnet() -> nn.Module:
    """Every block: kernel, channels inside, channels, squeeze-and-excitation, stride."""
    settings = [[[3, 16, 16, 0, 1]], [[3, 32, 24, 0.25, 2]], [[3, 48, 24, 0, 1]]]
    return timm.GhostNet(settings, CLASSES)


def mixer(**options: Any) -> nn.Module:
    return timm.MlpMixer(CLASSES, 32, patch_size=8, num_blocks=2, embed_dim=32, **options)


def gmlp() -> nn.Module:
    return mixer(mlp_ratio=4, block_layer=timm.mlp_mixer.SpatialGatingBlock, mlp_layer=layers.GatedMlp)


def resmlp() -> nn.Module:
    return mixer(mlp_ratio=4, block_layer=timm.mlp_mixer.ResBlock, norm_layer=timm.mlp_mixer.Affine)


def tokens(factory: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """A vision transformer of two blocks, 32 wide, on patches of 8 pixels."""
    return factory(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=CLASSES, **options)


def twins() -> nn.Module:
    windows = {"depths": (2, 2), "wss": (4, 4), "sr_ratios": (2, 1), "mlp_ratios": (2, 2)}
    return timm.Twins(32, embed_dims=(16, 32), num_heads=(2, 4), num_classes=CLASSES, **windows)


def pvt_v2() -> nn.Module:
    reduced = {"sr_ratios": (4, 1), "mlp_ratios": (2, 2)}
    return timm.PyramidVisionTransformerV2(
        num_classes=CLASSES, depths=(1, 1), embed_dims=(16, 32), num_heads=(1, 2), **reduced
    )


def nest() -> nn.Module:
    sizes = {"embed_dims": (16, 24, 32), "num_heads": (2, 2, 4), "depths": (1, 1, 1)}
    return timm.Nest(32, patch_size=2, num_classes=CLASSES, **sizes)


def volo() -> nn.Module:
    sizes = {"embed_dims": (32, 48), "num_heads": (2, 4), "downsamples": (True, False), "stem_hidden_dim": 16}
    return timm.VOLO((1, 1), 32, patch_size=8, num_classes=CLASSES, outlook_attention=(True, False), **sizes)


def swin() -> nn.Module:
    return timm.SwinTransformer(
        32, 2, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=CLASSES
    )


def swin_v2() -> nn.Module:
    parts = {
        "block": tv.swin_transformer.SwinTransformerBlockV2,
        "downsample_layer": tv.swin_transformer.PatchMergingV2,
    }
    return tv.SwinTransformer([2, 2], 24, [2, 2], [2, 4], [4, 4], num_classes=CLASSES, **parts)


def levit() -> nn.Module:
    """Keeps its attention biases from one call in eval mode to the next."""
    sizes = {"embed_dim": (16, 24), "key_dim": 8, "depth": (1, 1), "num_heads": (2, 3)}
    return timm.levit_128s(img_size=64, num_classes=CLASSES, **sizes)


def focalnet() -> nn.Module:
    return timm.FocalNet(embed_dim=16, depths=(1, 2), focal_levels=(2, 2), focal_windows=(3, 3), num_classes=CLASSES)


def davit() -> nn.Module:
    return timm.DaVit(embed_dims=(16, 32), depths=(1, 1), num_heads=(2, 4), window_size=4, num_classes=CLASSES)


def efficientvit() -> nn.Module:
    sizes = {"widths": (8, 16, 24, 32, 32), "depths": (1, 1, 1, 1, 1), "head_widths": (48, 64)}
    return timm.EfficientVit(head_dim=8, num_classes=CLASSES, **sizes)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and the pixels of a side
    "squeezenet": (partial(tv.squeezenet1_1, num_classes=CLASSES), 64),
    "shufflenet_v2": (partial(tv.ShuffleNetV2, [2, 2, 2], [8, 16, 32, 64, 64], CLASSES), 64),
    "mobilenet_v3": (mobilenet_v3, 32),
    "efficientnet": (efficientnet, 32),
    "regnet_y": (regnet_y, 32),
    "densenet": (partial(tv.DenseNet, 8, (2, 3, 2), 16, num_classes=CLASSES), 32),
    "convnext": (convnext, 32),
    "ghostnet": (ghostnet, 32),
    "res2net": (partial(resnet, timm.res2net.Bottle2neck, base_width=64, block_args={"scale": 4}), 32),
    "skresnet": (partial(resnet, timm.sknet.SelectiveKernelBasic, zero_init_last=False), 32),
    "resnest": (partial(resnet, timm.resnest.ResNestBottleneck, block_args={"radix": 2, "avd": True}), 32),
    "resnet_v2": (partial(timm.ResNetV2, (1, 2), (32, 64), CLASSES, stem_chs=16, norm_layer=group_norm), 32),
    "dpn": (partial(timm.DPN, (1, 2, 1, 1), (8, 8, 8, 8), 16, 4, CLASSES, small=True, num_init_features=8), 32),
    "repvgg": (partial(stages, 16, ("rep", 2, 16, 2), ("rep", 2, 32, 2), stem_type="rep"), 32),
    "nfnet": (nfnet, 32),
    "convmixer": (partial(timm.ConvMixer, 24, 2, 5, 4, num_classes=CLASSES), 32),
    "botnet": (partial(attention_behind_convolutions, "bottleneck", image=16, num_heads=2), 16),
    "halonet": (partial(attention_behind_convolutions, "halo", num_heads=2, block_size=4, halo_size=1), 16),
    "lambdanet": (partial(attention_behind_convolutions, "lambda", r=3, dim_head=8), 16),
    "mobilevit": (partial(attention_between_convolutions, "mobilevit", transformer_dim=24), 32),
    "mobilevit_v2": (partial(attention_between_convolutions, "mobilevit2"), 32),
    "efficientvit": (efficientvit, 64),
    "mixer": (mixer, 32),
    "gmlp": (gmlp, 32),
    "resmlp": (resmlp, 32),
    "vit_registers": (partial(tokens, timm.VisionTransformer, reg_tokens=2, qk_norm=True), 32),
    "xcit": (partial(tokens, timm.Xcit, cls_attn_layers=1), 32),
    "cait": (partial(tokens, timm.Cait), 32),
    "swin": (swin, 32),
    "swin_v2": (swin_v2, 32),
    "levit": (levit, 64),
    "twins": (twins, 32),
    "pvt_v2": (pvt_v2, 32),
    "poolformer": (partial(timm.metaformer.MetaFormer, 3, CLASSES, depths=(1, 2), dims=(16, 32)), 32),
    "nest": (nest, 32),
    "volo": (volo, 32),
    "focalnet": (focalnet, 32),
    "davit": (davit, 32),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_laws_hold_for_small_members_of_families(name: str) -> None:
    build, size = NETWORKS[name]
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert_promises(build(), x)
