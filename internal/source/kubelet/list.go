package kubelet

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/source"
)

// Bounds of an answer. A node runs 110 pods by default and 500 at most in practice, a
// pod's item is 2.5 kB: a server that sends more than this is none we know.
const (
	maxBody = 16 << 20 // bytes
	maxPods = 5000
)

var errNoList = errors.New("what it answers is no PodList: is this the url of a kubelet?")

// split finds the items of a PodList, as parts of body. It looks no further into
// them than to their ends: an item that is not JSON is found out when it is
// decoded, and items that were decoded before need no second look. Items null,
// empty and absent are the same.
func split(body []byte) ([][]byte, error) {
	s := scanner{rest: body}
	var items [][]byte
	kind := ""
	if !s.next('{') {
		return nil, errNoList
	}
	for more := !s.next('}'); more; more = s.next(',') {
		name := s.value()
		if !s.next(':') {
			return nil, s.damaged()
		}
		if string(name) == `"items"` && s.next('[') {
			if items = s.list(); s.failed {
				return nil, s.damaged()
			}
			if len(items) > maxPods {
				return nil, fmt.Errorf("its list holds more than %d pods, too many for one gateway", maxPods)
			}
			continue
		}
		value := s.value()
		if string(name) == `"kind"` {
			kind = string(value)
		}
		if string(name) == `"items"` && string(value) != "null" {
			return nil, errNoList
		}
	}
	switch {
	case s.failed || !s.closed():
		return nil, s.damaged()
	case kind != `"PodList"`:
		return nil, errNoList
	}
	return items, nil
}

// scanner goes through JSON value by value. What it finds is right if the JSON
// is.
type scanner struct {
	rest   []byte
	failed bool
	last   byte // that next took
}

func (s *scanner) damaged() error {
	return errors.New("its list is cut off or no JSON")
}

// next takes c if it comes next, white space aside.
func (s *scanner) next(c byte) bool {
	s.rest = bytes.TrimLeft(s.rest, " \t\r\n")
	if len(s.rest) == 0 || s.rest[0] != c {
		return false
	}
	s.rest, s.last = s.rest[1:], c
	return true
}

// closed says whether an object ended here, and nothing comes after it.
func (s *scanner) closed() bool {
	ended := s.last == '}' || s.next('}')
	return ended && len(bytes.TrimLeft(s.rest, " \t\r\n")) == 0
}

// list gives the values of an array whose bracket was taken.
func (s *scanner) list() [][]byte {
	var all [][]byte
	if s.next(']') {
		return nil
	}
	for len(all) <= maxPods {
		all = append(all, s.value())
		if s.failed || s.next(']') {
			return all
		}
		if !s.next(',') {
			s.failed = true
			return nil
		}
	}
	return all // too many
}

// value gives the next value.
func (s *scanner) value() []byte {
	s.rest = bytes.TrimLeft(s.rest, " \t\r\n")
	s.last = 0
	for i, depth := 0, 0; i < len(s.rest); i++ {
		switch s.rest[i] {
		case '"':
			n := text(s.rest[i:])
			if n == 0 {
				s.failed = true
				return nil
			}
			i += n - 1
		case '{', '[':
			depth++
			continue
		case '}', ']':
			depth--
		case ',', ':', ' ', '\t', '\r', '\n':
			if depth == 0 { // a number or word ended before
				return s.take(i)
			}
			continue
		default:
			if depth > 0 || i+1 < len(s.rest) && !bytes.ContainsRune([]byte(",]} \t\r\n"), rune(s.rest[i+1])) {
				continue
			}
		}
		if depth <= 0 {
			return s.take(i + 1)
		}
	}
	s.failed = true
	return nil
}

func (s *scanner) take(n int) []byte {
	v := s.rest[:n:n]
	s.rest = s.rest[n:]
	s.failed = s.failed || n == 0
	return v
}

// text gives the length of the JSON string that b starts with, quotes included;
// 0 if it does not end.
func text(b []byte) int {
	for i := 1; i < len(b); {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return 0
		}
		i += n + 1
		escapes := 0
		for b[i-2-escapes] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			return i
		}
	}
	return 0
}

// item is an item of a list, decoded.
type item struct {
	round    uint64 // the last list that had it
	key      inventory.Key
	pod      *inventory.Pod // nil if it is not valid
	carried  []carried      // the policies in its annotation
	warnings []manifest.Diagnostic
	rejected source.Rejected // if pod is nil
}

// decode reads an item of a list.
func (s *Source) decode(raw []byte) *item {
	doc, found := manifest.Served(Name, inventory.KindPod, raw)
	it := &item{key: doc.Key, warnings: found}
	if !doc.Valid {
		it.rejected = source.Rejected{Object: "Pod " + doc.Key.String(), Origin: doc.Origin, Reason: reason(found)}
		if doc.Key.Name == "" {
			it.rejected.Object = ""
		}
		return it
	}
	it.pod = doc.Pod
	if s.cfg.PolicyAnnotation {
		var meta struct {
			Metadata struct {
				Annotations map[string]string `json:"annotations"`
			} `json:"metadata"`
		}
		// Served read the same and found nothing wrong.
		if err := json.Unmarshal(raw, &meta); err == nil {
			it.carried = carriedBy(doc.Key, meta.Metadata.Annotations[Annotation])
		}
	}
	return it
}

// reason is the first error of what was found, without the object's name, which
// Rejected gives.
func reason(found []manifest.Diagnostic) string {
	first, n := "not valid", 0
	for _, d := range found {
		if d.Severity != manifest.Error {
			continue
		}
		if n++; n == 1 {
			d.File, d.Object = "", ""
			first = d.String()
		}
	}
	if n > 1 {
		return fmt.Sprintf("%s (and %d more)", first, n-1)
	}
	return first
}

// better orders two items of one name, as a list holds for a short time when a
// pod is replaced: the one that runs, has an address, and then always the same.
func better(a, b *item) bool {
	rank := func(it *item) int {
		switch {
		case it.pod == nil:
			return 0
		case !it.pod.Selectable():
			return 1
		case len(it.pod.Addresses) == 0:
			return 2
		}
		return 3
	}
	uid := func(it *item) string {
		if it.pod == nil {
			return it.rejected.Reason
		}
		return it.pod.UID
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(uid(b), uid(a))) > 0
}
