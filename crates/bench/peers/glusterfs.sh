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
[[ $(id -u) == 0 ]] || { echo "glusterfs.sh: needs root" >&2; exit 1; }
for program in glusterd gluster glusterfs ip nsenter; do
    command -v "$program" > /dev/null || { echo "glusterfs.sh: $program is missing" >&2; exit 1; }
done
kiln=$1
dir=$(mktemp -d "$(realpath "$2")/glusterfs-XXXXXX")
shift 2
net=kiln-$(basename "$dir")
address=10.78.1.1

pids() { ip netns pids "$net" 2> /dev/null || true; }
inside() { nsenter --net="/run/netns/$net" "$@"; }
ask() { inside gluster --mode=script --glusterd-sock="$dir/glusterd.socket" "$@" > "$dir/said" 2>&1 ||
    { cat "$dir/said" >&2; return 1; }; }

end() {
    trap - EXIT
    mountpoint -q "$dir/mnt" && umount "$dir/mnt"
    for signal in TERM KILL; do
        for pid in $(pids); do kill -s "$signal" "$pid" 2> /dev/null || true; done
        for _ in {1..50}; do [[ -z $(pids) ]] && break; sleep 0.1; done
    done
    ip netns del "$net" 2> /dev/null || true
    rm -rf "$dir"
}
trap end EXIT
# The measuring removes its files first.
trap : INT TERM

ip netns add "$net"
ip -n "$net" link set lo up
ip -n "$net" link add near type veth peer name far
ip -n "$net" address add "$address/24" dev near
ip -n "$net" link set near up
ip -n "$net" link set far up

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
