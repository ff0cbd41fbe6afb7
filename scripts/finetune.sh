#!/bin/sh
# The old workflow with environment variables: trains an adapter and, with inter=1, merges it and
# starts a chat with the result.
#
#   dataset=slqm data_dir=../ model_dir=../ model_name=chinese-llama-2-7b-16k.Q2_K sh scripts/finetune.sh
#
#   dataset     the training data is $data_dir/$dataset.txt, or .jsonl      shakespeare
#   data_dir    its folder                                                  ./
#   model_dir   the base model is $model_dir/$model_name.gguf               ./
#   model_name                                                              required
#   cmd         finetune or finetune-bc: the same program                   finetune
#   adamiter    iterations of this run                                      30
#   inter       1: merge and chat afterwards
#
# Arguments are passed to the program and have priority: `sh scripts/finetune.sh --batch 4 --ctx 64`.
# Its output also goes to $model_name.log in this folder, as UTF-8. Files are lora-$model_name-*.gguf and
# chk-$model_name-*.gguf; a second run continues from chk-$model_name-LATEST.gguf.
set -u

fail() {
    echo "error: $*" >&2
    exit 2
}

dataset=${dataset:-shakespeare}
data_dir=${data_dir:-./}
model_dir=${model_dir:-./}
model_name=${model_name:-}
cmd=${cmd:-finetune}
adamiter=${adamiter:-30}
inter=${inter:-}

[ -n "$model_name" ] || fail "which model? Set model_name (and model_dir, dataset, data_dir)"
case $cmd in
finetune | finetune-bc) ;;
*) fail "cmd is '$cmd', known are finetune and finetune-bc" ;;
esac
case $inter in
'' | 0 | 1) ;;
*) fail "inter is '$inter', give 1 or nothing" ;;
esac

root=$(cd "$(dirname "$0")/.." && pwd) || exit 2
python=${PYTHON:-}
[ -n "$python" ] || python=$root/.venv/bin/python
[ -x "$python" ] || command -v "$python" >/dev/null || python=python3
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUTF8=1

model=${model_dir%/}/$model_name.gguf
data=${data_dir%/}/$dataset.txt
[ -f "$data" ] || [ ! -f "${data%.txt}.jsonl" ] || data=${data%.txt}.jsonl
log=$model_name.log

# The program's own exit code, not tee's. Ctrl-C reaches the program, which saves and says how to
# go on; tee and the shells must live to write that down (each subshell begins without traps).
logged() {
    code=$(
        trap : INT
        {
            {
                trap : INT
                "$python" -m "$@" 2>&1
                echo $? >&3
            } | tee -i -a "$log" >&4
        } 3>&1
    ) 4>&1
}
trap : INT

logged nbllama.finetune --model-base "$model" --train-data "$data" \
    --checkpoint-in "chk-$model_name-LATEST.gguf" --checkpoint-out "chk-$model_name-ITERATION.gguf" \
    --lora-out "lora-$model_name-ITERATION.gguf" --adam-iter "$adamiter" "$@"
[ "${code:-1}" = 0 ] || exit "${code:-1}"
[ "$inter" = 1 ] || exit 0

merged=$model_name-merged.gguf
logged nbllama.export_lora --model-base "$model" --lora "lora-$model_name-LATEST.gguf" \
    --model-out "$merged"
[ "${code:-1}" = 0 ] || exit "${code:-1}"
trap - INT
exec "$python" -m nbllama.main -m "$merged" -cnv
