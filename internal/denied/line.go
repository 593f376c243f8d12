package denied

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// Text gives a flow as one reads it: "denied egress default/web -> 10.0.0.7:5432/TCP
// (default/db): not allowed by default/web-egress, default/base".
func Text(f *status.DeniedFlow) string {
	from := f.From.Pod
	if from == "" {
		from = f.From.Address.String()
	}
	if f.From.Gateway {
		from += " (the gateway)"
	}
	stray := ""
	if f.Stray {
		stray = " (it begins no connection: a late answer?)"
	}
	return fmt.Sprintf("%s %s %s -> %s: not allowed by %s%s", f.Verdict, f.Direction, from, destination(f), strings.Join(f.Policies, ", "), stray)
}

func destination(f *status.DeniedFlow) string {
	to := f.To.Address.String() + "/" + f.Protocol
	if f.Port != 0 {
		to = netip.AddrPortFrom(f.To.Address, f.Port).String() + "/" + f.Protocol
	}
	switch {
	case f.To.Gateway:
		return to + " (the gateway)"
	case f.To.Pod != "":
		return to + " (" + f.To.Pod + ")"
	}
	return to
}

// logFlow gives a flow its line.
func (f *Flows) logFlow(d *status.DeniedFlow, packets uint64) {
	event := audit.Denied
	if d.Verdict != "denied" {
		event = audit.WouldDeny
	}
	where := "from " + d.Interface
	if d.Interface == "" {
		where = "from an unknown interface"
	}
	attrs := []slog.Attr{
		slog.String(audit.KeyPod, d.Pod), slog.String(audit.KeyDirection, d.Direction),
		slog.Any(audit.KeyPolicy, audit.List(d.Policies)),
		slog.String(audit.KeySrc, d.From.Address.String()), slog.String(audit.KeyDst, d.To.Address.String()),
		slog.String(audit.KeyProtocol, d.Protocol), slog.String(audit.KeyInterface, d.Interface),
		slog.Uint64(audit.KeyCount, packets), slog.String(audit.KeyWindow, f.cfg.Window.String()),
	}
	if d.From.Pod != "" {
		attrs = append(attrs, slog.String(audit.KeySrcPod, d.From.Pod))
	}
	if d.To.Pod != "" {
		attrs = append(attrs, slog.String(audit.KeyDstPod, d.To.Pod))
	}
	if d.Port != 0 {
		attrs = append(attrs, slog.Int(audit.KeyPort, int(d.Port)))
	}
	event.Log(f.cfg.Log, fmt.Sprintf("%s (%s, %s)", Text(d), where, packetsText(packets)), attrs...)
}

func packetsText(n uint64) string {
	if n == 1 {
		return "1 packet logged"
	}
	return fmt.Sprintf("%d packets logged", n)
}

// maxRest is how many pods are named with packets that got no line.
const maxRest = 5

// logRest says what got no line, the most first.
func (f *Flows) logRest(all []rest) {
	for i, r := range all {
		if i == maxRest {
			var sum uint64
			for _, r := range all[i:] {
				sum += r.packets
			}
			audit.DeniedSuppressed.Log(f.cfg.Log, fmt.Sprintf("%d denied packets more in %s without a line of their own, of %d other pods and directions", sum, f.cfg.Window, len(all)-i),
				slog.Uint64(audit.KeyCount, sum), slog.String(audit.KeyWindow, f.cfg.Window.String()))
			return
		}
		what := "denied"
		if r.subject.Audited {
			what = "would-deny"
		}
		audit.DeniedSuppressed.Log(f.cfg.Log, fmt.Sprintf("%d %s packets more in %s without a line of their own: %s of %s", r.packets, what, f.cfg.Window, r.subject.Direction, r.subject.Pod.Key),
			slog.String(audit.KeyPod, r.subject.Pod.Key.String()), slog.String(audit.KeyDirection, r.subject.Direction.String()),
			slog.Uint64(audit.KeyCount, r.packets), slog.String(audit.KeyWindow, f.cfg.Window.String()))
	}
}
