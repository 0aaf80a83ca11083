"""A script as users of TRL have them: `accelerate launch … trl_script.py WAY MODEL OUTPUT`, WAY one, sp or cp.

It trains with S²-Attn on packed documents, on one process or on two that share each row, and leaves losses in OUTPUT.
"""

import json
import logging
import random
import sys
from pathlib import Path

from accelerate import ParallelismConfig
from accelerate.utils import DeepSpeedSequenceParallelConfig
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import longlora
from longlora.models.compat import allow_fsdp_on_cpu

logging.basicConfig(level=logging.INFO, format="%(message)s")
way, path, output = sys.argv[1:]

parallelism = None
if way == "sp":
    shared = DeepSpeedSequenceParallelConfig()
    shared.sp_attn_implementation = "s2"
    parallelism = ParallelismConfig(sp_size=2, sp_backend="deepspeed", sp_handler=shared)
elif way == "cp":
    parallelism = ParallelismConfig(cp_size=2)

source = random.Random(0)
texts = ["".join(source.choices("etaoin shrdlu", k=source.randint(20, 90))) for _ in range(60)]
model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="s2", dtype="float32")
longlora.set_group_size(model, 20, sink_tokens=1)
arguments = SFTConfig(
    output_dir=f"{output}.run",
    parallelism_config=parallelism,
    packing=way != "cp",  # which TRL refuses under rings
    max_length=96,
    pad_to_multiple_of=96,  # gloo gathers equal lengths alone
    max_steps=4,
    per_device_train_batch_size=1,
    gradient_accumulation_steps=1,
    learning_rate=1e-2,
    logging_steps=1,
    save_strategy="no",
    report_to=[],
    bf16=False,
    gradient_checkpointing=False,
    use_cpu=way != "sp",
    ddp_backend="gloo" if way == "sp" else None,
    disable_tqdm=True,
)
allow_fsdp_on_cpu(arguments)
trainer = SFTTrainer(
    model=model,
    args=arguments,
    train_dataset=Dataset.from_dict({"text": texts}),
    processing_class=AutoTokenizer.from_pretrained(path),
)
if way == "sp":  # DeepSpeed divides all tensors by tokens, and boundaries are none; attention goes by positions
    collate = trainer.data_collator
    kept = ("input_ids", "labels", "position_ids")
    trainer.data_collator = lambda rows: {name: tensor for name, tensor in collate(rows).items() if name in kept}
trainer.train()
if trainer.accelerator.is_main_process:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    Path(output).write_text(json.dumps(losses))
