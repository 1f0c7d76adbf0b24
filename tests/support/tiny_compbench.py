"""Tiny, random models of T2I-CompBench's judges, saved as the published ones are."""

from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from support.tiny_scorers import TOKENS, clip_words, shaken

SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
SENTENCE = "a the green red blue bench bowl cat dog person on left of behind next to man fish boat key and"
SIDE = 32
TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def bert_words(folder):
    """A ``vocab.txt`` with BERT's ids of special tokens and a few words; returns its size."""
    table = [f"[unused{i}]" for i in range(1100)] + SENTENCE.split()
    for word, place in SPECIAL.items():
        table[place] = word
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(table) + "\n")
    return len(table)


def blip_config(side=SIDE, **changed):
    """BLIP-VQA in miniature with the official settings; ``changed`` replaces ``heads`` or ``eps``."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 12}
    vision = {"intermediate_size": 40, "image_size": side, "patch_size": 16, "layer_norm_eps": changed.get("eps", 1e-6)}
    text = {"intermediate_size": 44, "encoder_hidden_size": 24, "vocab_size": 30524, "max_position_embeddings": 48}
    text["num_attention_heads"] = changed.get("heads", 12)
    return transformers.BlipConfig(vision_config={**sizes, **vision}, text_config={**sizes, **text})


def blip(seed=0, **changed):
    return shaken(transformers.BlipForQuestionAnswering(blip_config(**changed)), seed)


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
    tensors = {}
    for name, value in model.state_dict().items():
        original = name
        for new, old in parts if name.startswith("vision_model") else ():
            original = original.replace(new, old)
        tensors[original] = value.clone()
    for part in ("text_encoder", "text_decoder.bert"):
        tensors[f"{part}.embeddings.position_ids"] = torch.arange(48)[None]
    return tensors


def save_original_blip(folder, model):
    """A checkpoint file as the authors publish it, a tokenizer beside it. Returns its path."""
    bert_words(folder)
    path = folder / "model_base_vqa.pth"
    torch.save({"model": original_blip(model), "epoch": 9}, path)
    return path


def save_dino(folder, seed=0):
    """A Grounding DINO folder: model, tokenizer, picture processor. Returns the model."""
    text = {"model_type": "bert", "vocab_size": bert_words(folder), "max_position_embeddings": 64}
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    swin = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], image_size=64, window_size=2, out_indices=[2, 3, 4]
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=swin,
        text_config={**text, **TINY},
        d_model=32,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_queries=12,
        max_text_len=32,
        **layers,
    )
    size = {"shortest_edge": 96, "longest_edge": 128}
    transformers.GroundingDinoImageProcessorPil(size=size).save_pretrained(folder)
    return saved(transformers.GroundingDinoForObjectDetection, config, folder, seed)


def save_owl(folder, seed=0):
    """An OWLv2 folder: model, tokenizer, picture processor. Returns the model."""
    vocab = clip_words(folder)
    ends = {"bos_token_id": vocab["<|startoftext|>"], "eos_token_id": vocab["<|endoftext|>"], "pad_token_id": 0}
    config = transformers.Owlv2Config(
        text_config={**TINY, **ends, "vocab_size": len(vocab), "max_position_embeddings": TOKENS},
        vision_config={**TINY, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    transformers.Owlv2ImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return saved(transformers.Owlv2ForObjectDetection, config, folder, seed)


def save_depth(folder, seed=0):
    """A DPT-Hybrid folder of the published file's kind, without the weights that are never read. Returns the model."""
    backbone = {"model_type": "bit", "global_padding": "same", "layer_type": "bottleneck", "depths": [1, 1, 1]}
    sizes = {"out_features": ["stage1", "stage2", "stage3"], "embedding_size": 8, "hidden_sizes": [8, 16, 32]}
    config = transformers.DPTConfig(
        **{**TINY, "num_hidden_layers": 4},
        is_hybrid=True,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 16, 16],
        fusion_hidden_size=8,
        backbone_featmap_shape=[1, 32, 24, 24],
        backbone_config={**backbone, **sizes, "num_groups": 4, "embedding_dynamic_padding": True},
    )
    model = saved(transformers.DPTForDepthEstimation, config, folder, seed)
    remove_tensors(folder, "layers.0.residual_layer1")
    return model


def saved(kind, config, folder, seed):
    torch.manual_seed(seed)
    model = kind(config).eval()
    model.save_pretrained(folder)
    return model


def remove_tensors(folder, part):
    file = folder / "model.safetensors"
    tensors = {name: value for name, value in load_file(file).items() if part not in name}
    save_file(tensors, file, metadata={"format": "pt"})


def without(source, target, part):
    """A copy of a model's folder that lacks the tensors whose names contain ``part``."""
    for path in Path(source).iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    remove_tensors(target, part)
    return str(target)
