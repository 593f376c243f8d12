package source

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// known is a pod as a source tells of it: "key uid=U app=LABEL phase=P ip=A,B
// port=N node=other host". Without uid or app it has none.
func known(source, text string) *inventory.Pod {
	words := strings.Fields(text)
	p := pod(source, words[0])
	p.Origin = inventory.Origin{Source: source}
	p.Phase = ""
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "uid":
			p.UID = value
		case "app":
			p.Labels = labels.Set{"app": value}
		case "phase":
			p.Phase = value
		case "ip":
			p.Addresses = addrs(strings.Split(value, ",")...)
		case "port":
			var n uint16
			fmt.Sscan(value, &n)
			p.Ports = []inventory.NamedPort{{Name: "http", Protocol: inventory.TCP, Port: n}}
		case "host":
			p.HostNetwork = true
		case "remote":
			p.Remote = true
		default:
			panic(w)
		}
	}
	p.JSON = manifest.PodJSON(p)
	return p
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// sandbox is what CNI results tell of a pod, from attachments "ID at=SECONDS uid=U
// ip=A,B".
func sandbox(key string, attachments ...string) *inventory.Pod {
	p := known("cni", key)
	for _, text := range attachments {
		words := strings.Fields(text)
		a := inventory.Attachment{Sandbox: words[0], Network: "net", Interfaces: []string{"veth" + words[0]}, Written: epoch}
		for _, w := range words[1:] {
			key, value, _ := strings.Cut(w, "=")
			switch key {
			case "uid":
				a.UID = value
			case "at":
				d, err := time.ParseDuration(value)
				if err != nil {
					panic(err)
				}
				a.Written = epoch.Add(d)
			case "ip":
				a.Addresses = addrs(strings.Split(value, ",")...)
			default:
				panic(w)
			}
		}
		p.Attachments, p.Addresses, p.UID = append(p.Attachments, a), append(p.Addresses, a.Addresses...), a.UID
	}
	p.Addresses = addresses(p.Addresses)
	p.JSON = manifest.PodJSON(p)
	return p
}

// report is a source's; the last is the order of precedence.
func report(name string, all ...*inventory.Pod) Report {
	return Report{Source: name, Objects: inventory.Objects{Pods: all}}
}

// carrying adds policies that a pod carries.
func (r Report) carrying(pod string, names ...string) Report {
	for _, n := range names {
		p := &inventory.Policy{Head: head(r.Source, n), Selector: labels.Everything(), Isolates: [2]bool{true, true}}
		p.Origin = inventory.Origin{Source: r.Source, Pod: pod}
		r.Objects.Policies = append(slices.Clone(r.Objects.Policies), p)
	}
	return r
}

func merge(m *Merger, reports ...Report) Merged {
	o := inventory.DefaultOptions()
	slices.SortFunc(reports, func(a, b Report) int {
		order := []string{"directory", "cni", "kubelet", "api"}
		return slices.Index(order, a.Source) - slices.Index(order, b.Source)
	})
	return m.Merge(reports, addrs("192.0.2.1"), addrs("192.0.2.254"), &o)
}

// text tells a result in lines.
func text(m Merged) string {
	var b strings.Builder
	tell := func(what string, all []*inventory.Pod) {
		for _, p := range all {
			fmt.Fprintf(&b, "%s%s from %s uid=%s labels=%s ips=%v phase=%s", what, p.Key, p.Origin.Source, p.UID, p.Labels, p.Addresses, p.Phase)
			for _, port := range p.Ports {
				fmt.Fprintf(&b, " port=%d", port.Port)
			}
			if p.HostNetwork {
				b.WriteString(" host")
			}
			if p.Remote {
				b.WriteString(" remote")
			}
			for _, a := range p.Attachments {
				fmt.Fprintf(&b, " sandbox=%s", a.Sandbox)
			}
			b.WriteString("\n")
		}
	}
	tell("", m.Snapshot.Pods)
	tell("waiting: ", m.Waiting)
	for _, p := range m.Snapshot.Policies {
		fmt.Fprintf(&b, "policy %s from %s\n", p.Key, p.Origin)
	}
	for _, p := range m.Problems {
		fmt.Fprintf(&b, "problem: %s of %s: %s\n", p.Object, p.Origin.Source, p.Reason)
	}
	for _, n := range m.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	return b.String()
}

func expect(t *testing.T, what string, got Merged, want ...string) {
	t.Helper()
	if text := strings.TrimSuffix(text(got), "\n"); text != strings.Join(want, "\n") {
		t.Errorf("%s:\n%s\nwant:\n%s", what, text, strings.Join(want, "\n"))
	}
}

// S10: addresses are those of the directory, then of CNI results, then of the
// kubelet, then of the API; the rest of the directory, the kubelet, then the API.
func TestEachSourceCountsForWhatItKnows(t *testing.T) {
	cni := report("cni", sandbox("a/x", "S1 uid=U ip=10.0.0.1"))
	kubelet := report("kubelet", known("kubelet", "a/x uid=U app=kubelet phase=Running port=81 ip=10.0.0.2"))
	api := report("api", known("api", "a/x uid=U app=api phase=Pending port=82 ip=10.0.0.3"))
	directory := report("directory", known("directory", "a/x app=directory port=80 ip=10.0.0.4"))
	differs := func(source, list, from, other string) string {
		return fmt.Sprintf("note: pod a/x: %s has the addresses [%s], %s has [%s]: the latter counts", source, list, from, other)
	}
	for _, c := range []struct {
		what    string
		reports []Report
		want    []string
	}{
		{"cni, kubelet and api", []Report{cni, kubelet, api}, []string{
			"a/x from kubelet uid=U labels=app=kubelet ips=[10.0.0.1] phase=Running port=81 sandbox=S1",
			differs("api", "10.0.0.3", "cni", "10.0.0.1"), differs("kubelet", "10.0.0.2", "cni", "10.0.0.1")}},
		{"cni and api", []Report{cni, api}, []string{
			"a/x from api uid=U labels=app=api ips=[10.0.0.1] phase=Pending port=82 sandbox=S1", differs("api", "10.0.0.3", "cni", "10.0.0.1")}},
		{"kubelet and api", []Report{kubelet, api}, []string{
			"a/x from kubelet uid=U labels=app=kubelet ips=[10.0.0.2] phase=Running port=81", differs("api", "10.0.0.3", "kubelet", "10.0.0.2")}},
		{"cni alone", []Report{cni}, []string{"a/x from cni uid=U labels= ips=[10.0.0.1] phase= sandbox=S1"}},
		{"all", []Report{directory, cni, kubelet, api}, []string{
			"a/x from directory uid=U labels=app=directory ips=[10.0.0.4] phase=Running port=80 sandbox=S1",
			differs("api", "10.0.0.3", "directory", "10.0.0.4"), "note: pod a/x: api has the labels app=api, directory has app=directory: the latter counts",
			differs("cni", "10.0.0.1", "directory", "10.0.0.4"),
			differs("kubelet", "10.0.0.2", "directory", "10.0.0.4"), "note: pod a/x: kubelet has the labels app=kubelet, directory has app=directory: the latter counts"}},
	} {
		for _, wait := range []bool{false, true} {
			expect(t, c.what, merge(&Merger{Wait: wait}, c.reports...), c.want...)
		}
	}
	later := report("kubelet", known("kubelet", "a/x uid=U app=kubelet"))
	expect(t, "a kubelet that knows no phase and no address yet", merge(&Merger{}, later, api),
		"a/x from kubelet uid=U labels=app=kubelet ips=[10.0.0.3] phase=Pending")
	bare := report("directory", known("directory", "a/x uid=dumped app=directory"))
	expect(t, "labels by hand, whatever uid was copied with them", merge(&Merger{Wait: true}, bare, cni),
		"a/x from directory uid=U labels=app=directory ips=[10.0.0.1] phase= sandbox=S1")
}

// What is said of another life of the pod, by its uid, is not about this one.
func TestAnotherLifeOfTheSameName(t *testing.T) {
	cni := report("cni", sandbox("a/x", "S2 uid=new ip=10.0.0.2"))
	old := known("kubelet", "a/x uid=old app=old phase=Running ip=10.0.0.1")
	fresh := known("api", "a/x uid=new app=new")
	disagree := "note: pod a/x: kubelet has the addresses [10.0.0.1], cni has [10.0.0.2]: the latter counts"
	m := Merger{Wait: true}
	expect(t, "only the old life is listed", merge(&m, cni, report("kubelet", old)), "waiting: a/x from cni uid=new labels= ips=[10.0.0.2] phase= sandbox=S2")
	expect(t, "the API knows the new one", merge(&m, cni, report("kubelet", old), report("api", fresh)),
		"a/x from api uid=new labels=app=new ips=[10.0.0.2] phase= sandbox=S2", disagree)
	expect(t, "no waiting", merge(&Merger{}, cni, report("kubelet", old)), "a/x from cni uid=new labels= ips=[10.0.0.2] phase= sandbox=S2", disagree)
	noUID := report("cni", sandbox("a/x", "S2 ip=10.0.0.2"))
	expect(t, "a runtime that tells no uid", merge(&Merger{Wait: true}, noUID, report("kubelet", old)),
		"a/x from kubelet uid=old labels=app=old ips=[10.0.0.2] phase=Running sandbox=S2", disagree)
	expect(t, "the addresses of a life that was replaced", merge(&Merger{}, report("kubelet", known("kubelet", "a/x uid=new app=new phase=Pending")),
		report("api", known("api", "a/x uid=old app=old phase=Failed ip=10.0.0.1"))), "a/x from kubelet uid=new labels=app=new ips=[] phase=Pending")
	expect(t, "a pod on the host's network of the same name", merge(&Merger{}, noUID, report("kubelet", known("kubelet", "a/x uid=new app=new phase=Running host ip=192.0.2.1"))),
		"a/x from kubelet uid=new labels=app=new ips=[10.0.0.2] phase=Running sandbox=S2")
	expect(t, "its mirror in the API has the static pod's uid", merge(&Merger{Wait: true}, report("cni", sandbox("a/x", "S2 uid=static ip=10.0.0.2")),
		report("api", known("api", "a/x uid=static app=mirror"))), "a/x from api uid=static labels=app=mirror ips=[10.0.0.2] phase= sandbox=S2")
}

// Pods wait for their labels only if somebody will tell them.
func TestWaiting(t *testing.T) {
	cni := report("cni", sandbox("a/x", "S1 uid=U ip=10.0.0.1"))
	for _, c := range []struct {
		what    string
		wait    bool
		reports []Report
		waits   bool
	}{
		{"the kubelet does not list it yet", true, []Report{report("kubelet")}, true},
		{"the API does not list it yet", true, []Report{report("api")}, true},
		{"both do not", true, []Report{report("kubelet"), report("api")}, true},
		{"nobody but the directory tells labels", true, []Report{report("directory")}, false},
		{"nobody tells labels", true, nil, false},
		{"nothing is held", false, []Report{report("kubelet"), report("api")}, false},
		{"the directory says", true, []Report{report("directory", known("directory", "a/x")), report("kubelet")}, false},
		{"the API says", true, []Report{report("kubelet"), report("api", known("api", "a/x uid=U"))}, false},
	} {
		m := merge(&Merger{Wait: c.wait}, append(c.reports, cni)...)
		if waits := len(m.Waiting) == 1; waits != c.waits || len(m.Snapshot.Pods)+len(m.Waiting) != 1 || len(m.Problems) > 0 {
			t.Errorf("%s: %s", c.what, text(m))
		}
	}
	m := merge(&Merger{Wait: true}, report("cni", sandbox("a/x", "S1 uid=U ip=192.0.2.1")), report("kubelet"))
	expect(t, "an address that is never a pod's", m, "problem: Pod a/x of cni: its address 192.0.2.1 is this gateway's own: such an address is never a pod's")
}

// A new pod that waits for its labels has its addresses: who had them before must
// not speak for it, nor be allowed what it is not.
func TestWhoWaitsHasItsAddress(t *testing.T) {
	cni := report("cni", sandbox("a/new", "S2 at=2s uid=new ip=10.0.0.1"))
	stale := report("api", known("api", "a/gone uid=gone app=trusted phase=Running ip=10.0.0.1"))
	expect(t, "an API that is away", merge(&Merger{Wait: true}, cni, stale),
		"a/gone from api uid=gone labels=app=trusted ips=[] phase=Running",
		"waiting: a/new from cni uid=new labels= ips=[10.0.0.1] phase= sandbox=S2",
		"note: pod a/gone: api says that it has 10.0.0.1, which is pod a/new's now")
	other := report("cni", cni.Objects.Pods[0], sandbox("a/old", "S1 at=1s uid=old ip=10.0.0.1,10.0.0.2"))
	expect(t, "an older sandbox", merge(&Merger{Wait: true}, other, report("kubelet", known("kubelet", "a/old uid=old app=old"))),
		"a/old from kubelet uid=old labels=app=old ips=[10.0.0.2] phase= sandbox=S1",
		"waiting: a/new from cni uid=new labels= ips=[10.0.0.1] phase= sandbox=S2",
		"problem: Pod a/old of kubelet: its address 10.0.0.1 belongs to pod a/new (cni)")
}

// A static pod leaves the kubelet's list with its manifest, and serves for its grace
// period: as long as its sandbox lives.
func TestWhatRunsKeepsItsDescription(t *testing.T) {
	cni := report("cni", sandbox("a/x", "S1 uid=U ip=10.0.0.1"))
	listed := report("kubelet", known("kubelet", "a/x uid=U app=x phase=Running port=80")).carrying("a/x", "a/x.deny", "a/x.allow")
	mirror := report("api", known("api", "a/x uid=U app=mirror phase=Running"))
	full := []string{
		"a/x from kubelet uid=U labels=app=x ips=[10.0.0.1] phase=Running port=80 sandbox=S1",
		"policy a/x.allow from kubelet, annotation of pod a/x", "policy a/x.deny from kubelet, annotation of pod a/x",
	}
	for what, also := range map[string][]Report{
		"the kubelet alone":      nil,
		"its mirror stays":       {mirror},
		"another life is listed": {report("api", known("api", "a/x uid=V app=next"))},
	} {
		for _, wait := range []bool{false, true} {
			m := Merger{Wait: wait}
			first := merge(&m, append(also, cni, listed)...)
			for range 3 {
				got := merge(&m, append(also, cni, report("kubelet"))...)
				expect(t, what, got, full...)
				if got.Snapshot.Pods[0] != first.Snapshot.Pods[0] {
					t.Errorf("%s: the pod has another pointer", what)
				}
			}
			expect(t, what+": the sandbox goes", merge(&m, report("cni"), report("kubelet")))
			m.Wait = true
			expect(t, what+": it comes again", merge(&m, cni, report("kubelet")), "waiting: a/x from cni uid=U labels= ips=[10.0.0.1] phase= sandbox=S1")
		}
	}
	// Its successor's policies are not its own.
	m := Merger{Wait: true}
	merge(&m, cni, listed)
	next := report("kubelet", known("kubelet", "a/x uid=V app=next phase=Pending")).carrying("a/x", "a/x.deny", "a/x.other")
	expect(t, "its successor is listed", merge(&m, cni, next), full...)
	expect(t, "and runs", merge(&m, report("cni", sandbox("a/x", "S2 uid=V ip=10.0.0.2")), next),
		"a/x from kubelet uid=V labels=app=next ips=[10.0.0.2] phase=Pending sandbox=S2",
		"policy a/x.deny from kubelet, annotation of pod a/x", "policy a/x.other from kubelet, annotation of pod a/x")
	expect(t, "nobody but the API describes it", merge(&Merger{Wait: true}, cni, next, mirror), "a/x from api uid=U labels=app=mirror ips=[10.0.0.1] phase=Running sandbox=S1")
	// What the operator says meanwhile, and takes back.
	m = Merger{Wait: true}
	merge(&m, cni, listed)
	hand := report("directory", known("directory", "a/x app=hand"))
	for _, list := range []Report{listed, report("kubelet")} {
		got := merge(&m, cni, list, hand)
		if p := got.Snapshot.Pods[0]; p.Labels["app"] != "hand" || len(got.Snapshot.Policies) != 2 {
			t.Errorf("by hand: %s", text(got))
		}
	}
	expect(t, "what the operator said is taken back", merge(&m, cni, report("kubelet"), report("directory")), full...)
}

// Ended, say the kubelet and the API; but its sandbox lives.
func TestEndedAndYetAttached(t *testing.T) {
	for _, phase := range []string{"Succeeded", "Failed"} {
		expect(t, phase, merge(&Merger{}, report("cni", sandbox("a/x", "S1 uid=U ip=10.0.0.1")), report("kubelet", known("kubelet", "a/x uid=U app=x phase="+phase))),
			"a/x from kubelet uid=U labels=app=x ips=[10.0.0.1] phase=Running sandbox=S1")
	}
	expect(t, "terminated pods stay listed with addresses that others have", merge(&Merger{}, report("cni", sandbox("a/x", "S1 uid=U ip=10.0.0.1")),
		report("kubelet", known("kubelet", "a/job uid=J phase=Succeeded ip=10.0.0.1"), known("kubelet", "a/x uid=U app=x phase=Running ip=10.0.0.1"))),
		"a/job from kubelet uid=J labels= ips=[10.0.0.1] phase=Succeeded",
		"a/x from kubelet uid=U labels=app=x ips=[10.0.0.1] phase=Running sandbox=S1")
}

// A pod keeps its description when only its annotation changes, which nothing but
// the policies tells.
func TestPoliciesThatAPodCarriesNoMore(t *testing.T) {
	cni, p := report("cni", sandbox("a/x", "S1 uid=U ip=10.0.0.1")), known("kubelet", "a/x uid=U app=x")
	m := Merger{}
	merge(&m, cni, report("kubelet", p).carrying("a/x", "a/x.one", "a/x.two"))
	line := "a/x from kubelet uid=U labels=app=x ips=[10.0.0.1] phase= sandbox=S1"
	for _, list := range []Report{report("kubelet", p).carrying("a/x", "a/x.two"), report("kubelet")} {
		expect(t, "one is taken back", merge(&m, cni, list), line, "policy a/x.two from kubelet, annotation of pod a/x")
	}
	for _, list := range []Report{report("kubelet", p), report("kubelet")} {
		expect(t, "both are", merge(&m, cni, list), line)
	}
}

// Two sandboxes of one pod: what is known of one life is not of the other.
func TestTwoSandboxes(t *testing.T) {
	const one, two = "S1 at=1s uid=old ip=10.0.0.1", "S2 at=2s uid=new ip=10.0.0.2"
	old, fresh := known("kubelet", "a/x uid=old app=old"), known("kubelet", "a/x uid=new app=new")
	first := "a/x from kubelet uid=old labels=app=old ips=[10.0.0.1] phase= sandbox=S1"
	waits := "waiting: a/x from cni uid=new labels= ips=[10.0.0.2] phase= sandbox=S2"
	for _, order := range [][]string{{one, two}, {strings.Replace(one, "S1", "S3", 1), two}} {
		name := strings.Fields(order[0])[0]
		first := strings.Replace(first, "S1", name, 1)
		slices.Sort(order)
		m := Merger{Wait: true}
		expect(t, "one", merge(&m, report("cni", sandbox("a/x", strings.Replace(one, "S1", name, 1))), report("kubelet", old)), first)
		both := report("cni", sandbox("a/x", order...))
		for _, list := range []Report{report("kubelet", old), report("kubelet")} {
			var last *inventory.Pod
			for range 2 {
				got := merge(&m, both, list)
				expect(t, "the second is not described yet", got, first, waits)
				if last != nil && (got.Snapshot.Pods[0] != last) {
					t.Error("the pod has another pointer")
				}
				last = got.Snapshot.Pods[0]
			}
		}
		expect(t, "the first goes", merge(&m, report("cni", sandbox("a/x", two)), report("kubelet")), waits)
		got := merge(&m, both, report("kubelet", fresh))
		if p := got.Snapshot.Pods[0]; len(got.Waiting) > 0 && p.Labels["app"] != "new" {
			t.Errorf("the second is described: %s", text(got))
		}
	}
	m := Merger{Wait: true}
	merge(&m, report("cni", sandbox("a/x", one)), report("kubelet", old))
	expect(t, "the second is described, and the first still runs", merge(&m, report("cni", sandbox("a/x", one, two)), report("kubelet", fresh)),
		"a/x from kubelet uid=new labels=app=new ips=[10.0.0.1 10.0.0.2] phase= sandbox=S1 sandbox=S2")
	m = Merger{Wait: true}
	late := "S1 at=9s uid=old ip=10.0.0.1" // the clock was set back since
	merge(&m, report("cni", sandbox("a/x", late)), report("kubelet", old))
	expect(t, "who is listed is of the present", merge(&m, report("cni", sandbox("a/x", late, two)), report("kubelet", fresh)),
		"a/x from kubelet uid=new labels=app=new ips=[10.0.0.1 10.0.0.2] phase= sandbox=S1 sandbox=S2")
	expect(t, "both are listed", merge(&Merger{Wait: true}, report("cni", sandbox("a/x", two, "S9 at=1s uid=old ip=10.0.0.1")), report("kubelet", old), report("api", known("api", "a/x uid=new app=api"))),
		"a/x from api uid=old labels=app=api ips=[10.0.0.1 10.0.0.2] phase= sandbox=S2 sandbox=S9")
	again := sandbox("a/x", one, "S2 at=2s uid=old ip=10.0.0.2")
	expect(t, "a second sandbox of one life", merge(&Merger{Wait: true}, report("cni", again), report("kubelet", old)),
		"a/x from kubelet uid=old labels=app=old ips=[10.0.0.1 10.0.0.2] phase= sandbox=S1 sandbox=S2")
	same := report("cni", sandbox("a/x", one, "S2 at=2s uid=new ip=10.0.0.1"))
	expect(t, "with the address of the first", merge(&Merger{Wait: true}, same, report("kubelet", old)),
		"a/x from kubelet uid=old labels=app=old ips=[] phase= sandbox=S1", "waiting: a/x from cni uid=new labels= ips=[10.0.0.1] phase= sandbox=S2")
}

// Interfaces are the CNI result's, also where the operator says which addresses.
func TestAnotherSandboxUnderTheDirectorysWord(t *testing.T) {
	m := Merger{}
	reports := func(cni ...*inventory.Pod) []Report {
		return []Report{report("directory", known("directory", "a/x app=hand ip=10.0.0.9")), report("cni", cni...), report("kubelet", known("kubelet", "a/x uid=U app=x phase=Running"))}
	}
	for _, c := range []struct {
		cni  []*inventory.Pod
		want string
	}{
		{[]*inventory.Pod{sandbox("a/x", "S1 uid=U ip=10.0.0.9")}, "uid=U labels=app=hand ips=[10.0.0.9] phase=Running sandbox=S1"},
		{[]*inventory.Pod{sandbox("a/x", "S2 uid=U ip=10.0.0.9")}, "uid=U labels=app=hand ips=[10.0.0.9] phase=Running sandbox=S2"},
		{nil, "uid= labels=app=hand ips=[10.0.0.9] phase=Running"},
	} {
		expect(t, c.want, merge(&m, reports(c.cni...)...), "a/x from directory "+c.want,
			"note: pod a/x: kubelet has the labels app=x, directory has app=hand: the latter counts")
	}
}

// Pods of other nodes are peers; but what is attached here runs here.
func TestRemote(t *testing.T) {
	cni := report("cni", sandbox("a/db-0", "S1 uid=old ip=10.0.0.1"))
	moved := report("api", known("api", "a/db-0 uid=new app=db phase=Running ip=10.1.0.1 remote"))
	here := report("kubelet", known("kubelet", "a/db-0 uid=old app=old phase=Running"))
	note := "note: pod a/db-0: api has the addresses [10.1.0.1], cni has [10.0.0.1]: the latter counts"
	expect(t, "it runs elsewhere", merge(&Merger{Wait: true}, report("cni"), moved), "a/db-0 from api uid=new labels=app=db ips=[10.1.0.1] phase=Running remote")
	expect(t, "it runs here still", merge(&Merger{Wait: true}, cni, here, moved), "a/db-0 from kubelet uid=old labels=app=old ips=[10.0.0.1] phase=Running sandbox=S1", note)
	expect(t, "nobody describes what runs here", merge(&Merger{Wait: true}, cni, moved), "waiting: a/db-0 from cni uid=old labels= ips=[10.0.0.1] phase= sandbox=S1")
	expect(t, "by the kubelet alone", merge(&Merger{}, here, moved), "a/db-0 from kubelet uid=old labels=app=old ips=[] phase=Running",
		"note: pod a/db-0: api has the addresses [10.1.0.1], kubelet has []: the latter counts")
	expect(t, "a runtime that tells no uid", merge(&Merger{Wait: true}, report("cni", sandbox("a/db-0", "S1 ip=10.0.0.1")), moved),
		"waiting: a/db-0 from cni uid= labels= ips=[10.0.0.1] phase= sandbox=S1")
	expect(t, "a wrong node name", merge(&Merger{Wait: true}, cni, report("api", known("api", "a/db-0 uid=old app=db phase=Running remote"))),
		"a/db-0 from api uid=old labels=app=db ips=[10.0.0.1] phase=Running sandbox=S1")
	p := merge(&Merger{}, report("cni", sandbox("a/x", "S1 uid=x ip=10.1.0.1")), moved)
	expect(t, "its address is another's here", p, "a/db-0 from api uid=new labels=app=db ips=[] phase=Running remote", "a/x from cni uid=x labels= ips=[10.1.0.1] phase= sandbox=S1",
		"note: pod a/db-0: api says that it has 10.1.0.1, which is pod a/x's now")
}

// The pointers of what did not change stay, however a pod was put together.
func TestPointersAreKept(t *testing.T) {
	reports := func() []Report {
		return []Report{
			report("directory", known("directory", "a/hand app=hand")),
			report("cni", sandbox("a/hand", "S1 uid=h ip=10.0.0.1"), sandbox("a/x", "S2 uid=x ip=10.0.0.2"), sandbox("a/two", "S3 uid=t1 ip=10.0.0.3", "S4 uid=t2 ip=10.0.0.4")),
			report("kubelet", known("kubelet", "a/x uid=x app=x ip=10.0.0.2"), known("kubelet", "a/two uid=t1 app=t"), known("kubelet", "a/k uid=k app=k")),
			report("api", known("api", "a/k uid=k app=k phase=Running ip=10.0.0.5"), known("api", "b/s1 uid=s1 ip=10.0.0.1,10.1.0.1"),
				known("api", "b/s2 uid=s2 ip=10.0.0.2"), known("api", "b/s3 uid=s3 ip=10.0.0.3"), known("api", "b/s4 uid=s4 ip=10.0.0.4")),
		}
	}()
	m := Merger{Wait: true}
	first := merge(&m, reports...)
	if len(first.Snapshot.Pods) != 8 || len(first.Waiting) != 1 {
		t.Fatalf("%s", text(first))
	}
	for range 3 {
		if again := merge(&m, reports...); !slices.Equal(again.Snapshot.Pods, first.Snapshot.Pods) || !slices.Equal(again.Waiting, first.Waiting) {
			t.Fatal("nothing changed, and yet pods have other pointers")
		}
	}
	// A change of each source changes its pod alone.
	for i, change := range []struct {
		report int
		pod    *inventory.Pod
	}{
		{0, known("directory", "a/hand app=changed")},
		{1, sandbox("a/x", "S2 uid=x ip=10.0.0.2,fd00::2")},
		{1, sandbox("a/hand", "S9 uid=h ip=10.0.0.1")},
		{2, known("kubelet", "a/x uid=x app=x port=8080 ip=10.0.0.2")},
		{2, known("kubelet", "a/x uid=x app=changed ip=10.0.0.2")},
		{3, known("api", "a/k uid=k app=k phase=Succeeded ip=10.0.0.5")},
		{3, known("api", "b/s1 uid=s1 ip=10.0.0.1,10.1.0.2")},
	} {
		before := merge(&m, reports...)
		r := &reports[change.report]
		r.Objects.Pods = slices.Clone(r.Objects.Pods)
		at := slices.IndexFunc(r.Objects.Pods, func(p *inventory.Pod) bool { return p.Key == change.pod.Key })
		r.Objects.Pods[at] = change.pod
		after := merge(&m, reports...)
		for _, p := range after.Snapshot.Pods {
			if same := before.Snapshot.Pod(p.Key) == p; same != (p.Key != change.pod.Key) {
				t.Errorf("change %d: pod %s: the same pointer: %v", i, p.Key, same)
			}
		}
	}
}
