"""Option names from other trainers, and the hints that `nbllama finetune` prints for them.

The trainers are mlx-lm, PEFT and TRL, Unsloth, axolotl, LLaMA-Factory and llama.cpp.
"""

from __future__ import annotations

from nbllama.options.familiar import ANYWHERE, Rows, answers

_TARGETS = (
    "each matrix has its own rank option, and rank 0 excludes the matrix: --rank-wq (q_proj), "
    "--rank-wk (k_proj),"
    " --rank-wv (v_proj), --rank-wo (o_proj), --rank-w1 (gate_proj), --rank-w2 (down_proj),"
    " --rank-w3 (up_proj)"
)
_FOLDER = (
    "name the files instead: --lora-out FOLDER/lora-ITERATION.gguf for adapters and"
    " --checkpoint-out FOLDER/chk-ITERATION.gguf for checkpoints"
)
_ANSWERS_ONLY = (
    "leave it out: only answers contribute to the loss, unless --train-on-prompt is given"
)
_PRINTED = "leave it out: every iteration is printed; --log FILE writes one JSON line per iteration"
_WHOLE = "leave it out: every evaluation uses all validation data"
_ONLY_LORA = "leave it out: this program trains LoRA adapters on text or on input-answer pairs"

FILES: Rows = (
    ("--model-base", "--model -m --model-name --model-name-or-path --model-id --model-path"
                     " --base-model --base-model-name-or-path --pretrained-model-name-or-path"
                     " --base-model-config --hf-path"),
    ("--train-data", "--data --dataset --datasets --data-path --dataset-path --dataset-name --train"
                     " --dataset-dir --dataset-config --train-file --train-path --train-dataset"
                     " --training-data --data-file --data-files --file -f"),
    ("--val-data", "--eval-data --valid --valid-data --validation-file --validation-data --val-file"
                   " --eval-dataset --eval-file --test-datasets --val-dataset --valid-file"),
    ("--val-split takes a share of the training data, such as 0.1", "--val-size --val-set-size"
     " --validation-split --test-size --eval-split --validation-split-percentage --test-split"),
    (_FOLDER, "--output --output-dir --out-dir --output-path -o --out --save-path --save-dir"
              " --output-directory --outdir"),
    ("--lora-out FILE is the adapter to write, and --lora-in FILE is the adapter to start from",
     "--adapter-path --adapter-file --adapter --adapter-name-or-path --lora --lora-path"
     " --lora-model-dir --adapter-name"),
    ("--lora-in", "--resume-adapter-file --resume-adapter --init-adapter --lora-init"),
    ("--checkpoint-in", "--resume --resume-from-checkpoint --resume-from --resume-training"
                        " --auto-resume-from-checkpoints"),
    ("--save-every", "--save-steps --save-interval --steps-per-save --checkpoint-every"
                     " --save-frequency"),
    ("the save interval is in iterations: pass --save-every N; 0 saves only at the end",
     "--save-strategy --saves-per-epoch --save-per-epoch"),
    ("--keep-last", "--save-total-limit --max-checkpoints --keep-checkpoints"),
    ("leave it out: the adapter with the lowest validation loss is saved with BEST in its name",
     "--load-best-model-at-end --metric-for-best-model --greater-is-better --save-best"),
    ("--tensorboard", "--logging-dir --tensorboard-dir --log-dir"),
    ("pass --tensorboard FOLDER, --report FILE.html or --log FILE", "--report-to --wandb --swanlab"
     " --wandb-project --wandb-entity --wandb-name --use-wandb --run-name --project-name"),
    ("--log", "--log-file --logfile --metrics-file"),
    ("--config", "--config-file --yaml"),
)  # fmt: skip

LENGTH: Rows = (
    ("--epochs", "--num-train-epochs --num-epochs --n-epochs --epoch --max-epochs"),
    ("--adam-iter", "--iters --iterations --max-steps --steps --num-steps --n-iters --max-iters"
                    " --train-steps --num-iterations --total-steps"),
    ("--batch", "--batch-size --per-device-train-batch-size --per-device-batch-size"
                " --micro-batch-size --mini-batch-size --train-batch-size --ubatch-size -ub"
                " --per-gpu-train-batch-size"),
    ("leave it out: validation also uses --batch",
     "--per-device-eval-batch-size --eval-batch-size"),
    ("--grad-acc", "--gradient-accumulation-steps --grad-accumulation-steps --grad-accum"
                   " --gradient-accumulation --accumulation-steps --grad-accum-steps"
                   " --gradient-accumulate-every"),
    ("--ctx", "--max-seq-length --max-seq-len --max-length --cutoff-len --sequence-len --seq-len"
              " --seq-length --block-size --ctx-size --context-length --model-max-length"
              " --max-sequence-length --context-size --n-ctx"),
    ("--packing", "--sample-packing --pack --neat-packing --packing-strategy"),
    ("leave it out: samples are concatenated without padding", "--group-by-length"
     " --pad-to-max-length --pad-to-sequence-len --padding --padding-free --padding-side"
     " --length-column-name"),
    ("leave it out: the training process reads the data itself", "--dataloader-num-workers"
     " --preprocessing-num-workers --dataset-num-proc --dataloader-pin-memory --overwrite-cache"
     " --dataset-processes --tokenized-path --dataset-prepared-path"),
    ("leave it out: the order of the data depends on --seed", "--shuffle --shuffle-data"
     " --data-seed --dataset-shuffle-seed --shuffle-merged-datasets"),
    ("leave it out: gradient checkpointing is on, and --no-checkpointing switches it off",
     "--gradient-checkpointing --grad-checkpoint --use-gradient-checkpointing --checkpointing"
     " --gradient-checkpointing-kwargs --activation-checkpointing"),
)  # fmt: skip

ADAPTER: Rows = (
    ("--lora-r", "--lora-rank --rank -r --r --lora-dim --peft-lora-r --lora-attn-dim --rank-dim"),
    ("--lora-alpha", "--alpha --peft-lora-alpha"),
    ("pass --lora-alpha, which is the scale times --lora-r", "--scale --lora-scale --lora-scaling"),
    ("--lora-dropout", "--dropout --peft-lora-dropout"),
    (_TARGETS, "--lora-target-modules --target-modules --lora-target --lora-modules --lora-keys"
               " --peft-target-modules --exclude-modules --rank-pattern"),
    ("leave it out: for records, all seven matrices of each block are trained; to exclude one, set "
     "its option (--rank-wq to --rank-w3) to 0",
     "--lora-target-linear --all-linear --target-linear"),
    ("full-matrix training is not supported; --rank-tok-embd and --rank-out add LoRA "
     "pairs to token_embd and output", "--modules-to-save --lora-modules-to-save"
     " --additional-target --train-embeddings --ensure-weight-tying"),
    ("pass --lora-layers last:N, or --lora-layers all instead of -1",
     "--num-layers --num-lora-layers"),
    ("--lora-layers", "--layers-to-transform --lora-layers-to-transform --layers --peft-layers"),
    ("pass --lora-r and --lora-alpha (scale times rank), or --rank-wq and so on for individual "
     "matrices",
     "--lora-parameters --lora-config --peft-config"),
    ("--rslora", "--use-rslora --peft-use-rslora --rs-lora"),
    ("--loraplus-lr-ratio", "--lora-plus-ratio --loraplus-ratio"),
    ("leave it out: A is initialised with random numbers, B with zeros", "--init-lora-weights"
     " --pissa-init --use-loftq --loftq-config --peft-init-lora-weights"),
    ("only plain LoRA and its variants --rslora and --loraplus-lr-ratio are supported",
     "--use-dora --dora --peft-use-dora --galore --use-galore --use-badam --freeze-trainable-layers"
     " --unfrozen-parameters --lisa --relora-steps"),
    ("leave it out: biases are not trained", "--bias --lora-bias"),
    (_ONLY_LORA, "--fine-tune-type --finetuning-type --use-peft --use-lora --train-type"
                 " --train-mode --stage --do-train --task-type --do-eval"
                 " --full-finetuning --training-type"),
)  # fmt: skip

STEP: Rows = (
    ("--lr", "-lr --rate --learning-rate-init --max-lr --peak-lr"),
    ("--lr-schedule", "--lr-scheduler-type --lr-scheduler --scheduler --schedule"
                      " --learning-rate-scheduler"),
    ("pass --warmup N, in iterations; the default for records is 3 % of the run", "--warmup-ratio"
     " --lr-warmup-fraction --warmup-fraction --warmup-percent"),
    ("--warmup", "--warmup-steps --num-warmup-steps --lr-warmup-steps --warmup-iters"
                 " --warmup-iterations"),
    ("--adam-min-alpha", "--min-lr --minimum-lr --lr-min -lr-min --cosine-min-lr"),
    ("--lr-decay-min", "--cosine-min-lr-ratio --min-lr-ratio --min-lr-rate"),
    ("--optimizer", "--optim --optimiser --optimizer-type --optimizer-name -opt"),
    ("--weight-decay", "-wd --wd --decay"),
    ("--grad-clip", "--max-grad-norm --gradient-clipping --clip-grad --clip-grad-norm"
                    " --gradient-clip-val --max-norm"),
    ("--adam-beta1", "--beta1 --momentum"),
    ("--adam-beta2", "--beta2"),
    ("leave it out: epsilon is 1e-8", "--adam-epsilon --adam-eps --optim-eps"),
    ("noise on embeddings is not supported; use --lora-dropout to regularise",
     "--neftune-noise-alpha --noisy-embedding-alpha --neftune-alpha"),
    ("use --label-smoothing, which applies to preference pairs", "--label-smoothing-factor "
                                                                 "--dpo-label-smoothing"),
    ("--objective", "--loss-type --rl --pref-loss --rlhf-type --train-objective --loss-fn"
                    " --preference-loss --cpo-loss-type --dpo-loss"),
    ("--beta", "--pref-beta --dpo-beta --kto-beta --orpo-beta --orpo-alpha --simpo-beta"
               " --rl-beta --ipo-beta --orpo-lambda"),
    ("--margin", "--simpo-gamma --gamma --reward-margin"),
    ("--reward", "--reward-funcs --reward-func --reward-fn --reward-function --reward-functions"),
    ("--group-size", "--num-generations --n-generations --num-samples-per-prompt --rollout-n"),
    ("--max-answer", "--max-completion-length --max-new-tokens --response-length"),
    ("--sft-weight", "--rpo-alpha --pref-ftx --sft-alpha --cpo-alpha"),
    ("--reference", "--ref-model --reference-model-path --ref-adapters --ref-adapter-name"
                    " --reference-free --ref-model-path"),
    ("leave it out: the reference is computed once, before the first iteration, and stored",
     "--precompute-ref-log-probs --precompute-ref-batch-size --sync-ref-model"),
    ("leave it out: training runs in one process on one machine", "--deepspeed --fsdp "
                                                                  "--fsdp-config --ddp"
     " --ddp-timeout --ddp-find-unused-parameters --nproc-per-node --num-processes"
     " --accelerate-config --use-unsloth --enable-liger-kernel --use-liger-kernel"),
)  # fmt: skip

DATA: Rows = (
    ("--train-on-prompt", "--train-on-inputs --train-on-input --train-on-prompts"
                          " --train-on-source --train-on-everything"),
    (_ANSWERS_ONLY, "--mask-prompt --completion-only-loss --assistant-only-loss --mask-inputs"
                    " --train-on-completions-only --train-on-responses-only --mask-history"
                    " --completion-only --response-template --roles-to-train"),
    ("--chat-template", "--template --conversation-template --chat-template-path --prompt-template"
                        " --chat-template-file --prompt-style --chat-template-jinja"),
    ("put the system prompt in the data, as the first message of each chat",
     "--system --system-prompt --default-system --system-message"),
    ("--data-format", "--dataset-type --format --dataset-format --data-type --dataset-kwargs"),
    ("--data-columns takes key=name, such as prompt=question,completion=answer", "--columns"
     " --dataset-text-field --text-column --prompt-column --response-column --text-key"
     " --prompt-feature --completion-feature --text-feature --field-messages --chat-feature"),
    ("--on-long", "--truncation --truncate --excess-length-strategy --drop-long"),
    ("pass a shorter file", "--max-samples --max-train-samples --train-samples"),
)  # fmt: skip

EVALUATION: Rows = (
    ("--eval-every", "--eval-steps --steps-per-eval --eval-interval --val-interval --val-every"
                     " --evaluation-steps --eval-frequency"),
    ("the evaluation interval is in iterations: pass --eval-every N",
     "--eval-strategy --evaluation-strategy --evals-per-epoch"),
    ("--early-stop", "--early-stopping-patience --early-stopping --patience"),
    (_WHOLE, "--val-batches --eval-batches --eval-iters --max-eval-samples --test-batches"),
    (_PRINTED, "--logging-steps --steps-per-report --log-every --logging-strategy --log-interval"
               " --logging-first-step --report-every --plot-loss --print-every --log-steps"),
    ("measure the test loss afterwards with `nbllama perplexity`", "--test"),
    ("leave it out: numbered files are kept, and LATEST is replaced", "--overwrite-output-dir"
     " --overwrite"),
    ("--debug shows the traceback of an error", "--verbose -v"),
)  # fmt: skip

FINETUNE = answers(ANYWHERE, FILES, LENGTH, ADAPTER, STEP, DATA, EVALUATION)
