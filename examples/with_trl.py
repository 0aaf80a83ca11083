"""Your own script with TRL and PEFT: after `import longlora`, packed documents can train with S²-Attn.

Extends a model with LoRA+ (LoRA with trainable embeddings and norms) on a folder of texts. TRL packs the documents into
full rows; S²-Attn counts groups from each document's first token and never attends across a boundary.

    python examples/with_trl.py books/ --model path/to/Llama-2-7b-hf --context-length 16384
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

import longlora
from longlora.tiny import tiny_model_directory


def main() -> None:
    """Train and save the adapter."""
    options = parse_options()

    config = AutoConfig.from_pretrained(options.model)
    longlora.extend_positions(config, context_length=options.context_length, rope_type="yarn")

    # A model that is already loaded can be switched too.
    model = AutoModelForCausalLM.from_pretrained(options.model, config=config)
    model.set_attn_implementation("s2")
    interval = min(6, config.num_hidden_layers)
    longlora.set_group_size(model, options.context_length // 4, shift=False, full_attention_interval=interval)

    texts = load_dataset("text", data_dir=str(options.folder), sample_by="document", split="train")
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=options.output_dir,
            max_steps=options.max_steps,
            max_length=options.context_length,
            packing=True,
            packing_strategy="bfd_split",
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            learning_rate=2e-5,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            bf16=torch.cuda.is_available(),
        ),
        train_dataset=texts,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=8,
            lora_alpha=16,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
            modules_to_save=["embed_tokens", "input_layernorm", "post_attention_layernorm", "norm"],
            ensure_weight_tying=config.tie_word_embeddings,
        ),
    )
    trainer.train()
    trainer.save_model()


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder of text files, one document each")
    parser.add_argument("--model", default=str(tiny_model_directory()), help="default: longlora's tiny model")
    parser.add_argument("--context-length", type=int, default=1024)
    parser.add_argument("--max-steps", type=int, default=20)
    parser.add_argument("--output-dir", default="runs/with-trl")
    return parser.parse_args()


if __name__ == "__main__":
    main()
