#!/bin/sh
# Everything that wants a GPU, the most telling first: sh benchmarks/gpu.sh [FOLDER]
# A time limit that cuts it off loses nothing, as rows are written when they come. The rest in further calls:
#   MODELS=vgg16,alexnet,resnet18,mobilenetv1_100 sh benchmarks/gpu.sh
#   MODELS=googlenet,inception_v3,densenet121,resnet152 sh benchmarks/gpu.sh
#   python3 benchmarks/step_options.py --variants=NAME,NAME --json=benchmarks/results/step_options.json
# TORCH_PYTHON is a Python that has torch, torchvision and timm.
folder=${1:-benchmarks/results}
profile=$(mktemp -d)
set -x
${PYTHON:=python3} benchmarks/against_pytorch.py --torch_python="${TORCH_PYTHON:-$PYTHON}" \
    --models="${MODELS:-resnet50}" --json="$folder/against_pytorch_gpu.json"
[ "$MODELS" ] && exit
$PYTHON benchmark.py --models=resnet50,vgg16 --mode=train,infer --dtype=bfloat16 --batch_sizes=256 \
    --profile="$profile" --json="$folder/throughput_gpu.json"
$PYTHON benchmarks/slowest_operations.py "$profile"/*/layers.json.gz | tee "$folder/slowest_operations_gpu.txt"
$PYTHON benchmarks/step_options.py --json="$folder/step_options.json"
