#!/bin/sh
# Stands in for the kiln binary: SERVICE --config FILE --listen ADDRESS [--mgmtd ADDRESS], or
# mount PATH --foreground --dir DIR.
# Files in the cluster's directory (the working directory) tell it how to behave.
name=$(basename "$(dirname "$3")")
ready=$5
if [ "$1" = mount ]; then
    name=mount
    ready=$2
fi
echo "started $name $*" >>calls
if [ -e "fail-$name" ]; then
    echo "noise" >&2
    echo "kiln: $name: the disk is gone" >&2
    exit 1
fi
trap 'echo "stopped $name" >>calls; exit 0' TERM
[ -e "deaf-$name" ] && trap '' TERM
while [ -e "slow-$name" ]; do sleep 0.02; done
echo "ready $ready"
while ! [ -e "done-$name" ]; do sleep 0.02; done
echo "stopped $name" >>calls
