"""Set up TRL's `SFTTrainer` from a recipe; no other file knows its arguments."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback
from trl import SFTConfig, SFTTrainer

from longlora.config import Recipe
from longlora.data.document_rows import count_tokens
from longlora.data.encode import IGNORED
from longlora.distributed import current_strategy
from longlora.errors import ConfigError
from longlora.models.compat import allow_fsdp_on_cpu, checkpointing_arguments, use_one_gpu
from longlora.models.generation import transformers_model
from longlora.models.grouping import Grouping
from longlora.models.load import TrainingModel, compute_dtype, training_grouping
from longlora.models.lora import embedding_parameters
from longlora.models.memory_optimizations import why_not_in_pieces
from longlora.models.probe import excuse_no_gradients
from longlora.training.announcements import tell_cost_of_groups, tell_far_targets, tell_offloading
from longlora.training.callbacks import DenseFinish, FiniteGradients, MetricsLog, ProgressBar, Sigterm, diverged
from longlora.training.checkpoints import SealCheckpoints
from longlora.training.far_targets import bucket_weights, count_targets, extra_loss
from longlora.training.recipe_rows import Rows
from longlora.training.run_directory import RunDirectory
from longlora.training.sequence_parallel import SequenceParallel

logger = logging.getLogger("longlora")


class ExtensionTrainer(SFTTrainer):
    """Stops before the optimizer steps on a NaN or infinite loss, so none ever reaches a checkpoint.

    Embeddings may have their own learning rate, and the loss may be the model's own instead of TRL's.
    """

    progress_bar: ProgressBar
    embedding_learning_rate: float | None = None
    chunked_loss: bool = True
    target_weights: torch.Tensor | None = None
    """Loss weights by the targets' effective context, in training (`longlora.training.far_targets`)."""
    first_grouping: Grouping | None = None
    """Grouping of the first steps, until its cost has been checked; None if they do not group."""
    sequence_parallel: SequenceParallel | None = None
    """The processes that share each row, if there are several."""

    def get_train_dataloader(self) -> DataLoader:
        """Load the training rows, the same ones in processes that share them."""
        loader = super().get_train_dataloader()
        return self.sequence_parallel.share_rows(loader) if self.sequence_parallel else loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Load the validation rows, each in all processes if rows are shared."""
        loader = super().get_eval_dataloader(eval_dataset)
        return self.sequence_parallel.share_rows(loader, everywhere=True) if self.sequence_parallel else loader

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer, with embeddings in groups of their own if they have their own learning rate."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.embedding_learning_rate is not None:
            give_own_rate(optimizer, embedding_parameters(self.model), self.embedding_learning_rate)
        return optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss of one micro-step; in training, far targets may weigh more than others."""
        if self.sequence_parallel and num_items_in_batch is None:
            # Learned tokens per process that shares the row, times all processes: the loss is averaged over these.
            learned = self.sequence_parallel.total((inputs["shift_labels"] != IGNORED).sum())
            num_items_in_batch = learned * self.accelerator.num_processes / self.sequence_parallel.size
        if self.target_weights is None or not model.training:
            return self._plain_loss(model, inputs, return_outputs, num_items_in_batch)
        seen: list[Any] = []  # asked for outputs, TRL would run the model again for the logits
        hook = model.register_forward_hook(lambda _, __, outputs: seen.append(outputs))
        try:
            loss = self._plain_loss(model, inputs, False, num_items_in_batch)
        finally:
            hook.remove()
        if self.sequence_parallel:
            labels, before = inputs["shift_labels"], slice(None)
        else:
            labels, before = inputs["labels"][:, 1:], slice(-1)
        if self.chunked_loss:
            log_probs = seen[-1].log_probs
        else:
            logits = seen[-1].logits[:, before].transpose(1, 2)  # (B, V, targets)
            log_probs = -F.cross_entropy(logits.float(), labels, reduction="none")
        extra = extra_loss(log_probs, inputs["position_ids"][:, before], self.target_weights)
        if num_items_in_batch is None:
            return loss + extra / (labels != IGNORED).sum().clamp(min=1)
        # The count is over all processes, whose gradients are averaged.
        times = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return loss + times * extra / num_items_in_batch

    def _plain_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool, num_items_in_batch: Any) -> Any:
        """Compute TRL's chunked loss, or the model's own from all logits."""
        if self.chunked_loss:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs["use_cache"] = False
        # SFTTrainer's parent, transformers' Trainer, takes the loss that the model computes.
        loss, outputs = super(SFTTrainer, self).compute_loss(model, inputs, True, num_items_in_batch)
        if self.aux_loss_enabled and num_items_in_batch is not None:
            # The token loss is a share of the whole batch's, the experts' balance loss a mean over this micro-step.
            # transformers multiplies their sum, because data parallelism averages over processes.
            times = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            share = 1 / self.current_gradient_accumulation_steps - times
            loss = loss + share * self.router_aux_loss_coef * outputs.aux_loss
        return (loss, outputs) if return_outputs else loss

    def mean_loss(self, model: Any, batch: dict[str, Any]) -> float:
        """Return the mean loss of a batch's learned tokens, in nats, without the trainer's bookkeeping."""
        if not self.chunked_loss:
            return model(**batch, use_cache=False).loss.item()
        outputs = model(**batch, use_cache=False, fused_lm_head=True)
        return -(outputs.log_probs.sum() / outputs.label_mask.sum().clamp(min=1)).item()

    def gathered_weights(self) -> dict[str, torch.Tensor] | None:
        """Collect the trained weights on the main process if the strategy divides them; every process must call this.

        Returns None if the model holds them all.
        """
        if self.is_deepspeed_enabled:
            return self.accelerator.get_state_dict(self.deepspeed)
        if not self.is_fsdp_enabled:
            return None
        is_adapter = isinstance(self.accelerator.unwrap_model(self.model), PeftModel)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=is_adapter)
        weights: dict[str, Any] = get_model_state_dict(self.model, options=options)
        if not is_adapter:  # gathered, tied weights no longer share memory; in adapters, PEFT goes by their names
            first_names = {name for name, _ in self.model.named_parameters()}
            for name, _ in self.model.named_parameters(remove_duplicate=False):
                if name not in first_names:
                    weights.pop(name, None)
        return weights

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a checkpoint's weights when transformers asks (`checkpoints.py` explains the rest).

        Under FSDP2 only the trained weights are gathered, not the frozen base.
        """
        with warnings.catch_warnings():
            # PEFT warns that it adds resized embeddings to what it saves; they are already included.
            warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`", category=UserWarning)
            if self.is_fsdp_enabled:
                weights = self.gathered_weights()
                if self.args.should_save:  # transformers below 5.23 leaves this check to the caller
                    self._save(output_dir, state_dict=weights)
            else:
                super().save_model(output_dir, _internal_call=_internal_call)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run one micro-step.

        Raises:
            DivergenceError: the loss is NaN or infinite.
        """
        grouping, self.first_grouping = self.first_grouping, None
        if grouping is not None and self.state.global_step == 0:
            excuse_no_gradients(self.model.config.get_text_config())
            with self.compute_loss_context_manager():
                tell_cost_of_groups(self.mean_loss, model, inputs, grouping)
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            raise diverged(f"the loss became {float(loss)}", self.state, self.args)
        return loss


def share_rows(trainer: ExtensionTrainer, sequence_parallel: SequenceParallel) -> None:
    """Let several processes train on each row.

    Raises:
        ConfigError: the model cannot be divided this way, or its loss is not a sum over tokens.
    """
    model = transformers_model(trainer.model)
    if not (trainer.chunked_loss or trainer.model_accepts_loss_kwargs):
        raise ConfigError(
            f"sequence_parallel_size={sequence_parallel.size}: {model.config.model_type} computes a mean loss for each "
            "part of a row, and the mean of these is not the row's; train it with each row in one process"
        )
    if trainer.aux_loss_enabled:
        logger.warning("sequence parallelism: the experts' balance loss is computed for each part of a row")
    sequence_parallel.attach(model)
    whole: Any = trainer.data_collator
    trainer.data_collator = lambda rows: sequence_parallel.part_of(whole(rows))
    trainer.sequence_parallel = sequence_parallel


def give_own_rate(
    optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter], learning_rate: float
) -> None:
    """Move parameters to groups that differ from their old ones only in the learning rate.

    Call this before the first step and before creating a schedule, which multiplies the rate it finds in each group.

    Raises:
        ConfigError: the optimizer holds others in their place, as when a model is wrapped in pieces.
    """
    members = {id(parameter) for parameter in parameters}
    if not members <= {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}:
        raise ConfigError(
            f"embedding_learning_rate={learning_rate:g} cannot be applied: the optimizer does not hold the embeddings "
            "separately; leave it out"
        )
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in members]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in members]
            optimizer.add_param_group({**group, "params": moved, "lr": learning_rate})


def build_trainer(
    recipe: Recipe, prepared: TrainingModel, rows: Rows, run: RunDirectory, arguments: SFTConfig, sigterm: Sigterm
) -> ExtensionTrainer:
    """Set up the trainer: rows go in unchanged, as one flattened batch with its document boundaries.

    Raises:
        ConfigError: the recipe asks for a low-rank update of the output layer.
    """
    if isinstance(prepared.model.get_output_embeddings(), BaseTunerLayer):
        raise ConfigError(
            f"lora.target_modules={recipe.lora.target_modules}: the loss is computed from the output layer's weights "
            "and would ignore a low-rank update of it; leave that layer out"
        )
    if arguments.activation_offloading:
        tell_offloading(recipe, prepared.model.config)
    tokens_per_row = count_tokens(rows.training) / len(rows.training)
    bar = ProgressBar(tokens_per_step=tokens_per_row * rows_per_step(recipe, arguments))
    grouping = training_grouping(recipe)
    # TRL advises against padding-free batches of one row, but here they keep documents apart.
    logging.getLogger("trl.trainer.sft_trainer").setLevel(logging.ERROR)
    trained = [(parameter, parameter.data) for parameter in prepared.model.parameters() if parameter.requires_grad]
    trainer = ExtensionTrainer(
        model=prepared.model,
        args=arguments,
        train_dataset=rows.training,
        eval_dataset=rows.validation,
        processing_class=prepared.tokenizer,
        callbacks=[
            DenseFinish(grouping=grouping, first_dense_step=recipe.first_dense_step),
            FiniteGradients(),
            MetricsLog(run.metrics),
            SealCheckpoints(run.checkpoints, prepared.extension),
            bar,
            sigterm,
        ],
    )
    # With a quantized base, SFTTrainer has rounded everything trainable to bfloat16, for LoRA, as the QLoRA paper did;
    # embeddings and norms would hardly learn at a rate of 2e-5.
    for parameter, data in trained:
        if parameter.dtype != data.dtype:
            parameter.data = data.to(parameter.device)
    trainer.remove_callback(PrinterCallback)
    trainer.progress_bar = bar
    trainer.embedding_learning_rate = recipe.embedding_learning_rate
    trainer.chunked_loss = recipe.chunked_loss
    if recipe.far_target_weight:
        counts, beyond = count_targets(rows.training), recipe.far_target_context
        trainer.target_weights = torch.from_numpy(
            bucket_weights(counts, extra=recipe.far_target_weight, beyond=beyond).astype("float32")
        )
        tell_far_targets(counts.tolist(), trainer.target_weights.tolist(), beyond)
    if recipe.chunked_loss and (reason := why_not_in_pieces(prepared.model.config) or _why_not_divided(prepared.model)):
        logger.warning(
            "chunked_loss is not used, so the logits of whole rows take memory: %s; set chunked_loss: false to accept "
            "this",
            reason,
        )
        trainer.chunked_loss = False
    if recipe.sequence_parallel_size > 1:
        share_rows(trainer, SequenceParallel(recipe.sequence_parallel_size))
    if grouping.group_size is not None and recipe.first_dense_step > 0:
        trainer.first_grouping = grouping
    return trainer


def _why_not_divided(model: PreTrainedModel | PeftModel) -> str | None:
    """Return why the chunked loss would be wrong under FSDP2, which divides the output layer's weights.

    Under an adapter with trained norms, accelerate 1.15 does not gather them before the loss. TRL 1.16 then does, but
    each process keeps only its own rows' gradient of its part.
    """
    is_trained = isinstance(model.get_output_embeddings(), AuxiliaryTrainingWrapper)
    if current_strategy() == "fsdp2" and is_trained and not model.config.get_text_config().tie_word_embeddings:
        return "under fsdp2 it loses gradients of an output layer that is trained beside an adapter"
    return None


def _activation_offloading(recipe: Recipe) -> bool:
    if recipe.activation_offloading and not torch.cuda.is_available():
        logger.warning("activation_offloading is not used: without a GPU, everything is in host memory anyway")
        return False
    return recipe.activation_offloading


def training_arguments(recipe: Recipe) -> SFTConfig:
    """Translate a recipe into TRL's arguments; with several processes, this joins the others.

    Raises:
        ConfigError: the recipe needs a GPU that is missing, for float16 or for DeepSpeed (under which accelerate then
            takes each process for the only one); or the number of processes is no multiple of those that share a row.
    """
    if current_strategy() in ("zero2", "zero3") and not torch.cuda.is_available():
        raise ConfigError(
            f"--strategy {current_strategy()} needs GPUs, and torch sees none; without GPUs, use ddp or fsdp2"
        )
    dtype = compute_dtype(recipe.dtype)
    if dtype == torch.float16 and not torch.cuda.is_available():
        raise ConfigError("dtype=float16 needs a GPU, and torch sees none; use bfloat16 or float32")
    passed_on = (
        "max_steps per_device_train_batch_size gradient_accumulation_steps learning_rate lr_scheduler_type "
        "warmup_steps optim weight_decay adam_beta1 adam_beta2 max_grad_norm logging_steps save_steps "
        "save_total_limit seed"
    ).split()
    arguments = SFTConfig(
        output_dir=str(RunDirectory(recipe).checkpoints),
        **{name: getattr(recipe, name) for name in passed_on},
        **checkpointing_arguments(recipe.gradient_checkpointing),
        activation_offloading=_activation_offloading(recipe),
        report_to=[recipe.report_to] if isinstance(recipe.report_to, str) else list(recipe.report_to),
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        eval_strategy="no" if recipe.data.validation_source is None else "steps",
        eval_steps=recipe.eval_steps,
        per_device_eval_batch_size=1,
        save_strategy="steps",
        # Rows are already tokenized and packed, and carry their document boundaries.
        dataset_kwargs={"skip_prepare_dataset": True},
        padding_free=True,
        pad_to_multiple_of=recipe.sequence_parallel_size if recipe.sequence_parallel_size > 1 else None,
        max_length=None,
    )
    if arguments.world_size % recipe.sequence_parallel_size:
        raise ConfigError(
            f"sequence_parallel_size={recipe.sequence_parallel_size} must divide the number of processes, found "
            f"{arguments.world_size}; start that many with --strategy ddp or fsdp2 and --processes"
        )
    use_one_gpu(arguments)
    allow_fsdp_on_cpu(arguments)
    return arguments


def rows_per_step(recipe: Recipe, arguments: SFTConfig) -> int:
    """Return the number of rows in one optimizer step, over all processes."""
    groups = arguments.world_size // recipe.sequence_parallel_size
    return arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * groups
