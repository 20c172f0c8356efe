#!/bin/bash
# quire on Arm without an Arm machine: a Debian for arm64 in FOLDER, each program of which QEMU translates (binfmt_misc, no virtual machine).
#   bash bench/arm/under_qemu.sh FOLDER                                        make it, if it is not there
#   bash bench/arm/under_qemu.sh FOLDER python -m pytest -p bench.arm.patient --timeout 3000 tests/ipc
# Needs root on Debian with `apt-get install qemu-user-static debootstrap`, and quire's own .venv. 10 to 30 times slower than the machine.
# CPU=neoverse-n1 (the default) is an Arm with NEON alone; CPU=max one with SVE and bfloat16, which LLVM takes for a Neoverse V1.
# TORCH=2.9.1 is the default: up to 2.10.0 torch's Arm wheels on PyPI are the CPU build, later ones are for CUDA.
set -euo pipefail
folder=$(realpath -m "$1") && shift
repository=$(realpath "$(dirname "$0")/../..")
root=$folder/root packages=$folder/root/opt/venv/lib/python3.11/site-packages handler=/proc/sys/fs/binfmt_misc
cpu=${CPU:-neoverse-n1} torch=${TORCH:-2.9.1}

mountpoint -q $handler || mount -t binfmt_misc binfmt_misc $handler
[ -e $handler/qemu-aarch64 ] || cat /usr/lib/binfmt.d/qemu-aarch64.conf > $handler/register

if [ ! -d "$root/opt/venv" ]; then
    debootstrap --arch=arm64 --foreign --variant=minbase --include=python3,python3-venv,curl,ca-certificates,procps bookworm "$root"
    chroot "$root" /debootstrap/debootstrap --second-stage
    chroot "$root" python3 -m venv --without-pip /opt/venv
fi
if [ ! -d "$packages/torch" ]; then
    # By this machine's pip, which is faster; it would take torch's own needs for this machine's, hence the two names after it.
    pip=("$repository/.venv/bin/python" -m pip install --no-compile --target "$packages" --only-binary=:all: --python-version 3.11)
    for tag in 2_28 2_31 2_27 2_26 2_17; do pip+=(--platform "manylinux_${tag}_aarch64"); done
    "${pip[@]}" --platform manylinux2014_aarch64 --no-deps "torch==$torch"
    grep -v '^torch==' "$repository/constraints.txt" > "$folder/constraints.txt"
    "${pip[@]}" --platform manylinux2014_aarch64 --upgrade -c "$folder/constraints.txt" sympy networkx \
        aiohttp huggingface_hub jinja2 llguidance msgspec numba numpy prometheus-client pyzmq safetensors tokenizers tqdm uvloop \
        transformers pytest pytest-timeout hypothesis jsonschema openai anthropic ollama packaging setuptools
fi
[ $# -gt 0 ] || exit 0

# LLVM and torch read what the CPU is in /proc/cpuinfo, where QEMU shows this machine's.
part=0xd0c features="fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs"
[ "$cpu" = neoverse-n1 ] || { part=0xd40 features+=" jscvt fcma sha3 sha512 sve asimdfhm uscat ilrcpc flagm dcpodp svei8mm svebf16 i8mm bf16"; }
for processor in $(seq 0 $(($(nproc) - 1))); do
    printf 'processor\t: %s\nFeatures\t: %s\nCPU implementer\t: 0x41\nCPU part\t: %s\n\n' "$processor" "$features" $part
done > "$folder/cpuinfo"
mkdir -p "$root/work"
exec unshare --mount bash -euc '
    mount -t proc proc "$1/proc" && mount --bind "$2/cpuinfo" "$1/proc/cpuinfo"
    mount --bind /dev "$1/dev" && mount -t tmpfs tmpfs "$1/dev/shm" && mount --bind "$3" "$1/work"
    cpu=$4 root=$1 && shift 4
    exec chroot "$root" /usr/bin/env -i HOME=/root LANG=C.UTF-8 PATH=/opt/venv/bin:/usr/bin:/bin QEMU_CPU="$cpu" PYTHONPATH=/work \
        bash -c "cd /work && exec \"\$@\"" in-arm "$@"' mounts "$root" "$folder" "$repository" "$cpu" "$@"
