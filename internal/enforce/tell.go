package enforce

import (
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// reason is why something is not as it should be, or worth knowing: it is told once,
// again when its text changes, and once more when it is over.
type reason struct {
	text   string
	about  string       // tells it from others of its event; without, the text does
	event  *audit.Event // that tells of it; nil: an information
	over   *audit.Event // that tells of its end; nil: an information
	attrs  []slog.Attr
	silent bool // an event of its own has told it already
}

// because makes a reason. What comes from files can't write to a terminal by it.
func because(text, about string, event, over *audit.Event, attrs ...slog.Attr) reason {
	return reason{text: inventory.Printable(text), about: about, event: event, over: over, attrs: attrs}
}

func degradedBy(text string) reason {
	return because(text, "", audit.Degraded, audit.Recovered, slog.String(audit.KeyReason, text))
}

// id tells what a reason is about, whatever its words.
func (r *reason) id() string {
	if r.about == "" {
		return r.text
	}
	return r.event.Name + " " + r.about
}

// tell logs what has ended since the last time, and what is new or is put in other
// words.
func (e *Enforcer) tell(health, news []reason) {
	now := map[string]reason{}
	var fresh []reason
	for _, r := range append(health, news...) {
		id := r.id()
		for n := 2; now[id].text != ""; n++ { // two documents of one name in one file
			id = fmt.Sprintf("%s %d", r.id(), n)
		}
		now[id] = r
		if old, known := e.told[id]; !r.silent && (!known || old.text != r.text) {
			fresh = append(fresh, r)
		}
	}
	for id, r := range e.told {
		switch _, still := now[id]; {
		case still:
		case r.over == nil:
			e.log.Info("no longer: " + r.text)
		default:
			r.over.Log(e.log, "no longer: "+r.text, r.attrs...)
		}
	}
	for _, r := range fresh {
		if r.event == nil {
			e.log.Info(r.text)
			continue
		}
		r.event.Log(e.log, r.text, r.attrs...)
	}
	if e.told = now; len(health) == 0 && !e.degradedSince.IsZero() {
		audit.Healthy.Log(e.log, "healthy again: everything that is known is enforced as written", slog.String(audit.KeySince, e.degradedSince.Format(time.RFC3339)))
		e.degradedSince = time.Time{}
	} else if len(health) > 0 && e.degradedSince.IsZero() {
		e.degradedSince = time.Now()
	}
}

// health says how it is, and why, the most important first.
func health(failed, degraded []reason) (string, []string) {
	var texts []string
	for _, r := range append(failed, degraded...) {
		texts = append(texts, r.text)
	}
	switch {
	case len(failed) > 0:
		return status.Failed, texts
	case len(degraded) > 0:
		return status.Degraded, texts
	}
	return status.Healthy, nil
}

// reasons gives what is not as it should be.
func (e *Enforcer) reasons(s *status.Status) (failed, degraded []reason) {
	switch {
	case e.flushed != nil:
		failed = append(failed, reason{silent: true,
			text: fmt.Sprintf("flushed by uid %d at %s: nothing is enforced until a reload or restart", e.flushed.uid, e.flushed.at.Format(time.RFC3339))})
	case e.applyErr != nil:
		text := "the kernel does not have what it should: " + e.applyErr.Error()
		failed = append(failed, because(text, "apply", audit.ApplyFailed, audit.Recovered, slog.String(audit.KeyReason, e.applyErr.Error()), slog.Uint64(audit.KeyGeneration, e.generation)))
	}
	add := func(texts ...string) {
		for _, t := range texts {
			degraded = append(degraded, degradedBy(t))
		}
	}
	if e.holds {
		add("the saved state is lost and not everything can be read: the table that was found in the kernel is left as it is until what is named below is put right")
	}
	add(e.bridges...)
	if e.bridgeErr != nil && len(e.wiring.bridges)+len(e.wiring.out.Ports) > 0 {
		add("pods on one bridge can send as each other, or past the filter with VLAN tags: " + e.bridgeErr.Error())
	}
	if e.drift.fight {
		add(fmt.Sprintf("another program changes table %s again and again: it was put right %d times within a minute, and is looked at every %s only; find the program (table-drift names it) and stop it", e.cfg.Table, maxRepairs, checkEvery))
	}
	add(e.refusedRanges...)
	for _, w := range e.waiting {
		degraded = append(degraded, because(w.text, w.pod, audit.PodHeld, audit.Recovered, slog.String(audit.KeyPod, w.pod), slog.String(audit.KeyReason, "no source has told its labels")))
	}
	for _, src := range s.Sources {
		if src.Error != "" {
			degraded = append(degraded, because(fmt.Sprintf("source %s: %s (what was known last stays in force)", src.Name, src.Error),
				src.Name, audit.SourceLost, audit.SourceFound, slog.String(audit.KeySource, src.Name), slog.String(audit.KeyReason, src.Error)))
		}
	}
	for _, r := range s.Rejected {
		degraded = append(degraded, rejected(r))
	}
	for _, u := range s.Unenforceable {
		degraded = append(degraded, because(fmt.Sprintf("pod %s is not enforced: %s", u.Pod, u.Reason),
			u.Pod, audit.PodUnenforceable, audit.PodEnforceable, slog.String(audit.KeyPod, u.Pod), slog.String(audit.KeyReason, u.Reason)))
	}
	if e.linksErr != nil {
		add("where the pods are can't be read, so bridges and pods that are not enforceable may go unnoticed: " + e.linksErr.Error())
	}
	if e.interfacesErr != nil {
		add("the gateway's interfaces can't be read, those known last count: " + e.interfacesErr.Error())
	}
	if e.gatewayErr != nil {
		add("the gateway's own addresses can't be read: " + e.gatewayErr.Error())
	}
	for _, err := range []error{e.logErr, e.deniedErr} {
		if err != nil {
			add("denied packets are counted, but can't be told one by one: " + err.Error())
		}
	}
	return failed, degraded
}

func rejected(r status.Rejected) reason {
	text, kept := r.Reason, "nothing"
	if r.Object != "" {
		text = r.Object + ": " + text
	}
	if r.File != "" {
		text = r.File + ": " + text
	}
	if r.Kept {
		text += " (its last valid version stays in force)"
		kept = "previous"
	}
	return because("rejected: "+text, r.Object+" "+withoutLine(r.File), audit.DocumentRejected, audit.RejectionEnded, slog.String(audit.KeyObject, r.Object),
		slog.String(audit.KeyFile, r.File), slog.String(audit.KeyReason, r.Reason), slog.String(audit.KeyKept, kept))
}

var lineAndColumn = regexp.MustCompile(`(:\d+)+$`)

// withoutLine is a place that stays the same when something above it is written.
func withoutLine(place string) string { return lineAndColumn.ReplaceAllString(place, "") }

// news gives what is worth knowing, and does not make the health worse.
func (e *Enforcer) news(s *status.Status) (list []reason) {
	for _, src := range s.Sources {
		if !src.OfflineSince.IsZero() {
			since := src.OfflineSince.Format(time.RFC3339)
			list = append(list, because(fmt.Sprintf("source %s: offline since %s; what was known last stays in force", src.Name, since),
				src.Name, audit.Offline, audit.Online, slog.String(audit.KeySource, src.Name), slog.String(audit.KeySince, since)))
		}
		for _, w := range src.Warnings {
			list = append(list, reason{text: "warning: " + w})
		}
	}
	for _, n := range e.notes {
		list = append(list, reason{text: inventory.Printable(n)})
	}
	return list
}
