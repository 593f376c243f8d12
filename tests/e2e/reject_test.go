package e2e

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// answer dials and gives the error that came back, or nil.
func (w *world) answer(from, network, to string) error {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), denial)
	defer cancel()
	c, err := w.names[from].Dial(ctx, network, netip.Addr{}, netip.MustParseAddrPort(to))
	if err != nil || network == "tcp" {
		return err
	}
	if _, err := c.Write([]byte("anybody there?")); err != nil {
		return err
	}
	w.must(c.SetReadDeadline(time.Now().Add(denial)))
	_, err = c.Read(make([]byte, 1))
	return err
}

// The ports are closed everywhere: what answers is the gateway, as only it would
// for a packet that does not arrive.
func rejected(w *world, from, to string) {
	w.t.Helper()
	for _, a := range w.addrs(to) {
		at := netip.AddrPortFrom(a, 4444).String()
		for _, network := range []string{"tcp", "udp"} {
			if err := w.answer(from, network, at); !errors.Is(err, syscall.ECONNREFUSED) {
				w.t.Errorf("%s from %s to %s: %v, want connection refused at once", network, from, at, err)
			}
		}
	}
	w.see("and nothing arrives", from+" "+to+" 4444 no\n"+from+" "+to+" 4444/UDP no\n"+from+" "+to+" ping no")
}

// denied: reject answers a TCP connection with a reset and anything else with
// port unreachable, in both families, in forward and input.
func TestDeniedReject(t *testing.T) {
	crowded(t, "denied: reject\n", func(t *testing.T, w *world) {
		w.enforce(denyWeb)
		rejected(w, "client", "web")  // by ingress
		rejected(w, "outside", "web") // from outside
		rejected(w, "web", "outside") // by egress
		rejected(w, "web", "other")
		rejected(w, "web", "gateway") // in input
	})
}

// A connection that is cut learns it at once.
func TestDeniedRejectEstablished(t *testing.T) {
	crowded(t, "denied: reject\n", func(t *testing.T, w *world) {
		w.enforce(allowClient)
		for _, a := range w.addrs("web") {
			p := w.connect("client", "web", a)
			w.bothWays("allowed", p)
			w.enforce(denyWeb)
			_, err := p.a.Write([]byte("x\n"))
			w.must(err)
			w.must(p.a.SetReadDeadline(time.Now().Add(patience)))
			if _, err := p.a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				w.t.Errorf("the connection to %s: %v, want a reset", a, err)
			}
			w.enforce(allowClient)
		}
	})
}

// denied: drop, the default, gives nothing away.
func TestDeniedDrop(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.enforce(denyWeb)
		for _, a := range w.addrs("web") {
			at := netip.AddrPortFrom(a, 4444).String()
			for _, network := range []string{"tcp", "udp"} {
				if err := w.answer("client", network, at); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
					w.t.Errorf("%s to %s: %v, want no answer", network, at, err)
				}
				if err := w.answer("outside", network, netip.AddrPortFrom(w.addrs("other")[0], 4444).String()); !errors.Is(err, syscall.ECONNREFUSED) {
					w.t.Errorf("%s to a pod that is not isolated: %v, want its own refusal", network, err)
				}
			}
		}
	})
}
