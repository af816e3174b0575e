#!/bin/bash
# Measures how many files processes make in a second on mounts of a cluster whose metadata is in a PostgreSQL,
# with one metadata server and with two:
#
#   meta_servers.sh KILN DIR URL [SECONDS]
#
# KILN is the program, DIR an empty directory, URL a PostgreSQL as 'kiln up --postgres' takes it. 1, 8 and 32
# processes on 8 mounts, each of which chooses its server by chance, make and close empty files, each in a
# directory of its own, for SECONDS (5). Needs python3, and the right to mount; leaves a schema for each
# cluster in the PostgreSQL.
set -euo pipefail

[[ $# -ge 3 && -x $1 && -d $2 ]] || { sed -n '2,11s/^# \?//p' "$0" >&2; exit 2; }
kiln=$(realpath "$1")
dir=$(mktemp -d "$(realpath "$2")/meta-servers-XXXXXX")
url=$3
seconds=${4:-5}
mounts=8
export KILN_DIR

end() {
    trap - EXIT
    for mount in "$dir"/mnt-*; do "$kiln" umount "$mount" > /dev/null 2>&1 || true; done
    for KILN_DIR in "$dir"/cluster-*; do "$kiln" down > /dev/null 2>&1 || true; done
    rm -rf "$dir"
}
trap end EXIT
trap 'exit 1' INT TERM

make_files='
import os, sys, time
place, seconds = sys.argv[1], float(sys.argv[2])
os.mkdir(place)
begin, count = time.monotonic(), 0
while time.monotonic() - begin < seconds:
    os.close(os.open(f"{place}/{count}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    count += 1
print(count / (time.monotonic() - begin))
'

for servers in 1 2; do
    KILN_DIR=$dir/cluster-$servers
    "$kiln" up --detach --storage 1 --meta $servers --postgres "$url" > /dev/null
    for ((n = 0; n < mounts; n++)); do
        mkdir -p "$dir/mnt-$n" && "$kiln" mount "$dir/mnt-$n" > /dev/null
    done
    for processes in 1 8 32; do
        for ((p = 0; p < processes; p++)); do
            python3 -c "$make_files" "$dir/mnt-$((p % mounts))/$processes-$p" "$seconds" &
        done > "$dir/rates"
        for job in $(jobs -p); do wait "$job"; done
        awk -v s=$servers -v p=$processes \
            '{ sum += $1 } END { printf "%d metadata server(s), %2d processes: %5.0f creates/s\n", s, p, sum }' "$dir/rates"
    done
    for ((n = 0; n < mounts; n++)); do "$kiln" umount "$dir/mnt-$n" > /dev/null; done
    "$kiln" down > /dev/null
done
