package lab

import (
	"context"
	"fmt"
	"net/netip"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// firstPort is where automatic source ports begin.
const firstPort = 1024

// Probe sends packets and says of each whether it arrived: at the pod's or the
// outside's interface, or, if it was for the gateway, behind its input hook.
// The order of sending is that of the list.
//
// Automatic source ports repeat after 64,512 probes, so that a probe is a new
// connection unless the same one was sent that many before, within 5 s.
func (l *Lab) Probe(ctx context.Context, probes []Probe) ([]bool, error) {
	l.probeMu.Lock()
	defer l.probeMu.Unlock()
	if l.wire == nil {
		w, err := newWire(l)
		if err != nil {
			return nil, err
		}
		l.wire = w
	}
	whole := make([]Probe, len(probes))
	refs := make([]*Probe, len(probes))
	for i := range probes {
		whole[i] = probes[i]
		if whole[i].SrcPort == 0 {
			l.port = nextPort(l.port)
			whole[i].SrcPort = l.port
		}
		if err := l.complete(&whole[i]); err != nil {
			return nil, fmt.Errorf("probe %d: %w", i, err)
		}
		refs[i] = &whole[i]
	}
	arrived := make([]bool, len(probes))
	err := l.wire.pinned(func() error {
		if err := l.wire.open(refs); err != nil {
			return err
		}
		for i := 0; i < len(refs); i += burstLen {
			if err := ctx.Err(); err != nil {
				return err
			}
			end := min(i+burstLen, len(refs))
			if err := l.wire.burst(refs[i:end], arrived[i:end]); err != nil {
				return err
			}
		}
		return nil
	})
	return arrived, err
}

// open opens the ends that probes need, so that none is opened too late.
func (w *wire) open(probes []*Probe) error {
	for _, p := range probes {
		for _, n := range []*Namespace{p.From, p.To} {
			if _, err := w.tap(n); err != nil {
				return err
			}
		}
	}
	return nil
}

func nextPort(p uint16) uint16 {
	if p < firstPort || p == 65535 {
		return firstPort
	}
	return p + 1
}

// complete fills in what a probe leaves open.
func (l *Lab) complete(p *Probe) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.From == nil {
		p.From = l.own[p.Src]
	}
	if p.From == nil {
		return fmt.Errorf("no sender: nobody has the source address %v", p.Src)
	}
	if p.To == nil {
		p.To = l.own[p.Dst]
	}
	if p.To == nil {
		p.To = l.Outside
	}
	if !p.Src.IsValid() {
		p.Src = p.From.first(p.Dst.Is4())
	}
	if p.Dst.Is6() && p.Proto == inventory.ICMP {
		p.Proto = inventory.ICMPv6
	}
	if !p.Dst.IsValid() || !p.Src.IsValid() || p.Src.Is4() != p.Dst.Is4() {
		return fmt.Errorf("from %v to %v: two addresses of one family are needed", p.Src, p.Dst)
	}
	return nil
}

// first is the namespace's first address of a family, or the zero Addr.
func (n *Namespace) first(v4 bool) netip.Addr {
	for _, a := range n.Addresses {
		if a.Is4() == v4 && !a.IsLinkLocalUnicast() {
			return a
		}
	}
	return netip.Addr{}
}
