#!/usr/bin/env bash
# Trains with Ray in two network namespaces with distinct host names on a link of 1 Gbit/s, and
# without Ray; prints the bytes on the link and the sha256 of both checkpoints. Needs root, Linux, Ray.
# Usage: [LINK="netem delay 50ms loss 1%"] scripts/two_machines.sh PYTHON FOLDER
# FOLDER holds toy.gguf and text.txt.
set -eu
python=$1 folder=$2
ray=$(dirname "$python")/ray
RAY_AUTH_TOKEN=$("$python" -c 'import secrets; print(secrets.token_hex(32))')
PYTHONPATH=$(cd "$(dirname "$0")/.." && pwd)
export RAY_AUTH_TOKEN PYTHONPATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export NO_PROXY=10.77.0.1,10.77.0.2 no_proxy=10.77.0.1,10.77.0.2
in_machine() {
  local n=$1
  shift
  ip netns exec "nbr$n" unshare -u sh -c "hostname nbm$n; exec \"\$@\"" sh "$@"
}
clean() {
  for n in 1 2; do
    for pid in $(ip netns pids "nbr$n"); do kill -9 "$pid" || true; done
    ip netns del "nbr$n" || true
  done
}
trap clean EXIT
for n in 1 2; do
  ip netns add "nbr$n"
  ip netns exec "nbr$n" ip link set lo up
done
ip link add nbv1 netns nbr1 type veth peer name nbv2 netns nbr2
for n in 1 2; do
  ip netns exec "nbr$n" ip addr add "10.77.0.$n/24" dev "nbv$n"
  ip netns exec "nbr$n" ip link set "nbv$n" up
  ip netns exec "nbr$n" tc qdisc add dev "nbv$n" root ${LINK:-tbf rate 1gbit burst 256kb latency 50ms}
done
store=--object-store-memory=300000000
in_machine 1 "$ray" start --head --node-ip-address=10.77.0.1 --port=6399 --num-cpus=1 \
  --include-dashboard=false $store >/dev/null
in_machine 2 "$ray" start --address=10.77.0.1:6399 --node-ip-address=10.77.0.2 --num-cpus=1 \
  $store >/dev/null
sleep 3
count() { ip netns exec nbr1 cat "/sys/class/net/nbv1/statistics/$1_bytes"; }
for how in none 10.77.0.1:6399; do
  more=()
  [ "$how" = none ] || more=(--ray "$how")
  rx=$(count rx) tx=$(count tx)
  in_machine 1 "$python" -m nbllama.finetune --model-base "$folder/toy.gguf" --force \
    --train-data "$folder/text.txt" --checkpoint-in "" --lora-out "" --ctx 16 --batch 2 \
    --checkpoint-out "$folder/chk-ITERATION.gguf" --grad-acc 8 --block 1 --adam-iter 10 \
    --seed 11 --threads 1 --lora-r 512 "${more[@]}" | tail -3
  echo "$how: $(($(count rx) - rx)) bytes to the first machine, $(($(count tx) - tx)) from it"
  sha256sum "$folder/chk-10.gguf"
done
