package nft

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

func namespaceOf(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// What is tried happens in a namespace of its own: the caller's stays as it is, and
// so do those of threads that come after.
func TestScratchIsNobodysNamespace(t *testing.T) {
	before := namespaceOf(t)
	var inside string
	fails := errors.New("fails")
	err := Scratch(func() error {
		inside = namespaceOf(t)
		if err := Try(&ruleset.Table{Name: "tried"}); err != nil {
			t.Error(err)
		}
		return fails
	})
	if err != fails || inside == before || namespaceOf(t) != before {
		t.Errorf("error %v, namespace %s within %s", err, inside, before)
	}
	for range 20 {
		done := make(chan string)
		go func() { done <- namespaceOf(t) }()
		if got := <-done; got != before {
			t.Errorf("a goroutine afterwards is in %s, not %s", got, before)
		}
	}
}

func chainOf(rules ...ruleset.Rule) map[string]*ruleset.Chain {
	return map[string]*ruleset.Chain{"c": {Name: "c", Rules: rules}}
}

// The kernel's refusal comes back as its own error: of a set that is not there, and of
// an expression that this family does not have.
func TestTryTellsTheKernelsError(t *testing.T) {
	for _, test := range []struct {
		name string
		try  func() error
		want error
	}{
		{"rule", func() error {
			return Try(&ruleset.Table{Name: "a", Chains: chainOf(ruleset.Rule{Exprs: []ruleset.Expr{ruleset.Verdict{Kind: ruleset.Accept}}})})
		}, nil},
		{"no such set", func() error {
			return Try(&ruleset.Table{Name: "b", Chains: chainOf(ruleset.Rule{Exprs: []ruleset.Expr{ruleset.Lookup{Key: ruleset.Fields{ruleset.IPSource}, Set: "none"}}})})
		}, unix.ENOENT},
		{"jump to nowhere", func() error {
			return Try(&ruleset.Table{Name: "c", Family: ruleset.FamilyBridge, Chains: chainOf(ruleset.Rule{Exprs: []ruleset.Expr{ruleset.Verdict{Kind: ruleset.Jump, Chain: "none"}}})})
		}, unix.ENOENT},
		{"log reader", func() error { return TryLogReader(4711) }, nil},
	} {
		if err := Scratch(test.try); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
}

// Chains whose rules write the connection mark are told with the bits that they may
// change, however they are written; those that only read it are not.
func TestOtherChainsTellTheMarkBitsTheyWrite(t *testing.T) {
	inNamespace(t)
	nft(t, `
table inet edgepolicyd { chain ours { ct mark set 1; }; }
table inet other {
	chain whole { ct mark set meta mark; }
	chain number { ct mark set 0x10; }
	chain part { ct mark set ct mark and 0xffffff00 or 0x12; }
	chain two {
		ct mark set ct mark or 0x1
		ct mark set ct mark xor 0x4
	}
	chain reads {
		ct mark and 0xff == 0x12 accept
		meta mark set ct mark
	}
	chain between { ct mark 0x1 ct mark set numgen inc mod 2; }
}
`, "-f", "-")
	iptables(t, "-t", "mangle", "-A", "PREROUTING", "-j", "CONNMARK", "--restore-mark")
	iptables(t, "-t", "mangle", "-A", "POSTROUTING", "-j", "CONNMARK", "--save-mark", "--nfmask", "0xf0", "--ctmask", "0xf")
	iptables(t, "-t", "mangle", "-A", "OUTPUT", "-j", "CONNMARK", "--set-xmark", "0x100/0x300")
	got, err := OtherChains("edgepolicyd")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]uint32{
		"whole": 0xffffffff, "number": 0xffffffff, "part": 0xff, "two": 0x5, "reads": 0, "between": 0xffffffff,
		"PREROUTING": 0, "POSTROUTING": 0xff, "OUTPUT": 0x300,
	}
	for _, c := range got {
		if bits, ok := want[c.Name]; !ok || bits != c.MarkBits {
			t.Errorf("chain %s of %s %s: bits 0x%x, want 0x%x", c.Name, c.Family, c.Table, c.MarkBits, bits)
		}
		delete(want, c.Name)
	}
	if len(want) > 0 {
		t.Errorf("not found: %v", want)
	}
}
