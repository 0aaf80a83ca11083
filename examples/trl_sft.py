"""`trl sft` with S²-Attn: TRL's own script for supervised fine-tuning, after `import longlora`.

All options are those of `trl sft`. The group has LONGLORA_GROUP_SIZE tokens, else a quarter of the model's context.

    LONGLORA_GROUP_SIZE=4096 accelerate launch examples/trl_sft.py --attn_implementation s2 --packing \
        --max_length 16384 --model_name_or_path path/to/extended-model --dataset_name path/to/dataset
"""

import runpy

import longlora  # noqa: F401 - makes attn_implementation="s2" known

if __name__ == "__main__":
    runpy.run_module("trl.scripts.sft", run_name="__main__", alter_sys=True)
