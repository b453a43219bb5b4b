#!/bin/sh
# The README's table: five seeds of both trainings, a control, then 1,000 test questions.
# About 40 minutes on two cores. Interrupt it when you like: the same command goes on.
set -e
cd "$(dirname "$0")/.."
out=${1:-runs/table}
python=${PYTHON:-python}
short="--test-limit 20 --samples 2"  # of the table that each training ends with

train() {  # a seed, and where M_L's rationales come from
    $python train_kd.py --seed $1 --out $out/kd$1 $2 $short
    $python train_rl.py --seed $1 --kd $out/kd$1 --out $out/rl$1 $short
}

train 0
# The control of RL: longer distillation, on all questions that RL may draw from.
$python train_kd.py --rationales $out/kd0 --train-limit 12000 --epochs 14 --patience 14 --out $out/longer0 $short
export OMP_NUM_THREADS=1  # two seeds beside one another
(train 1 "--rationales $out/kd0" && train 3 "--rationales $out/kd0") &
train 2 "--rationales $out/kd0" && train 4 "--rationales $out/kd0"
wait $!
unset OMP_NUM_THREADS
$python eval.py --kd "$out/kd?" --rl "$out/rl?" --direct none --samples 5 --out $out/eval
# The same with the control in the place of KD: "RL minus KD" is then RL minus the control.
$python eval.py --kd $out/longer0 --rl $out/rl0 --direct none --samples 1 --out $out/eval-control
