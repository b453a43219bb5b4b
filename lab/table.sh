#!/bin/sh
# The README's table: five seeds of both trainings, then 1,000 test questions; and the control of RL, with three seeds.
# About an hour on two cores. Interrupt it when you like: the same command goes on.
# The runs have the names and settings of lab/experiments.py, which then trains none of them again.
set -e
cd "$(dirname "$0")/.."
out=${1:-runs/lab}
python=${PYTHON:-python}
short="--test-limit 20 --samples 2"  # of the table that each training ends with
export OMP_NUM_THREADS=1  # two seeds beside one another

train() {  # a seed, and where M_L's rationales come from
    $python train_kd.py --seed $1 --out $out/kd-$1 $2 $short
    $python train_rl.py --seed $1 --kd $out/kd-$1 --out $out/rl-$1 $short
}

longer() {  # the control: distillation for as long as KD and RL together, on all questions that RL may draw from
    $python train_kd.py --seed $1 --train-limit 12000 --epochs 14 --patience 14 --out $out/longer-$1 $2 $short
}

train 0
(train 1 "--rationales $out/kd-0" && train 3 "--rationales $out/kd-0" && longer 1 "--rationales $out/longer-0") &
longer 0 "--rationales $out/kd-0"
train 2 "--rationales $out/kd-0" && train 4 "--rationales $out/kd-0" && longer 2 "--rationales $out/longer-0"
wait $!
unset OMP_NUM_THREADS
$python eval.py --kd "$out/kd-[0-4]" --rl "$out/rl-[0-4]" --direct none --samples 5 --out $out/table
# The same with the control in the place of KD: "RL minus KD" is then RL minus the control.
$python eval.py --kd "$out/longer-[0-2]" --rl "$out/rl-[0-2]" --direct none --samples 1 --out $out/table-control
