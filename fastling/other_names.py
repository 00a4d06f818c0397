"""What other trainers call our settings, so that an error for such a name can say ours."""

OTHER_NAMES = {
    other: name
    for name, others in {
        "run_dir": "output_dir",
        "model.pretrained": "base_model model_name model_name_or_path",
        "data.sources": "dataset datasets data_path train_file",
        "data.validation": "eval_dataset",
        "data.held_out_share": "val_set_size val_size",
        "data.sequence_length": "max_length max_seq_length model_max_length cutoff_len",
        "train.epochs": "num_train_epochs",
        "train.steps": "max_steps",
        "train.micro_batch_tokens": "batch_size per_device_train_batch_size",
        "train.global_batch_tokens": "gradient_accumulation_steps",
        "train.activation_checkpointing": "gradient_checkpointing",
        "train.precision": "bf16 fp16 dtype torch_dtype",
        "optimizer.lr": "learning_rate",
        "optimizer.schedule": "lr_scheduler_type",
        "optimizer.warmup_ratio": "warmup_steps",
        "optimizer.clip_norm": "max_grad_norm",
        "optimizer.eps": "adam_epsilon",
        "parallel.shard": "deepspeed fsdp",
        "checkpoint.every_steps": "save_steps",
        "checkpoint.keep_last": "save_total_limit",
        "evaluate.every_steps": "eval_steps",
        "log.wandb": "report_to",
        "log.every_steps": "logging_steps",
    }.items()
    for other in others.split()
}
