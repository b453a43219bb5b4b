#!/bin/sh
# The README's table: five seeds of both trainings and of a control, then 1,000 test questions.
# About an hour on two cores. Interrupt it when you like: the same command goes on.
set -e
cd "$(dirname "$0")/.."
out=${1:-runs/table}
python=${PYTHON:-python}
short="--test-limit 20 --samples 2"  # of the table that each training ends with

for seed in 0 1 2 3 4; do
    taken=$([ $seed = 0 ] || echo --rationales $out/kd0)  # M_L is asked once
    $python train_kd.py --seed $seed --out $out/kd$seed $taken $short
    $python train_rl.py --seed $seed --kd $out/kd$seed --out $out/rl$seed $short
    # The control of RL: longer distillation, on all questions that RL may draw from.
    taken=$([ $seed = 0 ] && echo $out/kd0 || echo $out/longer0)
    $python train_kd.py --seed $seed --rationales $taken --train-limit 12000 --epochs 14 --patience 14 \
        --out $out/longer$seed $short
done
$python eval.py --kd "$out/kd?" --rl "$out/rl?" --direct none --samples 5 --out $out/eval
# The same with the control in the place of KD: "RL minus KD" is then RL minus the control.
$python eval.py --kd "$out/longer?" --rl "$out/rl?" --direct none --samples 1 --out $out/eval-control
