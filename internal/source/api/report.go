package api

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/source"
)

// assemble makes a report of what is known now, or gives the last one if that says
// the same.
func (s *Source) assemble() source.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	report := source.Report{Source: Name, Confirmed: s.Confirmed()}
	where, warnings := s.conn.about()
	report.Diagnostics = warnings
	var refused []string
	missing := map[inventory.Kind]bool{}
	for _, r := range s.resources {
		s.objects(r, &report)
		if r.failing.IsZero() {
			continue
		}
		if s.refused(r) {
			missing[r.kind] = true
			refused = append(refused, refusalText(r))
			continue
		}
		if report.OfflineSince.IsZero() || r.failing.Before(report.OfflineSince) {
			report.OfflineSince = r.failing
		}
		report.Diagnostics = append(report.Diagnostics, manifest.Diagnostic{Severity: manifest.Warning,
			Message: fmt.Sprintf("%s can't be read from %s (%s): what was read last stays in force", r.name, where, plain(r.err.Error()))})
	}
	if text := s.nobodyHere(&report); text != "" {
		report.Diagnostics = append(report.Diagnostics, manifest.Diagnostic{Severity: manifest.Warning, Message: text})
	}
	if slices.Sort(refused); len(refused) > 0 {
		report.Err = fmt.Errorf("api: %s: %s", where, strings.Join(slices.Compact(refused), "; "))
	}
	report.Unknown = !s.known(missing)
	s.stamp(&report)
	return s.report
}

// stamp makes r the report if it says anything new.
func (s *Source) stamp(r *source.Report) {
	if !s.report.Time.IsZero() && equal(r, &s.report) {
		return
	}
	if r.Time = time.Now(); !r.Time.After(s.report.Time) {
		r.Time = s.report.Time.Add(1)
	}
	s.report = *r
}

// known says whether no objects mean that there are none: all resources were read
// since the daemon started or before it did. Where only pods or namespaces are
// refused for good, policies count for all that, as other sources may know these.
func (s *Source) known(refused map[inventory.Kind]bool) bool {
	for _, r := range s.resources {
		if !r.listed && !s.remembered && (r.kind == inventory.KindPolicy || !refused[r.kind]) {
			return false
		}
	}
	return true
}

// refusalText says why a resource will not be read until somebody does something.
func refusalText(r *resource) string {
	var config *configError
	if errors.As(r.err, &config) {
		return config.text // the same for all resources
	}
	text := r.err.Error()
	if !untrusted(r.err) {
		text = r.name + ": " + text
	}
	if what := remedy(r.err, r.name); what != "" {
		text += ": " + what
	}
	return text
}

// nobodyHere says that policies apply to nobody, which can be a wrong name; "" if they
// do, or if the pods were not listed.
func (s *Source) nobodyHere(r *source.Report) string {
	local := slices.ContainsFunc(r.Objects.Pods, func(p *inventory.Pod) bool { return !p.Remote })
	listed := slices.ContainsFunc(s.resources, func(r *resource) bool { return r.kind == inventory.KindPod && r.listed })
	if local || !listed || len(r.Objects.Policies) == 0 {
		return ""
	}
	return fmt.Sprintf("no pod of node %s is listed: if pods run here, nodeName is not the name that the API has", s.config.NodeName)
}

// objects adds what is known of a resource, sorted by key.
func (s *Source) objects(r *resource, to *source.Report) {
	for _, key := range slices.SortedFunc(maps.Keys(r.entries), inventory.Key.Compare) {
		e := r.entries[key]
		switch o := e.object.(type) {
		case *inventory.Policy:
			to.Objects.Policies = append(to.Objects.Policies, o)
		case *inventory.Namespace:
			to.Objects.Namespaces = append(to.Objects.Namespaces, o)
		case *inventory.Pod:
			to.Objects.Pods = append(to.Objects.Pods, o)
		}
		to.Diagnostics = append(to.Diagnostics, e.diagnostics...)
		if e.invalid != "" {
			to.Rejected = append(to.Rejected, source.Rejected{Object: string(r.kind) + " " + key.String(),
				Origin: inventory.Origin{Source: Name}, Reason: e.invalid, Kept: e.object != nil})
		}
	}
}

// equal says whether two reports say the same. Time and Confirmed are not part of
// what they say.
func equal(a, b *source.Report) bool {
	return slices.Equal(a.Objects.Pods, b.Objects.Pods) &&
		slices.Equal(a.Objects.Namespaces, b.Objects.Namespaces) &&
		slices.Equal(a.Objects.Policies, b.Objects.Policies) &&
		slices.Equal(a.Diagnostics, b.Diagnostics) &&
		slices.Equal(a.Rejected, b.Rejected) &&
		fmt.Sprint(a.Err) == fmt.Sprint(b.Err) &&
		a.OfflineSince.Equal(b.OfflineSince) && a.Unknown == b.Unknown
}
