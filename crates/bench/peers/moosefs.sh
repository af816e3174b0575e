#!/bin/bash
# Measures names and small files through kiln's mount beside MooseFS with three copies, in the same run, on the
# same disk:
#
#   moosefs.sh KILN DIR [ARGUMENT OF kiln bench]..
#
# KILN is the program, its cluster runs; DIR is a directory on the cluster's disk, for three chunkservers. Needs
# root, and Debian's moosefs-master, moosefs-chunkserver and moosefs-client. MooseFS runs in a network namespace
# of its own, with its state below DIR; everything is ended by process id and removed at the end. Its master
# answers from memory and writes its log later: a change that was answered may be lost with it.
set -euo pipefail

[[ $# -ge 2 && -x $1 && -d $2 ]] || { sed -n '2,10s/^# \?//p' "$0" >&2; exit 2; }
source "$(dirname "$0")/peer.sh"
need mfsmaster mfschunkserver mfsmount mfssetgoal
kiln=$1
dir=$(mktemp -d "$(realpath "$2")/moosefs-XXXXXX")
shift 2
master=10.78.1.4
begin "$master" 10.78.1.{5,6,7}

mkdir "$dir"/{master,mnt}
printf 'MFSM NEW' > "$dir/master/metadata.mfs"
echo '* / rw,alldirs,admin,maproot=0:0' > "$dir/exports.cfg"
cat > "$dir/master.cfg" <<CONFIG
WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = $dir/master
EXPORTS_FILENAME = $dir/exports.cfg
MATOML_LISTEN_HOST = $master
MATOCS_LISTEN_HOST = $master
MATOCL_LISTEN_HOST = $master
CONFIG
inside mfsmaster -c "$dir/master.cfg" start > "$dir/master.log" 2>&1 || { cat "$dir/master.log" >&2; exit 1; }
for last in 5 6 7; do
    mkdir "$dir/data$last" "$dir/chunks$last"
    echo "$dir/chunks$last" > "$dir/hdd$last.cfg"
    cat > "$dir/chunks$last.cfg" <<CONFIG
WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = $dir/data$last
HDD_CONF_FILENAME = $dir/hdd$last.cfg
BIND_HOST = 10.78.1.$last
CSSERV_LISTEN_HOST = 10.78.1.$last
MASTER_HOST = $master
CONFIG
    inside mfschunkserver -c "$dir/chunks$last.cfg" start > "$dir/chunks$last.log" 2>&1 ||
        { cat "$dir/chunks$last.log" >&2; exit 1; }
done
inside mfsmount "$dir/mnt" -H "$master" > "$dir/mount.log" 2>&1 || { cat "$dir/mount.log" >&2; exit 1; }
mountpoint -q "$dir/mnt" || { cat "$dir/mount.log" >&2; exit 1; }
mkdir "$dir/mnt/bench"
inside mfssetgoal -r 3 "$dir/mnt/bench" > "$dir/goal.log" 2>&1 || { cat "$dir/goal.log" >&2; exit 1; }
# The master waits for its chunkservers before it gives out chunks.
sleep 15

"$kiln" bench --only metadata --beside moosefs="$dir/mnt/bench" "$@"
