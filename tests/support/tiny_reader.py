"""A tiny, random Qwen2.5-VL, saved as the published one is."""

import torch
import transformers
from support.qwen_words import tokenizer
from support.tiny import DECODER, TEXT_WIDTH

PARTS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def save_reader(folder, seed=0):
    """A folder with model, settings of generation, tokenizer and picture processor. Returns the model."""
    words = tokenizer(*PARTS)
    start, end, image, video = words.convert_tokens_to_ids(list(PARTS))
    sizes = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "fullatt_block_indexes": [1]}
    text = {name: value for name, value in DECODER.items() if name != "head_dim"}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **text,
            "vocab_size": len(words),
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        },
        vision_config={**sizes, "out_hidden_size": TEXT_WIDTH},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data *= 8  # so that the answer depends on the picture
    ends = {"eos_token_id": words.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])}
    sampling = {"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05}
    model.generation_config = transformers.GenerationConfig(**ends, **sampling)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    limits = {"min_pixels": 56 * 56, "max_pixels": 12_845_056}
    transformers.Qwen2VLImageProcessorPil(**limits).save_pretrained(folder)
    return model
