#!/bin/sh
# The README's table: five seeds of both trainings, then 1,000 test questions; and the control of RL, with three seeds.
# Over an hour on two cores. Interrupt it when you like: the same command goes on.
# The runs have the names and settings of lab/experiments.py, which then trains none of them again.
set -e
cd "$(dirname "$0")/.."
out=${1:-runs/lab}
python=${PYTHON:-python}
short="--test-limit 20 --samples 2"  # of the table that each training ends with
export OMP_NUM_THREADS=1  # two seeds beside one another

kd() {  # a seed, and where M_L's rationales come from
    $python train_kd.py --seed $1 --out $out/kd-$1 $2 $short
}

rl() {
    $python train_rl.py --seed $1 --kd $out/kd-$1 --out $out/rl-$1 $short
}

longer() {  # the control: longer distillation (13 CPU minutes; KD and RL take 18), on all questions that RL may draw from
    $python train_kd.py --seed $1 --train-limit 12000 --epochs 14 --patience 14 --out $out/longer-$1 $2 $short
}

kd 0
taken="--rationales $out/kd-0"
(longer 0 "$taken" && kd 1 "$taken" && rl 1 && kd 3 "$taken" && rl 3 && longer 1 "--rationales $out/longer-0") &
rl 0 && kd 2 "$taken" && rl 2 && kd 4 "$taken" && rl 4 && longer 2 "--rationales $out/longer-0"
wait $!
unset OMP_NUM_THREADS
$python eval.py --kd "$out/kd-[0-4]" --rl "$out/rl-[0-4]" --direct none --samples 5 --out $out/table
# The same with the control in the place of KD: "RL minus KD" is then RL minus the control.
$python eval.py --kd "$out/longer-[0-2]" --rl "$out/rl-[0-2]" --direct none --samples 1 --out $out/table-control
