#!/bin/sh
# Everything that wants a GPU, the most telling first: sh benchmarks/gpu.sh [FOLDER] [TORCH_PYTHON]
# A time limit that cuts it off loses nothing: each row is written as it comes. Another call with MODELS set goes on:
#   MODELS=vgg16,alexnet sh benchmarks/gpu.sh
folder=${1:-benchmarks/results}
torch_python=${2:-python3}
against="python3 benchmarks/against_pytorch.py --torch_python=$torch_python --json=$folder/against_pytorch_gpu.json"
set -x
if [ "$MODELS" ]; then
    exec $against --models="$MODELS"
fi
$against --models=resnet50
python3 benchmarks/step_options.py --json="$folder/step_options.json"
python3 benchmarks/operations.py --json="$folder/operations.json"
python3 benchmark.py --models=resnet50,vgg16 --mode=train,infer --dtype=bfloat16 --batch_sizes=256 --json="$folder/gpu.json"
$against --models=vgg16,alexnet,resnet18,mobilenetv1_100,googlenet,inception_v3,densenet121,resnet152
