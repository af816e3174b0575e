#!/bin/sh
# Stands in for the kiln binary: SERVICE --config FILE --listen ADDRESS [--mgmtd ADDRESS].
# Files in the cluster's directory (the working directory) tell it how to behave.
name=$(basename "$(dirname "$3")")
echo "started $name $*" >>calls
if [ -e "fail-$name" ]; then
    echo "noise" >&2
    echo "kiln: $name: the disk is gone" >&2
    exit 1
fi
trap 'echo "stopped $name" >>calls; exit 0' TERM
[ -e "deaf-$name" ] && trap '' TERM
echo "ready $5"
while :; do sleep 0.02; done
