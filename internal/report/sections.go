package report

import (
	"slices"
	"strconv"
	"time"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/status"
)

func (r *Report) policies(p page) {
	p.put(`<section aria-labelledby="policies"><h2 id="policies">Policies</h2>`)
	defer p.put("</section>\n")
	r.caution(p)
	if len(r.Snapshot.Policies) == 0 {
		p.put(`<p class="none">No policy is in force: every pod is open.</p>`)
		return
	}
	p.put(`<p>Policies add to each other: what a rule of one allows, no other takes away. A connection between two pods needs the sender's egress and the receiver's ingress to allow it; replies always pass. Rules are numbered from 0, as everywhere.</p>`)
	known := map[string]status.PolicyStatus{}
	for _, s := range r.Status.Policies {
		known[s.Name] = s
	}
	for i, pol := range r.Snapshot.Policies {
		r.policy(p, i, pol, known[pol.Key.String()])
	}
}

func (r *Report) policy(p page, i int, pol *inventory.Policy, known status.PolicyStatus) {
	p.put(`<article id="policy-{}"><h3>`, strconv.Itoa(i))
	p.name(pol.Key.String())
	for _, d := range inventory.Directions {
		if pol.Isolates[d] {
			p.put(` <span class="badge on">{}</span>`, d.String())
		}
	}
	if r.Options.Audits(pol) {
		p.put(` <span class="badge warn">audited, not enforced</span>`)
	}
	p.put(`</h3><dl class="facts"><div class="wide"><dt>Selects</dt><dd>{}<span class="soft">: `, selected(pol))
	var pods []int
	for k, pod := range r.Snapshot.Pods {
		if pol.Selects(pod) && pod.Selectable() {
			pods = append(pods, k)
		}
	}
	list(p, pods, func(k int) {
		p.put(`<a href="#pod-{}">{}</a>`, strconv.Itoa(k), r.Snapshot.Pods[k].Key.String())
	})
	if len(pods) == 0 {
		p.put(`none at present`)
	}
	p.put(`</span></dd></div><div><dt>Source</dt><dd>{}</dd></div><div><dt>In force since</dt><dd>`, pol.Origin.Source)
	p.moment(known.Since)
	p.put(`</dd></div>`)
	if pol.Origin.String() != pol.Origin.Source {
		p.put(`<div><dt>Written in</dt><dd><code>{}</code></dd></div>`, pol.Origin.String())
	}
	p.put(`<div class="wide"><dt>Content hash</dt><dd><code>{}</code></dd></div></dl><div class="sides">`, audit.Hash(&pol.Head))
	for _, d := range inventory.Directions {
		if pol.Isolates[d] {
			side(p, pol, d)
		}
	}
	p.put("</div></article>\n")
}

// side says in words what a policy allows in one direction.
func side(p page, pol *inventory.Policy, d inventory.Direction) {
	heading, nothing, who, from := markup("Ingress"), markup("Nothing may come in by this policy."), markup("From"), "anyone"
	if d == inventory.Egress {
		heading, nothing, who, from = "Egress", "Nothing may go out by this policy.", "To", "anywhere"
	}
	p.put(`<div><h4>`)
	p.put(heading)
	p.put(`</h4>`)
	defer p.put(`</div>`)
	if len(pol.Rules[d]) == 0 {
		p.put(`<p class="none">`)
		p.put(nothing)
		p.put(`</p>`)
		return
	}
	p.put(`<ol start="0">`)
	for _, rule := range pol.Rules[d] {
		p.put(`<li><dl class="rule"><dt>`)
		p.put(who)
		p.put(`</dt>`)
		for i, e := range rule.Peers {
			p.put(`<dd>`)
			if i > 0 {
				p.put(`<span class="soft">or</span> `)
			}
			p.put(`{}</dd>`, peer(pol, e))
		}
		if len(rule.Peers) == 0 {
			p.put(`<dd>{}</dd>`, from)
		}
		p.put(`<dt>On</dt><dd>{}</dd></dl></li>`, ports(rule.Ports))
	}
	p.put(`</ol>`)
}

// problems counts what findings lists.
func (r *Report) problems() int {
	n := len(r.Status.Rejected) + len(r.Status.Unenforceable)
	for _, s := range r.Status.Sources {
		n += len(s.Warnings)
	}
	return n
}

func (r *Report) findings(p page) {
	p.put(`<section aria-labelledby="findings"><h2 id="findings">Findings</h2>`)
	defer p.put("</section>\n")
	if r.problems() == 0 {
		p.put(`<p class="none">Nothing was rejected, nothing is doubtful, and every pod's traffic passes the table.</p>`)
	} else {
		p.put(`<ul class="findings">`)
		for _, x := range r.Status.Rejected {
			p.put(`<li><span class="badge no">rejected</span> <b>{}</b> {} <code>{}</code>`, x.Object, x.Reason, x.File)
			if x.Kept {
				p.put(` <span class="soft">Its last valid version stays in force.</span>`)
			}
			p.put("</li>\n")
		}
		for _, u := range r.Status.Unenforceable {
			p.put("<li><span class=\"badge no\">not enforced</span> <b>pod {}</b> {}</li>\n", u.Pod, u.Reason)
		}
		for _, s := range r.Status.Sources {
			for _, w := range s.Warnings {
				p.put("<li><span class=\"badge warn\">warning</span> {}</li>\n", w)
			}
		}
		p.put(`</ul>`)
	}
	p.put(`<h3>Exemptions</h3>`)
	if len(r.Status.NeverIsolated) == 0 {
		p.put(`<p class="none">No pod is exempt from its policies.</p>`)
		return
	}
	p.put(`<p>The configuration (neverIsolate) exempts these pods from all policies: `)
	list(p, r.Status.NeverIsolated, func(n string) { p.put(`<b>{}</b>`, n) })
	p.put(`.</p>`)
}

func (r *Report) denied(p page) {
	p.put(`<section aria-labelledby="denied"><h2 id="denied">Recently denied</h2>`)
	defer p.put("</section>\n")
	if len(r.Denied) == 0 {
		p.put(`<p class="none">The daemon has seen no flow being denied.</p>`)
		return
	}
	p.put(`<p>The newest first, as told by the packets that the kernel showed: a few a second of each pod. So the counts are not all there were.</p>
<div class="scroll"><table class="stack"><thead><tr><th scope="col">Flow</th><th scope="col">Verdict</th><th scope="col">Policies of the pod</th><th scope="col">Last seen</th><th scope="col">Packets</th></tr></thead><tbody>
`)
	for _, f := range slices.Backward(r.Denied) {
		service := f.Protocol
		if f.Port != 0 {
			service = strconv.Itoa(int(f.Port)) + "/" + service
		}
		p.put(`<tr><th scope="row">`)
		end(p, f.From)
		p.put(` <span class="arrow">→</span> `)
		end(p, f.To)
		p.put(` <span class="badge">{}</span>`, service)
		p.put(`</th><td data-label="Verdict"><span class="badge {}">{}</span> {} of {}</td><td data-label="Policies">`,
			map[bool]string{true: "no", false: "warn"}[f.Verdict == "denied"], f.Verdict, f.Direction, f.Pod)
		list(p, f.Policies, func(name string) { r.policyLink(p, name) })
		p.put(`</td><td data-label="Last seen">`)
		p.moment(f.Last)
		if f.Interface != "" {
			p.put(` <span class="soft">by {}</span>`, f.Interface)
		}
		p.put("</td><td data-label=\"Packets\">{}</td></tr>\n", number(f.Packets))
	}
	p.put(`</tbody></table></div>`)
}

// end writes one end of a denied flow.
func end(p page, e status.DeniedEnd) {
	switch {
	case e.Pod != "":
		p.put(`{} <code>{}</code>`, e.Pod, e.Address.String())
	case e.Gateway:
		p.put(`gateway <code>{}</code>`, e.Address.String())
	default:
		p.put(`<code>{}</code>`, e.Address.String())
	}
}

// policyLink names a policy and leads to it, if it is still in force.
func (r *Report) policyLink(p page, name string) {
	i := slices.IndexFunc(r.Snapshot.Policies, func(pol *inventory.Policy) bool { return pol.Key.String() == name })
	if i < 0 {
		p.put(`{}`, name)
		return
	}
	p.put(`<a href="#policy-{}">{}</a>`, strconv.Itoa(i), name)
}

func (r *Report) sources(p page) {
	p.put(`<section aria-labelledby="sources"><h2 id="sources">Sources</h2>
<div class="scroll"><table class="stack"><thead><tr><th scope="col">Source</th><th scope="col">State</th><th scope="col">Confirmed</th><th scope="col">Read</th></tr></thead><tbody>
`)
	for _, s := range r.Status.Sources {
		p.put(`<tr><th scope="row">{}</th><td data-label="State">`, s.Name)
		switch {
		case s.Error != "":
			p.put(`<span class="badge no">can't be read</span> {}. What was known last stays in force.`, s.Error)
		case !s.OfflineSince.IsZero():
			p.put(`<span class="badge warn">offline</span> since `)
			p.moment(s.OfflineSince)
		case s.Unknown:
			p.put(`<span class="badge warn">unknown</span> nothing is known of it yet`)
		default:
			p.put(`<span class="badge on">fine</span>`)
		}
		p.put(`</td><td data-label="Confirmed">`)
		if s.AgeSeconds != nil {
			p.put(`{} before this report`, (time.Duration(*s.AgeSeconds) * time.Second).String())
		} else {
			p.put(`–`)
		}
		p.put(`</td><td data-label="Read">`)
		p.moment(s.LastRead)
		p.put("</td></tr>\n")
	}
	p.put("</tbody></table></div></section>\n")
}
