#!/usr/bin/env bash
# Makes cluster-N.tar.xz: a small cluster with every kind of file, as this version writes it. Run when a format has changed, with a
# new number; those of older versions stay, and tests/formats.rs opens all of them. postgres-N.sql is the same metadata in a PostgreSQL: import the
# archive's meta.dump there (kiln admin meta import), then pg_dump --inserts --no-owner --schema kiln, and keep its CREATE, INSERT and ALTER.
#
#   tests/data/formats/make.sh target/release/kiln 2
set -euo pipefail
kiln=$(realpath "$1")
out=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/cluster-$2.tar.xz
work=$(mktemp -d)
export KILN_DIR=$work/cluster
mount=$work/mnt
trap '"$kiln" umount "$mount" 2>/dev/null; "$kiln" down >/dev/null 2>&1; rm -rf "$work"' EXIT

"$kiln" up --detach --storage 1 --replicas 1 --capacity 1GiB
mkdir "$mount"
"$kiln" mount "$mount"
cd "$mount"
mkdir -p tree/deep/er
printf 'a small file\n' >tree/small
seq 1 20000 >tree/numbers
: >tree/empty
ln -s small tree/link
ln tree/small tree/deep/again
mkfifo tree/pipe
python3 -c "import os; os.setxattr('tree/small', 'user.colour', b'blue')"
truncate -s 3M tree/sparse
printf end | dd of=tree/sparse bs=1 seek=3145725 conv=notrunc status=none
seq 1 100000 >tree/cut
truncate -s 1000 tree/cut
chmod 4755 tree/small
chown 1234:5678 tree/numbers
touch -d '1999-12-31 23:59:59.5Z' tree/empty
python3 -c "open(b'tree/deep/er/n\xc3\xa4me \xff', 'w').write('odd')"
"$kiln" quota set kiln:/tree --bytes 1GiB
"$kiln" trash keep 36500d
seq 1 500 >tree/removed
rm tree/removed
sync
cd /
"$kiln" umount "$mount"
"$kiln" admin check
"$kiln" admin meta backup "$work/meta.dump"
"$kiln" down
rm -rf "$KILN_DIR/logs" "$KILN_DIR/run"
tar -C "$work" --sparse --owner=0 --group=0 --sort=name -cf - cluster meta.dump | xz -9e >"$out"
ls -l "$out"
