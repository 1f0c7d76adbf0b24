"""A tiny, random Qwen3-VL, saved as the published one is."""

import torch
from support.tiny_scorers import shaken
from transformers import Qwen2Tokenizer, Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.convert_slow_tokenizer import bytes_to_unicode

MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
WORDS = ("Yes", "yes", "two", "Two", "three", "six", "image")  # also after a space; of the others, first letters count


def words():
    """A token for every byte, a few words alone and after a space, and Qwen's marks."""
    letters, merges = list(bytes_to_unicode().values()), []
    for word in WORDS:
        merges += [(word[:end], word[end]) for end in range(1, len(word))]
    merges = [*dict.fromkeys(merges), *(("Ġ", word) for word in WORDS)]
    vocabulary = [*letters, *dict.fromkeys("".join(pair) for pair in merges), *MARKS]
    tokenizer = Qwen2Tokenizer(vocab={piece: i for i, piece in enumerate(vocabulary)}, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    return tokenizer


def save_qwen3_vl(folder, seed=0):
    """The folder of a judge: model, tokenizer, picture processor. Returns the model in float32."""
    tokenizer = words()
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
    half = [0.5, 0.5, 0.5]
    Qwen2VLImageProcessorPil(size=size, patch_size=16, image_mean=half, image_std=half).save_pretrained(folder)
    start, end, image, video = (tokenizer.convert_tokens_to_ids(mark) for mark in MARKS[2:])
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 3,  # as in the published model, some rows belong to no token
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    with torch.random.fork_rng():
        model = shaken(Qwen3VLForConditionalGeneration(config), seed)
    model.save_pretrained(folder)
    return model
