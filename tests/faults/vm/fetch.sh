#!/usr/bin/env bash
# Makes what a virtual machine needs in the directory DIR: QEMU (the installed one, if there is one), a
# kernel of Debian and an initramfs. Nothing is installed: packages are fetched and unpacked there.
# Usage: fetch.sh DIR. It ends with 77 when this machine cannot fetch them.
set -euo pipefail
[ $# = 1 ] || { echo "usage: fetch.sh DIR" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cannot() { echo "$*" >&2; exit 77; }

# What the guest needs beside what the kernel has built in: the host's files, disks, a network.
modules=(virtio_pci 9p 9pnet_virtio overlay virtio_blk virtio_net ext4)

mkdir -p "$1" && cd "$1"
[ ! -e ready ] || exit 0
[ "$(uname -m)" = x86_64 ] || cannot "the virtual machine runs this machine's programs, and is an x86_64"
command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
    cannot "no packages of Debian here; put qemu, vmlinuz and initramfs.gz into $1, and a file 'ready'"
rm -rf debs root && mkdir -p debs root
fetch() {
    # With all its modules: the kernel for clouds lacks 9p.
    local kernel packages
    kernel=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
    packages=("${kernel:-linux-image-amd64}" busybox-static kmod cpio)
    if ! command -v qemu-system-x86_64 >/dev/null; then
        # What an installation would add.
        mapfile -O "${#packages[@]}" -t packages < <(
            apt-get -s install --no-install-recommends qemu-system-x86 | awk '/^Inst / { print $2 }'
        )
    fi
    (cd debs && apt-get download -q -o APT::Sandbox::User=root "${packages[@]}")
}
# What is known of the packages may be too old, or nothing.
fetch || { apt-get update -q && fetch; } || cannot "the packages of a virtual machine cannot be fetched"
for deb in debs/*.deb; do dpkg -x "$deb" root; done
rm -r debs

# What is called, wherever it lies.
cat >qemu <<'Q'
#!/usr/bin/env bash
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/root
if [ -x "$root/usr/bin/qemu-system-x86_64" ]; then
    lib=$root/usr/lib/x86_64-linux-gnu
    export QEMU_MODULE_DIR=$lib/qemu LD_LIBRARY_PATH=$lib
    exec "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/seabios" -L "$root/usr/share/qemu" \
        -L "$root/usr/lib/ipxe/qemu" "$@"
fi
exec qemu-system-x86_64 "$@"
Q
chmod +x qemu
./qemu --version || cannot "QEMU does not run here"

version=$(ls root/lib/modules) || cannot "the kernel's package has no modules"
cp "root/boot/vmlinuz-$version" vmlinuz
# Their own links are absolute.
ln -s kmod root/bin/depmod && ln -s kmod root/bin/modprobe
root/bin/depmod -b root "$version"
rm -rf initramfs && mkdir -p initramfs/{bin,modules,proc,sys,dev,host,upper,new}
cp root/bin/busybox initramfs/bin/
cp "$here/init" initramfs/init && chmod +x initramfs/init
for module in "${modules[@]}"; do
    root/bin/modprobe -d "$PWD/root" -S "$version" --show-depends "$module"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r path; do
    name=$(basename "$path") && name=${name%.xz}
    case $path in
    *.xz) xz -dc "$path" >"initramfs/modules/$name" ;;
    *) cp "$path" "initramfs/modules/$name" ;;
    esac
    echo "$name" >>initramfs/modules/order
done
(cd initramfs && find . | ../root/bin/cpio -o -H newc --quiet | gzip -1) >initramfs.gz
rm -rf initramfs root/lib/modules root/boot
touch ready
