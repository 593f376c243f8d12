#!/bin/sh
# Installs the Debian packages that the tests and the demo use, if any is
# missing, and says so.
set -eu
PATH=$PATH:/usr/local/go/bin:/usr/sbin:/sbin

if ! command -v go >/dev/null; then
	echo 'Go is missing: install Go 1.26 or newer, https://go.dev/dl/' >&2
	exit 1
fi

# Each program that is used, and the package that has it.
missing=$(while read -r program package; do
	PATH=$PATH:/usr/lib/cni command -v "$program" >/dev/null || echo "$package"
done <<'LIST' | sort -u | tr '\n' ' '
nft nftables
ip iproute2
conntrack conntrack
ping iputils-ping
tcpdump tcpdump
sysctl procps
unshare util-linux
setpriv util-linux
nsenter util-linux
curl curl
chromium chromium
debootstrap debootstrap
systemd-nspawn systemd-container
host-local containernetworking-plugins
lintian lintian
rpmlint rpmlint
rpm rpm
rpm2cpio rpm2cpio
cpio cpio
qemu-arm-static qemu-user-static
LIST
)
if [ -z "$missing" ]; then
	echo 'all the packages that are needed are here'
	exit 0
fi
if ! command -v apt-get >/dev/null; then
	echo "these Debian packages, or what they are called here, are missing: $missing" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "these packages are missing: $missing: install them as root: make install-deps" >&2
	exit 1
fi
echo "installing what is missing: $missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq </dev/null
# shellcheck disable=SC2086 # a list
apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends $missing </dev/null
