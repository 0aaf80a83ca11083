"""Your own script with transformers' Trainer: after `import longlora`, the model can train with S²-Attn.

Extends a model by full fine-tuning on one text, and evaluates it with its ordinary attention.

    python examples/with_trainer.py book.txt --model path/to/Llama-2-7b-hf --context-length 16384
"""

import argparse
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

import longlora  # registers attn_implementation="s2"
from longlora.tiny import tiny_model_directory


def main() -> None:
    """Train, evaluate, save."""
    options = parse_options()

    # Positions first: they are part of the configuration.
    config = AutoConfig.from_pretrained(options.model)
    longlora.extend_positions(config, context_length=options.context_length, rope_type="yarn")

    model = AutoModelForCausalLM.from_pretrained(options.model, config=config, attn_implementation="s2")
    interval = min(6, config.num_hidden_layers)
    longlora.set_group_size(model, options.context_length // 4, shift=False, full_attention_interval=interval)

    rows = read_rows(options.text, options.model, options.context_length)
    num_held_out = max(1, len(rows) // 10)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output_dir,
            max_steps=options.max_steps,
            per_device_train_batch_size=1,
            per_device_eval_batch_size=1,
            gradient_accumulation_steps=2,
            learning_rate=2e-5,
            lr_scheduler_type="constant",
            logging_steps=1,
            eval_strategy="steps",  # with full attention, which `model.eval()` implies
            eval_steps=options.max_steps,
            save_strategy="no",
            report_to="none",
            bf16=torch.cuda.is_available(),
        ),
        train_dataset=rows[num_held_out:],
        eval_dataset=rows[:num_held_out],
        data_collator=default_data_collator,
    )
    trainer.train()
    trainer.save_model()


def read_rows(text: Path, model: str, context_length: int) -> list[dict[str, list[int]]]:
    """Cut a text into rows of `context_length` tokens."""
    tokens = AutoTokenizer.from_pretrained(model, model_max_length=None)(text.read_text(encoding="utf-8")).input_ids
    starts = range(0, len(tokens) - context_length + 1, context_length)
    rows = [tokens[start : start + context_length] for start in starts]
    if len(rows) < 2:
        raise SystemExit(f"{text} has {len(tokens)} tokens; two rows of {context_length} are needed")
    return [{"input_ids": row, "labels": row} for row in rows]


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="a text file")
    parser.add_argument("--model", default=str(tiny_model_directory()), help="default: longlora's tiny model")
    parser.add_argument("--context-length", type=int, default=1024)
    parser.add_argument("--max-steps", type=int, default=20)
    parser.add_argument("--output-dir", default="runs/with-trainer")
    return parser.parse_args()


if __name__ == "__main__":
    main()
