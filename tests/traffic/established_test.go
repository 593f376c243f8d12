package traffic

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// keep opens connections that every state of the model allows.
func (w *world) keep(each int) []*pair {
	w.t.Helper()
	var list []*pair
	for _, ends := range []struct {
		from, to string
		port     uint16
	}{{"a", "b", 8000}, {"outside", "d", 8010}, {"c", "outside", 8020}} {
		for _, network := range []string{"tcp", "udp"} {
			for i := range each {
				list = append(list, w.connect(network, ends.from, ends.to, ends.port, i%2 == 0))
			}
		}
	}
	return list
}

// remember has the gateway keep silent UDP flows: what a server sends when its
// flow is forgotten opens a new one, the other way round, which is allowed.
func (w *world) remember() {
	w.t.Helper()
	_, err := w.Gateway.Run("sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=600", "net.netfilter.nf_conntrack_udp_timeout_stream=600")
	w.must(err)
}

func (st *state) yaml() string { return strings.Join(st.docs(), "---\n") }

// TestEstablished: connections that a change denies are cut when reload has
// returned, in whatever way it denies them; the others go on without losing a
// packet, and so do cut ones when they are allowed again.
func TestEstablished(t *testing.T) {
	both(t, func(t *testing.T, kind lab.Kind) {
		w := withDaemon(t, kind, "")
		w.pods()
		w.remember()
		st := firstState()
		allow := and(value("e", 9040, "exact"), value("f", 9040, "exact"))
		allow(&st)
		w.must(w.Write("cluster.yaml", st.yaml()))
		w.must(w.Start())
		for _, name := range []string{"a", "b"} {
			w.patient(w.Owner(parse(end(name, false))))
		}
		stop := pump(t, w.keep(8))
		defer stop()
		var cut []*pair
		for _, network := range []string{"tcp", "udp"} {
			for i := range 8 {
				cut = append(cut, w.connect(network, "e", "f", 9040, i%2 == 0))
			}
		}
		for _, restrict := range []struct {
			name   string
			change func(*state)
		}{
			{"denied by ingress", value("f", 9040, "none")},
			{"denied by egress", value("e", 9040, "none")},
			{"denied by both", and(value("e", 9040, "none"), value("f", 9040, "none"))},
			{"allowed to another peer only", func(s *state) { s.team = 2; value("f", 9040, "named namespace")(s) }},
			{"the address changes hands", func(s *state) { s.twin[1] = true; value("f", 9040, "none")(s) }},
		} {
			n := st
			restrict.change(&n)
			w.apply(n.yaml())
			silent(t, restrict.name, cut)
			w.apply(st.yaml())
			for i, p := range cut { // TCP goes on; what UDP sent meanwhile is gone
				if err := pass(p.client, p.server, 20*time.Second); err != nil {
					t.Errorf("allowed again after %q: %s: %v", restrict.name, p.text, err)
				}
				if err := pass(p.server, p.client, 20*time.Second); err != nil {
					t.Errorf("allowed again after %q: %s: %v", restrict.name, cut[i].text, err)
				}
			}
		}
		stop()
		for _, name := range []string{"a", "b"} {
			if n := w.retransmitted(w.Owner(parse(end(name, false)))); n != "0" {
				t.Errorf("TCP between pods that stay allowed: %s segments of %s were sent again", n, name)
			}
		}
		w.converged()
	})
}

// TestDaemonUpdates sends a walk of the model through the daemon itself, some
// with reload, some left to the watch, some while another is taken.
func TestDaemonUpdates(t *testing.T) {
	both(t, func(t *testing.T, kind lab.Kind) {
		w := withDaemon(t, kind, "")
		w.pods()
		p := newJudge(t, w.Lab)
		rng := rand.New(rand.NewPCG(uint64(kind), 8))
		st, list := firstState(), flows()
		w.must(w.Write("cluster.yaml", st.yaml()))
		w.must(w.Start())
		sent := traffic(list)
		stop, err := w.StartTraffic(t.Context(), rate, sent)
		w.must(err)
		var j journal
		for range longer(t, 200) {
			var what string
			st, what = next(rng, p, st, list)
			u := entry{begin: time.Now(), what: what}
			w.must(w.Write("cluster.yaml", st.yaml()))
			if rng.IntN(3) > 0 {
				w.must(w.Reload())
			} else {
				time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond)
			}
			u.end = time.Now()
			j = append(j, u)
		}
		w.must(w.Reload())
		r, err := stop()
		w.must(err)
		complain(t, r, sent, j.during)
		w.converged()
		if n := strings.Count(w.Log(), "event=generation-applied"); n < len(j)/2 {
			t.Errorf("%d changes of the kernel for %d updates", n, len(j))
		}
	})
}

// killWithin is the time in which a reload that has just been asked for is under
// way, in microseconds.
const killWithin = 40_000

// TestKill kills the daemon at random moments of updates and starts, and lets it
// start again: what it left enforces all the time, and the next one takes over.
func TestKill(t *testing.T) {
	both(t, func(t *testing.T, kind lab.Kind) {
		w := withDaemon(t, kind, "")
		w.pods()
		p := newJudge(t, w.Lab)
		rng := rand.New(rand.NewPCG(uint64(kind), 9))
		st, list := firstState(), flows()
		w.must(w.Write("cluster.yaml", st.yaml()))
		w.must(w.Start())
		for _, name := range []string{"a", "b"} {
			w.patient(w.Owner(parse(end(name, false))))
		}
		stopPump := pump(t, w.keep(4))
		defer stopPump()
		sent := traffic(list)
		stop, err := w.StartTraffic(t.Context(), 20_000, sent)
		w.must(err)
		var j journal
		between := 0
		for i := range longer(t, 35) {
			u := entry{begin: time.Now(), what: "kill"}
			before := p.text(st)
			for range 4 {
				st, _ = next(rng, p, st, list)
			}
			w.must(w.Write("cluster.yaml", st.yaml()))
			reload := make(chan struct{})
			go func() { // it fails, or not
				w.Run("reload", "--timeout", "2s")
				close(reload)
			}()
			switch {
			case i%7 == 6:
				time.Sleep(time.Duration(rng.IntN(killWithin)) * time.Microsecond)
				w.must(w.Stop())
			case i%7%2 == 0:
				time.Sleep(time.Duration(rng.IntN(killWithin)) * time.Microsecond)
				w.must(w.Kill())
			default:
				w.firstTransaction()
				w.must(w.Kill())
			}
			<-reload
			between += truth(differs(w.inKernel(), before) && differs(w.inKernel(), p.text(st)))
			w.halfStart(rng)
			w.must(w.Start())
			if i%6 == 0 {
				w.must(w.Reload())
				w.converged()
			}
			u.end = time.Now()
			j = append(j, u)
		}
		w.must(w.Reload())
		stopPump()
		r, err := stop()
		w.must(err)
		complain(t, r, sent, j.during)
		w.converged()
		if between == 0 {
			t.Error("no kill left a table half changed: the test proves less than it says")
		}
		t.Logf("%d ends and as many half starts; %d tables taken over, %d of them half changed", len(j), strings.Count(w.Log(), "adopted the table"), between)
		for _, name := range []string{"a", "b"} {
			if n := w.retransmitted(w.Owner(parse(end(name, false)))); n != "0" {
				t.Errorf("TCP between pods that stay allowed: %s segments of %s were sent again", n, name)
			}
		}
	})
}

// firstTransaction returns when anything in nftables changes, or after a second:
// then a change is half done, if it takes several transactions.
func (w *world) firstTransaction() {
	w.t.Helper()
	w.must(w.Gateway.Do(func() error {
		c, err := nft.Open("edgepolicyd")
		if err != nil {
			return err
		}
		defer c.Close()
		first, err := c.Generation()
		for start := time.Now(); err == nil && time.Since(start) < time.Second; {
			var now uint32
			if now, err = c.Generation(); now != first {
				break
			}
		}
		return err
	}))
}

// text is the table that a state gives.
func (p *pipeline) text(st state) string {
	p.t.Helper()
	list := policy.NewResolver(&p.opts).Update(p.snapshot(st.docs()))
	return ruleset.NewCompiler("edgepolicyd", &p.opts).Compile(list, ruleset.Mark{Mask: p.opts.MarkMask, Epoch: 1 << 24}).Text(nil)
}

func differs(a, b string) bool { return ruleset.CompareText(a, b) != "no difference\n" }

// halfStart starts a daemon and kills it before, while or after it takes over.
func (w *world) halfStart(rng *rand.Rand) {
	w.t.Helper()
	cmd := exec.Command(w.Binary, "run", "--config", w.Config)
	w.must(w.Gateway.Start(cmd))
	time.Sleep(time.Duration(rng.IntN(60_000)) * time.Microsecond)
	cmd.Process.Kill()
	cmd.Wait()
}

// TestEpochWrap uses up the epochs of a small mask several times over. A denied
// connection that was silent for so long that its stamp's epoch comes again must
// not pass; the bits outside the mask are others'.
func TestEpochWrap(t *testing.T) {
	both(t, func(t *testing.T, kind lab.Kind) {
		w := withDaemon(t, kind, "connectionMark: {mask: 0x00f00000}\n")
		w.pods()
		w.remember()
		_, err := w.Gateway.RunInput("table inet other {\nchain c {\ntype filter hook prerouting priority -150;\nct state new ct mark set 0x0f000005\n}\n}\n", "nft", "-f", "-")
		w.must(err)
		st := firstState()
		allow := and(value("e", 9040, "exact"), value("f", 9040, "exact"))
		allow(&st)
		w.must(w.Write("cluster.yaml", st.yaml()))
		w.must(w.Start())
		stop := pump(t, w.keep(4))
		defer stop()
		rounds := longer(t, 50)
		var denied []*pair
		for i := range rounds {
			denied = append(denied, w.connect([]string{"tcp", "udp"}[i%2], "e", "f", 9040, i%4 < 2))
			if i%3 == 0 && i < 15 { // of several epochs
				st.others ^= 1
				w.apply(st.yaml())
			}
		}
		value("f", 9040, "none")(&st)
		w.apply(st.yaml())
		epochs := map[string]int{}
		for i := range rounds {
			st.ports = 1 + (i+1)%2 // a port goes every second time
			st.blocks = i % 2
			w.apply(st.yaml())
			table := readTable(t, w.Lab)
			epochs[fmt.Sprintf("%#x", table.Mark.Epoch)]++
			silent(t, fmt.Sprintf("round %d, epoch %#x", i, table.Mark.Epoch), denied[i:i+1])
		}
		silent(t, "at the end", denied)
		stop()
		if len(epochs) != 15 || epochs["0x0"] > 0 {
			t.Errorf("epochs used: %v, want all 15 of the mask", epochs)
		}
		w.converged()
		w.marks()
	})
}

// marks says that all connections have the bits that the other program set.
func (w *world) marks() {
	w.t.Helper()
	seen := 0
	for _, family := range []string{"ipv4", "ipv6"} {
		out, err := w.Gateway.Run("conntrack", "-L", "-f", family)
		w.must(err)
		for line := range strings.Lines(out) {
			_, rest, found := strings.Cut(line, " mark=")
			if !found || !strings.HasPrefix(line, "udp") && !strings.HasPrefix(line, "tcp") {
				continue
			}
			var mark uint32
			if _, err := fmt.Sscan(rest, &mark); err != nil {
				w.t.Fatalf("%v in %q", err, line)
			}
			seen++
			if mark&^0x00f00000 != 0x0f000005 {
				w.t.Errorf("mark %#x: the bits of others were touched: %s", mark, line)
			}
		}
	}
	if seen < 20 {
		w.t.Errorf("%d connections with a mark: the test proves less than it says", seen)
	}
}
