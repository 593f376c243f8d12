package source

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

func head(source, name string) inventory.Head {
	namespace, name, _ := strings.Cut(name, "/")
	return inventory.Head{Key: inventory.Key{Namespace: namespace, Name: name}, Origin: inventory.Origin{Source: source, File: source + ".yaml", Line: 3}}
}

func pod(source, name string, addresses ...string) *inventory.Pod {
	p := &inventory.Pod{Head: head(source, name), Phase: "Running"}
	for _, a := range addresses {
		p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
	}
	return p
}

func addrs(all ...string) (list []netip.Addr) {
	for _, a := range all {
		list = append(list, netip.MustParseAddr(a))
	}
	return list
}

func pods(all ...*inventory.Pod) []Report {
	return []Report{{Source: "directory", Objects: inventory.Objects{Pods: all}}}
}

func told(s *inventory.Snapshot) string {
	var all []string
	for _, p := range s.Pods {
		all = append(all, p.Key.String())
	}
	return strings.Join(all, " ")
}

// S10: the earlier source wins, and within a source the first.
func TestPrecedence(t *testing.T) {
	policy := func(source, name string) *inventory.Policy { return &inventory.Policy{Head: head(source, name)} }
	namespace := func(source, name string) *inventory.Namespace {
		return &inventory.Namespace{Head: inventory.Head{Key: inventory.Key{Name: name}, Origin: inventory.Origin{Source: source}}}
	}
	directory := inventory.Objects{
		Pods:       []*inventory.Pod{pod("directory", "b/x", "10.0.0.2"), pod("directory", "a/z", "10.0.0.1")},
		Namespaces: []*inventory.Namespace{namespace("directory", "b")},
		Policies:   []*inventory.Policy{policy("directory", "b/x"), policy("directory", "a/x")},
	}
	api := inventory.Objects{
		Pods:       []*inventory.Pod{pod("api", "b/x", "10.0.0.9"), pod("api", "a/a", "10.0.0.3")},
		Namespaces: []*inventory.Namespace{namespace("api", "b"), namespace("api", "a")},
		Policies:   []*inventory.Policy{policy("api", "b/x"), policy("api", "b/a"), policy("api", "b/a")},
	}
	o := inventory.DefaultOptions()
	s, problems := Merge([]Report{{Source: "directory", Objects: directory}, {Source: "api", Objects: api}}, addrs("192.0.2.2", "192.0.2.1", "192.0.2.1"), nil, &o)
	if want := []*inventory.Pod{api.Pods[1], directory.Pods[1], directory.Pods[0]}; !slices.Equal(s.Pods, want) {
		t.Errorf("pods: %s", told(s))
	}
	if want := []*inventory.Namespace{api.Namespaces[1], directory.Namespaces[0]}; !slices.Equal(s.Namespaces, want) {
		t.Errorf("namespaces: %v", s.Namespaces)
	}
	if want := []*inventory.Policy{directory.Policies[1], api.Policies[1], directory.Policies[0]}; !slices.Equal(s.Policies, want) {
		t.Errorf("policies: %v", s.Policies)
	}
	if want := addrs("192.0.2.1", "192.0.2.2"); !slices.Equal(s.Gateway, want) {
		t.Errorf("gateway: %v", s.Gateway)
	}
	var got []string
	for _, p := range problems {
		got = append(got, p.Object+" of "+p.Origin.Source+": "+p.Reason)
	}
	want := []string{
		"Namespace b of api: directory defines it too and comes first",
		"NetworkPolicy b/a of api: api.yaml:3 defines it too and comes first",
		"NetworkPolicy b/x of api: directory.yaml:3 defines it too and comes first",
	}
	if !slices.Equal(got, want) {
		t.Errorf("problems:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// S33: a typing error must not cut off the operator, the LAN or the cloud.
func TestNeverAPod(t *testing.T) {
	o := inventory.DefaultOptions()
	o.NeverPods = []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("2001:db8:1::/48")}
	own, hops := addrs("192.0.2.1", "10.42.0.1", "fe80::1%eth0", "::ffff:192.0.2.9"), addrs("192.0.2.254", "fe80::fe%eth0")
	for address, reason := range map[string]string{
		"192.0.2.1":       "is this gateway's own",
		"192.0.2.9":       "is this gateway's own",
		"10.42.0.1":       "is this gateway's own",
		"fe80::1":         "is this gateway's own",
		"192.0.2.254":     "is the next hop of a route",
		"fe80::fe":        "is the next hop of a route",
		"127.0.0.1":       "is a loopback address",
		"127.9.9.9":       "is a loopback address",
		"::1":             "is a loopback address",
		"224.0.0.1":       "is a multicast address",
		"ff02::1":         "is a multicast address",
		"0.0.0.0":         "is the unspecified one",
		"::":              "is the unspecified one",
		"255.255.255.255": "is the broadcast address",
		"172.31.255.255":  "is in 172.16.0.0/12 of neverPods",
		"2001:db8:1::5":   "is in 2001:db8:1::/48 of neverPods",
	} {
		s, problems := Merge(pods(pod("directory", "a/bad", "10.42.0.9", address), pod("directory", "a/good", "10.42.0.9")), own, hops, &o)
		if told(s) != "a/good" || len(problems) != 1 || problems[0].Object != "Pod a/bad" || problems[0].Origin.File != "directory.yaml" ||
			!strings.Contains(problems[0].Reason, address+" "+reason) {
			t.Errorf("%s: pods %q, problems %+v", address, told(s), problems)
		}
	}
	for _, address := range []string{"10.42.0.2", "172.15.0.1", "192.0.2.2", "2001:db8:2::1", "fe80::2", "126.0.0.1"} {
		if s, problems := Merge(pods(pod("directory", "a/good", address)), own, hops, &o); told(s) != "a/good" || len(problems) > 0 {
			t.Errorf("%s: pods %q, problems %v", address, told(s), problems)
		}
	}
}

// Pods that claim no address may say any (S6); two that claim one can't both
// have it.
func TestClaims(t *testing.T) {
	o := inventory.DefaultOptions()
	host := pod("directory", "a/host", "192.0.2.1")
	host.HostNetwork = true
	ended := pod("directory", "a/ended", "10.0.0.1")
	ended.Phase = "Succeeded"
	failed := pod("directory", "a/failed", "127.0.0.1")
	failed.Phase = "Failed"
	first, second := pod("directory", "b/first", "10.0.0.1", "fd00::1"), pod("directory", "b/second", "10.0.0.2", "fd00::1")
	third, fourth := pod("directory", "b/third", "10.0.0.2"), pod("directory", "b/fourth")
	s, problems := Merge(pods(third, second, first, failed, ended, host, fourth), addrs("192.0.2.1"), nil, &o)
	if told(s) != "a/ended a/failed a/host b/first b/fourth b/third" {
		t.Errorf("pods: %s", told(s))
	}
	// What a refused pod claims is free for others.
	if len(problems) != 1 || problems[0].Object != "Pod b/second" || problems[0].Reason != "its address fd00::1 belongs to pod b/first (directory.yaml:3)" {
		t.Errorf("problems: %+v", problems)
	}
	if s.Pods[3] != first || s.Pods[5] != third {
		t.Error("pointers are not kept")
	}
}

// The order in which a source happens to list pods decides nothing.
func TestOrderFree(t *testing.T) {
	o := inventory.DefaultOptions()
	rng := rand.New(rand.NewPCG(1, 2))
	var all []*inventory.Pod
	for i := range 20 {
		all = append(all, pod("directory", fmt.Sprintf("n%d/p%02d", i%3, i), fmt.Sprintf("10.0.0.%d", rng.IntN(10)), fmt.Sprintf("fd00::%d", rng.IntN(10))))
	}
	want, wantProblems := Merge(pods(all...), nil, nil, &o)
	if len(wantProblems) == 0 || len(want.Pods)+len(wantProblems) != len(all) {
		t.Fatalf("%d pods, %d problems", len(want.Pods), len(wantProblems))
	}
	for range 50 {
		given := slices.Clone(all)
		rng.Shuffle(len(given), func(i, j int) { given[i], given[j] = given[j], given[i] })
		before := slices.Clone(given)
		s, problems := Merge(pods(given...), nil, nil, &o)
		if !slices.Equal(s.Pods, want.Pods) || !slices.Equal(problems, wantProblems) {
			t.Fatalf("another order gives %q, not %q", told(s), told(want))
		}
		if !slices.Equal(given, before) {
			t.Fatal("the report was changed")
		}
	}
}

func BenchmarkMerge(b *testing.B) {
	var o inventory.Objects
	for i := range 110 {
		o.Pods = append(o.Pods, pod("directory", fmt.Sprintf("a/p%03d", i), fmt.Sprintf("10.0.0.%d", i+1)))
	}
	for i := range 1000 {
		o.Policies = append(o.Policies, &inventory.Policy{Head: head("directory", fmt.Sprintf("a/n%04d", i))})
	}
	options := inventory.DefaultOptions()
	for b.Loop() {
		Merge([]Report{{Objects: o}}, nil, nil, &options)
	}
}
