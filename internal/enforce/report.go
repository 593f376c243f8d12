package enforce

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"edgepolicy.io/edgepolicyd/internal/explain"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/internal/state"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// published is what others may read, made anew after each change.
type published struct {
	status   status.Status
	snapshot *inventory.Snapshot
	table    *ruleset.Table // what the kernel holds, nil if that is nothing
	// interfaces are those that the table is about.
	interfaces ruleset.Interfaces
	holds      bool             // and that is not what the snapshot gives
	waiting    []*inventory.Pod // for their labels, held
}

// version is the content of a policy and when it came into force.
type version struct {
	json  []byte
	since time.Time
}

// publish makes what Status, Snapshot and Table give.
func (e *Enforcer) publish() {
	s := status.Status{
		Version: status.Version, DaemonVersion: e.cfg.Version, Started: e.started,
		Generation: e.generation, LastApply: e.lastApply, Table: e.cfg.Table,
		Namespaces: len(e.snapshot.Namespaces), Unenforceable: append([]status.Unenforceable{}, e.unenforceable...),
		Policies: []status.PolicyStatus{}, Rejected: []status.Rejected{}, NeverIsolated: []string{},
	}
	outside := map[string]bool{}
	for _, u := range e.unenforceable {
		outside[u.Pod] = true
	}
	selected := map[inventory.Key]int{}
	for _, iso := range e.isolations {
		s.Pods++
		counted, isolated := map[inventory.Key]bool{}, false
		for _, side := range iso.Sides {
			if side == nil {
				continue
			}
			isolated = isolated || !side.Audit
			for _, k := range side.Policies {
				if !counted[k] {
					counted[k] = true
					selected[k]++
				}
			}
		}
		if isolated && e.flushed == nil && !outside[iso.Pod.Key.String()] {
			s.IsolatedPods++
		}
		if e.cfg.Options.NeverIsolated(iso.Pod.Key) {
			s.NeverIsolated = append(s.NeverIsolated, iso.Pod.Key.String())
		}
	}
	s.NodeName, s.Hold = e.cfg.NodeName, e.holdStatus()
	e.publishPolicies(&s, selected)
	e.publishSources(&s)
	failed, degraded := e.reasons(&s)
	s.Health, s.Reasons = health(failed, degraded)
	e.tell(append(failed, degraded...), e.news(&s))
	e.published.Store(&published{status: s, snapshot: e.snapshot, table: e.actual, interfaces: e.compiler.Interfaces, holds: e.holds, waiting: e.waitingPods})
}

func (e *Enforcer) publishPolicies(s *status.Status, selected map[inventory.Key]int) {
	now := time.Now()
	since := make(map[inventory.Key]version, len(e.snapshot.Policies))
	for _, p := range e.snapshot.Policies {
		v, ok := e.since[p.Key]
		if !ok || !bytes.Equal(v.json, p.JSON) {
			v = version{json: p.JSON, since: now}
		}
		since[p.Key] = v
		s.Policies = append(s.Policies, status.PolicyStatus{
			Name: p.Key.String(), Source: p.Origin.Source, File: p.Origin.String(), Since: v.since, Pods: selected[p.Key], Audited: e.cfg.Options.Audits(p),
		})
	}
	e.since = since
}

func (e *Enforcer) publishSources(s *status.Status) {
	for _, src := range e.cfg.Sources {
		r := e.reports[src.Name()]
		st := status.SourceStatus{Name: src.Name(), LastRead: r.Time, OfflineSince: r.OfflineSince, Unknown: r.Unknown}
		s.Offline = s.Offline || !r.OfflineSince.IsZero()
		if r.Err != nil {
			st.Error = r.Err.Error()
		}
		for _, d := range r.Diagnostics {
			if d.Severity == manifest.Warning {
				st.Warnings = append(st.Warnings, d.String())
			}
		}
		s.Sources = append(s.Sources, st)
		for _, x := range r.Rejected {
			s.Rejected = append(s.Rejected, status.Rejected{Object: x.Object, File: place(x.Origin), Reason: x.Reason, Kept: x.Kept})
		}
	}
	for _, p := range e.problems {
		s.Rejected = append(s.Rejected, status.Rejected{Object: p.Object, File: p.Origin.String(), Reason: p.Reason})
	}
}

// place is where something was rejected, to the column.
func place(o inventory.Origin) string {
	if o.Column == 0 {
		return o.String()
	}
	return fmt.Sprintf("%s:%d", o, o.Column)
}

// Status gives what is known of the daemon. Whether the table is there is asked
// of the kernel now.
func (e *Enforcer) Status() status.Status {
	s := e.published.Load().status
	s.Sources = e.ages(s.Sources)
	s.Policies = slices.Clone(s.Policies)
	for _, t := range append(times(s.Policies), &s.Started, &s.LastApply) {
		*t = byTheClock(*t)
	}
	there, err := present(s.Table)
	s.TablePresent = there
	if !there && s.Health != status.Failed {
		reason := "table inet " + s.Table + " is not in the kernel: another program took it away"
		if err != nil {
			reason = "nobody knows whether the table is in the kernel: " + err.Error()
		}
		s.Health = status.Failed
		s.Reasons = append([]string{reason}, s.Reasons...)
	}
	if text := e.stateErr.Load(); text != nil && *text != "" {
		if s.Health == status.Healthy {
			s.Health = status.Degraded
		}
		s.Reasons = append(slices.Clone(s.Reasons), "the last good input can't be saved: "+*text)
	}
	return s
}

func times(list []status.PolicyStatus) (all []*time.Time) {
	for i := range list {
		all = append(all, &list[i].Since)
	}
	return all
}

// byTheClock gives what the wall clock of now says of a moment of this process, which
// the monotonic clock knows: a gateway's clock can start in 1970 and be set later.
func byTheClock(t time.Time) time.Time {
	set := time.Now().Round(0).Add(-time.Since(t))
	if t.IsZero() || set.Sub(t.Round(0)).Abs() < time.Second {
		return t // the clock was not set since
	}
	return set
}

// ages adds how long ago each source's server confirmed what it serves.
func (e *Enforcer) ages(list []status.SourceStatus) []status.SourceStatus {
	list = slices.Clone(list)
	for i, s := range e.cfg.Sources {
		if i < len(list) {
			list[i].LastRead, list[i].OfflineSince = byTheClock(list[i].LastRead), byTheClock(list[i].OfflineSince)
		}
		c, ok := s.(interface{ Confirmed() time.Time })
		if i >= len(list) || !ok || c.Confirmed().IsZero() {
			continue
		}
		age := int64(time.Since(c.Confirmed()).Seconds())
		list[i].AgeSeconds = &age
	}
	return list
}

func present(table string) (bool, error) {
	c, err := nft.Open(table)
	if err != nil {
		return false, err
	}
	defer c.Close()
	return c.Present()
}

// Snapshot gives what is known and the options it is judged by. Pods whose
// traffic does not pass the table count as never isolated (S34). It is an error
// if the kernel does not enforce it.
func (e *Enforcer) Snapshot() (*inventory.Snapshot, inventory.Options, error) {
	p := e.published.Load()
	if p.status.Health == status.Failed || p.holds {
		return nil, inventory.Options{}, fmt.Errorf("what is known is not enforced: %s; name files to ask about those", p.status.Reasons[0])
	}
	o := e.cfg.Options
	o.NeverIsolate = slices.Clone(o.NeverIsolate)
	for _, u := range p.status.Unenforceable {
		namespace, name, _ := strings.Cut(u.Pod, "/")
		o.NeverIsolate = append(o.NeverIsolate, inventory.Key{Namespace: namespace, Name: name})
	}
	return p.snapshot, o, nil
}

// Known gives what all sources together know.
func (e *Enforcer) Known() status.Known {
	p := e.published.Load()
	s := p.snapshot
	return status.Known{
		NodeName:   e.cfg.NodeName,
		Objects:    state.List(inventory.Objects{Pods: s.Pods, Namespaces: s.Namespaces, Policies: s.Policies}),
		Interfaces: p.interfaces,
	}
}

// Table gives the table in force as nft text, or one pod's part of it.
func (e *Enforcer) Table(pod string) (string, error) {
	p := e.published.Load()
	if p.table == nil {
		return "", fmt.Errorf("no table is in force")
	}
	if pod == "" {
		return p.table.Text(nil), nil
	}
	for _, known := range p.snapshot.Pods {
		if known.Key.String() == pod {
			return p.table.Text(ruleset.PodChains(known.Key)), nil
		}
	}
	return "", fmt.Errorf("no pod %s is known; name it as namespace/name", pod)
}

// Explain says why a flow passes or not.
func (e *Enforcer) Explain(q explain.Question) (explain.Explanation, error) {
	s, o, err := e.Snapshot()
	if err != nil {
		return explain.Explanation{}, err
	}
	p := e.published.Load()
	in := explain.Input{Snapshot: s, Options: &o, Table: p.table, Interfaces: p.interfaces, Outside: map[inventory.Key]string{}, Waiting: p.waiting}
	for _, u := range p.status.Unenforceable {
		namespace, name, _ := strings.Cut(u.Pod, "/")
		in.Outside[inventory.Key{Namespace: namespace, Name: name}] = u.Reason
	}
	if in.Counters, err = counters(e.cfg.Table); err != nil {
		return explain.Explanation{}, err
	}
	if in.Others, err = nft.BaseChains(e.cfg.Table); err != nil {
		return explain.Explanation{}, err
	}
	return explain.Explain(in, q)
}

// counters reads the counters of both tables.
func counters(table string) (map[string]ruleset.Counts, error) {
	c, err := nft.Open(table)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Counters()
}

// changesBetween names the objects that differ.
func changesBetween(before, after *inventory.Snapshot) []string {
	var list []string
	name := func(kind string) func(old, fresh *inventory.Head) {
		return func(old, fresh *inventory.Head) {
			switch {
			case old == nil:
				list = append(list, fmt.Sprintf("%s %s added", kind, fresh.Key))
			case fresh == nil:
				list = append(list, fmt.Sprintf("%s %s removed", kind, old.Key))
			default:
				list = append(list, fmt.Sprintf("%s %s changed", kind, fresh.Key))
			}
		}
	}
	differences(before.Policies, after.Policies, func(p *inventory.Policy) *inventory.Head { return &p.Head }, name("policy"))
	differences(before.Pods, after.Pods, func(p *inventory.Pod) *inventory.Head { return &p.Head }, name("pod"))
	differences(before.Namespaces, after.Namespaces, func(n *inventory.Namespace) *inventory.Head { return &n.Head }, name("namespace"))
	return list
}

// differences visits what is in one list only, with nil for the other, and what has
// another content. Both are sorted by key, as a snapshot's are. It makes no garbage: this is
// asked with each change.
func differences[T comparable](before, after []T, head func(T) *inventory.Head, visit func(old, fresh *inventory.Head)) {
	for len(before) > 0 || len(after) > 0 {
		order := 0
		switch {
		case len(before) == 0:
			order = 1
		case len(after) == 0:
			order = -1
		case before[0] != after[0]:
			order = head(before[0]).Key.Compare(head(after[0]).Key)
		}
		switch {
		case order < 0:
			visit(head(before[0]), nil)
			before = before[1:]
		case order > 0:
			visit(nil, head(after[0]))
			after = after[1:]
		default:
			if old, fresh := head(before[0]), head(after[0]); old != fresh && !bytes.Equal(old.JSON, fresh.JSON) {
				visit(old, fresh)
			}
			before, after = before[1:], after[1:]
		}
	}
}
