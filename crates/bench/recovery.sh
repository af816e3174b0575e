#!/bin/bash
# Measures how fast a target that was away is filled, beside the disk's bandwidth in the same run:
#
#   recovery.sh KILN DIR [GIB] [RATE]
#
# KILN is the program, DIR an empty directory on the disk to measure. A cluster of two storage servers
# and two replicas gets GIB (10) GiB of data while one server is stopped; then that one goes on and is
# filled. RATE limits it ("[recovery] rate", such as 200MiB); then programs read from a mount before and
# meanwhile, 1 MiB at random, and what the recovery costs them is printed (choose GIB so that it takes
# longer than 10 s). Needs fio, 2.5 times GIB of space, and leaves nothing behind.
set -euo pipefail

[[ $# -ge 2 && -x $1 && -d $2 ]] || { sed -n '2,11s/^# \?//p' "$0" >&2; exit 2; }
command -v fio > /dev/null || { echo "recovery.sh: fio is missing" >&2; exit 1; }
kiln=$(realpath "$1")
dir=$(mktemp -d "$(realpath "$2")/recovery-XXXXXX")
gib=${3:-10}
rate=${4:-0}
export KILN_DIR=$dir/cluster

end() {
    trap - EXIT
    pkill -CONT -f "$dir/cluster/storage-2/config.toml" || true
    "$kiln" umount "$dir/mount" > /dev/null 2>&1 || true
    "$kiln" down > /dev/null 2>&1 || true
    rm -rf "$dir"
}
trap end EXIT
trap 'exit 1' INT TERM

now() { date +%s.%N; }
# MiB/s that programs read for 10 s, and the slowest of a hundred reads in ms.
reads() {
    fio --output-format=terse --name=reads --filename="$dir/mount/data-0" --rw=randread --bs=1M --direct=1 \
        --ioengine=psync --numjobs=4 --group_reporting --time_based --runtime=10 --size=1G |
        awk -F';' '{ split($30, p99, "="); printf "%.0f %.1f\n", $7 / 1024, p99[2] / 1000 }'
}
serving() { "$kiln" admin chains --json | grep -c '"serving"' || true; }

"$kiln" up --detach --storage 2 --replicas 2 --capacity "$((gib * 3 / 2 + 2))GiB" > /dev/null
if [[ $rate != 0 ]]; then
    "$kiln" down > /dev/null
    sed -i "/^\[recovery\]/,/^rate/s/^rate = .*/rate = \"$rate\"/" "$dir"/cluster/storage-*/config.toml
    "$kiln" up --detach > /dev/null
fi
all=$(serving)
pkill -STOP -f "$dir/cluster/storage-2/config.toml"
sleep 8
head -c 1G /dev/urandom > "$dir/data"
for ((i = 0; i < gib; i++)); do "$kiln" cp "$dir/data" "kiln:/data-$i" > /dev/null; done
rm "$dir/data"
sync -f "$dir"
if [[ $rate != 0 ]]; then
    mkdir "$dir/mount"
    "$kiln" mount "$dir/mount" > /dev/null
    before=$(reads)
fi
pkill -CONT -f "$dir/cluster/storage-2/config.toml"
begun=$(now)
[[ $rate == 0 ]] || meanwhile=$(reads)
until [[ $(serving) == "$all" ]]; do sleep 0.2; done
ended=$(now)
if [[ $rate != 0 ]]; then
    echo "programs read before:     ${before/ / MiB/s, 99 of 100 reads within } ms"
    echo "while it was recovered:   ${meanwhile/ / MiB/s, 99 of 100 reads within } ms"
fi
"$kiln" admin check > "$dir/check" || { cat "$dir/check" >&2; exit 1; }

# Recovery reads at one end and writes at the other, here on the same disk: so does the pipeline.
fio --name=read --filename="$dir/fio" --size=2G --bs=1M --rw=write --direct=1 --ioengine=psync > /dev/null
fio --output-format=terse --direct=1 --bs=1M --ioengine=io_uring --iodepth=8 --size=2G \
    --name=read --rw=read --filename="$dir/fio" \
    --name=write --rw=write --filename="$dir/fio2" --end_fsync=1 > "$dir/fio.out"
awk -F';' -v gib="$gib" -v begun="$begun" -v ended="$ended" '
    $3 == "read" { read = $7 / 1024 } $3 == "write" { write = $48 / 1024 }
    END {
        took = ended - begun; recovery = gib * 1024 / took
        limit = read < write ? read : write
        printf "recovered %d GiB in %.1f s: %.0f MiB/s\n", gib, took, recovery
        printf "the disk, reading and writing at once: %.0f and %.0f MiB/s\n", read, write
        printf "ratio: %.2f\n", recovery / limit
    }' "$dir/fio.out"
