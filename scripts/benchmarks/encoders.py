"""Small encoders of `transformers`, built from configurations: traced, and the laws checked on them.

    pip install transformers && python scripts/benchmarks/encoders.py [NAME ...]

Prints a line a network: choices, kept sizes, the smallest share of the MACs, processor seconds of the trace, the laws.
"""

from __future__ import annotations

import sys
import time
import warnings

import torch
import transformers as T

import tas
from tas.testing import check_space

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
GENERATOR = torch.Generator().manual_seed(0)
IMG = torch.randn(2, 3, 32, 32, generator=GENERATOR)
IDS = torch.randint(5, 60, (2, 7), generator=GENERATOR)
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
TEXT = {"input_ids": IDS, "attention_mask": MASK}
PIX = {"pixel_values": IMG}
TEXTS = {"vocab_size": 60, "max_position_embeddings": 40}
NETWORKS = {
    "vit": lambda: (T.ViTForImageClassification(T.ViTConfig(**SMALL, image_size=32, patch_size=8, num_labels=5)), PIX),
    "deit": lambda: (
        T.DeiTForImageClassificationWithTeacher(T.DeiTConfig(**SMALL, image_size=32, patch_size=8, num_labels=5)),
        PIX,
    ),
    "beit": lambda: (
        T.BeitForImageClassification(
            T.BeitConfig(**SMALL, image_size=32, patch_size=8, num_labels=5, use_relative_position_bias=True)
        ),
        PIX,
    ),
    "dinov2": lambda: (
        T.Dinov2ForImageClassification(
            T.Dinov2Config(
                hidden_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                mlp_ratio=2,
                image_size=32,
                patch_size=8,
                num_labels=5,
            )
        ),
        PIX,
    ),
    "swin": lambda: (
        T.SwinForImageClassification(
            T.SwinConfig(
                image_size=32, patch_size=2, embed_dim=24, depths=[2, 2], num_heads=[3, 6], window_size=4, num_labels=5
            )
        ),
        PIX,
    ),
    "swinv2": lambda: (
        T.Swinv2ForImageClassification(
            T.Swinv2Config(
                image_size=32, patch_size=2, embed_dim=24, depths=[2, 2], num_heads=[3, 6], window_size=4, num_labels=5
            )
        ),
        PIX,
    ),
    "convnext": lambda: (
        T.ConvNextForImageClassification(
            T.ConvNextConfig(hidden_sizes=[16, 32], depths=[2, 2], num_stages=2, image_size=32, num_labels=5)
        ),
        PIX,
    ),
    "convnextv2": lambda: (
        T.ConvNextV2ForImageClassification(
            T.ConvNextV2Config(hidden_sizes=[16, 32], depths=[2, 2], num_stages=2, image_size=32, num_labels=5)
        ),
        PIX,
    ),
    "segformer": lambda: (
        T.SegformerForSemanticSegmentation(
            T.SegformerConfig(
                num_encoder_blocks=3,
                depths=[1, 1, 1],
                sr_ratios=[4, 2, 1],
                hidden_sizes=[16, 24, 32],
                patch_sizes=[7, 3, 3],
                strides=[4, 2, 2],
                num_attention_heads=[1, 2, 4],
                mlp_ratios=[2, 2, 2],
                decoder_hidden_size=32,
                num_labels=4,
            )
        ),
        PIX,
    ),
    "segformerC": lambda: (
        T.SegformerForImageClassification(
            T.SegformerConfig(
                num_encoder_blocks=2,
                depths=[2, 2],
                sr_ratios=[4, 2],
                hidden_sizes=[16, 32],
                patch_sizes=[7, 3],
                strides=[4, 2],
                num_attention_heads=[1, 2],
                mlp_ratios=[2, 2],
                num_labels=4,
            )
        ),
        PIX,
    ),
    "mobilevit": lambda: (
        T.MobileViTForImageClassification(
            T.MobileViTConfig(
                image_size=64,
                hidden_sizes=[24, 32, 40],
                neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64],
                num_attention_heads=4,
                num_labels=5,
            )
        ),
        {"pixel_values": torch.randn(2, 3, 64, 64, generator=GENERATOR)},
    ),
    "resnet": lambda: (
        T.ResNetForImageClassification(
            T.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic", num_labels=5)
        ),
        PIX,
    ),
    "poolformer": lambda: (
        T.PoolFormerForImageClassification(
            T.PoolFormerConfig(
                depths=[2, 2],
                hidden_sizes=[16, 32],
                num_encoder_blocks=2,
                patch_sizes=[7, 3],
                strides=[4, 2],
                padding=[2, 1],
                mlp_ratio=2.0,
                num_labels=5,
            )
        ),
        PIX,
    ),
    "bert": lambda: (T.BertForSequenceClassification(T.BertConfig(**SMALL, **TEXTS, num_labels=3)), TEXT),
    "bertmlm": lambda: (T.BertForMaskedLM(T.BertConfig(**SMALL, **TEXTS)), TEXT),
    "roberta": lambda: (T.RobertaForSequenceClassification(T.RobertaConfig(**SMALL, **TEXTS, num_labels=3)), TEXT),
    "distilbert": lambda: (
        T.DistilBertForSequenceClassification(
            T.DistilBertConfig(
                vocab_size=60, dim=48, n_layers=2, n_heads=4, hidden_dim=96, max_position_embeddings=40, num_labels=3
            )
        ),
        TEXT,
    ),
    "electra": lambda: (
        T.ElectraForSequenceClassification(T.ElectraConfig(**SMALL, **TEXTS, embedding_size=32, num_labels=3)),
        TEXT,
    ),
    "albert": lambda: (
        T.AlbertForSequenceClassification(T.AlbertConfig(**SMALL, **TEXTS, embedding_size=32, num_labels=3)),
        TEXT,
    ),
    "mpnet": lambda: (T.MPNetForSequenceClassification(T.MPNetConfig(**SMALL, **TEXTS, num_labels=3)), TEXT),
    "t5": lambda: (
        T.T5EncoderModel(T.T5Config(vocab_size=60, d_model=48, d_kv=12, d_ff=96, num_layers=2, num_heads=4)),
        TEXT,
    ),
    "modernbert": lambda: (
        T.ModernBertForSequenceClassification(
            T.ModernBertConfig(
                **SMALL,
                **TEXTS,
                num_labels=3,
                pad_token_id=0,
                global_attn_every_n_layers=2,
                bos_token_id=1,
                eos_token_id=2,
                cls_token_id=3,
                sep_token_id=4,
            )
        ),
        TEXT,
    ),
    "wav2vec2": lambda: (
        T.Wav2Vec2ForSequenceClassification(
            T.Wav2Vec2Config(
                **SMALL,
                vocab_size=60,
                conv_dim=(24, 24),
                conv_stride=(5, 2),
                conv_kernel=(10, 3),
                num_feat_extract_layers=2,
                num_conv_pos_embeddings=8,
                num_conv_pos_embedding_groups=4,
                num_labels=3,
                classifier_proj_size=32,
                mask_time_prob=0.0,
                layerdrop=0.0,
            )
        ),
        {"input_values": torch.randn(2, 160, generator=GENERATOR)},
    ),
    "deberta": lambda: (
        T.DebertaV2ForSequenceClassification(
            T.DebertaV2Config(
                **SMALL, **TEXTS, num_labels=3, relative_attention=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0
            )
        ),
        TEXT,
    ),
    "clipv": lambda: (T.CLIPVisionModel(T.CLIPVisionConfig(**SMALL, image_size=32, patch_size=8)), PIX),
    "siglip": lambda: (T.SiglipVisionModel(T.SiglipVisionConfig(**SMALL, image_size=32, patch_size=8)), PIX),
    "mobilevitv2": lambda: (
        T.MobileViTV2ForImageClassification(T.MobileViTV2Config(image_size=64, width_multiplier=0.25, num_labels=5)),
        {"pixel_values": torch.randn(2, 3, 64, 64, generator=GENERATOR)},
    ),
    "levit": lambda: (
        T.LevitForImageClassification(
            T.LevitConfig(
                image_size=64,
                hidden_sizes=[16, 24, 32],
                num_attention_heads=[2, 3, 4],
                depths=[1, 1, 1],
                key_dim=[8, 8, 8],
                num_labels=5,
            )
        ),
        {"pixel_values": torch.randn(2, 3, 64, 64, generator=GENERATOR)},
    ),
    "pvt": lambda: (
        T.PvtForImageClassification(
            T.PvtConfig(
                image_size=32,
                num_encoder_blocks=2,
                depths=[1, 1],
                sequence_reduction_ratios=[2, 1],
                hidden_sizes=[16, 32],
                patch_sizes=[4, 2],
                strides=[4, 2],
                num_attention_heads=[1, 2],
                mlp_ratios=[2, 2],
                num_labels=5,
            )
        ),
        PIX,
    ),
}


def main() -> None:
    warnings.simplefilter("ignore")
    T.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for name in sys.argv[1:] or NETWORKS:
        torch.manual_seed(0)
        network, inputs = NETWORKS[name]()
        start = time.process_time()
        try:
            space = tas.trace(network.eval(), inputs).space
            seconds = time.process_time() - start
            share = tas.macs(space, space.smallest()) / max(1, tas.macs(space, space.largest()))
            print(
                f"{name}: {len(space.choices)} choices, {len(space.kept)} kept, {share:.1%}, {seconds:.1f} s",
                flush=True,
            )
            check_space(network, inputs, architectures=1)
            print("    the laws hold", flush=True)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)


if __name__ == "__main__":
    main()
