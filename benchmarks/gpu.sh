#!/bin/sh
# What only a GPU can show, the most telling parts first: sh benchmarks/gpu.sh FOLDER [PART ...]
# Each part ends within nine minutes and writes its rows into FOLDER as they come: a part that was cut off can run again,
# and keeps the rows of the others. `sh benchmarks/gpu.sh --list` shows the parts. Without a PART, all run in order.
# PYTHON runs ours and TORCH_PYTHON runs PyTorch (torch, torchvision, timm); both are python3 if not given.
# SMALL=1 runs every part at reduced size, on a CPU too, with one network in place of several: it shows only that the
# parts work.
parts="pytorch variants profile vgg16 vit others inference more cache"
if [ "$1" = --list ]; then
    echo "pytorch    ResNet-50 training beside PyTorch's, eager and compiled"
    echo "variants   ResNet-50 training without each of our own forms, and with convolutions outside command buffers"
    echo "profile    ResNet-50 training: rate, share of the roofline, a profile and its slowest operations"
    echo "vgg16      VGG-16 training beside PyTorch's, and with XLA's gradient of max pooling"
    echo "vit        ViT-S/16 training, and with XLA's attention in place of cuDNN's"
    echo "others     MobileNet, AlexNet and GoogLeNet training beside PyTorch's"
    echo "inference  ResNet-50, VGG-16 and MobileNet inference beside PyTorch's"
    echo "more       ResNet-18, DenseNet-121, Inception-v3 and ResNet-152 beside PyTorch's"
    echo "cache      two short runs of ResNet-20; the second takes its programs from the compilation cache"
    exit
fi
folder=${1:?"give a folder for the results, or --list"}
shift
mkdir -p "$folder"
python=${PYTHON:-python3}
network=resnet50
if [ "$SMALL" ]; then
    network=resnet20
    small="--batch_size=8 --image_size=64 --rounds=1 --seconds=0.01"
    rows="--batch_sizes=8 --image_size=64 --seconds=0.1"
else
    small="--rounds=3"
    rows="--batch_sizes=256"
fi

# Kernels that were timed against each other in one process are not timed again in the next.
[ "$SMALL" ] || export XLA_FLAGS="$XLA_FLAGS --xla_gpu_per_fusion_autotune_cache_dir=$folder"

against_pytorch() { # NAME,NAME MODE
    models=$1
    [ "$SMALL" ] && models=${models%%,*}
    $python benchmarks/against_pytorch.py --torch_python="${TORCH_PYTHON:-$python}" --styles=compiled,eager \
        --json="$folder/against_pytorch.json" $small --models="$models" --mode="$2"
}

variants() { # MODEL NAME,NAME
    $python benchmarks/step_options.py --json="$folder/step_options.json" $small --model="$1" --variants="$2"
}

status=0
for part in ${*:-$parts}; do
    echo "== $part"
    (
        set -e
        case $part in
        pytorch) against_pytorch resnet50 train ;;
        variants)
            variants $network "kernels in the order of JAX,batch statistics in one reduction"
            variants $network "command buffers without convolutions,max pooling by select-and-scatter,stem with its stride"
            variants $network "batch norm and ReLU apart,batch statistics in two passes,all four"
            ;;
        profile)
            $python benchmark.py --models=$network --mode=train --dtype=bfloat16 $rows --profile="$folder/profile" \
                --json="$folder/throughput.json"
            $python benchmarks/slowest_operations.py "$folder"/profile/*/layers.json.gz >"$folder/slowest_operations.txt"
            head -n 25 "$folder/slowest_operations.txt"
            ;;
        vgg16)
            against_pytorch vgg16 train
            variants vgg16 "max pooling by select-and-scatter"
            ;;
        vit) variants vit_small_patch16_224 "attention by XLA" ;;
        others) against_pytorch mobilenetv1_100,alexnet,googlenet train ;;
        inference) against_pytorch resnet50,vgg16,mobilenetv1_100 infer ;;
        more) against_pytorch resnet18,densenet121,inception_v3,resnet152 train,infer ;;
        cache)
            # In the second run nothing starts cuDNN before the CUDA graphs are recorded, except training/platform.py.
            for run in first second; do
                $python train.py --config=configs/cifar10_resnet20.py --config.dataset=synthetic --config.num_classes=10 \
                    --config.synthetic_examples=1024 --config.num_steps=16 --config.step_steps=8,12 \
                    --config.compilation_cache_dir="$(realpath "$folder")/compiled" --workdir="$folder/cache/$run"
            done
            ;;
        *)
            echo "gpu.sh: error: there is no part $part; see sh benchmarks/gpu.sh --list" >&2
            exit 2
            ;;
        esac
    )
    code=$?
    [ $code -eq 0 ] || status=$code  # the other parts still run
done
exit $status
