# What the ARM gateway runs in a test; /mnt/phase says which part. Each line of its
# output that begins with "ok" or "FAIL" is a result.
phase=$(cat /mnt/phase)
dir=/etc/edgepolicy.d

result() { # NAME COMMAND...
	name=$1
	shift
	if "$@" >/tmp/out 2>&1; then echo "ok $phase: $name"; else
		echo "FAIL $phase: $name"
		sed 's/^/    /' /tmp/out | tail -n 20
	fi
}
not() { ! "$@"; }
reaches() { timeout 20 ip netns exec "$1" nc -z -w 3 "$2" "$3"; } # POD ADDRESS PORT

install() {
	result 'the package installs' dpkg -i /mnt/edgepolicyd.deb
	result 'the daemon runs' systemctl is-active edgepolicyd
	cp /mnt/pods.yaml /mnt/policy.yaml "$dir"
	# Whatever starts pods comes after the restored rules: here it is these pods alone.
	cp /mnt/first-pod /usr/local/sbin/
	cat >/etc/systemd/system/containerd.service <<'U'
[Unit]
Before=edgepolicyd.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /usr/local/sbin/first-pod
[Install]
WantedBy=multi-user.target
U
	systemctl enable -q --now containerd
	result 'policies are taken' edgepolicyd reload
	traffic
	result 'a denied packet is in the journal' journalctl -q -n1 --grep 'denied ingress default/client' EDGEPOLICY_EVENT=denied
	result 'nothing impairs enforcement' edgepolicyd doctor
	nft flush ruleset # this kernel gives tables no owner
	sleep 3
	result 'a flushed table is put right, and who did it told' journalctl -q -n1 EDGEPOLICY_EVENT=table-drift EDGEPOLICY_PROGRAM=nft
	traffic
	bridge
	result 'resident memory is below 30 MiB' test "$(awk '/^VmRSS/ { print $2 }' "/proc/$(pidof edgepolicyd)/status")" -lt 30720
	grep VmRSS "/proc/$(pidof edgepolicyd)/status"
}

traffic() {
	result 'what is allowed passes' reaches client 10.88.0.10 8080
	result 'what is denied does not' not reaches client 10.88.0.10 8082
}

# bridge has two pods on a bridge separated, which takes br_netfilter.
bridge() {
	ip link add cni0 type bridge
	ip addr add 10.99.0.1/24 dev cni0
	ip link set cni0 up
	for n in 10 11; do
		ip netns add b$n
		ip link add vb$n type veth peer name eth0 netns b$n
		ip link set vb$n master cni0 up
		ip -n b$n addr add 10.99.0.$n/24 dev eth0
		ip -n b$n link set eth0 up
	done
	ip netns exec b10 nc -lk 8080 >/dev/null &
	ip netns exec b10 nc -lk 8082 >/dev/null &
	sleep 2
	result 'pods on a bridge reach each other' reaches b11 10.99.0.10 8082
	cp /mnt/bridge.yaml "$dir"
	edgepolicyd reload
	result 'what is denied between them does not pass' not reaches b11 10.99.0.10 8082
	result 'what is allowed does' reaches b11 10.99.0.10 8080
	result 'other bridges are let alone' test "$(cat /proc/sys/net/bridge/bridge-nf-call-iptables)" = 0
}

# churn changes a policy until the power is cut.
churn() {
	i=0
	while :; do
		i=$((i + 1))
		sed "s/port: 8080/port: 8080\n    - port: $((9000 + i % 500))/" /mnt/policy.yaml >"$dir/.new"
		mv "$dir/.new" "$dir/policy.yaml"
		edgepolicyd reload >/dev/null
		echo "churn $i"
	done
}

verify() {
	result 'before the first packet of a pod the policy was in force' grep -qx denied /run/first-pod
	result 'and not by the daemon' not grep -qx active /run/first-pod.daemon
	result 'the saved state was not damaged' not journalctl -q -b -n1 --grep 'damaged' -u edgepolicyd -u edgepolicyd-restore
	result 'the policy is the old or the new one' grep -q 'port: 8080' "$dir/policy.yaml"
	edgepolicyd reload >/dev/null
	traffic
	result 'it is in force' sh -c 'edgepolicyd status | grep -q "default/web  "'
}

"$phase"
