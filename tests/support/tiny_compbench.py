"""Tiny, random models of T2I-CompBench's judges, saved where the real loading code will find them."""

import torch
from support.tiny_scorers import TOKENS, clip_words, shaken

SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
SENTENCE = "a the green red blue bench bowl cat dog person on left of behind next to man fish boat key and"
SIDE = 32
VOCABULARY = 30524


def bert_words(folder):
    """A ``vocab.txt`` with BERT's places for its special tokens and a few words after them."""
    table = [f"[unused{i}]" for i in range(1100)] + SENTENCE.split()
    for word, place in SPECIAL.items():
        table[place] = word
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(table) + "\n")
    return len(table)


def blip_config(side=SIDE, **changed):
    """BLIP-VQA in miniature with the official settings; ``changed`` replaces some of them."""
    from transformers import BlipConfig

    vision = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 12}
    text = {"hidden_size": 24, "intermediate_size": 44, "num_hidden_layers": 2, "encoder_hidden_size": 24}
    heads = {"num_attention_heads": changed.get("heads", 12)}
    return BlipConfig(
        vision_config={**vision, "image_size": side, "patch_size": 16, "layer_norm_eps": changed.get("eps", 1e-6)},
        text_config={**text, **heads, "vocab_size": VOCABULARY, "max_position_embeddings": 48},
    )


def blip(seed=0, **changed):
    """The model itself."""
    from transformers import BlipForQuestionAnswering

    return shaken(BlipForQuestionAnswering(blip_config(**changed)), seed)


def original_blip(model):
    """The model's tensors under the names of the original checkpoint, its index buffers added."""
    parts = (
        ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
        ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
        ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
        ("vision_model.post_layernorm", "visual_encoder.norm"),
        ("vision_model.encoder.layers", "visual_encoder.blocks"),
        ("self_attn.projection", "attn.proj"),
        ("self_attn", "attn"),
        ("layer_norm1", "norm1"),
        ("layer_norm2", "norm2"),
    )
    found = {}
    for name, value in model.state_dict().items():
        old = name
        if name.startswith("vision_model"):
            for new, original in parts:
                old = old.replace(new, original)
        found[old] = value.clone()
    for place in ("text_encoder", "text_decoder.bert"):
        found[f"{place}.embeddings.position_ids"] = torch.arange(48)[None]
    return found


def save_original_blip(folder, model):
    """A checkpoint file as the authors publish it, a tokenizer beside it. Returns its path."""
    bert_words(folder)
    path = folder / "model_base_vqa.pth"
    torch.save({"model": original_blip(model), "epoch": 9}, path)
    return path


def save_dino(folder, seed=0):
    """A Grounding DINO folder: model, tokenizer, picture processor. Returns the model."""
    from transformers import (
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessorPil,
        SwinConfig,
    )

    words = bert_words(folder)
    text = {"model_type": "bert", "vocab_size": words, "hidden_size": 16, "intermediate_size": 24}
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    swin = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], image_size=64, window_size=2, out_indices=[2, 3, 4]
    )
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config={**text, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64},
        d_model=32,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_queries=12,
        max_text_len=32,
        **layers,
    )
    torch.manual_seed(seed)
    model = GroundingDinoForObjectDetection(config).eval()
    model.save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 128}).save_pretrained(folder)
    return model


def save_owl(folder, seed=0):
    """An OWLv2 folder: model, tokenizer, picture processor. Returns the model."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessorPil

    vocab = clip_words(folder)
    shared = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": vocab["<|startoftext|>"], "eos_token_id": vocab["<|endoftext|>"], "pad_token_id": 0}
    config = Owlv2Config(
        text_config={**shared, **ends, "vocab_size": len(vocab), "max_position_embeddings": TOKENS},
        vision_config={**shared, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(seed)
    model = Owlv2ForObjectDetection(config).eval()
    model.save_pretrained(folder)
    Owlv2ImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


def save_depth(folder, seed=0):
    """A DPT-Hybrid folder of the published file's kind, without the weights that are never read. Returns the model."""
    from safetensors.torch import load_file, save_file
    from transformers import DPTConfig, DPTForDepthEstimation

    backbone = {"model_type": "bit", "global_padding": "same", "layer_type": "bottleneck", "depths": [1, 1, 1]}
    sizes = {"out_features": ["stage1", "stage2", "stage3"], "embedding_size": 8, "hidden_sizes": [8, 16, 32]}
    config = DPTConfig(
        is_hybrid=True,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=24,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 16, 16],
        fusion_hidden_size=8,
        backbone_featmap_shape=[1, 32, 24, 24],
        backbone_config={**backbone, **sizes, "num_groups": 4, "embedding_dynamic_padding": True},
    )
    torch.manual_seed(seed)
    model = DPTForDepthEstimation(config).eval()
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "layers.0.residual_layer1" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    return model
