package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"edgepolicy.io/edgepolicyd/internal/lab"
)

// place is where connections begin and end.
type place struct {
	*lab.Namespace
	addrs []netip.Addr // one of IPv4, one of IPv6
	ports []uint16     // of its servers
}

// server is one column of the table.
type server struct {
	name  string // broker:8181
	owner *lab.Namespace
	at    []netip.AddrPort // one of IPv4, one of IPv6
}

func (s *show) servers() []server {
	var all []server
	for _, p := range s.places {
		for _, port := range p.ports {
			e := server{name: fmt.Sprintf("%s:%d", p.Name, port), owner: p.Namespace}
			for _, a := range p.addrs {
				e.at = append(e.at, netip.AddrPortFrom(a, port))
			}
			all = append(all, e)
		}
	}
	return all
}

// patience is how long a connection may take: longer than TCP needs to send its
// first packet twice.
const patience = 3 * time.Second

// connects says whether a TCP connection is made and carries data both ways.
func (s *show) connects(from place, family int, to netip.AddrPort) bool {
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	c, err := from.Dial(ctx, "tcp", from.addrs[family], to)
	if err != nil {
		return false
	}
	defer c.Close()
	return lab.Exchange(c, patience) == nil
}

// outcome is what became of the connections to one server over IPv4 and IPv6.
type outcome [2]bool

func (o outcome) String() string {
	switch o {
	case outcome{true, true}:
		return "yes"
	case outcome{}:
		return "no"
	case outcome{true, false}:
		return "IPv4 only"
	}
	return "IPv6 only"
}

// connectAll tries from everywhere to everywhere at once: outcomes by place and
// server.
func (s *show) connectAll(servers []server) (got [][]outcome, tried int) {
	var all sync.WaitGroup
	for i, from := range s.places {
		got = append(got, make([]outcome, len(servers)))
		for k, to := range servers {
			if from.Namespace == to.owner {
				continue
			}
			for family, at := range to.at {
				tried++
				cell := &got[i][k][family]
				all.Go(func() { *cell = s.connects(from, family, at) })
			}
		}
	}
	all.Wait()
	s.measured += tried
	return got, tried
}

// measure connects from everywhere to everywhere and compares with what should
// be. It shows the table, or one line where all is well.
func (s *show) measure(table bool, want func(from, to string) bool) error {
	servers := s.servers()
	got, tried := s.connectAll(servers)
	if err := s.ctx.Err(); err != nil {
		return err
	}
	const width = 11
	lines := []string{"from \\ to   ", strings.Repeat(" ", 12)}
	for _, to := range servers {
		name, port, _ := strings.Cut(to.name, ":")
		lines[0] += fmt.Sprintf("%*s", width, name)
		lines[1] += fmt.Sprintf("%*s", width, ":"+port)
	}
	var wrong []string
	for i, from := range s.places {
		line := fmt.Sprintf("%-12s", from.Name)
		for k, to := range servers {
			if from.Namespace == to.owner {
				line += strings.Repeat(" ", width)
				continue
			}
			line += fmt.Sprintf("%*s", width, got[i][k])
			if w := want(from.Name, to.name); got[i][k] != (outcome{w, w}) {
				wrong = append(wrong, fmt.Sprintf("%s to %s is %q, should be %q", from.Name, to.name, got[i][k], outcome{w, w}))
			}
		}
		lines = append(lines, line)
	}
	if !table && len(wrong) == 0 {
		s.say("%d connections tried again: all as they should be.", tried)
		return nil
	}
	s.say("")
	for _, line := range lines {
		s.say("%s", line)
	}
	s.say("")
	s.say("yes: over IPv4 and over IPv6; no: over neither. %d TCP connections were tried.", tried)
	if len(wrong) > 0 {
		return fmt.Errorf("measured: %s", strings.Join(wrong, "; "))
	}
	return nil
}
