"""The untrained tiny agent: a Qwen2.5-VL-architecture model of about 1.5 M parameters.

    python scripts/tiny_agent/build.py OUT --demos DEMOS

Its tokenizer is byte-level BPE (any text has a spelling) learnt from the instructions and replies of
the demonstrations, in which the fixed part of the prompt, the fragments of the action grammar and the
numbers up to 999 tend to be one token each: prompts and replies stay short, which is most of
the speed. The special tokens and the chat template are those of the Qwen2.5-VL family.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from dart_gui.agent.prompts import SYSTEM_PROMPT, user_prompt
from dart_gui.config import AgentConfig

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Fragments that the grammar repeats in every reply; each is one decoding step.
GRAMMAR_TOKENS = (
    "Thought:",
    "\nAction: ",
    "click(start_box='",
    "left_double(start_box='",
    "right_single(start_box='",
    "hover(start_box='",
    "drag(start_box='",
    "', end_box='",
    "scroll(start_box='",
    "', direction='",
    "hotkey(key='",
    "press(key='",
    "type(content='",
    "wait()",
    "finished(content='",
    "call_user()",
    "')",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image_url' or part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    # White becomes 0, up to the ruler's tint: a page says nothing where it is white.
    "image_mean": [0.9, 0.9, 1.0],
    "image_std": [0.2, 0.2, 0.2],
    "merge_size": 2,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 256},
}
MAX_VOCABULARY = 1024


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over ``texts``, with the fixed texts of the prompt as tokens of their own."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    fixed = [SYSTEM_PROMPT, user_prompt("", AgentConfig().language), *GRAMMAR_TOKENS]
    fixed += ["system\n", "user\n", "assistant\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY - len(SPECIAL_TOKENS) - len(fixed),
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    numbers = [str(number) for number in range(256)] * 50
    tokenizer.train_from_iterator([*texts, *numbers], trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in fixed])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> Qwen2_5_VLForConditionalGeneration:
    token_id = tokenizer.get_vocab().__getitem__
    vision_depth = 4
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "hidden_act": "silu",
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "use_sliding_window": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": token_id("<|endoftext|>"),
            "eos_token_id": token_id("<|im_end|>"),
            "pad_token_id": token_id("<|endoftext|>"),
        },
        vision_config={
            "depth": vision_depth,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 128,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "in_channels": 3,
            "tokens_per_second": 2,
            # Full attention everywhere: the window loop is slow on a CPU, and the screens are small.
            "fullatt_block_indexes": list(range(vision_depth)),
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=token_id("<|endoftext|>"),
        pad_token_id=token_id("<|endoftext|>"),
        eos_token_id=[token_id("<|im_end|>"), token_id("<|endoftext|>")],
        do_sample=True,
        temperature=1.0,
    )
    return model


def save(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    (out / "dart_agent.json").write_text(json.dumps({"transform": "ruler"}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--demos", type=Path, required=True, help="folder that demos.py wrote")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts = []
    with (args.demos / "demos.jsonl").open() as lines:
        for line in lines:
            demo = json.loads(line)
            texts += [demo["instruction"], demo["reply"]]
    tokenizer = build_tokenizer(texts)
    model = build_model(tokenizer, args.seed)
    save(model, tokenizer, args.out)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.out}: {count / 1e6:.2f} M parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
