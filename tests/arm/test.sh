#!/usr/bin/env bash
# test.sh DIR: the arm64 package on an ARM gateway in software, which is made in DIR where
# it is absent: install, policies, pods, drift, a bridge; then the power is cut at random
# moments while policies change, and after each boot policy must be in force before the
# first packet of a pod. Root; half an hour the first time.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
root=$(realpath "$here/../..")
dir=$(realpath -m "$1")
cuts=${CUTS:-3}

missing=$(for p in qemu-system-aarch64:qemu-system-arm qemu-img:qemu-utils debootstrap:debootstrap cpio:cpio depmod:kmod; do
	command -v "${p%:*}" >/dev/null || echo "${p#*:}"
done)
# shellcheck disable=SC2086 # a list
[ -z "$missing" ] || apt-get install -y -qq --no-install-recommends $missing ipxe-qemu </dev/null >/dev/null
[ -e "$dir/done" ] || {
	rm -rf "$dir"
	echo "making the machine in $dir: some minutes"
	"$here/gateway.sh" build "$dir" >"$dir.log" 2>&1 || { tail -n 20 "$dir.log"; exit 1; }
}
payload=$(mktemp -d)
trap 'rm -rf "$payload"' EXIT
cp "$here"/{pods,policy,bridge}.yaml "$here/first-pod" "$payload"
cp "$here/payload.sh" "$payload/run.sh"
cp "$root"/build/packages/edgepolicyd_*_arm64.deb "$payload/edgepolicyd.deb"
rm -f "$dir/disk.qcow2"

failed=0
# boot PHASE gives the console on standard output.
boot() {
	echo "$1" >"$payload/phase"
	"$here/gateway.sh" run "$dir" "$payload" "$dir/disk.qcow2" | tr -d '\r'
}
# judge NUMBER shows the results on standard input, which must be at least so many.
judge() {
	local results
	results=$(grep -aoE '(ok|FAIL) (install|verify): .*|VmRSS.*|    .*' || true)
	echo "$results"
	if grep -q '^FAIL' <<<"$results" || [ "$(grep -c '^ok' <<<"$results")" -lt "$1" ]; then
		echo "FAIL: less than $1 results are ok"
		failed=1
	fi
}

boot install | tee "$dir/install.log" | judge 14 || true
grep -aq '^FAIL\|\] FAIL\|FAIL install' "$dir/install.log" && failed=1
for cut in $(seq "$cuts"); do
	echo "== power cut $cut"
	boot churn >"$dir/churn.log" &
	machine=$!
	for _ in $(seq 200); do
		grep -aq 'churn 3' "$dir/churn.log" && break
		sleep 1
	done
	sleep "$((RANDOM % 5)).$((RANDOM % 10))"
	pkill -P "$machine" -f gateway.sh || kill "$machine"
	wait "$machine" || true
	grep -aq 'churn 3' "$dir/churn.log" || { echo 'FAIL: no policies changed'; failed=1; }
	boot verify | tee "$dir/verify.log" | judge 7 || true
	grep -aq 'FAIL verify' "$dir/verify.log" && failed=1
	grep -aq 'ok verify: it is in force' "$dir/verify.log" || failed=1
done
exit "$failed"
