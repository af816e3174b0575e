# For the scripts beside it, which set and call:
#
#   kiln, dir           the program; a directory for the peer's state, removed at the end
#   need PROGRAM..      the programs that it takes, and root
#   begin ADDRESS..     makes a network namespace of its own, with these addresses
#   inside COMMAND..    runs something in there
#
# Everything in the namespace is ended by process id.

name=$(basename "$0" .sh)

need() {
    [[ $(id -u) == 0 ]] || { echo "$name.sh: needs root" >&2; exit 1; }
    for program in ip nsenter "$@"; do
        command -v "$program" > /dev/null || { echo "$name.sh: $program is missing" >&2; exit 1; }
    done
}

pids() { ip netns pids "$net" 2> /dev/null || true; }
inside() { nsenter --net="/run/netns/$net" "$@"; }

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

begin() {
    net=kiln-$(basename "$dir")
    trap end EXIT
    # The measuring removes its files first.
    trap : INT TERM
    ip netns add "$net"
    ip -n "$net" link set lo up
    ip -n "$net" link add near type veth peer name far
    local each
    for each in "$@"; do ip -n "$net" address add "$each/24" dev near; done
    ip -n "$net" link set near up
    ip -n "$net" link set far up
}
