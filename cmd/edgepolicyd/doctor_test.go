package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/preflight"
)

// TestFindingsAreReadable: the text that a person sees, once as a whole.
func TestFindingsAreReadable(t *testing.T) {
	var b bytes.Buffer
	printFindings(&b, []preflight.Finding{
		{ID: "bridge.filter", Severity: preflight.Impaired, What: "bridge cni0 carries pods and does not show IPv4 and IPv6 packets between them to the table",
			Why: "What pods of the bridge send to each other passes no policy.", Command: "ip link set cni0 type bridge nf_call_iptables 1 nf_call_ip6tables 1  # a long line"},
		{ID: "clock.set", Severity: preflight.Warning, What: "the clock says 1970", Why: "Certificates."},
		{ID: "table.equal", Severity: preflight.Note, What: "there is no daemon that answers", Unseen: true},
		{ID: "daemon.health", Severity: preflight.Note, What: "there is no daemon that answers", Unseen: true},
		{ID: "others.legacy", Severity: preflight.Note, What: "only root may look there", Command: "sudo edgepolicyd doctor", Unseen: true},
		{ID: "config.valid", Severity: preflight.OK, What: "the configuration is valid"},
		{ID: "kernel.sets", Severity: preflight.OK, What: "the kernel has sets"},
	})
	const want = `impaired  bridge.filter
  bridge cni0 carries pods and does not show IPv4 and IPv6 packets between them
  to the table
  why: What pods of the bridge send to each other passes no policy.
  do:  ip link set cni0 type bridge nf_call_iptables 1 nf_call_ip6tables 1  # a long line

warning  clock.set
  the clock says 1970
  why: Certificates.

not looked at: there is no daemon that answers
  table.equal, daemon.health

not looked at: only root may look there
  others.legacy
  do:  sudo edgepolicyd doctor

ok
  config.valid, kernel.sets

1 impaired, 1 warning, 2 ok, 3 not looked at
`
	if b.String() != want {
		t.Errorf("printed:\n%s\nwant:\n%s", &b, want)
	}
}

// TestDoctorDocument: docs/doctor.md lists the checks that there are.
func TestDoctorDocument(t *testing.T) {
	upToDate(t, "../../docs/doctor.md", doctorDocument())
}

func doctorDocument() string {
	var b strings.Builder
	b.WriteString("# What doctor looks for\n\n<!-- Written by: go test ./cmd/edgepolicyd -run Document -update -->\n\n")
	b.WriteString(`    edgepolicyd doctor
    edgepolicyd doctor -o json

It prints what keeps policies from being enforced, or may: the worst first, each
with what it is, why it matters, and the command that mends it. It works with
and without a running daemon. Ask as root: what can't be looked at is named, and
says nothing, neither good nor bad.

The exit code is 3 if a finding is ` + "`impaired`" + `: policies are not enforced, or not
all. Else it is 0, with warnings too. Before the daemon's first start
` + "`table.present`" + ` is impaired: nothing is enforced yet.

With ` + "`-o json`" + ` it is a list of objects with ` + "`id`, `severity` (`ok`, `note`,\n`warning`, `impaired`), `what`, `why`, `command`" + `, and ` + "`unseen`" + ` where the check could
not be made. The ids stay the same from version to version.

Nothing on the machine is changed. What the kernel can do is tried with the
daemon's own code in a network namespace that is thrown away; the kernel may load
the module that an expression is in, as it would for the daemon.

`)
	b.WriteString("## Findings\n\nWords in capitals stand for what was found.\n\n| id | what should be so | severity if not | why it matters | what mends it |\n|---|---|---|---|---|\n")
	for _, c := range preflight.Checks() {
		if !strings.HasPrefix(c.ID, "kernel.") {
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | `%s` |\n", c.ID, c.Well, c.Severity, c.Why, strings.ReplaceAll(c.Command, "|", `\|`))
		}
	}
	b.WriteString("\n## What the kernel needs\n\nEach is tried alone. What only some configurations use is a note in others: `log` and `limit` are for\n`audit.denied.enabled`, `reject` for `denied: reject`, `bridge` for pods on a bridge.\n\n| id | what | severity | what mends it |\n|---|---|---|---|\n")
	for _, c := range preflight.Checks() {
		if strings.HasPrefix(c.ID, "kernel.") {
			fmt.Fprintf(&b, "| `%s` | %s | %s | `%s` |\n", c.ID, strings.TrimPrefix(c.Well, "the kernel has "), c.Severity, c.Command)
		}
	}
	return b.String()
}
