// Package report writes what is enforced as one HTML page that can be filed: who
// reaches whom, every pod, every policy in plain words, and what is wrong.
//
// What always holds: the page loads nothing from anywhere and runs nothing; every
// text that comes from files or the network is escaped, control characters included;
// what colours say, words say too.
package report

import (
	"bufio"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// Report is what the page is made from.
type Report struct {
	Gateway  string    // its name
	Time     time.Time // when all this was so
	Status   status.Status
	Snapshot *inventory.Snapshot // what is in force
	Options  *inventory.Options  // that it is judged by
	Matrix   []policy.Cell
	NoMatrix string              // why there is none, where nothing is enforced
	Denied   []status.DeniedFlow // the newest last
}

// Write writes the page, UTF-8, in one go.
func Write(w io.Writer, r Report) error {
	p := page{bufio.NewWriter(w)}
	p.put(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Network policies of {}, {}</title>
<style>`, r.Gateway, r.Time.UTC().Format("2006-01-02 15:04 UTC"))
	p.put(style)
	p.put("</style></head>\n<body>\n")
	r.header(p)
	p.put("<main>\n")
	r.matrix(p)
	r.pods(p)
	r.policies(p)
	r.findings(p)
	r.denied(p)
	r.sources(p)
	r.held(p)
	p.put("</main>\n<footer>")
	p.put(`<p>Made by edgepolicyd {} on {} at `, r.Status.DaemonVersion, r.Gateway)
	p.moment(r.Time)
	p.put(`. A content hash is the SHA-256 of a policy's canonical JSON; the audit log names policies by the same.</p></footer>
</body></html>
`)
	return p.Flush()
}

func (r *Report) header(p page) {
	s := &r.Status
	p.put(`<header><p class="kicker">Network policy report</p><h1>{}</h1><p class="stamp">`, r.Gateway)
	p.moment(r.Time)
	p.put(` · generation {} · edgepolicyd {}</p>`, number(s.Generation), s.DaemonVersion)
	r.health(p)
	p.put(`<dl class="tiles">`)
	tile := func(value, what string) {
		p.put(`<div><dt>{}</dt><dd>{}</dd></div>`, what, value)
	}
	tile(number(uint64(s.IsolatedPods))+" of "+number(uint64(s.Pods)), "pods isolated")
	tile(number(uint64(len(s.Policies))), "policies in force")
	tile(number(uint64(r.problems())), "findings")
	tile(number(uint64(len(r.Denied))), "flows denied lately")
	p.put(`</dl><dl class="facts">`)
	there := "present"
	if !s.TablePresent {
		there = "not in the kernel"
	}
	fact := func(what markup, value string) {
		p.put(`<div><dt>`)
		p.put(what)
		p.put(`</dt><dd>{}</dd></div>`, value)
	}
	fact("Table", "inet "+s.Table+", "+there)
	p.put(`<div><dt>Last change</dt><dd>`)
	p.moment(s.LastApply)
	p.put(`</dd></div><div><dt>Running since</dt><dd>`)
	p.moment(s.Started)
	p.put(`</dd></div>`)
	fact("Connection", map[bool]string{true: "offline: what was known last is enforced", false: "no source is offline"}[s.Offline])
	fact("Mode", map[bool]string{true: "audit: policies are tried, and nothing is denied", false: "enforce"}[r.Options.Audit])
	if s.NodeName != "" {
		fact("Node", s.NodeName)
	}
	p.put(`</dl><nav aria-label="Contents"><ul>
<li><a href="#reach">Who reaches whom</a></li><li><a href="#pods">Pods</a></li><li><a href="#policies">Policies</a></li>
<li><a href="#findings">Findings</a></li><li><a href="#denied">Recently denied</a></li><li><a href="#sources">Sources</a></li><li><a href="#held">Held addresses</a></li>
</ul></nav></header>
`)
}

// health says how the gateway is and why.
func (r *Report) health(p page) {
	sign := "●"
	switch r.Status.Health {
	case status.Degraded:
		sign = "▲"
	case status.Failed:
		sign = "■"
	}
	p.put(`<div class="health {}"><p class="word"><span aria-hidden="true">{}</span> {}</p>`, r.Status.Health, sign, r.Status.Health)
	if len(r.Status.Reasons) == 0 {
		p.put(`<p>Everything that is known is enforced as it is written.</p>`)
	} else {
		p.put(`<ul>`)
		for _, reason := range r.Status.Reasons {
			p.put(`<li>{}</li>`, reason)
		}
		p.put(`</ul>`)
	}
	p.put(`</div>`)
}

func (r *Report) pods(p page) {
	p.put(`<section aria-labelledby="pods"><h2 id="pods">Pods</h2>`)
	defer p.put("</section>\n")
	r.caution(p)
	remote := 0
	for _, pod := range r.Snapshot.Pods {
		if pod.Remote {
			remote++
		}
	}
	if remote < len(r.Snapshot.Pods) {
		p.put(`<p>A pod that policies isolate has only the traffic that one of them allows, in that direction. One that is open has all.</p>
<div class="scroll"><table class="stack"><thead><tr><th scope="col">Pod</th><th scope="col">Addresses</th><th scope="col">Ingress: to the pod</th><th scope="col">Egress: from the pod</th></tr></thead><tbody>
`)
		for i, pod := range r.Snapshot.Pods {
			if !pod.Remote {
				r.pod(p, i, pod)
			}
		}
		p.put("</tbody></table></div>")
	} else {
		p.put(`<p class="none">No pods of this gateway are known.</p>`)
	}
	if remote > 0 {
		p.put(`<p class="soft">{} of other nodes, which policies here only name.</p>`, count(remote, "pod", "pods"))
	}
}

// caution says that what follows is known and not so.
func (r *Report) caution(p page) {
	if r.NoMatrix != "" {
		p.put(`<p><span class="badge no">not enforced</span> This is what the sources say; at present the gateway does not enforce it.</p>`)
	}
}

func (r *Report) pod(p page, i int, pod *inventory.Pod) {
	p.put(`<tr id="pod-{}"><th scope="row">`, strconv.Itoa(i))
	p.name(pod.Key.String())
	if len(pod.Labels) > 0 {
		p.put(` <small>{}</small>`, labelWords(pod.Labels))
	}
	p.put(`</th><td data-label="Addresses">`)
	for _, a := range pod.Addresses {
		p.put(`<code>{}</code> `, a.String())
	}
	switch {
	case pod.HostNetwork:
		p.put(`<span class="soft">the gateway's</span>`)
	case len(pod.Addresses) == 0:
		p.put(`<span class="soft">none yet</span>`)
	}
	p.put(`</td>`)
	for _, d := range inventory.Directions {
		p.put(`<td data-label="{}">`, d.String())
		r.isolation(p, pod, d)
		p.put(`</td>`)
	}
	p.put("</tr>\n")
}

// isolation says what policies make of a pod in one direction.
func (r *Report) isolation(p page, pod *inventory.Pod, d inventory.Direction) {
	if why := r.exempt(pod); why != "" {
		p.put(`<span class="badge warn">not isolated</span> {}`, why)
		return
	}
	var enforced, audited []int
	for i, pol := range r.Snapshot.Policies {
		switch {
		case !pol.Isolates[d] || !pol.Selects(pod):
		case r.Options.Audits(pol):
			audited = append(audited, i)
		default:
			enforced = append(enforced, i)
		}
	}
	link := func(i int) {
		p.put(`<a href="#policy-{}">{}</a>`, strconv.Itoa(i), r.Snapshot.Policies[i].Key.String())
	}
	if len(enforced) > 0 {
		p.put(`<span class="badge on">isolated</span> by `)
		list(p, enforced, link)
	} else {
		p.put(`<span class="badge">open</span>`)
	}
	if len(audited) > 0 {
		p.put(` <span class="soft">audited:</span> `)
		list(p, audited, link)
	}
}

// exempt says why no policy isolates a pod, whatever it selects; "" where they do.
func (r *Report) exempt(pod *inventory.Pod) string {
	name := pod.Key.String()
	for _, u := range r.Status.Unenforceable {
		if u.Pod == name {
			return "its traffic does not pass the table: " + u.Reason
		}
	}
	switch {
	case pod.HostNetwork:
		return "it has the gateway's network"
	case !pod.Selectable():
		return "it has ended"
	case slices.Contains(r.Status.NeverIsolated, name) || r.Options.NeverIsolated(pod.Key):
		return "neverIsolate names it"
	}
	return ""
}

func (r *Report) held(p page) {
	h := &r.Status.Hold
	p.put(`<section aria-labelledby="held"><h2 id="held">Held addresses</h2>`)
	defer p.put("</section>\n")
	if !h.On {
		p.put(`<p class="none">Addresses of the pod ranges that are no known pod's are not held.</p>`)
		return
	}
	p.put(`<p>What is of {}, but no known pod's, neither sends nor receives. Packets dropped so far, those with forged addresses among them: {}.</p>`,
		strings.Join(h.Ranges, ", "), number(h.Packets))
	if len(h.Addresses) == 0 {
		p.put(`<p class="none">No address is being held back.</p>`)
		return
	}
	p.put(`<p>Trying for more than 5 s:</p><ul>`)
	for _, a := range h.Addresses {
		p.put(`<li><code>{}</code></li>`, a)
	}
	p.put(`</ul>`)
}
