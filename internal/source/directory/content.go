package directory

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/source"
)

// id names an object.
type id struct {
	kind inventory.Kind
	key  inventory.Key
}

func idOf(d *manifest.Document) id { return id{d.Kind, d.Key} }

// file is what is known of one file.
type file struct {
	stamp  stamp     // of what was read last; zero: look again
	target string    // the directory of the file that a symbolic link points to
	gone   time.Time // since when it is missing; zero: it is there
	busy   time.Time // since when it is being written; zero: it is not

	content     []entry               // its last valid content
	whole       bool                  // it can't be read or parsed: all of content is older
	invalid     []invalid             // its documents that are not valid
	diagnostics []manifest.Diagnostic // of what it holds now
}

// lacking says whether the file holds something that can't be in force, so that
// an older version of it counts.
func (f *file) lacking() bool { return f.stamp == stamp{} || f.whole || len(f.invalid) > 0 }

// entry is an object of a file.
type entry struct {
	*manifest.Document
	how standing
}

// standing says why an object is in a file's content.
type standing uint8

const (
	written standing = iota // the file has it, valid
	kept                    // the file has it, not valid or not readable: this is the last valid version
	orphan                  // the file has something, nobody can tell what, that may be this
)

// invalid is a document that is not valid, and why.
type invalid struct {
	id     id
	named  bool             // id can be believed
	origin inventory.Origin // of what reason tells
	reason string
}

// named says whether it is certain which object an invalid document is about. A
// misspelt kind or a name that no object can have is as good as none.
func named(i id) bool {
	switch i.kind {
	case inventory.KindPolicy, inventory.KindPod, inventory.KindNamespace:
	default:
		return false
	}
	return len(validation.IsDNS1123Subdomain(i.key.Name)) == 0 &&
		(i.key.Namespace == "" || len(validation.IsDNS1123Label(i.key.Namespace)) == 0)
}

// fail keeps all of the file's last valid content.
func (f *file) fail(diagnostics []manifest.Diagnostic) {
	f.diagnostics, f.whole, f.invalid = diagnostics, true, nil
	for i := range f.content {
		if f.content[i].how == written {
			f.content[i].how = kept
		}
	}
}

// take makes what was read the file's content. Invalid documents keep their last
// valid version; unchanged ones their pointer.
func (f *file) take(read manifest.File) {
	if !read.Parsed {
		f.fail(read.Diagnostics)
		return
	}
	last := make(map[id]*manifest.Document, len(f.content))
	for _, e := range slices.Backward(f.content) { // the first of a name counts
		last[idOf(e.Document)] = e.Document
	}
	old := f.content
	f.content, f.invalid, f.whole, f.diagnostics = nil, nil, false, read.Diagnostics
	present, anything := map[id]bool{}, false
	for i := range read.Documents {
		d := &read.Documents[i]
		before, known := last[idOf(d)]
		if d.Valid {
			if known && same(before, d) {
				d = before
			}
			f.content = append(f.content, entry{d, written})
		} else {
			bad := invalid{id: idOf(d), named: named(idOf(d))}
			bad.origin, bad.reason = reason(read, i)
			f.invalid = append(f.invalid, bad)
			if known {
				f.content = append(f.content, entry{before, kept})
			}
			anything = anything || !bad.named
		}
		present[idOf(d)] = true
	}
	if !anything {
		return
	}
	for _, e := range old {
		if !present[idOf(e.Document)] {
			f.content = append(f.content, entry{e.Document, orphan})
		}
	}
}

// same says whether two versions of a document are the same object in the same
// place.
func same(a, b *manifest.Document) bool {
	x, y := headOf(a), headOf(b)
	return x.Origin == y.Origin && string(x.JSON) == string(y.JSON)
}

// headOf gives the head of a valid document's object.
func headOf(d *manifest.Document) *inventory.Head {
	switch {
	case d.Pod != nil:
		return &d.Pod.Head
	case d.Namespace != nil:
		return &d.Namespace.Head
	default:
		return &d.Policy.Head
	}
}

// documents turns objects into the documents that they came from.
func documents(o inventory.Objects) []*manifest.Document {
	var all []*manifest.Document
	for _, n := range o.Namespaces {
		all = append(all, &manifest.Document{Kind: inventory.KindNamespace, Key: n.Key, Origin: n.Origin, Valid: true, Namespace: n})
	}
	for _, p := range o.Pods {
		all = append(all, &manifest.Document{Kind: inventory.KindPod, Key: p.Key, Origin: p.Origin, Valid: true, Pod: p})
	}
	for _, p := range o.Policies {
		all = append(all, &manifest.Document{Kind: inventory.KindPolicy, Key: p.Key, Origin: p.Origin, Valid: true, Policy: p})
	}
	return all
}

// reason gives the first error of an invalid document, and where it is. They are
// told by their places: a file may have several documents of one name, and some
// that have none. A field that is not known goes before what it made missing.
func reason(f manifest.File, i int) (inventory.Origin, string) {
	place := func(line1, column1, line2, column2 int) int {
		return cmp.Or(cmp.Compare(line1, line2), cmp.Compare(column1, column2))
	}
	from := f.Documents[i].Origin
	var first manifest.Diagnostic
	n := 0
	for _, d := range f.Diagnostics {
		if d.Severity != manifest.Error || place(d.Line, d.Column, from.Line, from.Column) < 0 {
			continue
		}
		if i+1 < len(f.Documents) && place(d.Line, d.Column, f.Documents[i+1].Origin.Line, f.Documents[i+1].Origin.Column) >= 0 {
			continue
		}
		if n++; n == 1 || unknownField(d) && !unknownField(first) {
			first = d
		}
	}
	if n == 0 {
		return from, "not valid"
	}
	from.Line, from.Column = first.Line, first.Column
	if n == 1 {
		return from, brief(first)
	}
	return from, fmt.Sprintf("%s (and %d more)", brief(first), n-1)
}

func unknownField(d manifest.Diagnostic) bool { return strings.HasPrefix(d.Message, "unknown field") }

// brief is a diagnostic without its place, which Rejected.Origin gives.
func brief(d manifest.Diagnostic) string {
	d.File, d.Object = "", ""
	return d.String()
}

// String is how Rejected and diagnostics call an object; "" if it has no name.
func (i id) String() string {
	if i.key.Name == "" {
		return ""
	}
	return fmt.Sprintf("%s %s", i.kind, i.key)
}

// assembly puts the files' contents together.
type assembly struct {
	inForce     map[id]*manifest.Document
	objects     inventory.Objects
	diagnostics []manifest.Diagnostic
	rejected    []source.Rejected
}

func (a *assembly) add(d *manifest.Document) {
	a.inForce[idOf(d)] = d
	switch {
	case d.Pod != nil:
		a.objects.Pods = append(a.objects.Pods, d.Pod)
	case d.Namespace != nil:
		a.objects.Namespaces = append(a.objects.Namespaces, d.Namespace)
	case d.Policy != nil:
		a.objects.Policies = append(a.objects.Policies, d.Policy)
	}
}

// assemble makes the report anew if something changed since the last.
func (s *Source) assemble(now time.Time) {
	if !s.dirty && !s.report.Time.IsZero() {
		return
	}
	s.dirty = false
	a := assembly{inForce: s.spare, diagnostics: slices.Clone(s.doubt)}
	clear(a.inForce)
	last := s.report.Objects
	a.objects.Pods = make([]*inventory.Pod, 0, len(last.Pods)+1)
	a.objects.Policies = make([]*inventory.Policy, 0, len(last.Policies)+1)
	if len(s.names) == 0 {
		s.names = slices.Sorted(maps.Keys(s.files))
	}
	for _, name := range s.names {
		a.claim(s.files[name])
	}
	for _, name := range s.names {
		a.keep(s.files[name], s.inForce)
		a.reject(s.files[name])
	}
	s.inForce, s.spare = a.inForce, s.inForce
	r := source.Report{Source: Name, Objects: a.objects, Diagnostics: a.diagnostics, Rejected: a.rejected, Err: s.err, Time: now}
	if s.report.Time.IsZero() || !equal(r, s.report) {
		s.report = r
	}
}

// claim puts a file's objects in force, unless a file before it has one of the
// same name (S10).
func (a *assembly) claim(f *file) {
	a.diagnostics = append(a.diagnostics, f.diagnostics...)
	for _, e := range f.content {
		winner, taken := a.inForce[idOf(e.Document)]
		switch {
		case e.how == orphan:
		case !taken:
			a.add(e.Document)
		case e.how == written:
			text := fmt.Sprintf("%s defines it too, and comes first: remove one, or give it another name", winner.Origin)
			o := headOf(e.Document).Origin
			a.diagnostics = append(a.diagnostics, manifest.Diagnostic{Severity: manifest.Error, File: o.File, Line: o.Line, Column: o.Column,
				Object: idOf(e.Document).String(), Field: "metadata.name", Value: e.Key.Name, Message: text})
			a.rejected = append(a.rejected, source.Rejected{Object: idOf(e.Document).String(), Origin: o, Reason: text})
		}
	}
}

// keep puts older versions in force that no file has any more: those of a file
// with documents that have no readable name, and those of invalid documents that
// came from another file.
func (a *assembly) keep(f *file, last map[id]*manifest.Document) {
	for _, e := range f.content {
		if _, taken := a.inForce[idOf(e.Document)]; e.how == orphan && !taken {
			a.add(e.Document)
		}
	}
	for _, i := range f.invalid {
		_, taken := a.inForce[i.id]
		if before, ok := last[i.id]; ok && !taken {
			a.add(before)
		}
	}
}

// reject reports what of a file is not in force as written.
func (a *assembly) reject(f *file) {
	if f.whole {
		d := f.diagnostics[0]
		for _, other := range f.diagnostics {
			if other.Severity == manifest.Error {
				d = other
				break
			}
		}
		a.rejected = append(a.rejected, source.Rejected{Origin: inventory.Origin{Source: Name, File: d.File, Line: d.Line, Column: d.Column},
			Reason: brief(d), Kept: len(f.content) > 0})
		return
	}
	orphans := slices.ContainsFunc(f.content, func(e entry) bool { return e.how == orphan })
	for _, i := range f.invalid {
		_, older := a.inForce[i.id]
		if !i.named {
			older = orphans
		}
		a.rejected = append(a.rejected, source.Rejected{Object: i.id.String(), Origin: i.origin, Reason: i.reason, Kept: older})
	}
}

// equal says whether two reports say the same. Time is not part of what they say.
func equal(a, b source.Report) bool {
	return slices.Equal(a.Objects.Pods, b.Objects.Pods) &&
		slices.Equal(a.Objects.Namespaces, b.Objects.Namespaces) &&
		slices.Equal(a.Objects.Policies, b.Objects.Policies) &&
		slices.Equal(a.Diagnostics, b.Diagnostics) &&
		slices.Equal(a.Rejected, b.Rejected) &&
		fmt.Sprint(a.Err) == fmt.Sprint(b.Err)
}
