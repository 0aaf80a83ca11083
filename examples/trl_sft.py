"""`trl sft` with S²-Attn: TRL's own script for supervised fine-tuning, after `import longlora`.

The options are those of `trl sft`. The group size is LONGLORA_GROUP_SIZE tokens, by default a quarter of the context.

    LONGLORA_GROUP_SIZE=4096 accelerate launch examples/trl_sft.py --attn_implementation s2 --packing \
        --max_length 16384 --model_name_or_path path/to/extended-model --dataset_name path/to/dataset
"""

import runpy

import longlora  # noqa: F401 - registers attn_implementation="s2"

if __name__ == "__main__":
    runpy.run_module("trl.scripts.sft", run_name="__main__", alter_sys=True)
