#!/usr/bin/env bash
# A 64-bit ARM gateway in software: Debian 12 with its own kernel 6.1, systemd as its
# init, nf_tables and br_netfilter as modules, no table owners, 512 MiB of memory.
#
#   gateway.sh build DIR              make the machine in DIR, once (some minutes; root)
#   gateway.sh run DIR PAYLOAD DISK   boot it with the folder PAYLOAD at /mnt, run
#                                     /mnt/run.sh as the last unit, power off. The console is
#                                     on standard output. DISK keeps what it writes, and is
#                                     made where it is absent. To end the process is to cut the power.
set -euo pipefail

# modules are what finds the disk.
modules='virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_mmio virtio_blk'

build() {
	mkdir -p "$1"
	cd "$1"
	local index mirror kernel version
	# Where this machine's packages come from, the ARM ones do too.
	index=$(apt-get indextargets --format '$(SITE)|$(CODENAME)|$(COMPONENT)|$(CREATED_BY)' | grep '|bookworm|main|Packages$' | head -n1)
	mirror=${index%%|*}
	mkdir -p lists/partial debs
	local arm=(-oAPT::Architecture=arm64 -oAPT::Architectures=arm64 "-oDir::State::Lists=$PWD/lists")
	apt-get "${arm[@]}" update -qq
	kernel=$(apt-cache "${arm[@]}" depends linux-image-cloud-arm64 | awk '/Depends: linux-image/ { print $2; exit }')
	(cd debs && apt-get "${arm[@]}" download -qq "$kernel" busybox-static)
	dpkg -x debs/"$kernel"_*.deb kernel
	dpkg -x debs/busybox-static_*.deb busybox
	version=$(ls kernel/lib/modules)
	depmod -b kernel "$version"
	cp "kernel/boot/vmlinuz-$version" vmlinuz
	initrd
	debootstrap --arch=arm64 --foreign --variant=minbase \
		--include=systemd,systemd-sysv,dbus,udev,nftables,iproute2,procps,kmod,netcat-openbsd bookworm root "$mirror" >debootstrap.log
	mkdir -p root/usr/lib/modules
	cp -a "kernel/lib/modules/$version" root/usr/lib/modules/
	second_stage
	truncate -s 3G base.img
	mkfs.ext4 -q -d root base.img
	rm -rf root
	(LIMIT=1800 boot base.img raw) >second-stage.log || true # it powers itself off
	grep -aq SECOND-STAGE-DONE second-stage.log
	e2fsck -fy base.img >/dev/null 2>&1 || true
	touch done
}

# initrd mounts the disk and hands over.
initrd() {
	mkdir -p initrd.d/{bin,mod,proc,sys,dev,root}
	cp busybox/bin/busybox initrd.d/bin/
	for m in $modules; do
		cp "$(find kernel/lib/modules -name "$m.ko*" | head -n1)" initrd.d/mod/
	done
	cat >initrd.d/init <<I
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
for m in $modules; do /bin/busybox insmod /mod/\$m.ko; done
/bin/busybox sleep 1
/bin/busybox mount -t ext4 /dev/vda /root
init=/sbin/init
[ -f /root/.init ] && init=\$(/bin/busybox cat /root/.init)
/bin/busybox umount /proc /sys
exec /bin/busybox switch_root /root \$init
I
	chmod +x initrd.d/init
	(cd initrd.d && find . | cpio -o -H newc 2>/dev/null | gzip >../initrd)
}

# second_stage is what the machine does at its first boot: finish itself.
second_stage() {
	echo /second-stage >root/.init
	cat >root/second-stage <<'I'
#!/bin/sh
mount -t proc proc /proc
mount -o remount,rw /
/debootstrap/debootstrap --second-stage
echo gateway >/etc/hostname
mkdir -p /var/log/journal
cat >/etc/systemd/system/payload.service <<'U'
[Unit]
ConditionPathExists=/dev/vdb
After=multi-user.target
[Service]
Type=oneshot
StandardOutput=journal+console
StandardError=journal+console
ExecStart=/bin/sh -c 'mount /dev/vdb /mnt; sh /mnt/run.sh; echo "payload exit: $?"; sync; systemctl poweroff'
[Install]
WantedBy=multi-user.target
U
systemctl enable payload.service
systemctl mask serial-getty@ttyAMA0.service
rm -f /.init /second-stage
sync
echo SECOND-STAGE-DONE
sync
echo s >/proc/sysrq-trigger
sleep 2
echo o >/proc/sysrq-trigger
sleep 20
I
	chmod +x root/second-stage
}

# boot DISK FORMAT [WORD...] runs the machine.
boot() {
	local disk=$1 format=$2
	shift 2
	exec timeout "${LIMIT:-300}" qemu-system-aarch64 -M virt -cpu cortex-a72 -accel tcg,thread=multi -smp 2 -m 512 \
		-nographic -no-reboot -kernel vmlinuz -initrd initrd -append 'console=ttyAMA0 panic=-1 quiet' \
		-drive "file=$disk,if=virtio,format=$format" "$@" -nic none </dev/null
}

run() {
	local payload disk image
	payload=$(realpath "$2")
	disk=$(realpath -m "$3")
	cd "$1"
	[ -f "$disk" ] || qemu-img create -q -f qcow2 -F raw -b "$PWD/base.img" "$disk"
	image=$(mktemp)
	truncate -s 128M "$image"
	mkfs.ext4 -q -d "$payload" "$image"
	trap 'kill "$machine" 2>/dev/null; rm -f "$image"' EXIT
	trap 'exit 143' TERM
	boot "$disk" qcow2 -drive "file=$image,if=virtio,format=raw" &
	machine=$!
	wait "$machine"
}

case ${1:-} in
build) build "$(realpath -m "$2")" ;;
run) run "$(realpath "$2")" "$3" "$4" ;;
*)
	sed -n '2,11s/^# \{0,1\}//p' "$0"
	exit 2
	;;
esac
