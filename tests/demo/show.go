package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"time"

	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/tests/daemon"
)

//go:embed policies/pods.yaml
var podsYAML string

//go:embed policies/message-broker.yaml
var policiesYAML string

// show is one run of the demo.
type show struct {
	ctx      context.Context
	out      io.Writer
	lab      *lab.Lab
	daemon   *daemon.Daemon
	places   []place
	steps    int
	measured int // connections tried
}

func (s *show) title(text string) {
	s.steps++
	fmt.Fprintf(s.out, "\n%d. %s\n\n", s.steps, text)
}

func (s *show) say(format string, args ...any) {
	fmt.Fprintln(s.out, strings.TrimRight("   "+fmt.Sprintf(format, args...), " "))
}

// quote prints what a file holds or a program printed.
func (s *show) quote(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n") + "\n") {
		fmt.Fprint(s.out, "   | "+strings.ReplaceAll(line, "\t", "  "))
	}
}

// play goes through all the steps; what it made is gone at its end.
func (s *show) play(kind lab.Kind) (err error) {
	folder, err := os.MkdirTemp("", "edgepolicyd-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	fmt.Fprint(s.out, `edgepolicyd enforces Kubernetes NetworkPolicies on an edge gateway. This shows it in
about 20 seconds, with real packets, inside network namespaces; nothing outside
them is changed.
`)
	if s.lab, err = lab.New(lab.Topology{Kind: kind}); err != nil {
		return fmt.Errorf("make the gateway: %w", err)
	}
	defer func() { err = errors.Join(err, s.lab.Close()) }()
	if s.daemon, err = daemon.New(s.lab, folder, ""); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.say("\nThe daemon's log:")
			s.quote(s.daemon.Log())
		}
		err = errors.Join(err, s.daemon.Stop())
	}()
	for _, step := range []func() error{s.gateway, s.before, s.policies, s.liveChange, s.insight, s.brokenFile, s.end} {
		if err := step(); err != nil {
			return err
		}
		if err := s.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// gateway makes the pods and starts a server in each place.
func (s *show) gateway() error {
	how := "hang on the bridge cni0"
	if s.lab.Kind == lab.Routed {
		how = "hang on routed veth pairs"
	}
	s.title("A gateway, its pods and the outside, in network namespaces")
	s.places = []place{
		{Namespace: s.lab.Gateway, addrs: addrs("192.168.254.1", "fd00:254::1"), ports: []uint16{8181}},
		{Namespace: s.lab.Outside, addrs: addrs("192.168.254.2", "fd00:254::2"), ports: []uint16{8181}},
	}
	var pods []place
	for i, name := range []string{"broker", "publisher", "subscriber", "bystander"} {
		a := addrs(fmt.Sprintf("10.42.0.%d", 10+i), fmt.Sprintf("fd42::%d", 10+i))
		n, err := s.lab.AddPod(name, a...)
		if err != nil {
			return err
		}
		ports := []uint16{8181}
		if name == "broker" {
			ports = append(ports, 2222)
		}
		pods = append(pods, place{Namespace: n, addrs: a, ports: ports})
	}
	s.places = append(pods, s.places...)
	for _, p := range s.places {
		s.say("%-11s %-14s %s", p.Name, p.addrs[0], p.addrs[1])
		for _, a := range p.addrs {
			for _, port := range p.ports {
				if _, err := p.Listen("tcp", netip.AddrPortFrom(a, port)); err != nil {
					return err
				}
			}
		}
	}
	s.say("")
	s.say("The pods %s. Each place answers on TCP port 8181, the", how)
	s.say("broker also on 2222. The bystander is a web cam that somebody has broken into.")
	return nil
}

func addrs(list ...string) []netip.Addr {
	var all []netip.Addr
	for _, a := range list {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

// before starts the daemon without policies.
func (s *show) before() error {
	s.title("Before: the daemon runs and knows the pods, there are no policies")
	if err := s.daemon.Write("pods.yaml", podsYAML); err != nil {
		return err
	}
	start := time.Now()
	if err := s.daemon.Start(); err != nil {
		return err
	}
	s.say("edgepolicyd run: ready after %d ms. Who reaches whom, row to column:", time.Since(start).Milliseconds())
	return s.measure(true, func(from, to string) bool { return true })
}

// allowed says what the policies mean; the gateway's own connections to its pods
// always pass, and what is between others is none of theirs.
func allowed(from, to string) bool {
	client := func(name string) bool { return name == "publisher" || name == "subscriber" }
	name, port, _ := strings.Cut(to, ":")
	switch {
	case from == "gateway":
		return true
	case name == "broker":
		return client(from) && port == "8181"
	case client(name), client(from), from == "broker":
		return false
	}
	return true
}

func (s *show) policies() error {
	s.title("After: two policies are dropped into the directory")
	s.quote(policiesYAML)
	if err := s.apply(policiesYAML); err != nil {
		return err
	}
	s.say("")
	s.say("In force. The same connections again:")
	if err := s.measure(true, allowed); err != nil {
		return err
	}
	s.say("The gateway itself always reaches its pods: it must probe their health. No policy")
	s.say("selects the bystander: it reaches what it did, but for the three that are isolated.")
	return nil
}

// apply writes the policies and waits until the kernel has them.
func (s *show) apply(text string) error {
	if err := s.daemon.Write("message-broker.yaml", text); err != nil {
		return err
	}
	return s.daemon.Reload()
}

// command shows a command of edgepolicyd, and fails unless its exit code is as
// it should be.
func (s *show) command(want int, args ...string) (string, error) {
	out, errs, code, err := s.daemon.Run(args...)
	if err != nil {
		return "", err
	}
	// The demo's own folder says nothing to who looks on.
	text := strings.ReplaceAll(out+errs, s.daemon.Dir, "/etc/edgepolicy.d")
	s.say("$ edgepolicyd %s", strings.Join(args, " "))
	s.quote(text)
	if code != 0 {
		s.say("(exit code %d)", code)
	}
	if code != want {
		return "", fmt.Errorf("edgepolicyd %s: exit code %d, want %d", strings.Join(args, " "), code, want)
	}
	return text, nil
}

// insight shows what the daemon says, and what it wrote.
func (s *show) insight() error {
	s.title("What the daemon says, and what the kernel has")
	if _, err := s.command(0, "status"); err != nil {
		return err
	}
	out, err := s.lab.Gateway.Run("nft", "list", "table", "inet", "edgepolicyd")
	if err != nil {
		return err
	}
	part := podPart(out, "default/broker")
	if !strings.Contains(part, "goto deny-in-default/broker") {
		return fmt.Errorf("the broker's chains are not in the table:\n%s", out)
	}
	s.say("")
	s.say("All is in one nftables table. A packet to the broker finds the broker's chain by")
	s.say("address, through a map. There, return means allowed; each rule names its policy.")
	s.say("")
	s.say("$ nft list table inet edgepolicyd      (only what leads into the broker)")
	s.quote(part)
	return nil
}

var (
	block = regexp.MustCompile(`(?s)\n\t(chain|map|set) (\S+) \{\n.*?\n\t\}`)
	wrap  = regexp.MustCompile(`,\n\s+`)
)

// podPart picks, out of a listed table, the chains for packets to a pod, the maps
// that lead to them and the sets that they use.
func podPart(table, pod string) string {
	blocks := block.FindAllStringSubmatch(table, -1)
	chain := ""
	for _, b := range blocks {
		if b[2] == "in-"+pod {
			chain = b[0]
		}
	}
	var maps, sets, deny string
	for _, b := range blocks {
		switch text, kind, name := wrap.ReplaceAllString(b[0], ", "), b[1], b[2]; {
		case kind == "map" && strings.HasPrefix(name, "in_v"):
			maps += text
		case kind == "set" && strings.Contains(chain, "@"+name+" "):
			sets += text
		case name == "deny-in-"+pod:
			deny = text
		}
	}
	return strings.TrimPrefix(strings.ReplaceAll(maps+sets+chain+deny, "\n\t", "\n"), "\n")
}

// brokenFile spoils the policies as a person does.
func (s *show) brokenFile() error {
	s.title("Somebody edits the policies and forgets a colon")
	broken := strings.Replace(policiesYAML, "- from:", "- from", 1)
	if err := s.apply(broken); err != nil {
		return err
	}
	text, err := s.command(3, "status")
	if err != nil {
		return err
	}
	if !strings.Contains(text, `says "- from": a colon is missing`) {
		return fmt.Errorf("the status does not say what is wrong with the file")
	}
	s.say("")
	s.say("It says where, and what to write. What was in force stays in force:")
	if err := s.measure(false, allowed); err != nil {
		return err
	}
	if err := s.apply(policiesYAML); err != nil {
		return err
	}
	s.say("The colon is put back.")
	return nil
}

// end stops the daemon, and only then the enforcement.
func (s *show) end() error {
	s.title("The end: the daemon stops, its rules stay; flush takes them away")
	if err := s.daemon.Stop(); err != nil {
		return err
	}
	s.say("The daemon has ended (SIGTERM). The policies are enforced all the same:")
	if err := s.measure(false, allowed); err != nil {
		return err
	}
	if _, err := s.command(0, "flush"); err != nil {
		return err
	}
	out, err := s.lab.Gateway.Run("nft", "list", "tables")
	if err != nil {
		return err
	}
	if strings.TrimSpace(out) != "" {
		return fmt.Errorf("flush left tables behind: %s", out)
	}
	s.say("Everyone reaches everyone again:")
	return s.measure(false, func(from, to string) bool { return true })
}
