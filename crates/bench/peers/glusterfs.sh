#!/bin/bash
# Measures kiln's mount beside GlusterFS with three replicas, in the same run, on the same disk:
#
#   glusterfs.sh KILN DIR [ARGUMENT OF kiln bench]..
#
# KILN is the program, its cluster runs; DIR is a directory on the cluster's disk, for three bricks. Needs
# root, and Debian's glusterfs-server and glusterfs-client. GlusterFS runs in a network namespace of its own,
# with its state below DIR; everything is ended by process id and removed at the end.
set -euo pipefail

[[ $# -ge 2 && -x $1 && -d $2 ]] || { sed -n '2,8s/^# \?//p' "$0" >&2; exit 2; }
source "$(dirname "$0")/peer.sh"
need glusterd gluster glusterfs
kiln=$1
dir=$(mktemp -d "$(realpath "$2")/glusterfs-XXXXXX")
shift 2
address=10.78.1.1
begin "$address"

ask() { inside gluster --mode=script --glusterd-sock="$dir/glusterd.socket" "$@" > "$dir/said" 2>&1 ||
    { cat "$dir/said" >&2; return 1; }; }

mkdir "$dir"/{state,run,mnt,b1,b2,b3}
cat > "$dir/glusterd.vol" <<VOLUME
volume management
    type mgmt/glusterd
    option working-directory $dir/state
    option run-directory $dir/run
    option glusterd-sockfile $dir/glusterd.socket
    option transport-type socket
    option transport.socket.bind-address $address
    option transport.address-family inet
end-volume
VOLUME
inside glusterd -f "$dir/glusterd.vol" -l "$dir/glusterd.log" -p "$dir/glusterd.pid"
for _ in {1..50}; do [[ -S $dir/glusterd.socket ]] && ask volume info && break; sleep 0.2; done
ask volume create v replica 3 "$address:$dir/b1" "$address:$dir/b2" "$address:$dir/b3" force
ask volume start v
inside glusterfs -l "$dir/mount.log" --volfile-server="$address" --volfile-id=v "$dir/mnt"
for _ in {1..50}; do mountpoint -q "$dir/mnt" && break; sleep 0.1; done
# A failed mount would measure the directory below.
mountpoint -q "$dir/mnt" || { cat "$dir/mount.log" >&2; exit 1; }

"$kiln" bench --only mount --only metadata --beside glusterfs="$dir/mnt" "$@"
